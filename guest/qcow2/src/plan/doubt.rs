//! What was found, and what may be done in view of it.
//!
//! A leak that is not proven worthless may be all that is left of somebody's data, and the damage beside it is
//! what says so. Once that damage is mended, the next check would take the leak for a plain one and free it.
//! So as long as such evidence is there and nobody has decided about it, whatever casts doubt on it stays as it is.

use instar_abi::choice::{Decision, Decisions};
use instar_abi::problem::{Disposition, Problem, Problem as P};

use crate::check::Problems;
use crate::check::recount::OVERLAPS;
use crate::check::report::leaves_counts_proven;

/// Findings that say that parts of the file may be gone, and with them what entries led to.
const LOST_PARTS: &[Problem] =
    &[P::FileTruncated, P::L1TableTruncated, P::L2TableTruncated, P::L2EntryPartlyPastEof, P::TableGarbage];
/// Findings that say that stored counts are not known everywhere: a leak may be there and not be seen.
const LOST_COUNTS: &[Problem] = &[
    P::HeaderRefcountTableOffset,
    P::HeaderRefcountTableSize,
    P::RefcountTableEntryUnaligned,
    P::RefcountTableEntryPastEof,
    P::RefcountBlockShared,
    P::RefcountBlockMissing,
];
/// Findings that cast doubt, but tell of counts and flags only, not of pointers.
const COUNTS_ALONE: &[Problem] = &[
    P::RefcountTooLow,
    P::RefcountOverflow,
    P::RefcountBlockMissing,
    P::RefcountBlockShared,
    P::HeaderRefcountTableOffset,
    P::HeaderRefcountTableSize,
    P::L1CopiedWrong,
    P::L2CopiedWrong,
    P::CompressedCopied,
];
/// Findings about pointers that lead past the end of the file, or to where it may have ended: they would lead
/// into fresh clusters.
const PAST_END: &[Problem] = &[
    P::L1EntryPastEof,
    P::L2EntryPastEof,
    P::L2ZeroPlaceLost,
    P::L2EntryPartlyPastEof,
    P::CompressedPastEof,
    P::L1TableTruncated,
    P::L2TableTruncated,
    P::FileTruncated,
    P::HeaderL1Offset,
    P::HeaderSnapshotsOffset,
    P::SnapshotTableTruncated,
    P::SnapshotL1Offset,
    P::ExtensionBitmaps,
    P::BitmapDirectory,
    P::BitmapEntry,
    P::BitmapTable,
    P::BitmapTableEntry,
    P::BitmapTableOffset,
    P::ExtensionCrypto,
    P::CryptoHeaderRange,
];
/// The same of the refcount structures, which are made anew in one go.
const PAST_END_REFCOUNTS: &[Problem] =
    &[P::HeaderRefcountTableOffset, P::HeaderRefcountTableSize, P::RefcountTableEntryPastEof];

/// Findings that cast doubt on leaks, but not on the known users of a cluster being all that it has: wrong counts
/// and flags, and what is wrong with entries that lead where they should.
const BESIDE_USERS: &[Problem] = &[
    P::RefcountTooLow,
    P::RefcountOverflow,
    P::RefcountBlockMissing,
    P::RefcountBlockShared,
    P::HeaderRefcountTableOffset,
    P::HeaderRefcountTableSize,
    P::L1EntryReserved,
    P::L1CopiedWrong,
    P::L2EntryReserved,
    P::L2CopiedWrong,
    P::L2EntryPartlyPastEof,
    P::L2ZeroFlagInV2,
    P::CompressedCopied,
    P::ExtendedBitmapConflict,
    P::ExtendedBitmapOnCompressed,
    P::DataFileOffset,
    P::DataFileShort,
    P::SnapshotExtraData,
    P::SnapshotDiskSize,
];

