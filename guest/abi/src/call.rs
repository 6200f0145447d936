//! The call area: one [`CallHeader`] at [`crate::layout::CALL`], records behind it.
//!
//! The inmate fills header and records and rings the doorbell; the host checks, acts, answers in place, and
//! lets the inmate go on. There is never more than one call under way.
//!
//! | op | records going in | answer |
//! |---|---|---|
//! | `Read` | [`ReadRange`] x count | each range's `error`; bytes at each range's `dest` |
//! | `DataRanges` | [`DataRangesCall`] | [`DataRange`] x count: what is not a hole, in order |
//! | `Scope` | [`ScopeRange`] x count: opens a step; later `Stage`s must lie within | - |
//! | `Stage` | [`StageRange`] x count, bytes at each range's `src` | - |
//! | `Snapshot` | a [`SnapshotRecord`] | - |
//! | `Barrier` | - : what was staged before must be durable before what comes after | - |
//! | `Finding` | [`crate::finding::Finding`] x count | - |
//! | `Owner` | [`crate::finding::Owner`] x count: users of a place that a finding named | - |
//! | `Text` | [`TextHeader`], then `len` bytes that are data and nothing else | - |
//! | `Extent` | [`crate::extent::Extent`] x count, for the request under way, or of a survey | - |
//! | `Progress` | [`ProgressRecord`] | - |
//! | `Next` | nothing, or a [`LandingRange`] that holds until the next one | [`crate::extent::MapRequest`] x count; more than one only if all are to inflate, their payloads in the landing range as far as it goes |
//! | `Done` | [`crate::summary::Summary`] | none: the job is over |
//! | `Fail` | [`TextHeader`] (kind = a [`FailKind`]), then text | none: the job is over |
//! | `Region` | [`crate::region::Region`] x count | - |
//! | `Replace` | [`StageRange`] x count, bytes at each range's `src`: what a copy holds there instead | - |
//! | `Inflated` | [`InflatedRange`] x count, one for each request and in their order, bytes at each range's `src` | as of `Next` |

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::layout::CALL_BYTES;

/// What a call asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
#[expect(missing_docs, reason = "the table in the module documentation says what each one is")]
pub enum Op {
    Read = 1,
    DataRanges = 2,
    Scope = 3,
    Stage = 4,
    Barrier = 5,
    Finding = 6,
    Owner = 7,
    Text = 8,
    Extent = 9,
    Progress = 10,
    Next = 11,
    Done = 12,
    Fail = 13,
    Inflated = 14,
    Snapshot = 15,
    Region = 16,
    Replace = 17,
}

impl Op {
    /// The operation with this number, or `None`.
    #[must_use]
    pub const fn from_u32(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Read,
            2 => Self::DataRanges,
            3 => Self::Scope,
            4 => Self::Stage,
            5 => Self::Barrier,
            6 => Self::Finding,
            7 => Self::Owner,
            8 => Self::Text,
            9 => Self::Extent,
            10 => Self::Progress,
            11 => Self::Next,
            12 => Self::Done,
            13 => Self::Fail,
            14 => Self::Inflated,
            15 => Self::Snapshot,
            16 => Self::Region,
            17 => Self::Replace,
            _ => return None,
        })
    }
}

/// Head of the call area.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CallHeader {
    /// An [`Op`].
    pub op: u32,
    /// Records going in; in the answers of `DataRanges`, `Next` and `Inflated`, records coming back.
    pub count: u32,
    /// Must be zero.
    pub reserved: [u64; 3],
}

/// Bytes of the call area that hold records.
pub const RECORD_BYTES: usize = crate::to_usize(CALL_BYTES) - size_of::<CallHeader>();

/// How many records of type `T` one call can carry.
#[must_use]
pub const fn records_max<T>() -> usize {
    RECORD_BYTES / size_of::<T>()
}

/// One range of a vectored read.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ReadRange {
    /// Byte offset in the file. `offset + len` is at most the length told in the boot page.
    pub offset: u64,
    /// Bytes to read, at least 1.
    pub len: u64,
    /// Inmate address within the arena that takes the bytes.
    pub dest: u64,
    /// File index.
    pub file: u32,
    /// Answer: 0, or the errno of a failed read. The bytes at `dest` are zero then.
    pub error: u32,
}

/// Asks which parts of `offset .. offset + len` are not holes.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DataRangesCall {
    /// Byte offset in the file.
    pub offset: u64,
    /// Bytes to look at.
    pub len: u64,
    /// File index.
    pub file: u32,
    /// Must be zero.
    pub reserved: u32,
}

