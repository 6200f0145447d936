//! Runs the healer for the command line: gives it its cages, follows what it tells, makes the report.

use std::sync::Arc;

use instar_abi::call::{Phase, ProgressRecord, TextKind};
use instar_abi::finding::{Finding, Owner};
use instar_abi::problem::{Problem, Tier};

use super::inspect::Inspector;
use super::memory::{Attempting, Ended, Memory};
use super::options::{RecordsArgs, RepairArgs, StateArgs};
use crate::error::Error;
use crate::heal::{self, CageInspector, HealError, RepairObserver, RepairOptions, RepairReport, Stage};
use crate::history::judge;
use crate::image::{ImageHandle, Overlay};
use crate::report::{CheckReport, Collector, RepairFacts, SandboxFacts, Tally};
use crate::sandbox::observer::Observer;

/// What a repair came to.
#[derive(Debug)]
pub struct Repaired {
    /// The image as it is now.
    pub report: CheckReport,
    /// After a preview: the image as it would be.
    pub preview: Option<Arc<Overlay>>,
}

/// Repairs an image.
///
/// # Errors
/// [`Error::Heal`].
pub fn repair(
    image: &ImageHandle,
    inspector: &Inspector,
    tier: Tier,
    args: &RepairArgs,
    state: &StateArgs,
) -> Result<Repaired, Error> {
    let side_folder = args.records.undo_dir.clone();
    let options = RepairOptions { preview: args.preview, side_folder, ..RepairOptions::default() };
    let memory = Memory::of(image, state);
    if args.preview {
        // Nothing is written, so there is nothing to remember.
        let attempt = None;
        let mut repaired =
            follow(image, inspector, attempt, |cages, who| heal::repair(image, tier, &options, cages, who))?;
        repaired.report.recurring = memory.recurring(&repaired.report.tally);
        return Ok(repaired);
    }
    let attempt = memory.begin(inspector.request(&args.request()))?;
    follow(image, inspector, Some(attempt), |cages, who| heal::repair(image, tier, &options, cages, who))
}

/// Finishes an interrupted repair.
///
/// # Errors
/// [`Error::Heal`].
pub fn resume(
    image: &ImageHandle,
    inspector: &Inspector,
    records: &RecordsArgs,
    state: &StateArgs,
) -> Result<Repaired, Error> {
    let attempt = Memory::of(image, state).begin(inspector.request("resume"))?;
    let folder = records.undo_dir.as_deref();
    follow(image, inspector, Some(attempt), |cages, who| heal::resume(image, folder, cages, who))
}

/// Lets the healer work, and remembers how that ended.
fn follow(
    image: &ImageHandle,
    inspector: &Inspector,
    attempt: Option<Attempting<'_>>,
    work: impl FnOnce(&mut CageInspector, &mut Follower) -> Result<RepairReport, HealError>,
) -> Result<Repaired, Error> {
    let mut cages = inspector.healers_cages();
    let mut follower =
        Follower { seen: Collector::new(inspector.watch().progress()), before: None, stage: Stage::Check };
    let result = work(&mut cages, &mut follower);
    let recurring = attempt.map(|attempt| attempt.end(&ended(&result, &follower))).unwrap_or_default();
    let report = result.map_err(|source| Error::Heal { image: image.path().to_owned(), source })?;
    let last = report.last();
    let Some((cage, fallback)) = cages.cage().cloned() else { return Err(Error::NothingRan) };
    inspector.warn_of_fallback(fallback.as_deref());
    let sandbox = SandboxFacts { cage, fallback, stats: last.stats };
    let before = follower.found().clone();
    let mut told = CheckReport::new(image.path().to_owned(), last.summary, follower.seen, sandbox);
    told.recurring = recurring;
    told.repair = Some(RepairFacts {
        tier: report.tier,
        ending: report.ending,
        plan: report.plan,
        attested: report.attested.is_some(),
        undo_file: report.undo_file,
        before,
    });
    Ok(Repaired { report: told, preview: report.preview })
}

/// What is to be remembered of an attempt.
fn ended<'a>(result: &'a Result<RepairReport, HealError>, follower: &'a Follower) -> Ended<'a> {
    let report = result.as_ref().ok();
    let attested = report.and_then(|report| report.attested.as_ref());
    Ended {
        outcome: match result {
            Ok(report) => report.ending.id(),
            Err(error) => error.ending().id(),
        },
        failed: result.as_ref().is_err_and(judge::is_failure),
        plan_digest: report.and_then(|report| report.plan).map(|plan| plan.digest),
        attested,
        before: follower.found(),
        after: attested.map(|_| follower.seen.tally()),
    }
}

/// Keeps the findings of the last check of the image itself; those of the proof on a copy are the healer's.
struct Follower {
    seen: Collector,
    before: Option<Tally>,
    stage: Stage,
}

impl Follower {
    /// What was found before anything was written.
    fn found(&self) -> &Tally {
        self.before.as_ref().unwrap_or_else(|| self.seen.tally())
    }

    fn is_about_the_image(&self) -> bool {
        matches!(self.stage, Stage::Check | Stage::Recheck)
    }
}

impl RepairObserver for Follower {
    fn stage_begins(&mut self, stage: Stage) {
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
