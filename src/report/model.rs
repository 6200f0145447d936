//! What a check came to: one type that every form of output is made from.

use std::path::PathBuf;

use instar_abi::choice::Decision;
use instar_abi::finding::{Finding, Owner};
use instar_abi::problem::{Disposition, Problem, Severity, Tier};
use instar_abi::summary::{Outcome, Summary, feature};

use super::collect::Collector;
use super::discard::DiscardFacts;
use super::names::Names;
use super::tally::Tally;
use super::todo::Todo;
use crate::exit::Exit;
use crate::heal::{Ending, PlanFacts};
use crate::history::Recurring;
use crate::sandbox::CageKind;
use crate::sandbox::observer::RunStats;

/// Parts of a cluster that an extended L2 entry maps one by one.
const SUBCLUSTERS: u64 = 32;

/// What a check came to, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Everything was looked at and nothing is wrong.
    Consistent,
    /// Space is lost, nothing else.
    Leaks,
    /// Metadata contradicts itself or the format.
    Corruptions,
    /// Nothing wrong was seen, but parts could not be looked at.
    Incomplete,
    /// The image uses something that cannot be counted yet: nothing is said about it.
    Unsupported,
    /// Not a QCOW2 image.
    NotQcow2,
}

impl Verdict {
    /// The exit code that it leads to.
    #[must_use]
    pub const fn exit(self) -> Exit {
        match self {
            Self::Consistent => Exit::Consistent,
            Self::Leaks => Exit::Leaks,
            Self::Corruptions => Exit::Corruptions,
            Self::Incomplete => Exit::Failed,
            Self::Unsupported | Self::NotQcow2 => Exit::NotChecked,
        }
    }
}

/// A finding that was kept, with the users of its place that were named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptFinding {
    /// What kind of finding.
    pub problem: Problem,
    /// The finding.
    pub finding: Finding,
    /// Users of the place.
    pub owners: Vec<Owner>,
}

/// What the cage was and what the job cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxFacts {
    /// Which kind.
    pub cage: CageKind,
    /// Why it is not the one that was preferred.
    pub fallback: Option<String>,
    /// What the job cost.
    pub stats: RunStats,
}

/// A repair, as far as it went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepairFacts {
    /// What it was allowed to do.
    pub tier: Tier,
    /// How it ended.
    pub ending: Ending,
    /// What was planned.
    pub plan: Option<PlanFacts>,
    /// A fresh cage found the repaired image as promised.
    pub attested: bool,
    /// Where the bytes are that were overwritten.
    pub undo_file: Option<PathBuf>,
    /// What was found before.
    pub before: Tally,
    /// What a preview's plan is going to do.
    pub todo: Option<Todo>,
    /// Problems that are left once the repair is done, or would be.
    pub left: Vec<Problem>,
    /// The file that the plan was written to.
    pub plan_file: Option<PathBuf>,
}

/// What is known of an image after a check, and after a repair where one was asked for.
#[derive(Debug, Clone)]
pub struct CheckReport {
    /// The image, as the user named it.
    pub image: PathBuf,
    /// The job's own account. Numbers in it are for show; the verdict does not rest on them.
    pub summary: Summary,
    /// Counts of all findings.
    pub tally: Tally,
    /// Findings that were kept, in the order of reporting.
    pub findings: Vec<KeptFinding>,
    /// Findings that were only counted.
    pub findings_dropped: u64,
    /// Names found inside the image.
    pub names: Names,
    /// The cage.
    pub sandbox: SandboxFacts,
    /// The repair, where one was asked for.
    pub repair: Option<RepairFacts>,
    /// What became of giving storage back, where that was asked for.
    pub discard: Option<DiscardFacts>,
    /// Problems that were found although they had been repaired before, again and again.
    pub recurring: Vec<Recurring>,
}

impl CheckReport {
    /// The report of a check without a repair.
    #[must_use]
    pub fn new(image: PathBuf, summary: Summary, collected: Collector, sandbox: SandboxFacts) -> Self {
        let Collector { tally, findings, findings_dropped, names, .. } = collected;
        Self {
            image,
            summary,
            tally,
            findings,
            findings_dropped,
            names,
            sandbox,
            repair: None,
            discard: None,
            recurring: Vec::new(),
        }
    }