/// Answer to [`DataRangesCall`]: bytes outside of all ranges are holes and read as zeros. When the call area is
/// full the last range reaches to the end of what was asked for.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DataRange {
    /// Byte offset in the file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// One byte range that a step may write.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ScopeRange {
    /// Byte offset in the image.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// The [`crate::cure::Cure`] that opens this step; the same in every range of one call.
    pub cure: u32,
    /// Must be zero.
    pub reserved: u32,
}

/// One proposed write to the image, or to a copy of it.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct StageRange {
    /// Byte offset in the image.
    pub offset: u64,
    /// Bytes, at least 1.
    pub len: u64,
    /// Inmate address within the arena that holds the bytes.
    pub src: u64,
}

/// Room of the inmate's for payloads that come with requests to inflate.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LandingRange {
    /// Inmate address within the arena. The host may write there whenever it answers a `Next` or an `Inflated`.
    pub dest: u64,
    /// Bytes.
    pub len: u64,
}

/// An internal snapshot; its names come as texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SnapshotRecord {
    /// Its index in the snapshot table.
    pub index: u32,
    /// Must be zero.
    pub reserved: u32,
    /// Size of its disk in bytes.
    pub disk_bytes: u64,
}

/// One inflated cluster, or why there is none.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InflatedRange {
    /// Inmate address within the arena that holds the bytes; 0 where there are none.
    pub src: u64,
    /// Bytes: the request's `guest_len`, or 0 where there are none.
    pub len: u64,
    /// 0, or the [`crate::problem::Problem`] number of what is wrong with the payload.
    pub problem: u32,
    /// Must be zero.
    pub reserved: u32,
}

/// What a [`TextHeader`]'s bytes are. They are data from a hostile image: opaque, of any content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum TextKind {
    /// Name of the snapshot with this index.
    SnapshotName = 1,
    /// Unique id string of the snapshot with this index.
    SnapshotId = 2,
    /// Name of the bitmap with this index.
    BitmapName = 3,
    /// The header's backing file name.
    BackingFile = 4,
    /// The backing format extension.
    BackingFormat = 5,
    /// The external data file extension.
    DataFile = 6,
    /// Name of an incompatible feature that is not known; index is the bit.
    FeatureName = 7,
}

impl TextKind {
    /// The kind with this number, or `None`.
    #[must_use]
    pub const fn from_u32(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::SnapshotName,
            2 => Self::SnapshotId,
            3 => Self::BitmapName,
            4 => Self::BackingFile,
            5 => Self::BackingFormat,
            6 => Self::DataFile,
            7 => Self::FeatureName,
            _ => return None,
        })
    }
}

/// Most bytes of one text; longer ones are cut by the inmate.
pub const TEXT_BYTES_MAX: usize = 65_536;

/// Head of a text; `len` bytes follow it.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TextHeader {
    /// A [`TextKind`] (`Text`) or a [`FailKind`] (`Fail`).
    pub kind: u32,
    /// Which one: snapshot or bitmap index, feature bit; source line for `Fail`.
    pub index: u32,
    /// Bytes that follow, at most [`TEXT_BYTES_MAX`].
    pub len: u32,
    /// Must be zero.
    pub reserved: u32,
}

/// Why an inmate gave up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum FailKind {
    /// A panic: a bug in the payload.
    Panic = 1,
    /// The arena is too small for this image.
    OutOfMemory = 2,
    /// The boot page does not fit this payload.
    BadBoot = 3,
}

impl FailKind {
    /// The kind with this number, or `None`.
    #[must_use]
    pub const fn from_u32(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Panic,
            2 => Self::OutOfMemory,
            3 => Self::BadBoot,
            _ => return None,
        })
    }
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ProgressRecord {
    /// A [`Phase`].
    pub phase: u32,
    /// Which pass over the image this is, from 0.
    pub pass: u32,
    /// Bytes of metadata done in this phase.
    pub done: u64,
    /// Bytes of metadata in this phase, as far as known.
    pub total: u64,
}

/// The phases of a job, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Phase {
    /// Reading the header, tables and directories.
    Roots = 1,
    /// Walking L2 tables.
    Mappings = 2,
    /// Comparing refcount blocks.
    Refcounts = 3,
    /// Finding the owners of damaged places.
    Owners = 4,
    /// Looking at what would be freed.
    Triage = 5,
    /// Proposing writes.
    Planning = 6,
    /// Inflating compressed clusters (`--deep`).
    Inflate = 7,
    /// Telling who uses which part of the file.
    Survey = 8,
}

impl Phase {
    /// The phase with this number, or `None`.
    #[must_use]
    pub const fn from_u32(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Roots,
            2 => Self::Mappings,
            3 => Self::Refcounts,
            4 => Self::Owners,
            5 => Self::Triage,
            6 => Self::Planning,
            7 => Self::Inflate,
            8 => Self::Survey,
            _ => return None,
        })
    }
}
