//! How a job ended, and what it learned of the image as a whole.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// How far a check came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Outcome {
    /// Everything was looked at: the findings are the whole truth.
    Complete = 1,
    /// The image uses a feature that cannot be counted yet: no verdict. `Summary::unsupported` names it.
    Unsupported = 2,
    /// Not a QCOW2 image at all.
    NotQcow2 = 3,
    /// Damage or I/O errors kept parts from being looked at; the findings say which.
    Incomplete = 4,
}

impl Outcome {
    /// The outcome with this number, or `None`.
    #[must_use]
    pub const fn from_u32(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Complete,
            2 => Self::Unsupported,
            3 => Self::NotQcow2,
            4 => Self::Incomplete,
            _ => return None,
        })
    }
}

/// `Summary::features` bits: what the image is made with.
pub mod feature {
    /// Dirty bit set.
    pub const DIRTY: u64 = 1 << 0;
    /// Corrupt bit set.
    pub const CORRUPT: u64 = 1 << 1;
    /// External data file.
    pub const DATA_FILE: u64 = 1 << 2;
    /// A compression type other than deflate.
    pub const ZSTD: u64 = 1 << 3;
    /// Extended L2 entries.
    pub const EXTENDED_L2: u64 = 1 << 4;
    /// Lazy refcounts allowed.
    pub const LAZY_REFCOUNTS: u64 = 1 << 5;
    /// Encrypted (AES or LUKS).
    pub const ENCRYPTED: u64 = 1 << 6;
    /// Backing file named.
    pub const BACKING: u64 = 1 << 7;
    /// Bitmaps.
    pub const BITMAPS: u64 = 1 << 8;
    /// Raw external data file.
    pub const DATA_FILE_RAW: u64 = 1 << 9;
    /// Snapshots.
    pub const SNAPSHOTS: u64 = 1 << 10;
}

/// What an image has that may use clusters in a way that is not known: nothing of it is told as free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Stranger {
    /// An external data file: the image's own clusters are not where its data is.
    DataFile = 1,
    /// A header that is longer than the fields that are known; the value is its length in bytes.
    HeaderLength = 2,
    /// A header extension; the value is its type.
    Extension = 3,
    /// Compatible features; the value has their bits.
    Compatible = 4,
    /// Autoclear features; the value has their bits.
    Autoclear = 5,
}

impl Stranger {
    /// The stranger with this number, or `None`.
    #[must_use]
    pub const fn from_u32(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::DataFile,
            2 => Self::HeaderLength,
            3 => Self::Extension,
            4 => Self::Compatible,
            5 => Self::Autoclear,
            _ => return None,
        })
    }
}

/// The last record of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Summary {
    /// An [`Outcome`].
    pub outcome: u32,
    /// QCOW2 version of the header; 0 where it could not be read.
    pub version: u32,
    /// [`feature`] bits.
    pub features: u64,
    /// For [`Outcome::Unsupported`]: the [`crate::problem::Problem`] number of the row that names the feature.
    pub unsupported: u32,
    /// log2 of the cluster size; 0 where it could not be read.
    pub cluster_bits: u32,
    /// Width of a refcount in bits.
    pub refcount_bits: u32,
    /// Internal snapshots.
    pub snapshots: u32,
    /// Bitmaps.
    pub bitmaps: u32,
    /// Passes over the image that the memory at hand asked for.
    pub passes: u32,
    /// Size of the active disk in bytes.
    pub virtual_size: u64,
    /// Findings reported, runs counted once.
    pub findings: u64,
    /// Guest clusters of the active disk (qemu's `total-clusters`).
    pub total_clusters: u64,
    /// Guest clusters of the active disk that have data (qemu's `allocated-clusters`).
    pub allocated_clusters: u64,
    /// Of those, not right behind their predecessor (qemu's `fragmented-clusters`).
    pub fragmented_clusters: u64,
    /// Of those, compressed (qemu's `compressed-clusters`).
    pub compressed_clusters: u64,
    /// One past the last host cluster in use, in bytes (qemu's `image-end-offset`).
    pub image_end_offset: u64,
    /// Bytes of metadata read.
    pub metadata_bytes: u64,
    /// Most arena bytes in use at once.
    pub arena_bytes_peak: u64,
    /// For [`crate::boot::JobKind::Free`]: the value of [`Summary::stranger`].
    pub stranger_value: u64,
    /// For [`crate::boot::JobKind::Free`]: a [`Stranger`], or 0.
    pub stranger: u32,
    /// Must be zero.
    pub reserved: u32,
}
