//! The guard: a few bytes of an image that keep its other users from writing to it while it is between two states.
//!
//! A cage names them and both of their values; what they mean is its business. Invariant: they are raised, durably,
//! before any other byte of a structural plan is written, and lowered only against an attestation of the live
//! image; no other write of a plan touches them, and they lie within one sector, so that whatever happens they hold
//! one of three values: that from before, raised, or lowered. Which plans need a guard is the host's rule
//! ([`refuse_unguarded`]), not the cage's.

use std::io;

use instar_abi::cure::Cure;
use instar_abi::to_usize;

use super::plan::{Plan, PlanError, Step};
use crate::image::Backend;

/// Most bytes of a guard.
pub const GUARD_BYTES_MAX: usize = 8;
/// The part of a file that a disk writes whole or not at all.
const SECTOR_BYTES: u64 = 512;
/// The first version of the format whose images have a guard.
const GUARDED_VERSION: u32 = 3;

/// Where the guard is, and its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    offset: u64,
    raised: Vec<u8>,
    lowered: Vec<u8>,
}

impl Guard {
    /// A guard of 1 to [`GUARD_BYTES_MAX`] bytes at a byte offset of the image.
    ///
    /// # Errors
    /// `GuardShape` if the two values differ in length, are empty, too long, or cross the end of a sector.
    pub fn new(offset: u64, raised: Vec<u8>, lowered: Vec<u8>) -> Result<Self, PlanError> {
        let len = raised.len() as u64;
        let sector = |at: u64| at / SECTOR_BYTES;
        let last = offset.checked_add(len.saturating_sub(1));
        let is_sound = (1..=GUARD_BYTES_MAX).contains(&raised.len())
            && raised.len() == lowered.len()
            && last.is_some_and(|last| sector(last) == sector(offset));
        if is_sound {
            Ok(Self { offset, raised, lowered })
        } else {
            Err(PlanError::GuardShape { offset, len })
        }
    }

    /// Byte offset in the image.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// What is there while the image is between two states.
    #[must_use]
    pub fn raised(&self) -> &[u8] {
        &self.raised
    }

    /// What is there in the end.
    #[must_use]
    pub fn lowered(&self) -> &[u8] {
        &self.lowered
    }

    /// Bytes of it.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.raised.len() as u64
    }

    /// Whether any byte of a range is the guard's.
    pub(super) fn touches(&self, offset: u64, len: u64) -> bool {
        offset < self.offset.saturating_add(self.len_bytes()) && self.offset < offset.saturating_add(len)
    }

    /// The guard of a proposal: its first step raises it, its last one lowers it. Both steps are taken out.
    pub(super) fn take_from(steps: &mut Vec<Step>) -> Result<Option<Self>, PlanError> {
        let is = |step: Option<&Step>, cure| step.is_some_and(|step| step.cure == cure);
        let has_both = is(steps.first(), Cure::RaiseGuard) && is(steps.last(), Cure::LowerGuard);
        let guards = steps.iter().filter(|step| is_guards(step.cure)).count();
        if guards == 0 {
            return Ok(None);
        }
        if !has_both || guards != 2 {
            return Err(PlanError::GuardMisplaced);
        }
        let lower = steps.pop().ok_or(PlanError::GuardMisplaced)?;
        let (offset, raised) = one_write(&steps.remove(0))?;
        let (at, lowered) = one_write(&lower)?;
        if at != offset {
            return Err(PlanError::GuardShape { offset: at, len: lowered.len() as u64 });
        }
        Self::new(offset, raised, lowered).map(Some)
    }
}

/// Whether a cure is one of the guard's two.
pub(super) fn is_guards(cure: Cure) -> bool {
    matches!(cure, Cure::RaiseGuard | Cure::LowerGuard)
}

/// The only write of a step of the guard.
fn one_write(step: &Step) -> Result<(u64, Vec<u8>), PlanError> {
    let mut writes = step.groups.iter().flatten();
    match (writes.next(), writes.next()) {
        (Some(write), None) => Ok((write.offset, write.bytes.to_vec())),
        _ => Err(PlanError::GuardMisplaced),
    }
}

