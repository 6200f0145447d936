//! What a user may decide where the image itself does not: `--decide PROBLEM=CHOICE`.
//!
//! Each decision is one bit, so that all of them fit the boot page. A choice names what it gives up; nothing is
//! ever decided for the user.

use crate::problem::Problem;

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
            assert_eq!(decision as usize, at);
            assert!(Decisions::default().with(decision).has(decision));
            let name = |of: Decision| (of.problem(), of.id());
            assert!(Decision::ALL[..at].iter().all(|other| name(*other) != name(decision)), "{decision:?}");
        }
    }
}
