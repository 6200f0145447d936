//! Random shapes and changes.

use proptest::prelude::*;

use crate::support::builder::{Shape, Step};
use crate::support::fields::{self, Change, Field, Patch};
use crate::support::reference::Bytes;

fn step() -> impl Strategy<Value = Step> {
    let at = 0_u64..4096;
    let count = prop_oneof![4 => 1_u64..4, 1 => 1_u64..70];
    prop_oneof![
        6 => (at.clone(), count.clone()).prop_map(|(at, count)| Step::Write { at, count }),
        2 => (at.clone(), count.clone(), any::<bool>()).prop_map(|(at, count, keep)| Step::Zero { at, count, keep }),
        2 => (at.clone(), any::<u32>(), any::<u32>())
            .prop_map(|(at, allocated, zero)| Step::Subclusters { at, allocated, zero }),
        4 => (at.clone(), any::<u32>()).prop_map(|(at, bytes)| Step::Compress { at, bytes: u64::from(bytes) }),
        2 => (at, count).prop_map(|(at, count)| Step::Discard { at, count }),
        1 => (0_u64..20).prop_map(|clusters| Step::VmState { clusters }),
        2 => Just(Step::Snapshot),
        1 => (0_usize..8).prop_map(|which| Step::Apply { which }),
        1 => (0_usize..8).prop_map(|which| Step::Delete { which }),
        1 => (1_u64..5, 0_u64..200).prop_map(|(tables, short_sectors)| Step::Resize { tables, short_sectors }),
    ]
}

#[derive(Debug, Clone)]
struct Features {
    extended_l2: bool,
    zstd: bool,
    lazy: bool,
    dirty: bool,
    backing: bool,
    data_file: Option<bool>,
    luks_bytes: u64,
    strange_extensions: bool,
    bitmaps: Vec<(u32, Vec<u8>)>,
    header_more: u32,
}

fn features() -> impl Strategy<Value = Features> {
    let rarely = || prop::bool::weighted(0.15);
    let bitmap = (9_u32..18, prop::collection::vec(0_u8..3, 1..4));
    (
        (any::<bool>(), rarely(), rarely(), rarely(), rarely(), rarely()),
        prop_oneof![8 => Just(None), 1 => Just(Some(false)), 1 => Just(Some(true))],
        prop_oneof![8 => Just(0_u64), 1 => 1_u64..200_000],
        prop_oneof![4 => Just(Vec::new()), 1 => prop::collection::vec(bitmap, 1..4)],
        (0_u32..4).prop_map(|words| words * 8),
    )
        .prop_map(|(bits, data_file, luks_bytes, bitmaps, header_more)| Features {
            extended_l2: bits.0,
            zstd: bits.1,
            lazy: bits.2,
            dirty: bits.3,
            backing: bits.4 && data_file != Some(true),
            strange_extensions: bits.5,
            data_file,
            luks_bytes,
            bitmaps,
            header_more,
        })
}

/// A shape of an image of at most a few megabytes.
pub fn shape() -> impl Strategy<Value = Shape> {
    shape_of(prop_oneof![40 => Just(9_u32), 10 => 10_u32..13, 4 => Just(14_u32), 1 => Just(16_u32)])
}

/// A shape with clusters of one of these sizes.
pub fn shape_of(cluster_bits: impl Strategy<Value = u32>) -> impl Strategy<Value = Shape> {
    (
        (prop_oneof![1 => Just(2_u32), 4 => Just(3_u32)], cluster_bits, 0_u32..7),
        features(),
        (
            1_u64..5,
            prop_oneof![1 => Just(0_u64), 1 => 0_u64..200],
            prop_oneof![3 => Just(0_u64), 1 => 0_u64..40],
        ),
        prop::collection::vec(step(), 0..24),
        (
            any::<u64>(),
            prop_oneof![1 => Just(0_u8), 1 => any::<u8>()],
            prop_oneof![30 => Just(8_u64), 1 => Just(5000_u64)],
        ),
    )
        .prop_map(|((version, cluster_bits, refcount_order), features, size, steps, layout)| {
            let v3 = version >= 3;
            // Larger clusters only make larger files of the same shape.
            let (tables, gap_max) = if cluster_bits > 12 { (1 + size.0 % 2, 4) } else { (size.0, layout.2) };
            let luks_bytes =
                if cluster_bits > 12 { features.luks_bytes } else { features.luks_bytes % 20_000 };
            Shape {
                version,
                cluster_bits,
                refcount_order: if v3 { refcount_order } else { 4 },
                extended_l2: v3 && features.extended_l2,
                zstd: v3 && features.zstd,
                lazy: features.lazy,
                dirty: v3 && features.dirty,
                tables,
                short_sectors: size.1,
                spare_l1: size.2,
                header_more: features.header_more,
                backing: features.backing,
                data_file: if v3 { features.data_file } else { None },
                luks_bytes: if v3 { luks_bytes } else { 0 },
                strange_extensions: features.strange_extensions,
                bitmaps: if v3 { features.bitmaps } else { Vec::new() },
                steps,
                seed: layout.0,
                gaps: layout.1,
                gap_max,
            }
        })
}

/// A way to change a field.
fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        2 => any::<u64>().prop_map(Change::Random),
        2 => (0_u64..4096).prop_map(Change::Random),
        5 => (0_u64..64).prop_map(Change::Flip),
        2 => Just(Change::Swap),
        1 => Just(Change::Zero),
        1 => Just(Change::Ones),
        2 => any::<bool>().prop_map(|plus| Change::OffByOne { plus }),
        2 => any::<bool>().prop_map(|plus| Change::Count { plus }),
    ]
}

/// Which field, and what is done to it.
#[derive(Debug, Clone)]
pub struct Choice {
    /// Which kind of field.
    pub kind: u64,
    /// Which of them.
    pub which: u64,
    /// Fields that are not in use too.
    pub any: bool,
    /// How it is changed.
    pub change: Change,
}

impl Choice {
    /// The field among all of an image, and the one behind it.
    pub fn field(&self, all: &[Field]) -> (Field, Option<Field>) {
        fields::choose(all, self.kind, self.which, self.any)
    }

    /// What to write into the file; nothing where that is what it holds.
    pub fn patch(&self, all: &[Field], file: &impl Bytes, cluster: u64) -> Patch {
        let (field, next) = self.field(all);
        field.change(file, self.change, next.as_ref(), cluster)
    }
}

fn choice() -> impl Strategy<Value = Choice> {
    (any::<u64>(), any::<u64>(), prop::bool::weighted(0.2), change())
        .prop_map(|(kind, which, any, change)| Choice { kind, which, any, change })
}

/// Several of them.
pub fn choices(times: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Choice>> {
    prop::collection::vec(choice(), times)
}
