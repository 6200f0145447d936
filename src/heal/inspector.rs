//! Who looks at an image for the healer, and what it learned.

use std::collections::BTreeMap;
use std::sync::Arc;

use instar_abi::choice::{self, Decision, Decisions};
use instar_abi::finding::Finding;
use instar_abi::problem::{Cost, Disposition, Problem, Severity, Tier};
use instar_abi::summary::{Outcome, Summary};
use zerocopy::IntoBytes;

use super::places::Places;
use crate::image::Backend;
use crate::sandbox::error::SandboxError;
use crate::sandbox::observer::{Observer, RunStats};

/// What one job gave.
#[derive(Debug, Clone, Copy)]
pub struct Ran {
    /// Its last record.
    pub summary: Summary,
    /// What it cost.
    pub stats: RunStats,
}

/// Runs jobs on an image, each in a fresh cage of its own. The healer trusts none of them alone: what one job
/// proposes another one proves.
pub trait Inspector {
    /// A check. Every finding must reach the observer: the healer compares them.
    ///
    /// # Errors
    /// Those of the cage.
    fn check(&mut self, image: Arc<dyn Backend>, observer: &mut dyn Observer) -> Result<Ran, SandboxError>;

    /// A plan for a tier, with what the user has decided.
    ///
    /// # Errors
    /// Those of the cage.
    fn plan(
        &mut self,
        image: Arc<dyn Backend>,
        tier: Tier,
        decisions: Decisions,
        observer: &mut dyn Observer,
    ) -> Result<Ran, SandboxError>;
}

/// Also tells, each in a fresh cage, what of an image is used and what is not.
pub trait Surveyor: Inspector {
    /// A check that tells of the free clusters, where there is nothing else to be told.
    ///
    /// # Errors
    /// Those of the cage.
    fn free(&mut self, image: Arc<dyn Backend>, observer: &mut dyn Observer) -> Result<Ran, SandboxError>;

    /// A survey: who uses which part of the file, and what the active disk is made of.
    ///
    /// # Errors
    /// Those of the cage.
    fn survey(&mut self, image: Arc<dyn Backend>, observer: &mut dyn Observer) -> Result<Ran, SandboxError>;
}

/// Most different findings that are kept for comparing; those that the tier cures are only counted.
const FINDINGS_COMPARED_MAX: usize = 1 << 18;
/// Most findings about determined header fields that are kept; a check tells of one.
const FIELDS_MAX: usize = 16;

/// What a check found, in a form that two checks can be compared in.
#[derive(Debug, Clone)]
pub struct Inspection {
    /// The check's last record.
    pub summary: Summary,
    /// What it cost.
    pub stats: RunStats,
    /// Items found (a run counts as many as it covers), by problem.
    pub counts: BTreeMap<Problem, u64>,
    /// Of those, the items that leave the user something to decide.
    open: BTreeMap<Problem, u64>,
    /// Findings about header fields that the rest of the file determines, at most [`FIELDS_MAX`].
    pub(super) fields: Vec<Finding>,
    /// For the `leaks` tier: the findings that it does not cure, each with how often it was told.
    others: BTreeMap<[u8; size_of::<Finding>()], u64>,
    /// For the `all` tier: where every finding is.
    pub(super) places: Places,
    /// Some findings are in neither.
    pub overflowed: bool,
}

