//! Records a plan as a cage proposes it, and holds each proposal against the rules of [`Plan`].
//!
//! Invariant: after the first rule that is broken nothing more is recorded, and no plan comes of it. A journal and a
//! plan that a user gave are read back through the same rules.

use instar_abi::call::{Phase, ProgressRecord};
use instar_abi::choice::Decisions;
use instar_abi::cure::Cure;
use instar_abi::problem::Tier;

use super::guard::Guard;
use super::plan::{Plan, PlanError, SCOPES_MAX, STEPS_MAX, Step, WRITE_BYTES_MAX, WRITES_MAX};
use crate::image::Write;
use crate::sandbox::Scope;
use crate::sandbox::observer::Observer;

/// Records a plan as it is proposed. Progress goes on to another observer.
pub(super) struct Recorder<'a> {
    progress: Option<&'a mut dyn Observer>,
    steps: Vec<Step>,
    /// The last step's scope.
    allowed: Scope,
    scopes: usize,
    writes: usize,
    bytes: u64,
    error: Option<PlanError>,
}

impl<'a> Recorder<'a> {
    pub(super) fn new(progress: Option<&'a mut dyn Observer>) -> Self {
        Self {
            progress,
            steps: Vec::new(),
            allowed: Scope::default(),
            scopes: 0,
            writes: 0,
            bytes: 0,
            error: None,
        }
    }

    /// The plan, if no rule was broken.
    pub(super) fn finish(mut self, tier: Tier, decisions: Decisions) -> Result<Plan, PlanError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        for step in &mut self.steps {
            step.groups.retain(|group| !group.is_empty());
        }
        self.steps.retain(|step| !step.groups.is_empty());
        if tier == Tier::Leaks
            && let Some(step) = self.steps.iter().find(|step| step.cure != Cure::FreeLeaks)
        {
            return Err(PlanError::NotInTier { cure: step.cure });
        }
        let guard = Guard::take_from(&mut self.steps)?;
        let mut writes = self.steps.iter().flat_map(|step| step.groups.iter().flatten());
        let touching = writes
            .find(|write| guard.as_ref().is_some_and(|g| g.touches(write.offset, write.bytes.len() as u64)));
        if let Some(Write { offset, bytes }) = touching {
            return Err(PlanError::GuardWritten { offset: *offset, len: bytes.len() as u64 });
        }
        Ok(Plan::sealed(tier, decisions, guard, self.steps))
    }

    /// Records the raising of a guard, as the first step.
    pub(super) fn raise(&mut self, guard: &Guard) {
        self.scope(Cure::RaiseGuard, &[(guard.offset(), guard.len_bytes())]);
        self.stage(guard.offset(), guard.raised().to_vec());
    }

    /// Records the lowering of a guard, as the last step.
    pub(super) fn lower(&mut self, guard: &Guard) {
        self.scope(Cure::LowerGuard, &[(guard.offset(), guard.len_bytes())]);
        self.stage(guard.offset(), guard.lowered().to_vec());
    }

    /// Records a write of the open step, without copying its bytes.
    pub(super) fn take(&mut self, write: Write) {
        if self.error.is_none() {
            let result = self.take_write(write);
            self.keep_first(result);
        }
    }

    fn open_step(&mut self, cure: Cure, ranges: &[(u64, u64)]) -> Result<(), PlanError> {
        self.scopes = self.scopes.saturating_add(ranges.len());
        // Scopes of one step may come in several calls.
        let continues =
            self.steps.last().is_some_and(|step| step.cure == cure && step.groups.iter().all(Vec::is_empty));
        if !continues {
            self.steps.push(Step { cure, scope: Vec::new(), groups: vec![Vec::new()] });
        }
        limit("steps", self.steps.len(), STEPS_MAX)?;
        limit("scope ranges", self.scopes, SCOPES_MAX)?;
        if let Some(step) = self.steps.last_mut() {
            step.scope.extend_from_slice(ranges);
            self.allowed = Scope::of(&step.scope);
        }
        Ok(())
    }

    fn take_write(&mut self, write: Write) -> Result<(), PlanError> {
        let (offset, len) = (write.offset, write.bytes.len() as u64);
        let Some(step) = self.steps.last_mut() else { return Err(PlanError::NoScope { offset, len }) };
        if !self.allowed.holds(offset, len) {
            return Err(PlanError::OutOfScope { offset, len });
        }
        self.writes += 1;
        self.bytes = self.bytes.saturating_add(len);
        limit("writes", self.writes, WRITES_MAX)?;
        if self.bytes > WRITE_BYTES_MAX {
            return Err(PlanError::TooMuch { what: "bytes to write", limit: WRITE_BYTES_MAX });
        }
        if let Some(group) = step.groups.last_mut() {
            group.push(write);
        }
        Ok(())
    }

    fn keep_first(&mut self, result: Result<(), PlanError>) {
        if let Err(error) = result {
            self.error.get_or_insert(error);
        }
    }
}

