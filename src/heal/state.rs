//! The walk through a repair, as consuming types.
//!
//! Invariant: each state can only be made from the one before, so nothing is landed that was not proven and no
//! journal goes without an attestation of the live image. [`Staged`] has a second way in, from a journal; from
//! there on the way is the same, the proof included.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use instar_abi::choice::Decisions;
use instar_abi::problem::Tier;
use instar_abi::summary::Outcome;

use super::ending::Ending;
use super::error::HealError;
use super::inspector::{Inspection, Inspector, Tally};
use super::journal::Binding;
use super::plan::{Plan, Span};
use super::recorder::Recorder;
use super::site::{SideFile, Site};
use super::undo::Undo;
use super::verify::{self, Asked, Attestation, Doubt, Origin, Proof};
use super::{
    BoundPlan, PlanFacts, RepairObserver, RepairReport, Stage, fingerprint, guard, land, policy, quarantine,
    restored, rounds,
};
use crate::image::{Backend, FileState, Latch, Overlay, Write};

/// What every state needs.
pub(super) struct Context<'a> {
    pub site: &'a dyn Site,
    pub tier: Tier,
    pub decisions: Decisions,
    pub inspector: &'a mut dyn Inspector,
    pub observer: &'a mut dyn RepairObserver,
}

impl std::fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("site", &self.site).field("tier", &self.tier).finish_non_exhaustive()
    }
}

impl Context<'_> {
    /// A check by a fresh cage; its findings are told.
    pub(super) fn check(
        &mut self,
        image: Arc<dyn Backend>,
        stage: Stage,
    ) -> Result<Inspection, crate::sandbox::error::SandboxError> {
        self.observer.stage_begins(stage);
        let mut tally = Tally::new(self.observer, self.tier);
        let ran = self.inspector.check(image, &mut tally)?;
        Ok(tally.finish(ran))
    }

    /// What a planner in a fresh cage proposes for `image`; `None` if it could not look at all of it.
    pub(super) fn propose(&mut self, image: Arc<dyn Backend>) -> Result<Option<Plan>, HealError> {
        let mut recorder = Recorder::new(Some(self.observer));
        let ran = self
            .inspector
            .plan(image, self.tier, self.decisions, &mut recorder)
            .map_err(|source| HealError::Cage { stage: "the plan", source })?;
        let plan = recorder.finish(self.tier, self.decisions).map_err(HealError::BadPlan)?;
        let is_complete = Outcome::from_u32(ran.summary.outcome) == Some(Outcome::Complete);
        // A header field may be what keeps the image from being looked at.
        Ok(Some(plan).filter(|plan| is_complete || plan.only_restores()))
    }

    /// The image with nothing but its header fields restored, where `plan` does that: what is behind them is seen for
    /// the first time. Refuses a field that is not restored to what a finding tells and the user has decided about.
    pub(super) fn restored(
        &mut self,
        plan: &Plan,
        before: &Inspection,
        image: Arc<dyn Backend>,
    ) -> Result<Option<Inspection>, HealError> {
        if !plan.restores() {
            return Ok(None);
        }
        restored::refuse_untold(plan, before, self.decisions, image.as_ref())
            .map_err(self.storage("read"))?
            .map_err(HealError::BadPlan)?;
        let view = plan.restored_over(image).map_err(|e| HealError::BadPlan(e.into()))?;
        let found = self
            .check(Arc::new(view), Stage::Prove)
            .map_err(|source| HealError::Cage { stage: "the proof", source })?;
        Ok(Some(found))
    }

    fn asked(&self) -> Asked {
        Asked { tier: self.tier, decisions: self.decisions }
    }

    pub(super) fn storage(&self, action: &'static str) -> impl FnOnce(std::io::Error) -> HealError {
        let path = self.site.path().to_path_buf();
        move |source| HealError::Storage { path, action, source }
    }

    /// What changes when somebody writes to the image.
    pub(super) fn state(&self) -> Result<Option<FileState>, HealError> {
        self.site.state().map_err(self.storage("read the attributes"))
    }
}

/// An image that nobody has looked at.
#[derive(Debug)]
pub struct Unverified<'a> {
    context: Context<'a>,
}

/// An image that a cage has checked.
#[derive(Debug)]
pub struct Checked<'a> {
    context: Context<'a>,
    since: Option<FileState>,
    before: Inspection,
}

