//! Who uses which part of the image file, as a survey tells it, and which parts nothing uses.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `Region::flags`: guest data that snapshots refer to and the active disk does not.
pub const SNAPSHOT_ONLY: u32 = 1 << 0;
/// `Region::flags`: something else claims the place too, in a way that cannot be meant.
pub const DISPUTED: u32 = 1 << 1;
/// `Region::flags`: holds no guest data, so that a copy without guest data may have it as it is.
pub const COPIED: u32 = 1 << 2;
/// `Region::flags`: a check reads it, but it cannot be told from guest data.
pub const LEFT_OUT: u32 = 1 << 3;
/// Every bit that has a meaning for a part that is used.
pub const FLAGS_KNOWN: u32 = SNAPSHOT_ONLY | DISPUTED | COPIED | LEFT_OUT;
/// `Region::flags`, alone and with [`crate::finding::Table::File`]: whole clusters of the file that nothing refers to and
/// whose stored counts are zero. Only [`crate::boot::JobKind::Free`] tells these, in ascending order, no two touching.
pub const FREE: u32 = 1 << 4;

/// A part of the file with one kind of user. Those of a survey come in no order; parts that none of them names have no
/// user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Region {
    /// Byte offset in the image, within the file.
    pub offset: u64,
    /// Bytes, at least 1, all of them within the file.
    pub len: u64,
    /// A [`crate::finding::Table`]: what it is used as.
    pub table: u32,
    /// [`SNAPSHOT_ONLY`] and the other bits.
    pub flags: u32,
}
