//! The healer: the only writer of an image. Interprets no image byte.
//!
//! A repair is a walk through states, each a type that can only be made from the one before
//! ([`state`]): `Unverified -> Checked -> Planned -> Staged -> Proven -> Landed -> Healed`. Policy is the
//! problem table's; what is written was proposed by one cage, recorded as a [`Plan`], and proven on an overlay
//! by a fresh one. `docs/repair.md` draws the files it keeps and lists what can be on disk after a crash.
//!
//! Invariant: before the landing begins the image is not even open for writing; once it has begun, undo file
//! and journal are durable, and one of them leads out of every interruption.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use instar_abi::choice::Decisions;
use instar_abi::problem::Tier;

use crate::image::{ImageHandle, Mode, Overlay};
use crate::sandbox::observer::Observer;

mod cage;
mod discard;
mod ending;
mod error;
mod fingerprint;
mod guard;
mod inspector;
mod journal;
mod land;
mod normal;
mod places;
mod plan;
mod plan_file;
mod policy;
mod quarantine;
mod record;
mod recorder;
mod restored;
mod resume;
mod rounds;
mod side;
mod site;
pub mod state;
mod undo;
mod verify;

pub use cage::CageInspector;
pub use discard::{DiscardOptions, DiscardReport, Listed, Mistrust, discard, discard_at};
pub use ending::{Ending, ExitRule, Route};
pub use error::HealError;
pub(crate) use fingerprint::of as fingerprint;
pub use guard::{GUARD_BYTES_MAX, Guard};
pub use inspector::{Inspection, Inspector, Ran, Surveyor};
pub use journal::Binding;
pub use plan::{Plan, PlanError, Step};
pub use plan_file::{
    PlanFileError, PlanFileFault, option_of, read as read_plan_file, write as write_plan_file,
};
pub use resume::Pending;
pub use rounds::ROUNDS_MAX;
pub use side::RecordError;
pub use site::{FileSite, Folder, SideFile, Site};
pub use verify::{Attestation, Attested, Doubt, Proof};

/// What the engine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Checking the image as it is. Its findings are told.
    Check,
    /// Planning.
    Plan,
    /// Checking the copy with the plan's writes in place. Its findings are told.
    Prove,
    /// Writing records and image.
    Land,
    /// Checking the repaired image. Its findings are told.
    Recheck,
}

/// Follows a repair. The findings of each checking stage are told anew: those of the last one are what is left.
pub trait RepairObserver: Observer {
    /// A stage begins.
    fn stage_begins(&mut self, stage: Stage) {
        let _ = stage;
    }

    /// A round of planning begins, from 0 to [`ROUNDS_MAX`]; only for the `all` tier.
    fn round_begins(&mut self, round: u32) {
        let _ = round;
    }
}

impl RepairObserver for crate::sandbox::observer::Ignore {}

/// How to repair.
#[derive(Debug, Clone, Default)]
pub struct RepairOptions {
    /// Stop after the proof on the copy.
    pub preview: bool,
    /// Keep journal and undo file here instead of beside the image.
    pub side_folder: Option<PathBuf>,
    /// What the user has decided. Not for a plan that was made before, which has its own.
    pub decisions: Decisions,
}

/// A plan, and the image that it was made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundPlan {
    /// What is to be written.
    pub plan: Plan,
    /// The image before it, and its length after.
    pub binding: Binding,
}

/// What a plan would write or has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanFacts {
    /// Steps.
    pub steps: usize,
    /// Writes.
    pub writes: usize,
    /// Bytes in them.
    pub write_bytes: u64,
    /// SHA-256 of the plan.
    pub digest: [u8; 32],
}