/// Holds a plan against the rules on guards, for an image of this format version with these bytes before the repair.
///
/// # Errors
/// `BadPlan`'s kinds: `GuardMissing` for a plan that does more than free leaks in an image that can have a guard,
/// `GuardForNothing` for a plan that would do nothing but raise and lower it, or whose image cannot have one. A plan
/// that comes down to frees may have one: counts that it leaves free may have been raised in between. Those of the
/// storage.
pub(super) fn refuse_unguarded(
    plan: &Plan,
    version: u32,
    before: &dyn Backend,
) -> io::Result<Result<(), PlanError>> {
    Ok(match plan.guard() {
        Some(guard) if guard.offset.saturating_add(guard.len_bytes()) > before.len() => {
            Err(PlanError::GuardShape { offset: guard.offset, len: guard.len_bytes() })
        }
        None if plan.is_structural() && version >= GUARDED_VERSION => Err(PlanError::GuardMissing),
        Some(_) if version < GUARDED_VERSION => Err(PlanError::GuardForNothing),
        Some(guard) if plan.writes().next().is_none() && !changes(guard, before)? => {
            Err(PlanError::GuardForNothing)
        }
        _ => Ok(()),
    })
}

/// Whether the guard is to stay as something else than it is in `image`.
pub(super) fn changes(guard: &Guard, image: &dyn Backend) -> io::Result<bool> {
    let mut now = vec![0; to_usize(guard.len_bytes())];
    image.read_at(&mut now, guard.offset)?;
    Ok(now != guard.lowered)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Write;

    fn step(cure: Cure, offset: u64, bytes: &[u8]) -> Step {
        let write = Write { offset, bytes: bytes.into() };
        Step { cure, scope: vec![(offset, bytes.len() as u64)], groups: vec![vec![write]] }
    }

    #[test]
    fn guard_first_and_last_is_taken_and_anything_else_refused() {
        let raise = step(Cure::RaiseGuard, 72, &[1; 8]);
        let lower = step(Cure::LowerGuard, 72, &[2; 8]);
        let body = step(Cure::FixCounts, 512, &[3]);
        let mut sound = vec![raise.clone(), body.clone(), lower.clone()];
        let guard = Guard::take_from(&mut sound).unwrap().unwrap();
        assert_eq!((guard.offset(), guard.raised(), guard.lowered()), (72, &[1; 8][..], &[2; 8][..]));
        assert_eq!(sound, std::slice::from_ref(&body));
        assert_eq!(Guard::take_from(&mut vec![body.clone()]), Ok(None));
        let misplaced = [
            vec![raise.clone(), body.clone()],
            vec![body.clone(), lower.clone()],
            vec![body.clone(), raise.clone(), lower.clone()],
            vec![raise.clone(), lower.clone(), body.clone()],
            vec![raise.clone(), lower.clone(), lower.clone()],
            vec![lower.clone(), body, raise.clone()],
        ];
        for mut steps in misplaced {
            assert_eq!(Guard::take_from(&mut steps), Err(PlanError::GuardMisplaced), "{steps:?}");
        }
        for other in [step(Cure::LowerGuard, 80, &[2; 8]), step(Cure::LowerGuard, 72, &[2; 4])] {
            let taken = Guard::take_from(&mut vec![raise.clone(), other]);
            assert!(matches!(taken, Err(PlanError::GuardShape { .. })), "{taken:?}");
        }
    }

    #[test]
    fn guard_lies_within_one_sector_and_is_short() {
        assert!(Guard::new(504, vec![0; 8], vec![1; 8]).is_ok());
        for (offset, len) in [(505, 8), (72, 9), (72, 0), (u64::MAX, 2)] {
            assert!(Guard::new(offset, vec![0; len], vec![1; len]).is_err(), "{offset}, {len}");
        }
    }
}
