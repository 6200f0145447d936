//! The byte layouts of journal and undo file, and a bounds-checked reader for them. `docs/repair.md` draws
//! them.
//!
//! Invariant: every integer is little-endian at any alignment; no length from a file is used before it has
//! been compared with the bytes that are there.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First bytes of a journal.
pub(super) const JOURNAL_MAGIC: [u8; 8] = *b"INSTARJ\n";
/// First bytes of an undo file.
pub(super) const UNDO_MAGIC: [u8; 8] = *b"INSTARU\n";
/// Version of both layouts for repairs that have neither a guard nor decisions.
pub(super) const RECORD_VERSION: u32 = 1;
/// Version for the others: two more kinds of record in the journal, an [`UndoGuard`] first in the undo file.
pub(super) const GUARDED_RECORD_VERSION: u32 = 2;

/// Head of a journal and of an undo file.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct FileHead {
    /// [`JOURNAL_MAGIC`] or [`UNDO_MAGIC`].
    pub magic: [u8; 8],
    /// [`RECORD_VERSION`] or [`GUARDED_RECORD_VERSION`].
    pub version: U32,
    /// The plan's tier.
    pub tier: U32,
    /// Length of the image before the repair, in bytes.
    pub len_before: U64,
    /// Length of the image after it.
    pub len_after: U64,
    /// Bytes behind this head.
    pub body_len: U64,
    /// Journal: writes. Undo file: ranges.
    pub items: U64,
    /// What the image was before the repair.
    pub fingerprint: [u8; 32],
    /// Digest of the plan, that is, of the journal's body.
    pub plan_digest: [u8; 32],
    /// SHA-256 of the bytes behind this head.
    pub body_digest: [u8; 32],
    /// Journal: `head_digest` of the undo file that belongs to it. Undo file: zero.
    pub undo_digest: [u8; 32],
    /// SHA-256 of this head up to here.
    pub head_digest: [u8; 32],
}

/// Kinds of record in a journal's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum RecordKind {
    /// Opens a step; `len` [`ScopeRecord`]s follow.
    Step = 1,
    /// `len` bytes follow, which belong at `offset`.
    Write = 2,
    /// What stands before must be durable before what comes after.
    Barrier = 3,
    /// The guard: `len` bytes at `offset`. Its bytes raised follow, then its bytes lowered. Comes before any step.
    Guard = 4,
    /// What the user had decided: the bits in `offset`. Comes first.
    Decisions = 5,
}

impl RecordKind {
    pub(super) const fn from_u32(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Step,
            2 => Self::Write,
            3 => Self::Barrier,
            4 => Self::Guard,
            5 => Self::Decisions,
            _ => return None,
        })
    }
}

/// Head of a record in a journal's body.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RecordHead {
    /// A [`RecordKind`].
    pub kind: U32,
    /// Steps: the cure's number. Otherwise zero.
    pub cure: U32,
    /// Writes and guard: byte offset in the image. Decisions: their bits. Otherwise zero.
    pub offset: U64,
    /// Steps: scope ranges. Writes and guard: bytes. Otherwise zero.
    pub len: U64,
}

impl RecordHead {
    pub(super) fn new(kind: RecordKind, cure: u32, offset: u64, len: u64) -> Self {
        Self { kind: (kind as u32).into(), cure: cure.into(), offset: offset.into(), len: len.into() }
    }
}

/// One range of a step's scope.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct ScopeRecord {
    /// Byte offset in the image.
    pub offset: U64,
    /// Bytes.
    pub len: U64,
}

/// Head of a range in an undo file: `held` bytes follow, then one [`SectorMark`] for each sector touched.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct UndoRangeHead {
    /// Byte offset in the image.
    pub offset: U64,
    /// Bytes that the repair writes here.
    pub len: U64,
    /// Of those, bytes that were there before; the rest lay past the end of the image.
    pub held: U64,
}

/// The guard in an undo file: its place and the three values that it can have. Bytes past `len` are zero.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct UndoGuard {
    /// Byte offset in the image.
    pub offset: U64,
    /// Bytes, at most 8; zero for a repair without a guard.
    pub len: U64,
    /// What was there before.
    pub before: [u8; 8],
    /// What is there while the image is being written, forward or back.
    pub raised: [u8; 8],
    /// What is there after the repair.
    pub lowered: [u8; 8],
}

/// The first half of the SHA-256 of what the repair leaves in one sector (or the part of it in the range).
pub(super) type SectorMark = [u8; 16];

/// Takes things off the front of a byte string, never more than is there.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) fn take<T: FromBytes>(&mut self) -> Option<T> {
        let (value, rest) = T::read_from_prefix(self.rest).ok()?;
        self.rest = rest;
        Some(value)
    }

    pub(super) fn bytes(&mut self, len: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(usize::try_from(len).ok()?)?;
        self.rest = rest;
        Some(taken)
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }
}

const _: () =
    assert!(size_of::<FileHead>() == 208 && size_of::<RecordHead>() == 24 && size_of::<UndoGuard>() == 40);