/// Findings that say that what is taken for a table may be something else: guest data for one, that of a snapshot which
/// cannot be followed, too.
const TABLES_IN_DOUBT: &[(Problem, Option<Decision>)] = &[
    (P::TableGarbage, None),
    (P::L1EntryOverlap, None),
    (P::OrphanTable, Some(Decision::FreeOrphanTables)),
    (P::HeaderSnapshotsOffset, Some(Decision::DropSnapshots)),
    (P::HeaderSnapshotsCount, Some(Decision::KeepReadableSnapshots)),
    (P::SnapshotTableTruncated, Some(Decision::KeepReadableSnapshots)),
    (P::SnapshotL1Offset, None),
    (P::SnapshotL1Size, None),
];

/// Findings about entries that lead to nothing in the file.
const LOST_POINTERS: &[Problem] = &[
    P::L1EntryUnaligned,
    P::L1EntryPastEof,
    P::L2EntryUnaligned,
    P::L2EntryPastEof,
    P::CompressedPastEof,
    P::ExtendedBitmapWithoutOffset,
];

/// What may be done about what was found.
#[derive(Debug, Clone, Copy)]
pub struct Doubt {
    found: Problems,
    decisions: Decisions,
}

impl Doubt {
    /// What may be done in view of these findings and decisions.
    #[must_use]
    pub const fn new(found: Problems, decisions: Decisions) -> Self {
        Self { found, decisions }
    }

    /// Whether the user has decided so.
    #[must_use]
    pub const fn is_decided(&self, decision: Decision) -> bool {
        self.decisions.has(decision)
    }

    /// Whether there are leaks that may be data and that nobody has given up. To have a table attached is not to give
    /// it up: there may be no place that it fits.
    #[must_use]
    pub fn has_evidence(&self) -> bool {
        [(P::OrphanData, Decision::FreeOrphanData), (P::OrphanTable, Decision::FreeOrphanTables)]
            .iter()
            .any(|(problem, decision)| self.found.has(*problem) && !self.is_decided(*decision))
    }

    fn has_decision_about(&self, problem: Problem) -> bool {
        let is_about = |decision: Decision| decision.problems().contains(&problem);
        Decision::ALL.iter().any(|decision| is_about(*decision) && self.is_decided(*decision))
    }

    /// Whether findings of this problem may be mended by rewriting or moving what they are about. For problems
    /// that are to be chosen about this says that the choice, once made, may be followed.
    #[must_use]
    pub fn may_mend(&self, problem: Problem) -> bool {
        if LOST_POINTERS.contains(&problem) {
            return self.may_unmap(problem);
        }
        leaves_counts_proven(problem) || !self.has_evidence()
    }

    /// The same for counts and flags. What they were is no evidence by itself: they may be set right too where
    /// the damage that casts doubt stays. Where users of clusters may be hidden, or lost with what leaks tell of, none is
    /// made to seem the only one.
    #[must_use]
    pub fn may_set(&self, problem: Problem) -> bool {
        match problem {
            P::RefcountTooHigh | P::RefcountContradicted | P::L1CopiedMissing | P::L2CopiedMissing => {
                !self.has_evidence() && !self.hides_users(&[])
            }
            _ => self.may_mend(problem) || self.found.iter().any(|other| self.stays(other)),
        }
    }

    /// Whether anything was found that may have hidden users of clusters.
    #[must_use]
    pub fn may_hide_users(&self) -> bool {
        self.hides_users(&[])
    }

    /// Whether anything but these was found that may have hidden users of clusters.
    fn hides_users(&self, except: &[Problem]) -> bool {
        let hides = |problem: Problem| {
            !leaves_counts_proven(problem) && !BESIDE_USERS.contains(&problem) && !except.contains(&problem)
        };
        self.found.iter().any(hides)
    }

    /// Whether counts may be lowered. One that is too high may be all that tells of a user whose pointer is lost, and
    /// keeps its cluster from being given away.
    #[must_use]
    pub fn may_lower(&self) -> bool {
        self.found.iter().all(|problem| leaves_counts_proven(problem) || COUNTS_ALONE.contains(&problem))
    }

    /// Whether a problem casts doubt and will not be mended.
    fn stays(&self, problem: Problem) -> bool {
        if leaves_counts_proven(problem) {
            return false;
        }
        if LOST_POINTERS.contains(&problem) {
            return !self.may_unmap(problem);
        }
        !matches!(problem.row().disposition, Disposition::Curable(_)) && !self.has_decision_about(problem)
    }

