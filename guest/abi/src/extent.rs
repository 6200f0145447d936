//! What a resident `map` job is asked and what it answers.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What the host wants from a resident job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum MapOp {
    /// Name the extents of a guest range.
    Map = 1,
    /// Inflate one compressed cluster into the arena. Several of these may come at once.
    Inflate = 2,
    /// End with `Done`.
    Exit = 3,
}

impl MapOp {
    /// The request with this number, or `None`.
    #[must_use]
    pub const fn from_u32(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Map,
            2 => Self::Inflate,
            3 => Self::Exit,
            _ => return None,
        })
    }
}

/// The answer to a `Next` call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MapRequest {
    /// A [`MapOp`].
    pub op: u32,
    /// Snapshot index, or [`crate::finding::ACTIVE`].
    pub snapshot: u32,
    /// First guest byte.
    pub guest_offset: u64,
    /// Guest bytes; for [`MapOp::Inflate`] one cluster.
    pub guest_len: u64,
    /// For [`MapOp::Inflate`]: the extent's `host_offset`.
    pub host_offset: u64,
    /// For [`MapOp::Inflate`]: the extent's `host_len`.
    pub host_len: u64,
    /// For [`MapOp::Inflate`]: inmate address of the `host_len` bytes of the payload, or 0 where the inmate has to read
    /// them itself.
    pub payload: u64,
}

/// Most requests that one answer to `Next` holds.
pub const REQUESTS_MAX: usize = 64;
/// Most bytes that one answer to `Next` asks to inflate to: one cluster of the largest size.
pub const INFLATED_BYTES_MAX: u64 = 2 << 20;

/// What guest bytes are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum ExtentKind {
    /// Bytes of the file in `Extent::file` from `host_offset` on, one for one.
    Data = 1,
    /// Zeros, by the metadata's word.
    Zero = 2,
    /// Not allocated: the backing file's bytes, or zeros where there is none.
    Hole = 3,
    /// One compressed cluster: `host_len` bytes from `host_offset` on inflate to `guest_len` bytes.
    Compressed = 4,
    /// Cannot be told; `problem` says why.
    Damaged = 5,
    /// Encrypted bytes at `host_offset`: never served.
    Encrypted = 6,
}

impl ExtentKind {
    /// The kind with this number, or `None`.
    #[must_use]
    pub const fn from_u32(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Data,
            2 => Self::Zero,
            3 => Self::Hole,
            4 => Self::Compressed,
            5 => Self::Damaged,
            6 => Self::Encrypted,
            _ => return None,
        })
    }
}

/// A run of guest bytes that are made of one thing. The extents of one answer are in guest order, do not
/// overlap, leave no gap, start at the request's first byte or before it and end at its end or behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Extent {
    /// First guest byte.
    pub guest_offset: u64,
    /// Guest bytes, at least 1.
    pub guest_len: u64,
    /// First byte in the file, where the kind has one; 0 otherwise.
    pub host_offset: u64,
    /// Bytes in the file: `guest_len` for data, the payload's length for compressed, 0 otherwise.
    pub host_len: u64,
    /// An [`ExtentKind`].
    pub kind: u32,
    /// File index of `host_offset`.
    pub file: u32,
    /// For damaged extents, a [`crate::problem::Problem`] number; 0 otherwise.
    pub problem: u32,
    /// Must be zero.
    pub reserved: u32,
}
