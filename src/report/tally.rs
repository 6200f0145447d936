//! Counts by problem. Every finding is counted, whether it is kept or not: the verdict rests on this alone.

use std::collections::BTreeMap;

use instar_abi::choice::Decision;
use instar_abi::finding::{Finding, NONE};
use instar_abi::problem::{Problem, Severity};

/// What is known of all findings of one problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TallyRow {
    /// The problem.
    pub problem: Problem,
    /// Findings, a run counted once.
    pub findings: u64,
    /// Items: entries, clusters, fields. A run counts as many as it stands for.
    pub items: u64,
    /// Guest bytes touched, overlaps counted as often as they were reported.
    pub guest_bytes: u64,
    /// Most witnesses that one of them has: parts of the file that say what should stand there.
    pub witnesses: u32,
    /// The first finding.
    pub first: Finding,
}

impl TallyRow {
    /// Whether the user can decide so about it: what is to be restored must be known.
    #[must_use]
    pub fn allows(&self, decision: Decision) -> bool {
        decision.problems().contains(&self.problem) && (!decision.restores() || self.witnesses > 0)
    }
}

/// Counts by problem, in the order of the problem table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    rows: BTreeMap<Problem, TallyRow>,
}

impl Tally {
    /// Counts a finding.
    pub fn add(&mut self, problem: Problem, finding: &Finding) {
        let row = self.rows.entry(problem).or_insert_with(|| TallyRow {
            problem,
            findings: 0,
            items: 0,
            guest_bytes: 0,
            witnesses: 0,
            first: *finding,
        });
        row.findings = row.findings.saturating_add(1);
        row.witnesses = row.witnesses.max(finding.witnesses);
        row.items = row.items.saturating_add(finding.count.max(1));
        if finding.guest_offset != NONE {
            row.guest_bytes = row.guest_bytes.saturating_add(finding.guest_len);
        }
    }

    /// The rows, in the order of the problem table.
    pub fn rows(&self) -> impl Iterator<Item = &TallyRow> {
        self.rows.values()
    }

    /// The row of one problem, where it was found.
    #[must_use]
    pub fn row(&self, problem: Problem) -> Option<&TallyRow> {
        self.rows.get(&problem)
    }

    /// Items whose problem has this severity.
    #[must_use]
    pub fn items(&self, severity: Severity) -> u64 {
        self.rows()
            .filter(|row| row.problem.row().severity == severity)
            .fold(0, |sum: u64, row| sum.saturating_add(row.items))
    }

    /// Findings in all.
    #[must_use]
    pub fn findings(&self) -> u64 {
        self.rows().fold(0, |sum: u64, row| sum.saturating_add(row.findings))
    }

    /// True where nothing was found.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros as _;

    use super::*;

    #[test]
    fn tally_counts_runs_by_their_items() {
        let mut tally = Tally::default();
        let run = Finding { count: 7, guest_offset: NONE, ..Finding::new_zeroed() };
        tally.add(Problem::RefcountLeak, &run);
        tally.add(Problem::RefcountLeak, &Finding { count: 0, ..run });
        tally.add(Problem::HeaderDirty, &run);
        assert_eq!(tally.items(Severity::Leak), 8);
        assert_eq!(tally.items(Severity::Corruption), 7);
        assert_eq!(tally.findings(), 3);
    }

    #[test]
    fn tally_of_forged_counts_saturates() {
        let mut tally = Tally::default();
        let huge = Finding { count: u64::MAX, guest_offset: 0, guest_len: u64::MAX, ..Finding::new_zeroed() };
        tally.add(Problem::RefcountLeak, &huge);
        tally.add(Problem::RefcountLeak, &huge);
        assert_eq!(tally.items(Severity::Leak), u64::MAX);
    }
}
