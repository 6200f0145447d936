//! The cures: each curable problem has exactly one. Raising the guard, and what is done by decision only, have none.
//!
//! A cure is a module of `guest/qcow2/src/plan`; what it may write, and what a crash within it leaves, is in
//! `docs/repair.md`.

use crate::problem::Problem;

/// Most bytes that one plan may write. The host refuses a plan with more by name.
pub const PLAN_BYTES_MAX: u64 = 1 << 30;
/// Most writes of one plan.
pub const PLAN_WRITES_MAX: usize = 1 << 22;

macro_rules! cures {
    ($($number:literal $name:ident $id:literal [$($problem:ident)*] $doc:literal)*) => {
        /// The ways in which damage is mended.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum Cure {
            $(#[doc = $doc] $name = $number,)*
        }

        impl Cure {
            /// Every cure.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The cure with this number, or `None`.
            #[must_use]
            pub const fn from_u32(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// Permanent kebab-case id.
            #[must_use]
            pub const fn id(self) -> &'static str {
                match self {
                    $(Self::$name => $id,)*
                }
            }

            /// What it does, in a few words.
            #[must_use]
            pub const fn sentence(self) -> &'static str {
                match self {
                    $(Self::$name => $doc,)*
                }
            }

            /// The one cure of a problem, `None` if there is none.
            #[must_use]
            pub const fn of(problem: Problem) -> Option<Self> {
                match problem {
                    $($(Problem::$problem => Some(Self::$name),)*)*
                    _ => None,
                }
            }
        }
    };
}

cures! {
    1 FreeLeaks "free-leaks" [RefcountLeak RefcountPastEof OrphanBitmap]
        "Lower the reference counts of unreferenced clusters to zero."
    2 FixCounts "fix-counts" [RefcountTooHigh RefcountTooLow RefcountContradicted]
        "Write the counted number of users of a cluster over a wrong one."
    3 RebuildRefcounts "rebuild-refcounts" [
        RefcountTableEntryReserved RefcountTableEntryUnaligned RefcountTableEntryPastEof RefcountBlockShared
        RefcountBlockMissing HeaderRefcountTableOffset HeaderRefcountTableSize]
        "Put new refcount blocks, and where needed a new refcount table, at the end of the file."
    4 FixCopied "fix-copied" [L1CopiedMissing L1CopiedWrong L2CopiedMissing L2CopiedWrong CompressedCopied]
        "Set or clear COPIED flags by the counted users."
    5 ClearReserved "clear-reserved" [
        L1EntryReserved L2EntryReserved ExtendedReservedBit ExtendedBitmapOnCompressed]
        "Clear reserved bits of entries that are sound otherwise."
    6 Unmap "unmap" [
        L1EntryUnaligned L1EntryPastEof L2EntryUnaligned L2EntryPastEof CompressedPastEof
        ExtendedBitmapWithoutOffset L2ZeroPlaceLost]
        "Empty entries whose clusters are not in the file."
    7 CopyShared "copy-shared" [L2EntryShared]
        "Give each user of a doubly used data cluster a copy of its own at the end of the file."
    8 RewriteSnapshots "rewrite-snapshots" [SnapshotExtraData]
        "Write the snapshot table anew at the end of the file, with the extra data that version 3 asks for."
    9 ClearFeatures "clear-features" [HeaderDirty AutoclearBitmaps AutoclearDataFileRaw ExtensionFeatureTable]
        "Take back header flags and fields that nothing in the file bears out."
    10 DirtyBitmaps "dirty-bitmaps" [BitmapInUse BitmapTableEntry BitmapTableOffset BitmapTableShared]
        "Mark what was not saved, or is lost, of a bitmap as dirty: the next backup copies it."
    11 RaiseGuard "raise-guard" []
        "Mark the image as corrupt, durably, before anything else of it is changed."
    12 LowerGuard "lower-guard" [HeaderCorrupt]
        "Write the header's incompatible features as they are to stay, after the fresh check."
    13 AttachTables "attach-tables" []
        "Attach a table that nothing refers to where exactly one slot fits, as the user has decided."
    14 CountSnapshots "count-snapshots" [SnapshotEntryEmpty]
        "Lower the header's number of snapshots to that of the snapshots in the table."
    24 RestoreHeader "restore-header" []
        "Write a header field as the rest of the file asks for it, as the user has decided."
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::{Disposition, PROBLEMS};

    #[test]
    fn curable_problems_have_a_cure_and_the_others_none() {
        for row in PROBLEMS {
            let is_curable = matches!(row.disposition, Disposition::Curable(_));
            assert_eq!(is_curable, Cure::of(row.problem).is_some(), "{}", row.id);
        }
    }

    #[test]
    fn cures_numbers_lead_back_and_each_has_a_problem() {
        for &cure in Cure::ALL {
            assert_eq!(Cure::from_u32(cure as u32), Some(cure));
            let is_used = PROBLEMS.iter().any(|row| Cure::of(row.problem) == Some(cure));
            let is_free = matches!(cure, Cure::RaiseGuard | Cure::AttachTables | Cure::RestoreHeader);
            assert_eq!(is_used, !is_free, "{}", cure.id());
        }
    }
}