/// What a repair did.
#[derive(Debug)]
pub struct RepairReport {
    /// How it ended.
    pub ending: Ending,
    /// What was asked for.
    pub tier: Tier,
    /// The image as it was found.
    pub before: Inspection,
    /// What was planned.
    pub plan: Option<PlanFacts>,
    /// The repaired image, or the repaired copy in a preview.
    pub after: Option<Inspection>,
    /// Proof of the repaired image.
    pub attested: Option<Attested>,
    /// Where the old bytes are.
    pub undo_file: Option<PathBuf>,
    /// The plan of a preview, to be carried out later ([`repair_with_plan`]).
    pub bound: Option<BoundPlan>,
    /// The repaired copy, in a preview.
    pub preview: Option<Arc<Overlay>>,
    /// An interrupted repair was finished first.
    pub resumed: bool,
}

impl RepairReport {
    /// The last check: of the repaired image, or of the image as it is where nothing was written.
    #[must_use]
    pub fn last(&self) -> &Inspection {
        match (&self.after, self.ending) {
            (Some(after), ending) if ending != Ending::Previewed => after,
            _ => &self.before,
        }
    }
}

/// Repairs an image, finishing an interrupted repair or undo first. The exclusive lock is held from before the check
/// until the end, and the mode before it is taken up again then; a preview needs no more than the read lock.
///
/// # Errors
/// Every [`HealError`]; [`HealError::ending`] says what each means.
pub fn repair(
    image: &ImageHandle,
    tier: Tier,
    options: &RepairOptions,
    inspector: &mut dyn Inspector,
    observer: &mut dyn RepairObserver,
) -> Result<RepairReport, HealError> {
    let site = FileSite::new(Arc::clone(image.file()), options.side_folder.as_deref())?;
    if options.preview {
        return repair_at(&site, tier, options, inspector, observer);
    }
    exclusively(image, || repair_at(&site, tier, options, inspector, observer))
}

/// As [`repair`], with a plan that was made before instead of a new one. It is proven anew.
///
/// # Errors
/// `PlanForeign` if the image is not as it was then; as [`repair`].
pub fn repair_with_plan(
    image: &ImageHandle,
    bound: BoundPlan,
    options: &RepairOptions,
    inspector: &mut dyn Inspector,
    observer: &mut dyn RepairObserver,
) -> Result<RepairReport, HealError> {
    let site = FileSite::new(Arc::clone(image.file()), options.side_folder.as_deref())?;
    if options.preview {
        return repair_with_plan_at(&site, bound, true, inspector, observer);
    }
    exclusively(image, || repair_with_plan_at(&site, bound, false, inspector, observer))
}

/// Finishes an interrupted repair.
///
/// # Errors
/// `NoJournal` if there is none; every other [`HealError`].
pub fn resume(
    image: &ImageHandle,
    side_folder: Option<&Path>,
    inspector: &mut dyn Inspector,
    observer: &mut dyn RepairObserver,
) -> Result<RepairReport, HealError> {
    let site = FileSite::new(Arc::clone(image.file()), side_folder)?;
    exclusively(image, || resume_at(&site, inspector, observer))
}

/// Puts back every byte that the last repair, finished or not, has written, and the image's length.
///
/// # Errors
/// `NoUndo` if there is no undo file; `UsedSince` if the image has been written since; every other
/// [`HealError`].
pub fn undo(image: &ImageHandle, side_folder: Option<&Path>) -> Result<Ending, HealError> {
    let site = FileSite::new(Arc::clone(image.file()), side_folder)?;
    exclusively(image, || undo_at(&site))
}

/// Removes the undo file of the last repair, which cannot be undone any more then.
///
/// # Errors
/// `NoUndo` if there is none; `JournalFound` and `UndoInterrupted` where it is needed to finish what was begun; every
/// other [`HealError`].
pub fn drop_undo(image: &ImageHandle, side_folder: Option<&Path>) -> Result<Ending, HealError> {
    let site = FileSite::new(Arc::clone(image.file()), side_folder)?;
    exclusively(image, || drop_undo_at(&site))
}

/// What an interrupted repair or undo has left, if anything. Whoever is about to use an image asks this first.
///
/// # Errors
/// `NoPlaceForRecords`, `Storage`.
pub fn pending(image: &ImageHandle, side_folder: Option<&Path>) -> Result<Option<Pending>, HealError> {
    if image.file().is_block_device() && side_folder.is_none() {
        return Ok(None);
    }
    let site = FileSite::new(Arc::clone(image.file()), side_folder)?;
    resume::pending(&site)
}

