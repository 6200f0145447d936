//! `Unmap`: empties entries whose clusters are not in the file.
//!
//! What the guest wrote there cannot be read any more. What it reads instead must not pass for it: from version 3
//! on the entry becomes one of zeros, never a hole, through which a backing file's older bytes would show. Where
//! that cannot be said (an L1 entry, or version 2) an entry of an image with a backing file is emptied only if the
//! user has decided so.
//!
//! Nothing is lost, and nothing has to be decided, where the entry holds no data: a zero cluster that has lost
//! the place kept for it stays a zero cluster, an extended entry keeps its holes and zeros, and the length of a
//! compressed payload that is all there is taken back to what inflating takes.

use instar_abi::choice::Decision;
use instar_abi::problem::{Problem, Problem as P};

use super::doubt::Doubt;
use crate::check::roots::Image;
use crate::ondisk::l1::L1Entry;
use crate::ondisk::l2::{L2Entry, L2Format, Mapping, ZERO};
use crate::ondisk::units::Position;

/// What this mends.
pub const PROBLEMS: &[Problem] = &[
    P::L1EntryUnaligned,
    P::L1EntryPastEof,
    P::L2EntryUnaligned,
    P::L2EntryPastEof,
    P::CompressedPastEof,
    P::ExtendedBitmapWithoutOffset,
];

/// An L2 entry that leads to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    /// In which way.
    pub problem: Problem,
    /// It maps no data: the guest reads the same without it.
    pub is_empty: bool,
    /// First byte and length of a compressed payload that begins in the file.
    pub payload: Option<(u64, u64)>,
}

/// Whether an L2 entry leads to nothing, and how.
#[must_use]
pub fn lost(image: &Image, entry: L2Entry) -> Option<Lost> {
    let (mapping, _) = entry.decode(&image.format);
    let of = |problem| Lost { problem, is_empty: maps_no_data(entry, &image.format), payload: None };
    match mapping {
        Mapping::Damaged(problem @ (P::L2EntryUnaligned | P::ExtendedBitmapWithoutOffset)) => {
            Some(of(problem))
        }
        Mapping::Damaged(_) => None,
        Mapping::Compressed { host, len } => {
            // The last sector of the file may be short.
            let is_inside =
                host < image.bounds.len && host.saturating_add(len) <= image.bounds.len.saturating_add(511);
            let payload = (host < image.bounds.len).then_some((host, len));
            (!is_inside).then_some(Lost { problem: P::CompressedPastEof, is_empty: false, payload })
        }
        _ => {
            let place = image.bounds.position(entry.host_field());
            (place == Position::PastEof && !image.format.data_file).then(|| of(P::L2EntryPastEof))
        }
    }
}

/// Whether a standard descriptor, whatever its offset, maps zeros and holes only.
const fn maps_no_data(entry: L2Entry, format: &L2Format) -> bool {
    if format.extended { entry.bitmap & 0xffff_ffff == 0 } else { format.zero_flag && entry.raw & ZERO != 0 }
}

/// The entry that takes a lost one's place: what held data reads as zeros, the rest as before.
#[must_use]
pub const fn emptied(entry: L2Entry, format: &L2Format) -> L2Entry {
    if format.extended {
        let zero = if entry.is_compressed() {
            u32::MAX as u64
        } else {
            (entry.bitmap >> 32) | (entry.bitmap & 0xffff_ffff)
        };
        return L2Entry { raw: 0, bitmap: zero << 32 };
    }
    L2Entry { raw: if format.zero_flag { ZERO } else { 0 }, bitmap: 0 }
}

/// Whether an L2 entry that leads to nothing may be emptied.
#[must_use]
pub fn may_empty_l2(image: &Image, lost: &Lost, doubt: &Doubt) -> bool {
    let is_decided = doubt.is_decided(Decision::UnmapLostData);
    let shows_backing = !image.format.zero_flag && image.header.backing_offset != 0;
    doubt.may_mend(lost.problem) && (is_decided || !(shows_backing || image.format.data_file))
}

/// The problem of an L1 entry that leads to nothing.
#[must_use]
pub const fn lost_l1(image: &Image, entry: L1Entry) -> Option<Problem> {
    match image.bounds.position(entry.l2_offset()) {
        Position::Unaligned => Some(P::L1EntryUnaligned),
        Position::PastEof => Some(P::L1EntryPastEof),
        Position::Inside => None,
    }
}

/// Whether an L1 entry that leads to nothing may be emptied.
#[must_use]
pub fn may_empty_l1(image: &Image, problem: Problem, doubt: &Doubt) -> bool {
    let is_decided = doubt.is_decided(Decision::UnmapLostTables);
    doubt.may_mend(problem) && (is_decided || image.header.backing_offset == 0)
}
