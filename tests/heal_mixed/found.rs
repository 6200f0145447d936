//! Images that a fuzzer has found.

use instar_abi::problem::Tier;
use instar_mount::heal::Ending;

use crate::shapes::Choice;
use crate::subject::Subject;
use crate::support::builder::{Shape, Step};
use crate::support::fields::Change;
use crate::support::reference::Bytes as _;

fn small() -> Shape {
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
        steps: vec![Step::Write { at: 0, count: 3 }],
        seed: 0,
        gaps: 0,
        gap_max: 1,
    }
}

#[test]
fn leaks_of_a_dirty_image_are_freed_with_the_counts_past_its_end() {
    let mut subject = Subject::damaged(&Shape { dirty: true, ..small() }, &[]);
    let block = subject.healthy.number(subject.healthy.number(48, 8), 8);
    let leaked = subject.healthy.len() / 512;
    subject.damaged.extend([0; 512]);
    for cluster in [leaked, leaked + 7] {
        subject.damaged[usize::try_from(block).unwrap() + cluster * 2 + 1] = 1;
    }
    subject.tier = Tier::Leaks;
    assert_eq!(subject.mend().unwrap().ending, Ending::Repaired);
}

#[test]
fn counts_are_mended_where_that_brings_a_doubtful_size_to_light() {
    let shape = Shape {
        cluster_bits: 12,
        refcount_order: 6,
        dirty: true,
        short_sectors: 128,
        spare_l1: 26,
        header_more: 24,
        steps: vec![
            Step::Write { at: 521, count: 2 },
            Step::Discard { at: 4015, count: 2 },
            Step::Zero { at: 1867, count: 1, keep: false },
            Step::Zero { at: 841, count: 3, keep: true },
            Step::Discard { at: 2576, count: 17 },
            Step::Write { at: 641, count: 3 },
            Step::Subclusters { at: 3476, allocated: 2_048_517_396, zero: 3_999_452_663 },
            Step::Zero { at: 3896, count: 54, keep: true },
            Step::Delete { which: 3 },
            Step::Write { at: 3975, count: 3 },
            Step::Write { at: 585, count: 2 },
            Step::Compress { at: 1808, bytes: 866_964_807 },
            Step::Write { at: 2301, count: 1 },
            Step::Write { at: 2616, count: 3 },
            Step::Discard { at: 2998, count: 3 },
            Step::Write { at: 2639, count: 1 },
            Step::Discard { at: 1240, count: 2 },
        ],
        seed: 17_346_281_894_890_633_153,
        gaps: 52,
        gap_max: 8,
        ..small()
    };
    let choice = |kind, which, change| Choice { kind, which, any: false, change };
    let choices = [
        choice(6_074_155_181_688_409_904, 14_854_073_113_198_451_512, Change::Swap),
        choice(248_414_196_678_886_655, 6_089_067_500_907_573_985, Change::Count { plus: false }),
    ];
    let subject = Subject::damaged(&shape, &choices);
    assert_eq!(subject.mend().unwrap().ending, Ending::RepairedPartly);
}

#[test]
fn counts_are_not_written_into_what_may_be_the_data_of_a_lost_snapshot() {
    let shape = Shape {
        lazy: true,
        dirty: true,
        spare_l1: 36,
        header_more: 24,
        steps: vec![Step::VmState { clusters: 15 }, Step::VmState { clusters: 19 }, Step::Snapshot],
        seed: 10_055_284_024_492_657_547,
        gaps: 139,
        gap_max: 4,
        ..small()
    };
    let choice = |kind, which, change| Choice { kind, which, any: false, change };
    let choices =
        [choice(138, 31_956, Change::Random(1661)), choice(141, 52_999, Change::OffByOne { plus: false })];
    Subject::damaged(&shape, &choices).mend().unwrap();
}

#[test]
fn entries_are_not_written_into_what_may_be_the_data_of_a_lost_snapshot() {
    let write = |at, count| Step::Write { at, count };
    let shape = Shape {
        refcount_order: 1,
        extended_l2: true,
        dirty: true,
        tables: 3,
        header_more: 8,
        steps: vec![
            write(529, 2),
            Step::VmState { clusters: 12 },
            write(1, 2),
            Step::Apply { which: 2 },
            write(2966, 1),
            Step::Subclusters { at: 695, allocated: 0, zero: 0 },
            write(0, 1),
            write(0, 1),
            write(0, 1),
            write(0, 1),
            write(0, 1),
        ],
        gap_max: 4,
        ..small()
    };
    let choice = |kind, which, change| Choice { kind, which, any: false, change };
    let choices = [
        choice(2, 45_824, Change::Flip(62)),
        choice(205, 25_742, Change::Random(72_058_693_580_521_274)),
        choice(19, 27_790, Change::OffByOne { plus: true }),
        choice(9, 33_576, Change::Random(380)),
    ];
    let subject = Subject::damaged(&shape, &choices);
    subject.mend().unwrap();
}