    /// Whether entries that lead to nothing may be emptied: what they led to is not in the file, or the user
    /// gives it up. Leaks that may be it have to be given up as such: the next check would take them for plain ones.
    fn may_unmap(&self, problem: Problem) -> bool {
        let decision = match problem {
            P::L1EntryUnaligned | P::L1EntryPastEof => Decision::UnmapLostTables,
            _ => Decision::UnmapLostData,
        };
        let may_be_there = self.found.has(P::RefcountTooHigh) || !self.are_leaks_known();
        !self.has_evidence() && (self.is_decided(decision) || !may_be_there)
    }

    /// Whether entries of L1 and L2 tables may be rewritten: nothing says that the real table is another one, and
    /// that what stands here is the guest's.
    #[must_use]
    pub fn may_write_tables(&self) -> bool {
        TABLES_IN_DOUBT.iter().all(|(problem, decision)| {
            !self.found.has(*problem) || decision.is_some_and(|decision| self.is_decided(decision))
        })
    }

    /// Whether stored counts are not known everywhere.
    #[must_use]
    pub fn are_counts_lost(&self) -> bool {
        self.found.has_any(LOST_COUNTS)
    }

    /// Whether every cluster without a user has been seen to be one: counts are known, and nothing says that parts of
    /// the file are gone.
    #[must_use]
    pub fn are_leaks_known(&self) -> bool {
        !self.found.has_any(LOST_PARTS) && !self.are_counts_lost()
    }

    /// Whether nothing but these problems casts doubt: what their cure leaves behind can be told for what it is.
    #[must_use]
    pub fn are_alone(&self, problems: &[Problem]) -> bool {
        let is_mine = |problem: &Problem| problems.contains(problem);
        self.found.iter().filter(is_mine).all(|problem| self.may_mend(problem))
            && self.found.iter().all(|problem| is_mine(&problem) || leaves_counts_proven(problem))
    }

    /// Whether the file may become longer. The refcount structures come first where they lead past its end.
    #[must_use]
    pub fn may_grow(&self) -> bool {
        self.can_grow() && !self.found.has_any(PAST_END_REFCOUNTS)
    }

    /// The same where what leads past the end is mended along.
    #[must_use]
    pub fn may_grow_beside(&self, mended: &[Problem]) -> bool {
        let found = self.found.iter().filter(|problem| !mended.contains(problem));
        let mut rest = Problems::default();
        found.for_each(|problem| rest.insert(problem));
        Self::new(rest, self.decisions).may_grow()
    }

    /// Whether refcount structures may be made anew at the end of the file. Where counts are lost, whatever leads
    /// nowhere is all that tells of what it led to, and the new counts would say that it is free. An overlap is no such
    /// thing: it is what calls for it.
    #[must_use]
    pub fn may_rebuild(&self) -> bool {
        self.may_mend(P::RefcountBlockShared) && !self.hides_users(OVERLAPS) && self.can_grow()
    }

