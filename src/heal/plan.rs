//! The host's record of a plan: steps in order, each with its cure, its write scope and its writes, and the guard
//! that is raised before the first step and lowered after the last.
//!
//! Invariant: a [`Plan`] exists only if every write lies within the scope that its step named first, none touches
//! the guard, and all of it stays within fixed bounds; for the `leaks` tier it frees leaks and does nothing else. A
//! barrier stands between any two steps. The digest covers every byte of the canonical form, which is also the
//! journal's body: the same image bytes give the same plan, byte for byte. What the bytes mean is the cage's
//! business. The only way to make one is [`super::recorder::Recorder`].

use std::sync::Arc;

use instar_abi::choice::Decisions;
use instar_abi::cure::{self, Cure};
use instar_abi::problem::Tier;
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::guard::{GUARD_BYTES_MAX, Guard};
use super::record::{RecordHead, RecordKind, ScopeRecord};
use super::recorder::Recorder;
use crate::image::{Backend, Overlay, OverlayError, Write};
use crate::sandbox::observer::Observer;
use zerocopy::IntoBytes;

/// Most steps in a plan.
pub(super) const STEPS_MAX: usize = 1 << 12;
/// Most scope ranges in a plan.
pub(super) const SCOPES_MAX: usize = 1 << 22;
/// Most writes in a plan.
pub(super) const WRITES_MAX: usize = cure::PLAN_WRITES_MAX;
/// Most bytes that a plan writes; all of them are held in memory.
pub(super) const WRITE_BYTES_MAX: u64 = cure::PLAN_BYTES_MAX;

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
    decisions: Decisions,
    guard: Option<Guard>,
    steps: Vec<Step>,
    digest: [u8; 32],
}