/// A checked image with a plan that keeps its rules.
#[derive(Debug)]
pub struct Planned<'a> {
    checked: Checked<'a>,
    plan: Plan,
}

/// The plan's writes over the untouched image.
#[derive(Debug)]
pub struct Staged<'a> {
    pub(super) context: Context<'a>,
    pub(super) since: Option<FileState>,
    pub(super) before: Inspection,
    /// The image with its header fields restored, where the plan does that.
    pub(super) restored: Option<Inspection>,
    pub(super) plan: Plan,
    pub(super) overlay: Arc<Overlay>,
    /// Every range that is written, the guard's among them, sorted.
    pub(super) ranges: Vec<Span>,
    pub(super) binding: Binding,
    /// Undo file and journal are there already: an interrupted landing is being finished.
    pub(super) recorded: bool,
}

/// The copy has passed a fresh check.
#[derive(Debug)]
pub struct Proven<'a> {
    pub(super) staged: Staged<'a>,
    proof: Proof,
    after: Inspection,
}

/// Everything is written and durable, but not yet looked at.
#[derive(Debug)]
pub struct Landed<'a> {
    staged: Staged<'a>,
    live: Latch,
    undo: Undo,
}

/// The live image has passed a fresh check.
#[derive(Debug)]
pub struct Healed<'a> {
    staged: Staged<'a>,
    live: Latch,
    after: Inspection,
    attestation: Attestation,
}

/// All of it.
pub(super) fn walk(unverified: Unverified<'_>, preview: bool) -> Result<RepairReport, HealError> {
    match unverified.check()?.plan()? {
        ControlFlow::Continue(planned) => planned.stage()?.carry_out(preview),
        ControlFlow::Break(report) => Ok(*report),
    }
}

/// All of it, with a plan that was made before.
pub(super) fn walk_with(
    unverified: Unverified<'_>,
    bound: BoundPlan,
    preview: bool,
) -> Result<RepairReport, HealError> {
    refuse_foreign(unverified.context.site, &bound)?;
    match unverified.check()?.adopt(bound.plan)? {
        ControlFlow::Continue(planned) => planned.stage_for(bound.binding)?.carry_out(preview),
        ControlFlow::Break(report) => Ok(*report),
    }
}

/// Refuses an image that is not the one that a plan was made for, before anything is looked at.
fn refuse_foreign(site: &dyn Site, bound: &BoundPlan) -> Result<(), HealError> {
    let image = site.image();
    let path = || site.path().to_path_buf();
    let ranges = bound.plan.touched_ranges().map_err(HealError::BadPlan)?;
    let fingerprint = fingerprint::of(image.as_ref(), &ranges).map_err(|source| HealError::Storage {
        path: path(),
        action: "read",
        source,
    })?;
    let now = Binding { fingerprint, len_before: image.len(), ..bound.binding };
    if now == bound.binding { Ok(()) } else { Err(foreign(path(), &now, &bound.binding)) }
}

/// Names both states.
fn foreign(path: PathBuf, now: &Binding, planned: &Binding) -> HealError {
    let text = |binding: &Binding| {
        let digits: String = binding.fingerprint.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{} bytes with fingerprint {digits}", binding.len_before)
    };
    HealError::PlanForeign { path, what: format!("it has {}, the plan is for {}", text(now), text(planned)) }
}

impl<'a> Unverified<'a> {
    /// The image at `site`, to be repaired at `tier` with what the user has decided.
    pub fn new(
        site: &'a dyn Site,
        tier: Tier,
        decisions: Decisions,
        inspector: &'a mut dyn Inspector,
        observer: &'a mut dyn RepairObserver,
    ) -> Self {
        Self { context: Context { site, tier, decisions, inspector, observer } }
    }

    /// Has a cage look at it.
    ///
    /// # Errors
    /// `Cage`, `Storage`.
    pub fn check(mut self) -> Result<Checked<'a>, HealError> {
        let since = self.context.state()?;
        let image = self.context.site.image();
        let before = self
            .context
            .check(image, Stage::Check)
            .map_err(|source| HealError::Cage { stage: "the check", source })?;
        Ok(Checked { context: self.context, since, before })
    }
}

