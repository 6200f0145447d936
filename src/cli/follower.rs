//! Follows a repair, or the discarding of free clusters, for the report.

use instar_abi::call::{Phase, ProgressRecord, TextKind};
use instar_abi::finding::{Finding, Owner};
use instar_abi::problem::Problem;

use super::inspect::Inspector;
use crate::heal::{RepairObserver, Stage};
use crate::report::{Collector, Tally};
use crate::sandbox::observer::Observer;

/// Keeps the findings of the last check of the image itself; those of the proof on a copy are the healer's.
pub struct Follower {
    /// What the last check told.
    pub seen: Collector,
    before: Option<Tally>,
    stage: Stage,
}

impl Follower {
    /// Shows the progress to whom `inspector` shows its own.
    pub fn new(inspector: &Inspector) -> Self {
        Self { seen: Collector::new(inspector.watch().progress()), before: None, stage: Stage::Check }
    }

    /// What was found before anything was written.
    pub fn found(&self) -> &Tally {
        self.before.as_ref().unwrap_or_else(|| self.seen.tally())
    }

    /// What was found after something was written.
    pub fn found_after(&self) -> Option<&Tally> {
        self.before.as_ref().map(|_| self.seen.tally())
    }

    fn is_about_the_image(&self) -> bool {
        matches!(self.stage, Stage::Check | Stage::Recheck)
    }
}

impl RepairObserver for Follower {
    fn round_begins(&mut self, round: u32) {
        tracing::debug!(round, "a round of planning begins");
    }

    fn stage_begins(&mut self, stage: Stage) {
        tracing::debug!(?stage, "a stage of the repair begins");
        if stage == Stage::Recheck {
            self.before = Some(self.seen.tally().clone());
        }
        if matches!(stage, Stage::Check | Stage::Recheck) {
            self.seen.restart();
        }
        self.stage = stage;
    }
}

impl Observer for Follower {
    fn finding(&mut self, problem: Problem, finding: &Finding) {
        if self.is_about_the_image() {
            self.seen.finding(problem, finding);
        }
    }

    fn finding_dropped(&mut self, problem: Problem, finding: &Finding) {
        if self.is_about_the_image() {
            self.seen.finding_dropped(problem, finding);
        }
    }

    fn owner(&mut self, owner: &Owner) {
        if self.is_about_the_image() {
            self.seen.owner(owner);
        }
    }

    fn text(&mut self, kind: TextKind, index: u32, bytes: &[u8]) {
        if self.is_about_the_image() {
            self.seen.text(kind, index, bytes);
        }
    }

    fn progress(&mut self, phase: Phase, record: &ProgressRecord) {
        self.seen.progress(phase, record);
    }
}
