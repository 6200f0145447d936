//! Runs the healer for the command line: gives it its cages, follows what it tells, makes the report.

use std::sync::Arc;

use instar_abi::call::{Phase, ProgressRecord, TextKind};
use instar_abi::finding::{Finding, Owner};
use instar_abi::problem::{Problem, Tier};

use super::inspect::Inspector;
use crate::error::Error;
use crate::heal::{self, CageInspector, HealError, RepairObserver, RepairOptions, RepairReport, Stage};
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
    preview: bool,
) -> Result<Repaired, Error> {
    let options = RepairOptions { preview, ..RepairOptions::default() };
    follow(image, inspector, |cages, follower| heal::repair(image, tier, &options, cages, follower))
}

/// Finishes an interrupted repair.
///
/// # Errors
/// [`Error::Heal`].
pub fn resume(image: &ImageHandle, inspector: &Inspector) -> Result<Repaired, Error> {
    follow(image, inspector, |cages, follower| heal::resume(image, None, cages, follower))
}

fn follow(
    image: &ImageHandle,
    inspector: &Inspector,
    work: impl FnOnce(&mut CageInspector, &mut Follower) -> Result<RepairReport, HealError>,
) -> Result<Repaired, Error> {
    let mut cages = inspector.healers_cages();
    let mut follower =
        Follower { seen: Collector::new(inspector.watch().progress()), before: None, stage: Stage::Check };
    let report = work(&mut cages, &mut follower)
        .map_err(|source| Error::Heal { image: image.path().to_owned(), source })?;
    let last = report.last();
    let Some((cage, fallback)) = cages.cage().cloned() else { return Err(Error::NothingRan) };
    inspector.warn_of_fallback(fallback.as_deref());
    let sandbox = SandboxFacts { cage, fallback, stats: last.stats };
    let before = follower.before.unwrap_or_else(|| follower.seen.tally().clone());
    let mut told = CheckReport::new(image.path().to_owned(), last.summary, follower.seen, sandbox);
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

/// Keeps the findings of the last check of the image itself; those of the proof on a copy are the healer's.
struct Follower {
    seen: Collector,
    before: Option<Tally>,
    stage: Stage,
}

impl Follower {
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
