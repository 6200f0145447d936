//! Neither memory nor the run makes a difference to what is found.

use instar_abi::finding::NONE;
use instar_abi::problem::Problem;

use instar_mount::image::Backend as _;
use proptest::prelude::*;

use crate::checked::{Checked, Memory, files};
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

/// What findings say of each item, in order: windows end runs, and tell their own findings together.
fn facts(checked: &Checked) -> Vec<Vec<u64>> {
    let mut all = Vec::new();
    for finding in &checked.findings {
        let step = |start: u64, len: u64, item: u64| match (start, finding.problem) {
            (NONE, _) => NONE,
            _ => start + len / finding.count * item,
        };
        // A count of 1 says nothing of items: the finding is about something larger.
        let items = if finding.problem == Problem::RefcountBlockMissing as u32 { 1 } else { finding.count };
        for item in 0..items {
            all.push(vec![
                u64::from(finding.problem),
                u64::from(finding.table),
                u64::from(finding.snapshot),
                finding.index.saturating_add(item),
                step(finding.host_offset, finding.host_len, item),
                step(finding.guest_offset, finding.guest_len, item),
            ]);
        }
    }
    all.sort_unstable();
    all
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
        let files = files(&image, built.data_file.as_deref());
        let usual = Checked::of(&files);
        prop_assert_eq!(&usual, &Checked::of(&files), "two runs differ");
        for budget in BUDGETS {
            let other = Checked::with_memory(&files, budget);
            prop_assert_eq!(usual.ids(), other.ids(), "ids with {} bytes, {} passes", budget, other.summary.passes);
            let (few, many) = (facts(&other), facts(&usual));
            let extra: Vec<_> = few.iter().filter(|fact| !many.contains(fact)).collect();
            let lost: Vec<_> = many.iter().filter(|fact| !few.contains(fact)).collect();
            prop_assert!(few == many, "{} bytes, {} passes: extra {:x?}, lost {:x?}", budget, other.summary.passes, extra, lost);
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