impl Inspection {
    /// How far the check came; an unknown number counts as incomplete.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        Outcome::from_u32(self.summary.outcome).unwrap_or(Outcome::Incomplete)
    }

    /// Items found of one severity.
    #[must_use]
    pub fn count(&self, severity: Severity) -> u64 {
        self.sum(|problem| problem.row().severity == severity)
    }

    /// Items found of one problem.
    #[must_use]
    pub fn items(&self, problem: Problem) -> u64 {
        self.counts.get(&problem).copied().unwrap_or(0)
    }

    /// Items found that `tier` promises to cure.
    #[must_use]
    pub fn curable(&self, tier: Tier) -> u64 {
        self.sum(|problem| self.is_promised(problem, tier))
    }

    /// Whether curing `problem` in this image is promised by `tier`. The table's word, but for one thing:
    /// counts past the end of the file are evidence as long as anything worse than a leak is known, because
    /// they may be what a cut file had there.
    #[must_use]
    pub fn is_promised(&self, problem: Problem, tier: Tier) -> bool {
        let is_sound = || self.count(Severity::Corruption) == 0 && self.count(Severity::Fatal) == 0;
        is_curable(problem, tier) && (problem != Problem::RefcountPastEof || is_sound())
    }

    /// Items found that a plan for `tier` may be about. For `all` that takes in what the user has decided: once
    /// anything is decided, everything that could be counts.
    #[must_use]
    pub fn mendable(&self, tier: Tier, decisions: Decisions) -> u64 {
        let open = if decisions == Decisions::default() { 0 } else { self.undecided() };
        match tier {
            Tier::Leaks => self.curable(tier),
            Tier::All => self.sum(|problem| is_curable(problem, tier)).saturating_add(open),
        }
    }

    /// Whether a header field is to be restored: the rest of the file determines it, and the user has decided so.
    #[must_use]
    pub fn restores(&self, decisions: Decisions) -> bool {
        let is_decided = |problem| Decision::restoring(problem).is_some_and(|one| decisions.has(one));
        self.fields.iter().filter_map(|field| Problem::from_u32(field.problem)).any(is_decided)
    }

    /// Items found about which only the user can decide.
    #[must_use]
    pub fn undecided(&self) -> u64 {
        self.open.values().fold(0, |sum, items| sum.saturating_add(*items))
    }

    /// Items found whose cure costs guest data that is lost already.
    pub(super) fn dropping(&self) -> impl Iterator<Item = (Problem, u64)> {
        self.counts.iter().map(|(p, n)| (*p, *n)).filter(|(p, _)| p.row().cost == Cost::DropsData)
    }

    /// Items found in all.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.sum(|_| true)
    }

    fn sum(&self, which: impl Fn(Problem) -> bool) -> u64 {
        self.counts.iter().filter(|(p, _)| which(**p)).fold(0, |sum, (_, n)| sum.saturating_add(*n))
    }

    /// The problem of a finding that `self` has and `before` has not, or not as often.
    pub(super) fn new_since(&self, before: &Self) -> Option<(Problem, Finding)> {
        let (key, _) = self.others.iter().find(|(key, n)| before.others.get(*key).is_none_or(|m| m < *n))?;
        let finding: Finding = zerocopy::transmute!(*key);
        Some((Problem::from_u32(finding.problem)?, finding))
    }
}

/// The table's word on whether `tier` cures `problem`.
fn is_curable(problem: Problem, tier: Tier) -> bool {
    matches!(problem.row().disposition, Disposition::Curable(at) if at <= tier)
}

/// Counts findings on their way to another observer.
pub(super) struct Tally<'a> {
    inner: &'a mut dyn Observer,
    tier: Tier,
    counts: BTreeMap<Problem, u64>,
    open: BTreeMap<Problem, u64>,
    fields: Vec<Finding>,
    others: BTreeMap<[u8; size_of::<Finding>()], u64>,
    places: Places,
    overflowed: bool,
}

impl<'a> Tally<'a> {
    pub(super) fn new(inner: &'a mut dyn Observer, tier: Tier) -> Self {
        let (counts, open, others) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let (fields, places) = (Vec::new(), Places::default());
        Self { inner, tier, counts, open, fields, others, places, overflowed: false }
    }

    /// Keeps a finding that the tier does not cure, or only where the rest allows it. False if there is no room.
    fn keep_whole(&mut self, problem: Problem, finding: &Finding) -> bool {
        if is_curable(problem, self.tier) && problem != Problem::RefcountPastEof {
            return true;
        }
        if self.others.len() >= FINDINGS_COMPARED_MAX {
            return false;
        }
        let mut key = [0; size_of::<Finding>()];
        key.copy_from_slice(finding.as_bytes());
        *self.others.entry(key).or_default() += 1;
        true
    }

    pub(super) fn finish(self, ran: Ran) -> Inspection {
        Inspection {
            summary: ran.summary,
            stats: ran.stats,
            counts: self.counts,
            open: self.open,
            fields: self.fields,
            others: self.others,
            places: self.places,
            overflowed: self.overflowed || ran.stats.findings_dropped > 0,
        }
    }
}

impl Observer for Tally<'_> {
    fn finding(&mut self, problem: Problem, finding: &Finding) {
        let count = self.counts.entry(problem).or_default();
        *count = count.saturating_add(finding.count);
        if choice::is_open(problem, finding.witnesses) {
            let open = self.open.entry(problem).or_default();
            *open = open.saturating_add(finding.count);
        }
        if finding.witnesses > 0 && self.fields.len() < FIELDS_MAX {
            self.fields.push(*finding);
        }
        let is_kept = match self.tier {
            Tier::Leaks => self.keep_whole(problem, finding),
            Tier::All => self.places.put(problem, finding),
        };
        self.overflowed |= !is_kept;
        self.inner.finding(problem, finding);
    }

    fn finding_dropped(&mut self, problem: Problem, finding: &Finding) {
        self.overflowed = true;
        self.inner.finding_dropped(problem, finding);
    }

    fn owner(&mut self, owner: &instar_abi::finding::Owner) {
        self.inner.owner(owner);
    }

    fn text(&mut self, kind: instar_abi::call::TextKind, index: u32, bytes: &[u8]) {
        self.inner.text(kind, index, bytes);
    }

    fn progress(&mut self, phase: instar_abi::call::Phase, record: &instar_abi::call::ProgressRecord) {
        self.inner.progress(phase, record);
    }
}