    /// What it all comes to.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let outcome = Outcome::from_u32(self.summary.outcome);
        match outcome {
            Some(Outcome::NotQcow2) => Verdict::NotQcow2,
            Some(Outcome::Unsupported) => Verdict::Unsupported,
            _ if self.corruptions() > 0 => Verdict::Corruptions,
            Some(Outcome::Incomplete) | None => Verdict::Incomplete,
            Some(Outcome::Complete) if self.leaks() > 0 => Verdict::Leaks,
            Some(Outcome::Complete) => Verdict::Consistent,
        }
    }

    /// Corruptions, fatal ones included. What is no QCOW2 image is not corrupt.
    #[must_use]
    pub fn corruptions(&self) -> u64 {
        if Outcome::from_u32(self.summary.outcome) == Some(Outcome::NotQcow2) {
            return 0;
        }
        self.tally.items(Severity::Corruption).saturating_add(self.tally.items(Severity::Fatal))
    }

    /// Leaks.
    #[must_use]
    pub fn leaks(&self) -> u64 {
        self.tally.items(Severity::Leak)
    }

    /// Parts that could not be read, or 1 where the job says that it could not look at everything.
    #[must_use]
    pub fn check_errors(&self) -> u64 {
        let unreadable = [Problem::L1TableUnreadable, Problem::L2TableUnreadable, Problem::ReadError]
            .into_iter()
            .filter_map(|problem| self.tally.row(problem))
            .fold(0, |sum: u64, row| sum.saturating_add(row.items));
        let cut_short = matches!(self.verdict(), Verdict::Incomplete);
        unreadable.max(u64::from(cut_short))
    }

    /// What is left for the user to decide. A choice is one of the table's; where a repair has left something that it
    /// cures elsewhere, that is one too.
    pub fn choices(&self) -> impl Iterator<Item = Decision> {
        let is_left = |problem: Problem| match &self.repair {
            Some(RepairFacts { tier: Tier::All, left, .. }) => left.contains(&problem),
            _ => problem.row().disposition == Disposition::Choice,
        };
        let is_offered = move |decision: &Decision| {
            decision.problems().iter().any(|problem| match self.tally.row(*problem) {
                Some(row) => row.allows(*decision) && is_left(*problem),
                None => false,
            })
        };
        Decision::ALL.iter().copied().filter(is_offered)
    }

    /// Corruptions and leaks that the repair took away.
    #[must_use]
    pub fn fixed(&self) -> (u64, u64) {
        let Some(RepairFacts { attested: true, before, .. }) = &self.repair else { return (0, 0) };
        let corruptions = before.items(Severity::Corruption).saturating_add(before.items(Severity::Fatal));
        (
            corruptions.saturating_sub(self.corruptions()),
            before.items(Severity::Leak).saturating_sub(self.leaks()),
        )
    }

    /// The exit code; `detailed` tells "repaired" from "was consistent".
    #[must_use]
    pub fn exit(&self, detailed: bool) -> Exit {
        let exit = self.verdict().exit();
        let repaired = self.fixed() != (0, 0);
        let exit = if exit == Exit::Consistent && repaired && detailed { Exit::Repaired } else { exit };
        self.discard.as_ref().map_or(exit, |discard| discard.exit(exit))
    }

    /// Whether nothing is wrong that could keep guest bytes from being read right.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        matches!(self.verdict(), Verdict::Consistent | Verdict::Leaks)
    }

    /// Bytes of the smallest part of the disk that is mapped by itself; 0 where the header did not tell.
    #[must_use]
    pub fn unit_bytes(&self) -> u64 {
        let parts = if self.summary.features & feature::EXTENDED_L2 == 0 { 1 } else { SUBCLUSTERS };
        self.cluster_bytes().unwrap_or(0) / parts
    }

    /// Bytes of a cluster, where the header told.
    #[must_use]
    pub const fn cluster_bytes(&self) -> Option<u64> {
        cluster_bytes(&self.summary)
    }
}

/// Bytes of a cluster by a job's account, where it is a size that the format has.
pub(super) const fn cluster_bytes(summary: &Summary) -> Option<u64> {
    match summary.cluster_bits {
        bits @ 9..=21 => Some(1 << bits),
        _ => None,
    }
}
