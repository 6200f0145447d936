//! Receives what a job tells and keeps what a report needs of it.
//!
//! Invariant: bounded by [`FINDINGS_MAX`], [`OWNERS_MAX`] and the bound on names; what is not kept is counted.

use instar_abi::call::{Phase, ProgressRecord, TextKind};
use instar_abi::finding::{Finding, Owner};
use instar_abi::problem::Problem;

use super::model::KeptFinding;
use super::names::Names;
use super::progress::Progress;
use super::tally::Tally;
use crate::sandbox::observer::Observer;

/// Most findings kept.
pub const FINDINGS_MAX: usize = 10_000;
/// Most owners kept of one finding.
pub const OWNERS_MAX: usize = 64;

/// Keeps findings, owners and names; passes progress on.
#[derive(Debug, Default)]
pub struct Collector {
    pub(super) tally: Tally,
    pub(super) findings: Vec<KeptFinding>,
    pub(super) findings_dropped: u64,
    pub(super) names: Names,
    progress: Progress,
}

impl Collector {
    /// A collector that shows progress through `progress`.
    #[must_use]
    pub fn new(progress: Progress) -> Self {
        Self { progress, ..Self::default() }
    }

    /// Forgets what was told so far: a check begins anew.
    pub fn restart(&mut self) {
        self.tally = Tally::default();
        self.findings.clear();
        self.findings_dropped = 0;
        self.names = Names::default();
    }

    /// Counts so far.
    #[must_use]
    pub const fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Findings kept so far.
    #[must_use]
    pub fn findings(&self) -> &[KeptFinding] {
        &self.findings
    }

    /// Names so far.
    #[must_use]
    pub const fn names(&self) -> &Names {
        &self.names
    }
}

impl Observer for Collector {
    fn finding(&mut self, problem: Problem, finding: &Finding) {
        if self.findings.len() >= FINDINGS_MAX {
            return self.finding_dropped(problem, finding);
        }
        self.tally.add(problem, finding);
        self.findings.push(KeptFinding { problem, finding: *finding, owners: Vec::new() });
    }

    fn finding_dropped(&mut self, problem: Problem, finding: &Finding) {
        self.tally.add(problem, finding);
        self.findings_dropped = self.findings_dropped.saturating_add(1);
    }

    fn owner(&mut self, owner: &Owner) {
        let position = usize::try_from(owner.finding).ok();
        if let Some(kept) = position.and_then(|at| self.findings.get_mut(at))
            && kept.owners.len() < OWNERS_MAX
        {
            kept.owners.push(*owner);
        }
    }

    fn text(&mut self, kind: TextKind, index: u32, bytes: &[u8]) {
        self.names.insert(kind, index, bytes);
    }

    fn progress(&mut self, phase: Phase, record: &ProgressRecord) {
        self.progress.update(phase, record);
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros as _;

    use super::*;

    #[test]
    fn findings_that_are_not_kept_still_count() {
        let mut collector = Collector::default();
        collector.finding_dropped(Problem::HeaderCorrupt, &Finding::new_zeroed());
        assert_eq!(collector.tally().findings(), 1);
        assert_eq!(collector.findings_dropped, 1);
        assert!(collector.findings.is_empty());
    }

    #[test]
    fn owners_of_unknown_findings_are_ignored_and_of_known_ones_bounded() {
        let mut collector = Collector::default();
        collector.finding(Problem::L2EntryShared, &Finding::new_zeroed());
        for _ in 0..2 * OWNERS_MAX {
            collector.owner(&Owner::new_zeroed());
            collector.owner(&Owner { finding: u64::MAX, ..Owner::new_zeroed() });
        }
        assert_eq!(collector.findings[0].owners.len(), OWNERS_MAX);
    }
}
