//! Which problems a check has found, whatever their number.

use instar_abi::problem::{Disposition, Problem, Severity};

/// Words of the set; problems are numbered below 64 times as many.
const WORDS: usize = 4;

/// A set of problems.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Found([u64; WORDS]);

impl Found {
    /// Adds a problem.
    pub const fn insert(&mut self, problem: Problem) {
        let number = problem as usize;
        self.0[(number / 64) % WORDS] |= 1 << (number % 64);
    }

    /// Whether the problem was found.
    #[must_use]
    pub const fn has(&self, problem: Problem) -> bool {
        let number = problem as usize;
        self.0[(number / 64) % WORDS] >> (number % 64) & 1 != 0
    }

    /// Whether any of these was found.
    #[must_use]
    pub fn has_any(&self, problems: &[Problem]) -> bool {
        problems.iter().any(|problem| self.has(*problem))
    }

    /// The problems, in the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = Problem> + '_ {
        instar_abi::problem::PROBLEMS.iter().map(|row| row.problem).filter(|problem| self.has(*problem))
    }

    /// Whether anything worse than a leak was found.
    #[must_use]
    pub fn has_corruption(&self) -> bool {
        self.iter().any(|problem| problem.row().severity > Severity::Leak)
    }

    /// Whether anything was found that could have hidden a user of a cluster.
    #[must_use]
    pub fn casts_doubt(&self) -> bool {
        self.iter().any(|problem| !leaves_counts_proven(problem))
    }

    /// Whether stored reference counts were found wrong.
    #[must_use]
    pub fn are_counts_wrong(&self) -> bool {
        self.iter().any(is_about_counts)
    }

    /// Whether parts of the image could not be looked at.
    #[must_use]
    pub fn is_incomplete(&self) -> bool {
        self.iter().any(|problem| problem.row().severity == Severity::Fatal || is_unreadable(problem))
    }
}

/// Whether a problem leaves the count of every cluster's users beyond doubt: nothing that could have pointed at
/// an unreferenced cluster was lost with it. Everything that is not named here casts doubt on every leak: an
/// entry that makes its cluster have more users than it should may once have pointed at the leaked one.
#[must_use]
pub const fn leaves_counts_proven(problem: Problem) -> bool {
    use Problem as P;
    matches!(
        problem,
        P::RefcountLeak
            | P::RefcountTooHigh
            | P::RefcountContradicted
            | P::RefcountPastEof
            | P::RefcountTableEntryReserved
            | P::RefcountTableEntryUnaligned
            | P::RefcountTableEntryPastEof
            | P::HeaderDirty
            | P::HeaderCorrupt
            | P::HeaderBackingName
            | P::HeaderVirtualSize
            | P::HeaderCompressionType
            | P::ExtensionFeatureTable
            | P::ExtensionBackingFormat
            | P::AutoclearDataFileRaw
            | P::L1CopiedMissing
            | P::L2CopiedMissing
            | P::CompressedDamaged
            | P::ExtendedReservedBit
            | P::DataFileMissing
            | P::DataFileRawBacking
            | P::DataFileSnapshots
            | P::SnapshotDuplicateId
            | P::BitmapInUse
            | P::BitmapDuplicateName
            | P::OrphanTable
            | P::OrphanData
    )
}

/// Whether a problem says that stored reference counts are not right.
#[must_use]
pub const fn is_about_counts(problem: Problem) -> bool {
    use Problem as P;
    matches!(
        problem,
        P::RefcountLeak
            | P::RefcountTooHigh
            | P::RefcountContradicted
            | P::RefcountTooLow
            | P::RefcountOverflow
            | P::RefcountBlockMissing
            | P::OrphanData
            | P::OrphanTable
    )
}

/// Whether a problem is that the storage does not give some metadata.
const fn is_unreadable(problem: Problem) -> bool {
    matches!(problem, Problem::ReadError | Problem::L1TableUnreadable | Problem::L2TableUnreadable)
}

/// Whether a finding of this problem is about an entry that leads to nothing in the file.
#[must_use]
pub const fn is_lost_pointer(problem: Problem) -> bool {
    use Problem as P;
    matches!(
        problem,
        P::L1EntryUnaligned
            | P::L1EntryPastEof
            | P::L2EntryUnaligned
            | P::L2EntryPastEof
            | P::CompressedPastEof
            | P::ExtendedBitmapWithoutOffset
    )
}

/// Whether a problem is mended by some tier without being asked about.
#[must_use]
pub const fn is_curable(problem: Problem) -> bool {
    matches!(problem.row().disposition, Disposition::Curable(_))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use instar_abi::problem::PROBLEMS;

    #[test]
    fn every_problem_has_a_place_of_its_own() {
        for row in PROBLEMS {
            let mut found = Found::default();
            found.insert(row.problem);
            assert_eq!(found.iter().collect::<Vec<_>>(), [row.problem]);
        }
    }

    #[test]
    fn corruption_and_doubt_follow_the_table() {
        let mut found = Found::default();
        assert!(!found.has_corruption() && !found.casts_doubt() && !found.are_counts_wrong());
        found.insert(Problem::RefcountLeak);
        assert!(!found.has_corruption() && !found.casts_doubt() && found.are_counts_wrong());
        found.insert(Problem::L2EntryShared);
        assert!(found.has_corruption() && found.casts_doubt() && !found.is_incomplete());
        assert!(found.has_any(&[Problem::L1EntryReserved, Problem::L2EntryShared]));
    }
}