impl<'a> Checked<'a> {
    /// Has other cages propose writes, where policy allows any; breaks off with a report where not, and where
    /// everything is withheld.
    ///
    /// # Errors
    /// `Cage`; `Storage`; `BadPlan`; `Quarantined` for a plan that frees nothing although there are leaks to free.
    pub fn plan(mut self) -> Result<ControlFlow<Box<RepairReport>, Planned<'a>>, HealError> {
        if let Some(ending) = self.reason_to_stop() {
            return Ok(self.stop(ending));
        }
        self.context.observer.stage_begins(Stage::Plan);
        let Some(plan) = rounds::plan(&mut self.context)? else {
            return Ok(self.stop(Ending::IncompleteWalk));
        };
        if plan.is_empty() {
            return match policy::withheld(&self.before, self.context.tier) {
                Some(ending) => Ok(self.stop(ending)),
                None => Err(HealError::Quarantined(Doubt::NotBetter)),
            };
        }
        Ok(ControlFlow::Continue(Planned { checked: self, plan }))
    }

    /// Takes a plan that was made before, where policy allows any.
    ///
    /// # Errors
    /// `Quarantined` for a plan that writes nothing.
    pub fn adopt(self, plan: Plan) -> Result<ControlFlow<Box<RepairReport>, Planned<'a>>, HealError> {
        if let Some(ending) = self.reason_to_stop() {
            return Ok(self.stop(ending));
        }
        if plan.is_empty() {
            return Err(HealError::Quarantined(Doubt::NotBetter));
        }
        Ok(ControlFlow::Continue(Planned { checked: self, plan }))
    }

    fn reason_to_stop(&self) -> Option<Ending> {
        policy::reason_to_stop(&self.before, self.context.tier, self.context.decisions)
    }

    fn stop(self, ending: Ending) -> ControlFlow<Box<RepairReport>, Planned<'a>> {
        ControlFlow::Break(Box::new(self.report(ending)))
    }

    fn report(self, ending: Ending) -> RepairReport {
        RepairReport {
            ending,
            tier: self.context.tier,
            before: self.before,
            plan: None,
            after: None,
            attested: None,
            undo_file: None,
            preview: None,
            bound: None,
            resumed: false,
        }
    }
}

impl<'a> Planned<'a> {
    /// What is to be written.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Puts the plan's writes over the image.
    ///
    /// # Errors
    /// `BadPlan` if writes overlap, or if there is no guard where there must be one; `Storage`.
    pub fn stage(self) -> Result<Staged<'a>, HealError> {
        let Self { checked: Checked { mut context, since, before }, plan } = self;
        let image = context.site.image();
        let ranges = plan.touched_ranges().map_err(HealError::BadPlan)?;
        let restored = context.restored(&plan, &before, Arc::clone(&image))?;
        let version = restored.as_ref().unwrap_or(&before).summary.version;
        guard::refuse_unguarded(&plan, version, image.as_ref())
            .map_err(context.storage("read"))?
            .map_err(HealError::BadPlan)?;
        let overlay = plan.over(Arc::clone(&image)).map_err(|e| HealError::BadPlan(e.into()))?;
        let fingerprint = fingerprint::of(image.as_ref(), &ranges).map_err(context.storage("read"))?;
        let binding = Binding { fingerprint, len_before: image.len(), len_after: overlay.len() };
        let overlay = Arc::new(overlay);
        Ok(Staged { context, since, before, restored, plan, overlay, ranges, binding, recorded: false })
    }

    /// As [`Planned::stage`], for a plan that was made for the image that `binding` tells of.
    ///
    /// # Errors
    /// `PlanForeign` if that is another image, or this one in another state; as [`Planned::stage`].
    pub fn stage_for(self, binding: Binding) -> Result<Staged<'a>, HealError> {
        let path = self.checked.context.site.path().to_path_buf();
        let staged = self.stage()?;
        if staged.binding != binding {
            return Err(foreign(path, &staged.binding, &binding));
        }
        Ok(staged)
    }
}

