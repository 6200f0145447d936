//! What every job says of an image in its summary: the facts of the header, or why there are none.
//!
//! Invariant: two jobs on the same bytes tell the same facts. Nothing is counted here.

use instar_abi::problem::Problem;
use instar_abi::summary::{Outcome, Summary, feature};

use crate::inflate::Compression;
use crate::ondisk::header::{Crypt, compatible};
use crate::ondisk::{Fault, Header};

/// The facts of a header, as a complete summary without counts.
#[must_use]
pub fn of_header(header: &Header, bitmaps: u32) -> Summary {
    Summary {
        outcome: Outcome::Complete as u32,
        version: header.version,
        features: features(header, bitmaps),
        cluster_bits: header.cluster.bits(),
        refcount_bits: header.refcount_bits(),
        snapshots: header.snapshots,
        bitmaps,
        virtual_size: header.virtual_size,
        ..Summary::default()
    }
}

/// The summary of a job that `fault` has kept from looking at the image.
#[must_use]
pub fn of_refusal(fault: &Fault, findings: u64) -> Summary {
    let (outcome, unsupported) = match fault.problem {
        Problem::NotQcow2 => (Outcome::NotQcow2, 0),
        problem @ (Problem::HeaderVersion
        | Problem::HeaderIncompatibleFeature
        | Problem::HeaderCryptMethod) => (Outcome::Unsupported, problem as u32),
        _ => (Outcome::Incomplete, 0),
    };
    Summary { outcome: outcome as u32, unsupported, findings, ..Summary::default() }
}

/// [`feature`] bits of an image.
fn features(header: &Header, bitmaps: u32) -> u64 {
    let is_lazy = header.compatible & compatible::LAZY_REFCOUNTS != 0;
    [
        (header.is_dirty(), feature::DIRTY),
        (header.is_corrupt(), feature::CORRUPT),
        (header.has_data_file(), feature::DATA_FILE),
        (header.compression == Some(Compression::Zstd), feature::ZSTD),
        (header.has_extended_l2(), feature::EXTENDED_L2),
        (is_lazy, feature::LAZY_REFCOUNTS),
        (header.crypt != Crypt::None, feature::ENCRYPTED),
        (header.backing_offset != 0, feature::BACKING),
        (bitmaps > 0, feature::BITMAPS),
        (header.is_data_file_raw(), feature::DATA_FILE_RAW),
        (header.snapshots > 0, feature::SNAPSHOTS),
    ]
    .iter()
    .fold(0, |bits, (is_set, bit)| if *is_set { bits | bit } else { bits })
}