fn limit(what: &'static str, value: usize, limit: usize) -> Result<(), PlanError> {
    if value > limit { Err(PlanError::TooMuch { what, limit: limit as u64 }) } else { Ok(()) }
}

impl Observer for Recorder<'_> {
    fn progress(&mut self, phase: Phase, record: &ProgressRecord) {
        if let Some(observer) = &mut self.progress {
            observer.progress(phase, record);
        }
    }

    fn scope(&mut self, cure: Cure, ranges: &[(u64, u64)]) {
        if self.error.is_none() {
            let result = self.open_step(cure, ranges);
            self.keep_first(result);
        }
    }

    fn stage(&mut self, offset: u64, bytes: Vec<u8>) {
        self.take(Write { offset, bytes: bytes.into() });
    }

    fn barrier(&mut self) {
        if let Some(step) = self.steps.last_mut()
            && step.groups.last().is_some_and(|group| !group.is_empty())
        {
            step.groups.push(Vec::new());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(act: impl FnOnce(&mut Recorder<'_>)) -> Result<Plan, PlanError> {
        let mut recorder = Recorder::new(None);
        act(&mut recorder);
        recorder.finish(Tier::Leaks, Decisions::default())
    }

    #[test]
    fn write_outside_its_scope_or_without_one_breaks_the_plan() {
        let outside = record(|r| {
            r.scope(Cure::FreeLeaks, &[(100, 10), (200, 10)]);
            r.stage(105, vec![0; 6]);
        });
        assert_eq!(outside.unwrap_err(), PlanError::OutOfScope { offset: 105, len: 6 });
        let without = record(|r| r.stage(0, vec![0]));
        assert_eq!(without.unwrap_err(), PlanError::NoScope { offset: 0, len: 1 });
        let wraps = record(|r| {
            r.scope(Cure::FreeLeaks, &[(0, u64::MAX)]);
            r.stage(u64::MAX, vec![0; 2]);
        });
        assert!(wraps.is_err());
    }

    #[test]
    fn same_proposals_give_the_same_digest_and_others_another() {
        let plan = |byte| {
            record(|r| {
                r.scope(Cure::FreeLeaks, &[(0, 4)]);
                r.stage(0, vec![byte; 2]);
                r.barrier();
                r.stage(2, vec![byte; 2]);
            })
            .unwrap()
        };
        assert_eq!(plan(1), plan(1));
        assert_ne!(plan(1).digest(), plan(2).digest());
        assert_eq!(plan(1).steps()[0].groups.len(), 2);
    }

    #[test]
    fn step_without_writes_leaves_no_trace() {
        let plan = record(|r| {
            r.scope(Cure::FreeLeaks, &[(0, 4)]);
            r.barrier();
        });
        assert!(plan.unwrap().is_empty());
    }
}
