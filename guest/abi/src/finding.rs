//! One fact about the image.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `Finding::snapshot` (and wherever else a snapshot index stands) for the active disk.
pub const ACTIVE: u32 = u32::MAX;
/// A value that is not known or does not apply.
pub const NONE: u64 = u64::MAX;

/// Which structure a place belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Table {
    /// No structure: the file as such.
    File = 0,
    /// The fixed header fields.
    Header = 1,
    /// Header extensions.
    HeaderExtension = 2,
    /// An L1 table (of the active disk or a snapshot).
    L1 = 3,
    /// An L2 table; the index is the guest cluster within the disk.
    L2 = 4,
    /// The refcount table.
    RefcountTable = 5,
    /// A refcount block; the index is the host cluster number.
    RefcountBlock = 6,
    /// The snapshot table; the index is the snapshot.
    SnapshotTable = 7,
    /// The bitmap directory; the index is the bitmap.
    BitmapDirectory = 8,
    /// A bitmap table.
    BitmapTable = 9,
    /// A bitmap's data cluster.
    BitmapData = 10,
    /// The LUKS header area.
    CryptoHeader = 11,
    /// A guest data cluster.
    Data = 12,
    /// A compressed guest data cluster.
    CompressedData = 13,
    /// The external data file.
    DataFile = 14,
}

impl Table {
    /// The table with this number, or `None`.
    #[must_use]
    pub const fn from_u32(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::File,
            1 => Self::Header,
            2 => Self::HeaderExtension,
            3 => Self::L1,
            4 => Self::L2,
            5 => Self::RefcountTable,
            6 => Self::RefcountBlock,
            7 => Self::SnapshotTable,
            8 => Self::BitmapDirectory,
            9 => Self::BitmapTable,
            10 => Self::BitmapData,
            11 => Self::CryptoHeader,
            12 => Self::Data,
            13 => Self::CompressedData,
            14 => Self::DataFile,
            _ => return None,
        })
    }
}

/// One fact about the image, or a run of like facts about neighbours.
///
/// A run covers `count` items whose indexes are consecutive; `stored` and `expected` are then those of the
/// first item. The host prints the finding with the sentence of its problem's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Finding {
    /// A [`crate::problem::Problem`] number.
    pub problem: u32,
    /// A [`Table`]: the structure that holds the damaged item.
    pub table: u32,
    /// Whose table it is: snapshot index, or [`ACTIVE`] (also where the question makes no sense).
    pub snapshot: u32,
    /// How many other parts of the file bear out that `expected` is the value that stood here: evidence for a root
    /// that can be restored. 0 where nothing does, and everywhere else.
    pub witnesses: u32,
    /// Byte offset in the file of the damaged item (an entry, a field, a cluster); [`NONE`] if there is none.
    pub host_offset: u64,
    /// Bytes of the damaged place from `host_offset` on.
    pub host_len: u64,
    /// Index of the item in its table; [`NONE`] if it has none.
    pub index: u64,
    /// How many items, at least 1.
    pub count: u64,
    /// First guest byte that is touched; [`NONE`] if the finding touches no guest data.
    pub guest_offset: u64,
    /// Guest bytes touched, 0 if none.
    pub guest_len: u64,
    /// The value as stored.
    pub stored: u64,
    /// The value that the rest of the metadata asks for, or the bound that was broken; [`NONE`] if unknown.
    pub expected: u64,
}

/// A user of the place that a finding names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Owner {
    /// Which finding: its position in the order of reporting, from 0.
    pub finding: u64,
    /// A [`Table`]: what the owner uses the place as.
    pub table: u32,
    /// Snapshot index, or [`ACTIVE`].
    pub snapshot: u32,
    /// Byte offset in the file of the entry that makes it the owner; [`NONE`] for a header field.
    pub entry_offset: u64,
    /// First guest byte that the owner maps there; [`NONE`] for metadata.
    pub guest_offset: u64,
}
