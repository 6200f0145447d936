//! `RaiseGuard` and `LowerGuard`: the header's incompatible features, marked corrupt before anything else is
//! written, and as they are to stay behind everything.
//!
//! Invariant: these 8 bytes are written by these two steps only. The corrupt bit goes only where nothing worse
//! than a leak is left, the dirty bit only where no count of a cluster in use is wrong. Version 2 has neither.

use instar_abi::problem::{Problem, Problem as P, Severity};

use super::round::Proposal;
use crate::check::{Checked, Problems};
use crate::ondisk::Header;
use crate::ondisk::header::incompatible;

/// Byte offset of the incompatible features.
const OFFSET: u64 = 72;

/// Findings that say that counts are not to be relied on.
const WRONG_COUNTS: &[Problem] = &[
    P::RefcountLeak,
    P::RefcountTooHigh,
    P::RefcountContradicted,
    P::RefcountTooLow,
    P::RefcountOverflow,
    P::RefcountBlockMissing,
    P::RefcountBlockShared,
    P::RefcountTableEntryUnaligned,
    P::RefcountTableEntryPastEof,
    P::HeaderRefcountTableOffset,
    P::HeaderRefcountTableSize,
];

/// The feature bits now and then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guard {
    stored: u64,
    last: u64,
    /// Somebody is told of the bits, or of nothing at all.
    is_told: bool,
}

impl Guard {
    /// Scope of both steps.
    pub const PLACE: (u64, u64) = (OFFSET, 8);

    /// The guard of an image, `None` where its version has none.
    #[must_use]
    pub fn of(checked: &Checked) -> Option<Self> {
        let header = &checked.image.as_ref()?.header;
        if header.version < 3 {
            return None;
        }
        let (stored, found) = (header.incompatible, &checked.problems);
        let is_told = found.has_any(&[P::HeaderCorrupt, P::HeaderDirty]) || found.iter().next().is_none();
        Some(Self { stored, last: stored & !done(found), is_told })
    }

    /// The guard of a header that leaves the bits as they are, `None` where its version has none.
    #[must_use]
    pub const fn as_it_is(header: &Header) -> Option<Self> {
        let stored = header.incompatible;
        if header.version < 3 { None } else { Some(Self { stored, last: stored, is_told: false }) }
    }

    /// Whether the bits are to stay otherwise than they are, for their own sake. A dirty bit over right counts is no
    /// finding: beside others that stay, there is nothing to be gained by writing.
    #[must_use]
    pub const fn changes(self) -> bool {
        self.is_told && self.last != self.stored
    }

    /// The write that raises it.
    #[must_use]
    pub fn raised(self) -> Proposal {
        (OFFSET, (self.stored | incompatible::CORRUPT).to_be_bytes().to_vec())
    }

    /// The write that lowers it.
    #[must_use]
    pub fn lowered(self) -> Proposal {
        (OFFSET, self.last.to_be_bytes().to_vec())
    }
}

/// The bits that are no longer needed with these findings.
fn done(found: &Problems) -> u64 {
    let are_counts_right = !found.has_any(WRONG_COUNTS);
    let is_marked_only = |problem: Problem| {
        problem == P::HeaderCorrupt
            || problem == P::HeaderDirty && are_counts_right
            || problem.row().severity == Severity::Leak
    };
    let dirty = if are_counts_right { incompatible::DIRTY } else { 0 };
    let corrupt = if found.iter().all(is_marked_only) { incompatible::CORRUPT } else { 0 };
    dirty | corrupt
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(problems: &[Problem]) -> Problems {
        let mut found = Problems::default();
        problems.iter().for_each(|problem| found.insert(*problem));
        found
    }

    #[test]
    fn corrupt_bit_goes_with_the_last_corruption() {
        assert_eq!(done(&found(&[P::HeaderCorrupt])) & incompatible::CORRUPT, incompatible::CORRUPT);
        assert_eq!(done(&found(&[P::HeaderCorrupt, P::L2EntryShared])) & incompatible::CORRUPT, 0);
        let orphans = found(&[P::HeaderCorrupt, P::HeaderDirty, P::OrphanData]);
        assert_eq!(done(&orphans), incompatible::CORRUPT | incompatible::DIRTY);
    }

    #[test]
    fn dirty_bit_goes_where_counts_are_right() {
        assert_eq!(done(&found(&[P::HeaderDirty, P::RefcountTooLow])), 0);
        assert_eq!(done(&found(&[P::L2EntryShared])), incompatible::DIRTY);
        assert_eq!(done(&found(&[P::HeaderDirty, P::RefcountLeak])), 0);
    }

    #[test]
    fn steps_write_the_bits_raised_and_as_they_stay() {
        let guard = Guard { stored: 0x11, last: 0x10, is_told: true };
        assert!(guard.changes());
        assert!(!Guard { is_told: false, ..guard }.changes());
        assert_eq!(guard.raised(), (72, 0x13_u64.to_be_bytes().to_vec()));
        assert_eq!(guard.lowered(), (72, 0x10_u64.to_be_bytes().to_vec()));
    }
}