/// Bytes of an image: (offset, length).
pub(super) type Span = (u64, u64);

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
    /// A cure that the tier does not have.
    #[error("step {} in a plan for the leaks tier, which only frees leaks", cure.id())]
    NotInTier {
        /// Which.
        cure: Cure,
    },
    /// The two steps of the guard are not the first and the last one, or do more than one write.
    #[error("guard that is not raised first and lowered last, by one write each")]
    GuardMisplaced,
    /// The guard's two writes differ in place or length, or are not a few bytes of one sector of the image.
    #[error(
        "guard of {len} bytes at {offset:#x}, both of its values must be the same 1 to 8 bytes of one sector"
    )]
    GuardShape {
        /// Where.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// Another step writes to the guard.
    #[error("write of {len} bytes at {offset:#x} touches the guard")]
    GuardWritten {
        /// Where.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// A header field is to become something that no finding asks for, or nobody has decided about.
    #[error("header byte {offset:#x} is to be restored, but not as a finding and a decision say")]
    FieldNotTold {
        /// Where.
        offset: u64,
    },
    /// Structural writes to an image that has a guard, without it.
    #[error("structural writes without a guard, in an image that can have one")]
    GuardMissing,
    /// A guard where there is nothing to guard, or in an image that cannot have one.
    #[error("guard in a plan that needs none")]
    GuardForNothing,
    /// The guard moved from one round to the next.
    #[error("guard at {offset:#x}, in an earlier round it was at {earlier:#x}")]
    GuardMoved {
        /// Where.
        offset: u64,
        /// Where it was.
        earlier: u64,
    },
    /// Round after round there was something left to propose.
    #[error("proposals in each of {limit} rounds, they do not come to an end")]
    Endless {
        /// Most rounds.
        limit: u32,
    },
    /// A write that no overlay takes.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
}

impl PlanError {
    /// Whether nothing is wrong with the plan but that there is too much of it.
    pub(super) const fn is_about_size(&self) -> bool {
        matches!(self, Self::TooMuch { .. } | Self::Overlay(OverlayError::Full { .. }))
    }
}

impl Plan {
    /// A plan out of its parts, held against every rule that a recorded one is held against.
    ///
    /// # Errors
    /// Every [`PlanError`] but those that depend on an image.
    pub fn from_parts(
        tier: Tier,
        decisions: Decisions,
        guard: Option<&Guard>,
        steps: Vec<Step>,
    ) -> Result<Self, PlanError> {
        let mut recorder = Recorder::new(None);
        if let Some(guard) = guard {
            recorder.raise(guard);
        }
        for step in steps {
            recorder.scope(step.cure, &step.scope);
            for group in step.groups {
                for write in group {
                    recorder.take(write);
                }
                recorder.barrier();
            }
        }
        if let Some(guard) = guard {
            recorder.lower(guard);
        }
        recorder.finish(tier, decisions)
    }

    /// For the recorder, which has held the parts against the rules.
    pub(super) fn sealed(tier: Tier, decisions: Decisions, guard: Option<Guard>, steps: Vec<Step>) -> Self {
        let mut plan = Self { tier, decisions, guard, steps, digest: [0; 32] };
        let mut hash = Sha256::new();
        plan.encode(&mut |bytes| hash.update(bytes));
        plan.digest = hash.finalize().into();
        plan
    }

    /// The tier that it was made for.
    #[must_use]
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// What the user had decided when it was made.
    #[must_use]
    pub fn decisions(&self) -> Decisions {
        self.decisions
    }

    /// What is raised before the first step and lowered after the last.
    #[must_use]
    pub fn guard(&self) -> Option<&Guard> {
        self.guard.as_ref()
    }

    /// The steps, in order, without the guard's.
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
        self.guard.is_none() && self.writes().next().is_none()
    }

    /// Whether it does more than free leaks: an interruption of it can leave what no user of the image may write to.
    #[must_use]
    pub fn is_structural(&self) -> bool {
        self.steps.iter().any(|step| step.cure != Cure::FreeLeaks)
    }

    /// Whether it writes header fields, as the user has decided.
    pub(super) fn restores(&self) -> bool {
        self.restored().next().is_some()
    }

    /// Whether it does nothing else.
    pub(super) fn only_restores(&self) -> bool {
        self.restores() && self.steps.iter().all(|step| step.cure == Cure::RestoreHeader)
    }

    /// The writes of header fields.
    pub(super) fn restored(&self) -> impl Iterator<Item = &Write> {
        let steps = self.steps.iter().filter(|step| step.cure == Cure::RestoreHeader);
        steps.flat_map(|step| step.groups.iter().flatten())
    }

    /// The header fields that are restored over `base`, and nothing else.
    ///
    /// # Errors
    /// As [`Plan::over`].
    pub(super) fn restored_over(&self, base: Arc<dyn Backend>) -> Result<Overlay, OverlayError> {
        let mut overlay = Overlay::new(base, WRITE_BYTES_MAX);
        self.restored().try_for_each(|write| overlay.stage(write.clone()))?;
        Ok(overlay)
    }

    /// Every write of a step, in order.
    pub fn writes(&self) -> impl Iterator<Item = &Write> {
        self.steps.iter().flat_map(|step| step.groups.iter().flatten())
    }

    /// Bytes that the steps write.
    #[must_use]
    pub fn write_bytes(&self) -> u64 {
        self.writes().map(|write| write.bytes.len() as u64).sum()
    }

    /// Where its steps write, sorted: the ranges of the undo file.
    ///
    /// # Errors
    /// `WrittenTwice`.
    pub(super) fn write_ranges(&self) -> Result<Vec<Span>, PlanError> {
        let mut ranges: Vec<Span> = self.writes().map(|w| (w.offset, w.bytes.len() as u64)).collect();
        ranges.sort_unstable();
        match ranges.windows(2).find(|pair| pair[0].0 + pair[0].1 > pair[1].0) {
            Some(twice) => Err(PlanError::WrittenTwice { offset: twice[1].0 }),
            None => Ok(ranges),
        }
    }

    /// As [`Plan::write_ranges`], with the guard's: what the image is told by from another one.
    pub(super) fn touched_ranges(&self) -> Result<Vec<Span>, PlanError> {
        let mut ranges = self.write_ranges()?;
        ranges.extend(self.guard.as_ref().map(|guard| (guard.offset(), guard.len_bytes())));
        ranges.sort_unstable();
        Ok(ranges)
    }

    /// The plan's writes over `base`, the guard lowered.
    ///
    /// # Errors
    /// Those of [`Overlay::stage`]; cannot happen for a plan that was recorded over the same base.
    pub fn over(&self, base: Arc<dyn Backend>) -> Result<Overlay, OverlayError> {
        let mut overlay = Overlay::new(base, WRITE_BYTES_MAX.saturating_add(GUARD_BYTES_MAX as u64));
        self.stage_into(&mut overlay)?;
        Ok(overlay)
    }

    /// Stages the plan's writes, the guard lowered.
    pub(super) fn stage_into(&self, overlay: &mut Overlay) -> Result<(), OverlayError> {
        for group in self.steps.iter().flat_map(|step| &step.groups) {
            overlay.barrier();
            for write in group {
                overlay.stage(write.clone())?;
            }
        }
        if let Some(guard) = &self.guard {
            overlay.barrier();
            overlay.stage(Write { offset: guard.offset(), bytes: guard.lowered().into() })?;
        }
        Ok(())
    }

    /// The canonical form, piece by piece.
    pub(super) fn encode(&self, out: &mut dyn FnMut(&[u8])) {
        if self.decisions != Decisions::default() {
            out(RecordHead::new(RecordKind::Decisions, 0, self.decisions.0, 0).as_bytes());
        }
        if let Some(guard) = &self.guard {
            out(RecordHead::new(RecordKind::Guard, 0, guard.offset(), guard.len_bytes()).as_bytes());
            out(guard.raised());
            out(guard.lowered());
        }
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
