//! Neither memory nor the run makes a difference to what is found.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use instar_mount::image::Backend;
use proptest::prelude::*;

use crate::checked::{Checked, Memory, files};
use crate::native;
use crate::shapes::{choices, shape};
use crate::support::builder::{Shape, Step};
use crate::support::fields;
use crate::support::reference::Bytes as _;

/// Budgets from ample to just enough: the least holds the counts of one window of 16384 clusters, so that a file
/// of more takes several passes.
const BUDGETS: [usize; 4] = [256 << 20, 4 << 20, 600 << 10, 160 << 10];

/// A shape whose file reaches over several windows.
fn wide_shape() -> impl Strategy<Value = Shape> {
    (shape(), 1_u64..30_000).prop_map(|(shape, gap_max)| Shape {
        cluster_bits: 9,
        extended_l2: false,
        gaps: shape.gaps.max(100),
        gap_max,
        ..shape
    })
}

proptest! {
    #![proptest_config(crate::config(60))]

    #[test]
    fn findings_are_the_same_for_every_budget_and_run(shape in wide_shape(), choices in choices(0..4)) {
        let built = shape.build();
        let all = fields::all(&built.bytes);
        let image = Memory::new(built.bytes);
        for choice in &choices {
            let patch = choice.patch(&all, &*image.0.read(), 512);
            for (at, bytes) in patch {
                image.write_at(&bytes, at).expect("memory");
            }
        }
        let files = files(&image, built.data_file_bytes);
        let usual = Checked::of(&files);
        prop_assert_eq!(&usual, &Checked::of(&files), "two runs differ");
        for budget in BUDGETS {
            let other = Checked::with_memory(&files, budget);
            prop_assert_eq!(usual.ids(), other.ids(), "ids with {} bytes, {} passes", budget, other.summary.passes);
            let (few, many) = (&other.findings, &usual.findings);
            let extra: Vec<_> = few.iter().filter(|fact| !many.contains(fact)).collect();
            let lost: Vec<_> = many.iter().filter(|fact| !few.contains(fact)).collect();
            prop_assert!(few == many, "{} bytes, {} passes: extra {:x?}, lost {:x?}", budget, other.summary.passes, extra, lost);
            prop_assert!(usual.owners == other.owners, "owners with {} bytes", budget);
        }
    }
}

/// A disk whose one L2 table and data lie in different windows, in an order that `seed` makes.
fn scattered(seed: u64) -> Shape {
    Shape {
        version: 3,
        cluster_bits: 9,
        refcount_order: 4,
        extended_l2: false,
        zstd: false,
        lazy: false,
        dirty: false,
        tables: 1,
        short_sectors: 0,
        spare_l1: 0,
        header_more: 0,
        backing: false,
        data_file: None,
        luks_bytes: 0,
        strange_extensions: false,
        bitmaps: Vec::new(),
        steps: vec![Step::Write { at: 0, count: 40 }],
        seed,
        gaps: 255,
        gap_max: 40_000,
    }
}

#[test]
fn lost_table_in_another_window_than_its_data_frees_nothing() {
    let mut passes = 0;
    for seed in 0..6 {
        let image = Memory::new(scattered(seed).build().bytes);
        let l1_offset = image.0.read().number(40, 8);
        image.write_at(&[0; 8], l1_offset).expect("memory");
        let files = files(&image, None);
        assert_eq!(Checked::of(&files).ids(), ["orphan-data", "orphan-table"], "seed {seed}");
        for budget in BUDGETS.into_iter().chain([12 << 10]) {
            let checked = Checked::with_memory(&files, budget);
            passes = passes.max(checked.summary.passes);
            assert!(
                !checked.ids().contains(&"refcount-leak"),
                "seed {seed}, {budget} bytes: {:?}",
                checked.ids()
            );
        }
    }
    assert!(passes > 1, "no image was larger than a window");
}

