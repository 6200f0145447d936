//! The host's record of a plan: steps in order, each with its cure, its write scope and its writes.
//!
//! Invariant: a [`Plan`] exists only if every write lies within the scope that its step named first, no two
//! writes between two barriers overlap, and all of it stays within fixed bounds. A barrier stands between any
//! two steps. The digest covers every byte of the canonical form, which is also the journal's body: the same
//! image bytes give the same plan, byte for byte. What the bytes mean is the cage's business.

use std::sync::Arc;

use instar_abi::call::{Phase, ProgressRecord};
use instar_abi::cure::Cure;
use instar_abi::problem::Tier;
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::record::{RecordHead, RecordKind, ScopeRecord};
use crate::image::{Backend, Overlay, OverlayError, Write};
use crate::sandbox::observer::Observer;
use zerocopy::IntoBytes;

/// Most steps in a plan.
pub(super) const STEPS_MAX: usize = 1 << 12;
/// Most scope ranges in a plan.
pub(super) const SCOPES_MAX: usize = 1 << 22;
/// Most writes in a plan.
pub(super) const WRITES_MAX: usize = 1 << 22;
/// Most bytes that a plan writes; all of them are held in memory.
pub(super) const WRITE_BYTES_MAX: u64 = 1 << 30;

/// One ordered group of writes of a cure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What it cures.
    pub cure: Cure,
    /// Where it may write: (offset, len).
    pub scope: Vec<(u64, u64)>,
    /// Its writes; a barrier stands between two groups.
    pub groups: Vec<Vec<Write>>,
}

/// What is to be written, and in what order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    tier: Tier,
    steps: Vec<Step>,
    digest: [u8; 32],
}

/// Which rule a plan broke.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PlanError {
    /// A write came before any scope.
    #[error("write of {len} bytes at {offset:#x} before any write scope was named")]
    NoScope {
        /// Where.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// A write left its scope.
    #[error("write of {len} bytes at {offset:#x} lies outside of its step's write scope")]
    OutOfScope {
        /// Where.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// Too much of something.
    #[error("plan with more than {limit} {what}")]
    TooMuch {
        /// Of what.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// A byte that two writes want: after an interruption nobody could tell how far it got.
    #[error("byte {offset:#x} is written twice")]
    WrittenTwice {
        /// Where.
        offset: u64,
    },
    /// A write that no overlay takes.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
}

impl Plan {
    /// The tier that it was made for.
    #[must_use]
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// The steps, in order.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// SHA-256 over the canonical form.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// True if nothing would be written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.writes().next().is_none()
    }

    /// Every write, in order.
    pub fn writes(&self) -> impl Iterator<Item = &Write> {
        self.steps.iter().flat_map(|step| step.groups.iter().flatten())
    }

    /// Bytes that would be written.
    #[must_use]
    pub fn write_bytes(&self) -> u64 {
        self.writes().map(|write| write.bytes.len() as u64).sum()
    }

    /// The plan's writes over `base`.
    ///
    /// # Errors
    /// Those of [`Overlay::stage`]; cannot happen for a plan that was recorded over the same base.
    pub fn over(&self, base: Arc<dyn Backend>) -> Result<Overlay, OverlayError> {
        let mut overlay = Overlay::new(base, WRITE_BYTES_MAX);
        for group in self.steps.iter().flat_map(|step| &step.groups) {
            for write in group {
                overlay.stage(write.clone())?;
            }
            overlay.barrier();
        }
        Ok(overlay)
    }

    /// The canonical form, piece by piece.
    pub(super) fn encode(&self, out: &mut dyn FnMut(&[u8])) {
        for step in &self.steps {
            out(RecordHead::new(RecordKind::Step, step.cure as u32, 0, step.scope.len() as u64).as_bytes());
            for &(offset, len) in &step.scope {
                out(ScopeRecord { offset: offset.into(), len: len.into() }.as_bytes());
            }
            for group in &step.groups {
                for write in group {
                    let len = write.bytes.len() as u64;
                    out(RecordHead::new(RecordKind::Write, 0, write.offset, len).as_bytes());
                    out(&write.bytes);
                }
                out(RecordHead::new(RecordKind::Barrier, 0, 0, 0).as_bytes());
            }
        }
    }
}

/// Records a plan as it is proposed. Progress goes on to another observer.
pub(super) struct Recorder<'a> {
    progress: Option<&'a mut dyn Observer>,
    steps: Vec<Step>,
    /// The last step's scope, sorted.
    allowed: Vec<(u64, u64)>,
    scopes: usize,
    writes: usize,
    bytes: u64,
    error: Option<PlanError>,
}

impl<'a> Recorder<'a> {
    pub(super) fn new(progress: Option<&'a mut dyn Observer>) -> Self {
        Self { progress, steps: Vec::new(), allowed: Vec::new(), scopes: 0, writes: 0, bytes: 0, error: None }
    }

    /// The plan, if no rule was broken.
    pub(super) fn finish(mut self, tier: Tier) -> Result<Plan, PlanError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        for step in &mut self.steps {
            step.groups.retain(|group| !group.is_empty());
        }
        self.steps.retain(|step| !step.groups.is_empty());
        let mut plan = Plan { tier, steps: self.steps, digest: [0; 32] };
        let mut hash = Sha256::new();
        plan.encode(&mut |bytes| hash.update(bytes));
        plan.digest = hash.finalize().into();
        Ok(plan)
    }

    fn open_step(&mut self, cure: Cure, ranges: &[(u64, u64)]) -> Result<(), PlanError> {
        self.scopes = self.scopes.saturating_add(ranges.len());
        // Scopes of one step may come in several calls.
        let continues =
            self.steps.last().is_some_and(|step| step.cure == cure && step.groups.iter().all(Vec::is_empty));
        if !continues {
            self.steps.push(Step { cure, scope: Vec::new(), groups: vec![Vec::new()] });
            self.allowed.clear();
        }
        limit("steps", self.steps.len(), STEPS_MAX)?;
        limit("scope ranges", self.scopes, SCOPES_MAX)?;
        if let Some(step) = self.steps.last_mut() {
            step.scope.extend_from_slice(ranges);
            self.allowed.clone_from(&step.scope);
            self.allowed.sort_unstable();
        }
        Ok(())
    }

    fn take_write(&mut self, offset: u64, bytes: Vec<u8>) -> Result<(), PlanError> {
        let len = bytes.len() as u64;
        let Some(step) = self.steps.last_mut() else { return Err(PlanError::NoScope { offset, len }) };
        if !is_within(&self.allowed, offset, len) {
            return Err(PlanError::OutOfScope { offset, len });
        }
        self.writes += 1;
        self.bytes = self.bytes.saturating_add(len);
        limit("writes", self.writes, WRITES_MAX)?;
        if self.bytes > WRITE_BYTES_MAX {
            return Err(PlanError::TooMuch { what: "bytes to write", limit: WRITE_BYTES_MAX });
        }
        if let Some(group) = step.groups.last_mut() {
            group.push(Write { offset, bytes: bytes.into() });
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

/// Whether one range of `sorted` holds all of `offset .. offset + len`.
fn is_within(sorted: &[(u64, u64)], offset: u64, len: u64) -> bool {
    let Some(end) = offset.checked_add(len) else { return false };
    let at = sorted.partition_point(|&(start, _)| start <= offset);
    sorted[..at].last().is_some_and(|&(start, scope)| end <= start.saturating_add(scope))
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
        if self.error.is_none() {
            let result = self.take_write(offset, bytes);
            self.keep_first(result);
        }
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
        recorder.finish(Tier::Leaks)
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
