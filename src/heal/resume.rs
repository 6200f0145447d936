//! What is done about a journal that was left behind.
//!
//! Invariant: a journal is only ever replayed into the image it was made for, while every sector that it
//! writes is as before the repair or as after it, and only after a fresh proof: the check of the image as it
//! was before (seen through the undo file) is compared with that of the image as it will be. That refuses a
//! replay over an image in which somebody has used the freed clusters since. A guard is raised again before the
//! first write, whatever state it was left in.

use std::path::PathBuf;
use std::sync::Arc;

use super::error::HealError;
use super::guard;
use super::inspector::Inspector;
use super::journal::{self, Binding, Journal};
use super::site::{SideFile, Site};
use super::state::{Context, Staged};
use super::undo::{self, Trace, Undo};
use super::{RepairObserver, Stage};
use crate::image::Backend;

/// What an interruption has left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pending {
    /// A repair, with its journal.
    Repair(PathBuf),
    /// An undo, with the undo file that it was using.
    Undo(PathBuf),
}

/// What an interruption has left, if anything. Going back takes precedence: it was asked for later.
pub(super) fn pending(site: &dyn Site) -> Result<Option<Pending>, HealError> {
    for (file, pending) in
        [(SideFile::Undoing, Pending::Undo as fn(PathBuf) -> Pending), (SideFile::Journal, Pending::Repair)]
    {
        let path = site.folder().path_of(file);
        match site.folder().open(file) {
            Ok(None) => {}
            // One that is not to be trusted is there all the same; reading it says why it is not used.
            Ok(Some(_)) => return Ok(Some(pending(path))),
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                return Ok(Some(pending(path)));
            }
            Err(source) => {
                return Err(HealError::Storage { path, action: "look for an interrupted repair", source });
            }
        }
    }
    Ok(None)
}

/// The undo file that must be there.
pub(super) fn undo_file(site: &dyn Site, name: SideFile) -> Result<Undo, HealError> {
    let path = site.folder().path_of(name);
    match undo::read_file(site.folder(), name) {
        Ok(Some(undo)) => Ok(undo),
        Ok(None) => Err(HealError::NoUndo(path)),
        Err(source) => Err(HealError::UndoDamaged { path, source }),
    }
}

/// The staged repair that a journal holds.
pub(super) fn staged<'a>(
    site: &'a dyn Site,
    inspector: &'a mut dyn Inspector,
    observer: &'a mut dyn RepairObserver,
) -> Result<Staged<'a>, HealError> {
    if let Some(Pending::Undo(path)) = pending(site)? {
        return Err(HealError::UndoInterrupted(path));
    }
    let path = site.folder().path_of(SideFile::Journal);
    let journal = match journal::read(site.folder()) {
        Ok(Some(journal)) => journal,
        Ok(None) => return Err(HealError::NoJournal(path)),
        Err(source) => return Err(HealError::JournalDamaged { path, source }),
    };
    let undo = undo_file(site, SideFile::Undo)?;
    let image = site.image();
    let (tier, decisions) = (journal.plan.tier(), journal.plan.decisions());
    let mut context = Context { site, tier, decisions, inspector, observer };
    let since = context.state()?;
    refuse_foreign(&context, &journal, &undo, &path)?;
    let plan = journal.plan;
    let overlay = plan.over(Arc::clone(&image)).map_err(|e| HealError::BadPlan(e.into()))?;
    let old: Arc<dyn Backend> = Arc::new(undo.before(image).map_err(|e| HealError::BadPlan(e.into()))?);
    let before = context
        .check(Arc::clone(&old), Stage::Check)
        .map_err(|source| HealError::Cage { stage: "the check", source })?;
    let restored = context.restored(&plan, &before, Arc::clone(&old))?;
    let version = restored.as_ref().unwrap_or(&before).summary.version;
    guard::refuse_unguarded(&plan, version, old.as_ref())
        .map_err(context.storage("read"))?
        .map_err(HealError::BadPlan)?;
    let ranges = plan.touched_ranges().map_err(HealError::BadPlan)?;
    let overlay = Arc::new(overlay);
    Ok(Staged {
        context,
        since,
        before,
        restored,
        plan,
        overlay,
        ranges,
        binding: undo.binding,
        recorded: true,
    })
}

/// Refuses a journal that does not belong to its undo file, or either of them if not to this image.
fn refuse_foreign(
    context: &Context<'_>,
    journal: &Journal,
    undo: &Undo,
    path: &std::path::Path,
) -> Result<(), HealError> {
    let foreign = |why| Err(HealError::JournalForeign { path: path.to_path_buf(), why });
    let Journal { fingerprint, len_before, len_after, .. } = *journal;
    if journal.undo_digest != undo.digest || undo.binding != (Binding { fingerprint, len_before, len_after })
    {
        return foreign("journal and undo file are not from the same repair");
    }
    if !undo.is_of(&journal.plan) {
        return foreign("the undo file does not cover what the journal writes");
    }
    let image = context.site.image();
    if undo.trace(image.as_ref()).map_err(context.storage("read"))? != Trace::Ours {
        return foreign("the image holds bytes that are neither from before the repair nor from after it");
    }
    if !undo.fits(image).map_err(context.storage("read"))? {
        return foreign("the image is not the one that the repair was made for");
    }
    Ok(())
}
