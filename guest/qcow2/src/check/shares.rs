//! Parts of the file that the roots claim more than once.
//!
//! Ten thousands of snapshots or bitmaps may all name one table of many megabytes. A table that is claimed again
//! at the very same place is looked at once, with a weight. Tables that overlap in any other way are looked at
//! each by itself up to [`OVERLAP_BYTES_MAX`] in all, those after that not at all.
//!
//! Invariant: work on claims is linear in the bytes that they cover together, and nothing that is left out goes
//! unsaid: every claim on what another one claims shows as an overlap, which ends all trust in leaks.

use alloc::vec::Vec;

/// Bytes that may be claimed besides the first claim on them. No healthy image claims any byte twice.
const OVERLAP_BYTES_MAX: u64 = 1 << 30;

/// A claim on a part of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Claims that differ in this are never one.
    pub kind: u64,
}

/// What is done about a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// It is looked at, and stands for this many.
    Whole(u64),
    /// An earlier claim stands for it.
    Same,
    /// It overlaps others, and too much was looked at more than once already.
    Refused,
}

/// Decides about claims, in their order: the first of equal ones stands for all.
#[must_use]
pub fn decide(claims: impl Iterator<Item = Claim>) -> Vec<Share> {
    let mut order: Vec<(Claim, usize)> = claims.zip(0..).collect();
    order.sort_unstable();
    let mut shares = alloc::vec![Share::Whole(1); order.len()];
    let (mut end, mut overlap_bytes) = (0, 0_u64);
    let mut rest = order.as_slice();
    while let Some((claim, first)) = rest.first() {
        let equal = rest.iter().take_while(|(other, _)| other == claim).count();
        let twice = claim.len.min(u64::saturating_sub(end, claim.offset));
        let share = if overlap_bytes.saturating_add(twice) > OVERLAP_BYTES_MAX {
            Share::Refused
        } else {
            overlap_bytes += twice;
            Share::Whole(equal as u64)
        };
        let refused = share == Share::Refused;
        for (_, index) in &rest[..equal] {
            if let Some(place) = shares.get_mut(*index) {
                *place = if refused { Share::Refused } else { Share::Same };
            }
        }
        if let Some(place) = shares.get_mut(*first) {
            *place = share;
        }
        end = end.max(claim.offset.saturating_add(claim.len));
        rest = &rest[equal..];
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(offset: u64, len: u64) -> Claim {
        Claim { offset, len, kind: 0 }
    }

    #[test]
    fn equal_claims_become_one_with_a_weight_and_others_stay() {
        let other_kind = Claim { kind: 1, ..claim(10, 5) };
        let claims = [claim(10, 5), claim(3, 4), claim(10, 5), other_kind, claim(12, 1), claim(10, 5)];
        let expected =
            [Share::Whole(3), Share::Whole(1), Share::Same, Share::Whole(1), Share::Whole(1), Share::Same];
        assert_eq!(decide(claims.into_iter()), expected);
    }

    #[test]
    fn overlapping_claims_are_refused_once_they_are_much() {
        let len = OVERLAP_BYTES_MAX / 2;
        let shares = decide((0..8).map(|step| claim(step, len)));
        assert!(shares[..3].iter().all(|share| *share == Share::Whole(1)), "{shares:?}");
        assert!(shares[3..].iter().all(|share| *share == Share::Refused), "{shares:?}");
    }

    #[test]
    fn claims_side_by_side_are_never_refused() {
        let shares = decide((0..64).map(|step| claim(step * OVERLAP_BYTES_MAX, OVERLAP_BYTES_MAX)));
        assert!(shares.iter().all(|share| *share == Share::Whole(1)));
    }
}
