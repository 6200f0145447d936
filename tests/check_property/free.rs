//! What is told as free is exactly what a second opinion finds without a user, and nothing changes without it.

use std::collections::BTreeSet;

use instar_abi::finding::Table;
use instar_abi::region::{FREE, Region};
use instar_abi::summary::{Stranger, Summary};
use instar_mount::sandbox::observer::Observer;
use proptest::prelude::*;

use crate::checked::{Checked, Memory, files};
use crate::native::NativeHost;
use crate::shapes::{choices, shape};
use crate::support::builder::{Built, Shape};
use crate::support::fields;
use crate::support::reference::{self, Bytes as _, Head};

#[derive(Default)]
struct Told(Vec<Region>);

impl Observer for Told {
    fn region(&mut self, table: Table, region: &Region) {
        assert_eq!((table, region.flags), (Table::File, FREE));
        self.0.push(*region);
    }
}

fn told(bytes: &[u8], data_file_bytes: Option<u64>, memory_bytes: usize) -> (Summary, Vec<Region>) {
    let mut told = Told::default();
    let files = files(&Memory::new(bytes.to_vec()), data_file_bytes);
    let summary = instar_qcow2::free::run(&mut NativeHost::new(files, &mut told).with_memory(memory_bytes));
    (summary, told.0)
}

/// Clusters that nobody uses, with all their bytes in the file and a count that says so.
fn unused(bytes: &Vec<u8>) -> BTreeSet<u64> {
    let (head, users) = (Head::of(bytes), reference::users(bytes).expect("a healthy image"));
    let is_counted = |cluster: u64| {
        let entry = head.refcount_table + cluster / head.per_block() * 8;
        entry < head.refcount_table + (head.refcount_table_clusters << head.cluster_bits)
            && bytes.number(entry, 8) != 0
    };
    (0..bytes.length() / head.cluster())
        .filter(|cluster| !users.contains_key(cluster) && is_counted(*cluster))
        .collect()
}

/// Without what is not known, and with junk where nothing is.
fn plain(shape: Shape) -> (Shape, Built) {
    let shape = Shape { strange_extensions: false, header_more: 0, data_file: None, ..shape };
    let mut built = shape.build();
    let cluster_bytes = 1 << shape.cluster_bits;
    // A file need not end with a cluster.
    built.bytes.extend(vec![0xee; cluster_bytes * 3 + cluster_bytes / 2]);
    for cluster in unused(&built.bytes) {
        let at = usize::try_from(cluster << shape.cluster_bits).expect("small");
        built.bytes[at..at + cluster_bytes].fill(0xee);
    }
    (shape, built)
}

proptest! {
    #![proptest_config(crate::config(300))]

    #[test]
    fn free_clusters_of_any_shape_are_those_without_a_user(shape in shape(), small in any::<bool>()) {
        let (shape, built) = plain(shape);
        let memory_bytes = if small { 64 << 10 } else { crate::checked::MEMORY };
        let (_, regions) = told(&built.bytes, None, memory_bytes);
        let cluster = 1_u64 << shape.cluster_bits;
        prop_assert!(regions.windows(2).all(|pair| pair[0].offset + pair[0].len < pair[1].offset), "{:?}", regions);
        let clusters = regions.iter().flat_map(|region| {
            assert!(region.offset % cluster == 0 && region.len % cluster == 0 && region.len > 0);
            region.offset / cluster..(region.offset + region.len) / cluster
        });
        prop_assert_eq!(clusters.collect::<BTreeSet<u64>>(), unused(&built.bytes));
        let before = reference::examine(&built.bytes).expect("healthy");
        let mut without = built.bytes.clone();
        for region in &regions {
            let at = usize::try_from(region.offset).expect("small");
            without[at..at + usize::try_from(region.len).expect("small")].fill(0);
        }
        prop_assert_eq!(reference::examine(&without).expect("healthy as well"), before);
    }

    #[test]
    fn image_with_something_unknown_or_wrong_has_no_free_clusters(
        shape in shape(), choices in choices(1..3),
    ) {
        let built = shape.build();
        let (summary, regions) = told(&built.bytes, built.data_file_bytes, crate::checked::MEMORY);
        let is_strange = shape.strange_extensions || built.data_file_bytes.is_some()
            || Head::of(&built.bytes).header_bytes > 112;
        prop_assert_eq!(Stranger::from_u32(summary.stranger).is_some(), is_strange);
        prop_assert!(regions.is_empty() || !is_strange);
        let (shape, mut built) = plain(shape);
        let all = fields::all(&built.bytes);
        for choice in &choices {
            let patch = choice.patch(&all, &built.bytes, 1 << shape.cluster_bits);
            for (at, bytes) in patch {
                let at = usize::try_from(at).expect("small");
                if let Some(place) = built.bytes.get_mut(at..at + bytes.len()) {
                    place.copy_from_slice(&bytes);
                }
            }
        }
        let (_, regions) = told(&built.bytes, None, crate::checked::MEMORY);
        let checked = Checked::of(&files(&Memory::new(built.bytes.clone()), None));
        prop_assert!(regions.is_empty() || checked.is_clean(), "{:?}", checked.ids());
    }
}
