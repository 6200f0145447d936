//! Runs the healer for the command line: gives it its cages, follows what it tells, makes the report.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use instar_abi::choice::{Decision, Decisions};
use instar_abi::problem::{Problem, Tier};

use super::decide;
use super::follower::Follower;
use super::inspect::Inspector;
use super::memory::{Attempting, Ended, Memory};
use super::options::{RecordsArgs, RepairArgs, StateArgs};
use super::say;
use crate::error::Error;
use crate::heal::{self, BoundPlan, CageInspector, HealError, RepairOptions, RepairReport, option_of};
use crate::history::judge;
use crate::image::{ImageHandle, Overlay};
use crate::report::{CheckReport, RepairFacts, SandboxFacts, Todo, escape_path};

/// What a repair came to.
#[derive(Debug)]
pub struct Repaired {
    /// The image as it is now.
    pub report: CheckReport,
    /// After a preview: the image as it would be.
    pub preview: Option<Arc<Overlay>>,
    /// After a preview: the plan.
    pub bound: Option<BoundPlan>,
}

/// What is asked for.
#[derive(Debug)]
pub struct Request {
    /// What to do; `None` to look only.
    pub what: Option<What>,
    /// Stop after the proof on the copy.
    pub preview: bool,
    /// Where undo file and journal are, if not beside the image.
    pub undo_dir: Option<PathBuf>,
    /// Where to write the plan instead of carrying it out.
    pub plan_out: Option<PathBuf>,
    /// Somebody is there to be asked what to decide.
    pub may_ask: bool,
}

/// What to do with an image.
#[derive(Debug, Clone)]
pub enum What {
    /// Repair at a tier, with what the user has decided.
    Repair(Tier, Decisions),
    /// Carry out a plan that was made before.
    Apply(Box<BoundPlan>),
}

impl Request {
    /// What the options ask for.
    ///
    /// # Errors
    /// [`Error::DecideLeaks`].
    pub fn of(args: &RepairArgs) -> Result<Self, Error> {
        let decisions = args.decisions();
        if args.tier() == Some(Tier::Leaks) && decisions != Decisions::default() {
            return Err(Error::DecideLeaks);
        }
        let what = args.tier().map(|tier| What::Repair(tier, decisions));
        let undo_dir = args.records.undo_dir.clone();
        let may_ask = args.tier() == Some(Tier::All) && decide::can_ask();
        Ok(Self { what, preview: args.preview, undo_dir, plan_out: None, may_ask })
    }

    /// Whether the image may be written.
    #[must_use]
    pub fn writes(&self) -> bool {
        self.what.is_some() && !self.preview && self.plan_out.is_none()
    }
}

impl What {
    /// The same in words.
    fn words(&self) -> String {
        match self {
            Self::Repair(Tier::Leaks, _) => "repair=leaks".to_owned(),
            Self::Repair(Tier::All, decisions) => Decision::ALL
                .iter()
                .filter(|decision| decisions.has(**decision))
                .fold("repair=all".to_owned(), |words, decision| format!("{words} {}", option_of(*decision))),
            Self::Apply(bound) => {
                let digest = bound.plan.digest();
                digest.iter().fold("plan ".to_owned(), |words, byte| format!("{words}{byte:02x}"))
            }
        }
    }
}

/// Repairs an image as `request` says.
///
/// # Errors
/// [`Error::Heal`], [`Error::Refused`], [`Error::PlanFile`], [`Error::Ask`].
pub fn repair(
    image: &ImageHandle,
    inspector: &Inspector,
    what: &What,
    request: &Request,
    state: &StateArgs,
) -> Result<Repaired, Error> {
    let memory = Memory::of(image, state);
    let what = &decided(inspector, what, request.may_ask)?;
    let work = |cages: &mut CageInspector, who: &mut Follower| heal(image, what, request, cages, who);
    if request.writes() {
        let attempt = memory.begin(inspector.request(&what.words()))?;
        return follow(image, inspector, Some(attempt), work);
    }
    // Nothing is written, so there is nothing to remember.
    let mut repaired = follow(image, inspector, None, work)?;
    repaired.report.recurring = memory.recurring(&repaired.report.tally);
    if let Some(path) = &request.plan_out {
        keep_plan(&mut repaired, path)?;
    }
    Ok(repaired)
}

/// The same with what is decided now, where somebody is there to be asked.
fn decided(inspector: &Inspector, what: &What, may_ask: bool) -> Result<What, Error> {
    match what {
        What::Repair(Tier::All, made) if may_ask => {
            let found = inspector.check()?.tally;
            decide::ask(&found, *made).map(|made| What::Repair(Tier::All, made)).map_err(Error::Ask)
        }
        _ => Ok(what.clone()),
    }
}

fn heal(
    image: &ImageHandle,
    what: &What,
    request: &Request,
    cages: &mut CageInspector,
    follower: &mut Follower,
) -> Result<RepairReport, HealError> {
    let (preview, side_folder) = (!request.writes(), request.undo_dir.clone());
    match what {
        What::Apply(bound) => {
            let options = RepairOptions { preview, side_folder, ..RepairOptions::default() };
            heal::repair_with_plan(image, bound.as_ref().clone(), &options, cages, follower)
        }
        What::Repair(tier, decisions) => {
            let options = RepairOptions { preview, side_folder, decisions: *decisions };
            heal::repair(image, *tier, &options, cages, follower)
        }
    }
}

/// Writes a preview's plan to a file, or says that there is none.
fn keep_plan(repaired: &mut Repaired, path: &Path) -> Result<(), Error> {
    let Some(bound) = &repaired.bound else {
        say::to_person(&format!("{}: no plan was written: there is nothing to carry out", escape_path(path)));
        return Ok(());
    };
    heal::write_plan_file(path, bound).map_err(Error::PlanFile)?;
    if let Some(facts) = &mut repaired.report.repair {
        facts.plan_file = Some(path.to_owned());
    }
    Ok(())
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
    let mut follower = Follower::new(inspector);
    let result = work(&mut cages, &mut follower);
    let recurring = attempt.map(|attempt| attempt.end(&ended(&result, &follower))).unwrap_or_default();
    let report = result.map_err(|source| Error::Heal { image: image.path().to_owned(), source })?;
    let last = report.last();
    let Some((cage, fallback)) = cages.cage().cloned() else { return Err(Error::NothingRan) };
    inspector.warn_of_fallback(fallback.as_deref());
    let sandbox = SandboxFacts { cage, fallback, stats: last.stats };
    let before = follower.found().clone();
    let todo = todo(&report, &follower);
    let left = last_counts(&report).keys().copied().collect();
    let mut told = CheckReport::new(image.path().to_owned(), last.summary, follower.seen, sandbox);
    told.recurring = recurring;
    told.repair = Some(RepairFacts {
        tier: report.tier,
        ending: report.ending,
        plan: report.plan,
        attested: report.attested.is_some(),
        undo_file: report.undo_file,
        before,
        todo,
        left,
        plan_file: None,
    });
    Ok(Repaired { report: told, preview: report.preview, bound: report.bound })
}

/// What a preview's plan is going to do.
fn todo(report: &RepairReport, follower: &Follower) -> Option<Todo> {
    let plan = &report.bound.as_ref()?.plan;
    Some(Todo::of(plan, &report.before.counts, last_counts(report), follower.seen.findings()))
}

/// Items that are left, or would be after a preview.
fn last_counts(report: &RepairReport) -> &BTreeMap<Problem, u64> {
    &report.after.as_ref().unwrap_or(&report.before).counts
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
