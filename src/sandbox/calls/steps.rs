//! Steps of a plan: what a step may write is said before its first write, and held against every one.

use instar_abi::call::{ScopeRange, StageRange};
use instar_abi::cure::Cure;

use super::super::error::SandboxError;
use super::super::limits::Limits;
use super::super::observer::Observer;
use super::super::scope::Scope;
use super::{charge, violation};

/// Most ranges in the scope of one step.
const SCOPE_RANGES_MAX: u64 = 1 << 20;

/// The open step and what was staged so far.
///
/// Scope calls with the same cure and no write between them describe one step: a scope can be longer than a call.
#[derive(Debug, Default)]
pub(super) struct Steps {
    cure: Option<Cure>,
    announced: bool,
    ranges: Vec<(u64, u64)>,
    /// The same as what writes are held against.
    allowed: Scope,
    bytes_staged: u64,
}

impl Steps {
    /// Opens a step, or adds to the scope of one that has not written yet.
    pub(super) fn open(&mut self, scope: &[ScopeRange]) -> Result<(), SandboxError> {
        for range in scope {
            let ScopeRange { offset, len, cure, reserved } = *range;
            let known = Cure::from_u32(cure).filter(|_| reserved == 0 && cure == scope[0].cure);
            let known = known.ok_or_else(|| {
                violation(format!("scope: cure {cure}, reserved word {reserved:#x}, must be one known cure"))
            })?;
            let end = offset.checked_add(len).filter(|&end| len > 0 && i64::try_from(end).is_ok());
            if end.is_none() {
                return Err(violation(format!("scope: range {offset:#x} + {len:#x} is empty or overflows")));
            }
            if self.announced || self.cure != Some(known) {
                *self = Self { cure: Some(known), bytes_staged: self.bytes_staged, ..Self::default() };
            }
            let mut ranges = self.ranges.len() as u64;
            charge(&mut ranges, 1, SCOPE_RANGES_MAX, "ranges in a step's scope")?;
            self.ranges.push((offset, len));
        }
        Ok(())
    }

    /// Tells the observer about a step, once, before its first write.
    pub(super) fn announce(&mut self, observer: &mut dyn Observer) {
        let Some(cure) = self.cure.filter(|_| !self.announced) else {
            return;
        };
        observer.scope(cure, &self.ranges);
        self.announced = true;
        self.allowed = Scope::of(&self.ranges);
    }

    /// Refuses a write outside of the open step's scope, and one too many.
    pub(super) fn charge(&mut self, write: &StageRange, limits: &Limits) -> Result<(), SandboxError> {
        let StageRange { offset, len, .. } = *write;
        if len == 0 || !self.allowed.holds(offset, len) {
            return Err(violation(format!(
                "stage: range {offset:#x} + {len:#x} is empty or not in the step's scope"
            )));
        }
        charge(&mut self.bytes_staged, len, limits.bytes_staged, "bytes staged")
    }
}