    fn can_grow(&self) -> bool {
        !self.found.has_any(PAST_END)
            && !self.found.iter().any(|problem| LOST_POINTERS.contains(&problem) && !self.may_unmap(problem))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doubt(problems: &[Problem], decisions: &[Decision]) -> Doubt {
        let mut found = Problems::default();
        problems.iter().for_each(|problem| found.insert(*problem));
        Doubt::new(found, decisions.iter().fold(Decisions::default(), |all, decision| all.with(*decision)))
    }

    #[test]
    fn what_casts_doubt_is_left_while_there_is_undecided_evidence() {
        let found = [P::OrphanData, P::L2EntryShared, P::RefcountTooLow, P::RefcountTooHigh];
        let open = doubt(&found, &[]);
        assert!(!open.may_mend(P::L2EntryShared) && !open.may_set(P::RefcountTooLow));
        assert!(!open.may_set(P::RefcountTooHigh), "a shared cluster hides a user");
        let decided = doubt(&found, &[Decision::FreeOrphanData]);
        assert!(decided.may_mend(P::L2EntryShared) && decided.may_set(P::RefcountTooLow));
        assert!(doubt(&[P::L2EntryShared], &[]).may_mend(P::L2EntryShared));
    }

    #[test]
    fn counts_may_be_set_where_the_doubt_stays() {
        let found = [P::OrphanData, P::L2EntryOverlapsMetadata, P::RefcountTooLow, P::RefcountBlockShared];
        let open = doubt(&found, &[]);
        assert!(open.may_set(P::RefcountTooLow) && !open.may_mend(P::RefcountBlockShared));
        let chosen = doubt(&found, &[Decision::CopyOverlapping]);
        assert!(!chosen.may_set(P::RefcountTooLow));
    }

    #[test]
    fn counts_are_not_lowered_where_users_may_be_hidden() {
        for hidden in [P::HeaderSnapshotsCount, P::SnapshotL1Offset, P::TableGarbage, P::L1EntryUnaligned] {
            let open = doubt(&[hidden, P::RefcountTooHigh, P::RefcountTooLow], &[]);
            assert!(!open.may_set(P::RefcountTooHigh) && !open.may_set(P::L2CopiedMissing));
            assert!(open.may_set(P::RefcountTooLow) && open.may_set(P::L2CopiedWrong));
            assert!(!open.may_rebuild(), "{hidden:?}");
        }
        assert!(!doubt(&[P::OrphanData], &[]).may_set(P::RefcountTooHigh));
        assert!(doubt(&[P::RefcountTooLow], &[]).may_set(P::RefcountTooHigh));
        assert!(doubt(&[P::RefcountBlockShared, P::MetadataOverlap], &[]).may_rebuild());
    }

    #[test]
    fn lost_pointers_are_kept_while_what_they_led_to_may_be_there() {
        assert!(doubt(&[P::L1EntryUnaligned], &[]).may_mend(P::L1EntryUnaligned));
        for other in
            [P::OrphanData, P::OrphanTable, P::FileTruncated, P::TableGarbage, P::RefcountBlockMissing]
        {
            let found = [other, P::L1EntryUnaligned, P::L2EntryPastEof];
            let open = doubt(&found, &[]);
            assert!(!open.may_mend(P::L1EntryUnaligned) && !open.may_mend(P::L2EntryPastEof));
            let frees = [Decision::FreeOrphanData, Decision::FreeOrphanTables];
            let decided = doubt(&found, &[&frees[..], &[Decision::UnmapLostTables]].concat());
            assert!(decided.may_mend(P::L1EntryUnaligned));
            let is_orphan = matches!(other, P::OrphanData | P::OrphanTable);
            assert_eq!(decided.may_mend(P::L2EntryPastEof), is_orphan, "given up with its leaks");
            let kept = doubt(&found, &[Decision::UnmapLostTables, Decision::AttachOrphanTables]);
            assert_eq!(kept.may_mend(P::L1EntryUnaligned), !is_orphan, "the leaks are not given up");
        }
    }

    #[test]
    fn tables_are_not_written_while_they_may_be_something_else() {
        assert!(doubt(&[P::L2EntryReserved, P::OrphanData], &[]).may_write_tables());
        for other in [P::TableGarbage, P::L1EntryOverlap, P::OrphanTable, P::SnapshotL1Size] {
            assert!(!doubt(&[other, P::L2EntryReserved], &[]).may_write_tables(), "{other:?}");
        }
        assert!(doubt(&[P::OrphanTable], &[Decision::FreeOrphanTables]).may_write_tables());
    }

    #[test]
    fn file_does_not_grow_into_what_leads_past_its_end() {
        assert!(doubt(&[P::L2EntryShared], &[]).may_grow());
        assert!(!doubt(&[P::L2EntryPastEof], &[]).may_grow());
        let table = doubt(&[P::RefcountTableEntryPastEof], &[]);
        assert!(!table.may_grow() && table.may_rebuild());
        assert!(!doubt(&[P::RefcountBlockMissing, P::L1EntryUnaligned], &[]).may_rebuild());
    }
}