#[test]
fn findings_of_many_windows_come_in_the_order_of_one() {
    let mut passes = 0;
    for seed in 0..6 {
        let image = Memory::new(scattered(seed).build().bytes);
        let table = image.0.read().number(40, 8);
        let table = image.0.read().number(table, 8) & !(1 << 63);
        // Entries that share clusters, lose them, and point at the refcount table; counts without a block.
        for (from, to) in [(3, 0), (9, 5), (20, 6), (30, 31)] {
            let entry = image.0.read().at(table + from * 8, 8).to_vec();
            image.write_at(&entry, table + to * 8).expect("memory");
        }
        let refcounts = image.0.read().number(48, 8);
        image.write_at(&(refcounts | 1 << 63).to_be_bytes(), table + 25 * 8).expect("memory");
        image.write_at(&[0; 16], refcounts + 8).expect("memory");
        let files = files(&image, None);
        let usual = Checked::of(&files);
        assert!(usual.findings.len() > 5 && !usual.owners.is_empty(), "seed {seed}: {:?}", usual.ids());
        for budget in BUDGETS {
            let other = Checked::with_memory(&files, budget);
            passes = passes.max(other.summary.passes);
            assert_eq!(usual.findings, other.findings, "seed {seed}, {budget} bytes");
            assert_eq!(usual.owners, other.owners, "seed {seed}, {budget} bytes");
        }
    }
    assert!(passes > 1, "no image was larger than a window");
}

/// Longest that the check of a file of terabytes with next to nothing in it may take.
const SPARSE_MAX: Duration = Duration::from_secs(20);

/// A file that is a hole behind its first bytes.
#[derive(Debug)]
struct Sparse {
    head: Vec<u8>,
    len: u64,
}

impl Backend for Sparse {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        into.copy_from_slice(&self.head.at(offset, into.len() as u64));
        Ok(())
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn data_ranges(&self, offset: u64, len: u64) -> io::Result<Vec<(u64, u64)>> {
        let end = (offset + len).min(self.head.len() as u64);
        Ok(if offset < end { vec![(offset, end - offset)] } else { Vec::new() })
    }
}

/// Checks the same image with little and much memory, and says what was found.
fn check_sparse(head: &[u8], len: u64) -> Vec<&'static str> {
    let image: Arc<dyn Backend> = Arc::new(Sparse { head: head.to_vec(), len });
    let [little, much] = [16 << 20, 256 << 20].map(|memory_bytes| {
        let start = Instant::now();
        let checked = Checked::with_memory(&native::files(Arc::clone(&image)), memory_bytes);
        assert!(start.elapsed() < SPARSE_MAX, "{len} bytes, {memory_bytes} of memory: {:?}", start.elapsed());
        checked
    });
    assert_eq!((little.findings, little.owners), (much.findings.clone(), much.owners.clone()), "{len} bytes");
    much.ids()
}

#[test]
fn sparse_file_of_terabytes_is_checked_to_its_end_in_little_memory() {
    for (cluster_bits, len) in [(16, 64_u64 << 40), (9, 1 << 40)] {
        let shape = Shape { cluster_bits, gap_max: 4, ..scattered(1) };
        let mut head = shape.build().bytes;
        assert_eq!(check_sparse(&head, len), [""; 0], "clusters of {}", 1 << cluster_bits);
        // The first guest cluster, which is in use, now lies in the last cluster of the file.
        let table = head.number(head.number(40, 8), 8) & !(1 << 63);
        let entry = usize::try_from(table).expect("small");
        let far = (len - (1 << cluster_bits)) | 1 << 63;
        head[entry..entry + 8].copy_from_slice(&far.to_be_bytes());
        let found = check_sparse(&head, len);
        assert!(found.contains(&"refcount-block-missing"), "clusters of {}: {found:?}", 1 << cluster_bits);
        assert!(!found.contains(&"refcount-leak"), "clusters of {}: {found:?}", 1 << cluster_bits);
    }
}
