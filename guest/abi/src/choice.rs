//! What a user may decide where the image itself does not: `--decide PROBLEM=CHOICE`.
//!
//! Each decision is one bit, so that all of them fit the boot page. A choice names what it gives up; nothing is
//! ever decided for the user.

use crate::problem::{Disposition, Problem};

macro_rules! choices {
    ($($bit:literal $name:ident [$problem:ident $($other:ident)*] $id:literal $doc:literal)*) => {
        /// One outcome of a problem that has several.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum Decision {
            $(#[doc = $doc] $name = $bit,)*
        }

        impl Decision {
            /// Every decision, in the order of their bits.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The problem that it goes by.
            #[must_use]
            pub const fn problem(self) -> Problem {
                match self {
                    $(Self::$name => Problem::$problem,)*
                }
            }

            /// All problems that it decides about, the one that it goes by first.
            #[must_use]
            pub const fn problems(self) -> &'static [Problem] {
                match self {
                    $(Self::$name => &[Problem::$problem, $(Problem::$other,)*],)*
                }
            }

            /// The word behind the equals sign.
            #[must_use]
            pub const fn id(self) -> &'static str {
                match self {
                    $(Self::$name => $id,)*
                }
            }

            /// What happens, and what it gives up.
            #[must_use]
            pub const fn sentence(self) -> &'static str {
                match self {
                    $(Self::$name => $doc,)*
                }
            }
        }
    };
}

choices! {
    0 FreeOrphanData [OrphanData] "free"
        "Free clusters that nothing refers to although they may hold guest data."
    1 FreeOrphanTables [OrphanTable] "free"
        "Free tables that nothing refers to, and the clusters that only they lead to."
    2 AttachOrphanTables [OrphanTable] "attach"
        "Attach a table that nothing refers to where exactly one empty slot fits."
    3 UnmapLostTables [L1EntryUnaligned] "unmap"
        "Empty L1 entries that lead nowhere, although what they led to may still be in the file."
    4 UnmapLostData [L2EntryUnaligned] "unmap"
        "Empty L2 entries that lead nowhere, although what they led to may still be in the file."
    5 CopyOverlapping [L2EntryOverlapsMetadata] "copy"
        "Give an entry that leads to metadata a copy of it: the guest keeps reading the bytes that it reads now."
    6 UnmapOverlapping [L2EntryOverlapsMetadata CompressedOverlapsMetadata] "unmap"
        "Empty entries that lead to metadata: the guest reads zeros there, or its backing file."
    7 DropBitmaps [
        BitmapDirectory BitmapEntry BitmapTable BitmapTableEntry BitmapOverlap BitmapDuplicateName
        BitmapTableOffset BitmapTableShared] "drop"
        "Drop all bitmaps: the next backup copies everything."
    8 DropSnapshots [HeaderSnapshotsOffset] "drop"
        "Drop all snapshots, as their table cannot be found: what only they led to has to be given up too (orphan-data, orphan-table)."
    9 KeepReadableSnapshots [SnapshotTableTruncated HeaderSnapshotsCount] "keep-readable"
        "Keep the snapshots that can be read and drop the others: what only those led to has to be given up too (orphan-data, orphan-table)."
    16 RestoreMagic [HeaderMagic] "restore"
        "Write the QCOW2 magic: the rest of the file reads as such an image."
    17 RestoreVersion [HeaderVersion] "restore"
        "Write the version that the rest of the header and the tables are made for."
    18 RestoreClusterBits [HeaderClusterBits] "restore"
        "Write the cluster size with which tables and reference counts agree."
    19 RestoreHeaderLength [HeaderLength] "restore"
        "Write the header length behind which the header extensions stand."
    20 RestoreRefcountOrder [HeaderRefcountOrder] "restore"
        "Write the width with which the reference counts agree with the tables."
    21 RestoreCryptMethod [HeaderCryptMethod] "restore"
        "Write the encryption method that the encryption header in the file is for."
    22 RestoreL1Size [HeaderL1Size] "restore"
        "Write the number of L1 entries that the disk's size asks for."
    23 RestoreL1Offset [HeaderL1Offset] "restore"
        "Write the offset of the only table in the file that can be the active disk's L1 table."
    24 RestoreVirtualSize [HeaderVirtualSize] "restore"
        "Write the size that a snapshot tells, or else the largest that the L1 table maps: nothing mapped is cut off, but the disk may end later than it did."
}

impl Decision {
    /// Whether it writes a header field as the rest of the file asks for it. Such a choice is there only where the finding
    /// has witnesses.
    #[must_use]
    pub const fn restores(self) -> bool {
        matches!(
            self,
            Self::RestoreMagic
                | Self::RestoreVersion
                | Self::RestoreClusterBits
                | Self::RestoreHeaderLength
                | Self::RestoreRefcountOrder
                | Self::RestoreCryptMethod
                | Self::RestoreL1Size
                | Self::RestoreL1Offset
                | Self::RestoreVirtualSize
        )
    }

    /// The decision that restores what a problem is about.
    #[must_use]
    pub fn restoring(problem: Problem) -> Option<Self> {
        Self::ALL.iter().copied().find(|decision| decision.problem() == problem && decision.restores())
    }
}

/// Whether a finding of this problem, with so many witnesses, leaves the user something to decide.
#[must_use]
pub fn is_open(problem: Problem, witnesses: u32) -> bool {
    problem.row().disposition == Disposition::Choice
        && (witnesses > 0 || Decision::restoring(problem).is_none())
}

/// Decisions made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Decisions(pub u64);

impl Decisions {
    /// Whether this one was made.
    #[must_use]
    pub const fn has(self, decision: Decision) -> bool {
        self.0 & (1 << decision as u32) != 0
    }

    /// These and one more.
    #[must_use]
    pub const fn with(self, decision: Decision) -> Self {
        Self(self.0 | (1 << decision as u32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_are_told_apart_by_bit_and_by_name() {
        for (at, &decision) in Decision::ALL.iter().enumerate() {
            assert!((decision as usize) < 64 && Decision::ALL[..at].iter().all(|other| *other < decision));
            assert!(Decisions::default().with(decision).has(decision));
            let name = |of: Decision| (of.problem(), of.id());
            assert!(Decision::ALL[..at].iter().all(|other| name(*other) != name(decision)), "{decision:?}");
        }
    }

    #[test]
    fn header_field_is_open_only_with_witnesses_and_has_one_way_to_be_restored() {
        for decision in Decision::ALL.iter().filter(|decision| decision.id() == "restore") {
            assert!(decision.restores());
            assert_eq!(Decision::restoring(decision.problem()), Some(*decision));
            assert!(is_open(decision.problem(), 1) && !is_open(decision.problem(), 0), "{decision:?}");
        }
        assert!(is_open(Problem::OrphanData, 0) && !is_open(Problem::RefcountLeak, 1));
    }
}