impl<'a> Staged<'a> {
    /// Has a fresh cage check the copy.
    ///
    /// # Errors
    /// `Quarantined` if it is not strictly better: the overlay is dropped then; `Cage`.
    pub fn prove(mut self) -> Result<Proven<'a>, HealError> {
        let copy = Arc::clone(&self.overlay) as Arc<dyn Backend>;
        let after = self
            .context
            .check(copy, Stage::Prove)
            .map_err(|source| HealError::Cage { stage: "the proof", source })?;
        let proof =
            verify::prove(&self.origin(), &after, self.context.asked()).map_err(HealError::Quarantined)?;
        Ok(Proven { staged: self, proof, after })
    }

    /// The rest of the way, or up to the proof.
    fn carry_out(self, preview: bool) -> Result<RepairReport, HealError> {
        let proven = self.prove()?;
        if preview {
            return Ok(proven.into_preview());
        }
        let healed = proven.land()?.attest()?;
        let ending = if healed.after.total() == 0 { Ending::Repaired } else { Ending::RepairedPartly };
        healed.finish(ending)
    }

    /// What the repaired image is held against.
    fn origin(&self) -> Origin<'_> {
        Origin { found: &self.before, restored: self.restored.as_ref() }
    }

    fn facts(&self) -> PlanFacts {
        PlanFacts {
            steps: self.plan.steps().len(),
            writes: self.plan.writes().count(),
            write_bytes: self.plan.write_bytes(),
            digest: self.plan.digest(),
        }
    }
}

impl<'a> Proven<'a> {
    /// Items that are cured in the copy.
    #[must_use]
    pub fn cured(&self) -> u64 {
        self.proof.cured()
    }

    /// Ends here: nothing is written, and the copy can be looked at.
    #[must_use]
    pub fn into_preview(self) -> RepairReport {
        let plan = Some(self.staged.facts());
        RepairReport {
            ending: Ending::Previewed,
            tier: self.staged.context.tier,
            before: self.staged.before,
            plan,
            after: Some(self.after),
            attested: None,
            undo_file: None,
            preview: Some(self.staged.overlay),
            bound: Some(BoundPlan { plan: self.staged.plan, binding: self.staged.binding }),
            resumed: false,
        }
    }

    /// Writes undo file, journal and image.
    ///
    /// # Errors
    /// Before the image is touched: `Changed`, `NoSpace`, `NotWritable`, `Storage`. After: `Interrupted`.
    pub fn land(self) -> Result<Landed<'a>, HealError> {
        let Self { staged, proof, after: _ } = self;
        staged.context.observer.stage_begins(Stage::Land);
        let (live, undo) = land::land(&staged, proof)?;
        Ok(Landed { staged, live, undo })
    }
}

impl<'a> Landed<'a> {
    /// Has a fresh cage check the live image, and puts it back if it does not pass.
    ///
    /// # Errors
    /// `Unattested`, `RolledBack`, `RollbackFailed`.
    pub fn attest(mut self) -> Result<Healed<'a>, HealError> {
        let image = self.staged.context.site.image_again().map_err(|source| HealError::Interrupted {
            path: self.staged.context.site.path().to_path_buf(),
            action: "open again",
            source: std::io::Error::other(source),
        })?;
        let shown = self.with_guard_lowered(image)?;
        let after = self.staged.context.check(shown, Stage::Recheck).map_err(HealError::Unattested)?;
        let Self { staged, live, undo } = self;
        match verify::attest(&staged.origin(), &after, staged.context.asked(), staged.plan.digest()) {
            Ok(attestation) => Ok(Healed { staged, live, after, attestation }),
            Err(doubt) => Err(quarantine::roll_back(staged.context.site, &live, &undo, doubt)),
        }
    }

    /// The live image as it will be once the guard is lowered.
    fn with_guard_lowered(&self, image: Arc<dyn Backend>) -> Result<Arc<dyn Backend>, HealError> {
        let Some(guard) = self.staged.plan.guard() else { return Ok(image) };
        let mut view = Overlay::new(image, guard.len_bytes());
        view.stage(Write { offset: guard.offset(), bytes: guard.lowered().into() })
            .map_err(|error| HealError::BadPlan(error.into()))?;
        Ok(Arc::new(view))
    }
}

impl Healed<'_> {
    /// Lowers the guard and removes the journal.
    ///
    /// # Errors
    /// `Interrupted`: the repair is done, but the journal is still there.
    pub fn finish(self, ending: Ending) -> Result<RepairReport, HealError> {
        let Self { staged, live, after, attestation } = self;
        let plan = Some(staged.facts());
        let site = staged.context.site;
        let attested = land::close(site, &live, staged.plan.guard(), attestation)?;
        let undo_file: PathBuf = site.folder().path_of(SideFile::Undo);
        Ok(RepairReport {
            ending,
            tier: staged.context.tier,
            before: staged.before,
            plan,
            after: Some(after),
            attested: Some(attested),
            undo_file: Some(undo_file),
            preview: None,
            bound: None,
            resumed: false,
        })
    }
}