/// As [`repair`], without locks.
///
/// # Errors
/// As [`repair`].
pub fn repair_at(
    site: &dyn Site,
    tier: Tier,
    options: &RepairOptions,
    inspector: &mut dyn Inspector,
    observer: &mut dyn RepairObserver,
) -> Result<RepairReport, HealError> {
    look_again(site)?;
    let resumed = finish_interrupted(site, options.preview, inspector, observer)?;
    let unverified = state::Unverified::new(site, tier, options.decisions, inspector, observer);
    Ok(RepairReport { resumed, ..state::walk(unverified, options.preview)? })
}

/// As [`repair_with_plan`], without locks.
///
/// # Errors
/// As [`repair_with_plan`].
pub fn repair_with_plan_at(
    site: &dyn Site,
    bound: BoundPlan,
    preview: bool,
    inspector: &mut dyn Inspector,
    observer: &mut dyn RepairObserver,
) -> Result<RepairReport, HealError> {
    look_again(site)?;
    let resumed = finish_interrupted(site, preview, inspector, observer)?;
    let (tier, decisions) = (bound.plan.tier(), bound.plan.decisions());
    let unverified = state::Unverified::new(site, tier, decisions, inspector, observer);
    Ok(RepairReport { resumed, ..state::walk_with(unverified, bound, preview)? })
}

/// Finishes what an interruption has left. True if that was a repair. A preview, which writes nothing, is refused.
fn finish_interrupted(
    site: &dyn Site,
    preview: bool,
    inspector: &mut dyn Inspector,
    observer: &mut dyn RepairObserver,
) -> Result<bool, HealError> {
    let is_repair = match resume::pending(site)? {
        None => return Ok(false),
        Some(Pending::Repair(path)) if preview => return Err(HealError::JournalFound(path)),
        Some(Pending::Undo(path)) if preview => return Err(HealError::UndoInterrupted(path)),
        Some(Pending::Repair(_)) => resume_at(site, inspector, observer).map(|_| true)?,
        Some(Pending::Undo(_)) => undo_at(site).map(|_| false)?,
    };
    look_again(site)?;
    Ok(is_repair)
}

/// Whoever held the image before, this program included, may have changed its length.
fn look_again(site: &dyn Site) -> Result<(), HealError> {
    site.look_again().map_err(|source| HealError::Storage {
        path: site.path().to_path_buf(),
        action: "read the attributes",
        source,
    })
}

/// As [`resume`], without locks.
///
/// # Errors
/// As [`resume`].
pub fn resume_at(
    site: &dyn Site,
    inspector: &mut dyn Inspector,
    observer: &mut dyn RepairObserver,
) -> Result<RepairReport, HealError> {
    look_again(site)?;
    let staged = resume::staged(site, inspector, observer)?;
    staged.prove()?.land()?.attest()?.finish(Ending::Resumed)
}

/// As [`undo`], without locks.
///
/// # Errors
/// As [`undo`].
pub fn undo_at(site: &dyn Site) -> Result<Ending, HealError> {
    look_again(site)?;
    quarantine::undo(site)
}

/// As [`drop_undo`], without locks.
///
/// # Errors
/// As [`drop_undo`].
pub fn drop_undo_at(site: &dyn Site) -> Result<Ending, HealError> {
    quarantine::drop_undo(site)
}

/// Runs `work` under the exclusive lock, then goes back to the mode that was held.
fn exclusively<T>(image: &ImageHandle, work: impl FnOnce() -> Result<T, HealError>) -> Result<T, HealError> {
    let mode = image.mode();
    if mode == Mode::Exclusive {
        return work();
    }
    image.change_mode(Mode::Exclusive)?;
    let result = work();
    let back = image.change_mode(mode);
    let value = result?;
    back?;
    Ok(value)
}
