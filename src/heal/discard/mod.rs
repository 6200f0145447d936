//! Giving the storage of clusters that nothing uses back, on request.
//!
//! ```text
//! check      nothing may be found, and no undo file or journal may be there
//! list       a second cage tells which whole clusters nothing uses        list
//! prove      further cages look at a view in which these read as zeros    proof
//! punch      one call for each range, then one sync
//! check      the image as it is now
//! ```
//!
//! Invariant: nothing is given back before [`proof::prove`] has passed, and then exactly what it was given for. The
//! image's length and every byte of every cluster in use stay as they are, whatever fails and whenever it stops: what
//! reads as zeros afterwards had no user. Nothing is asked of the storage after its first error.
//!
//! What this does not do: it interprets no image byte, and cannot be undone. Therefore it is not done while an undo file
//! could still make such a cluster a used one again.

mod list;
mod proof;

use std::path::PathBuf;
use std::sync::Arc;

use instar_abi::problem::Tier;
use instar_abi::summary::{Outcome, Stranger};

use super::ending::Ending;
use super::error::HealError;
use super::inspector::{Inspection, Surveyor, Tally};
use super::site::{FileSite, SideFile, Site};
use super::{RepairObserver, Stage, exclusively, fingerprint, look_again};
use crate::image::{Backend, FileState, ImageHandle, Latch};
use crate::report::escape_path;
use crate::sandbox::error::SandboxError;
pub use list::Listed;
pub use proof::Mistrust;

/// How to give storage back.
#[derive(Debug, Clone, Default)]
pub struct DiscardOptions {
    /// Stop after the proof.
    pub preview: bool,
    /// Where undo files of this image are kept, if not beside it.
    pub side_folder: Option<PathBuf>,
}

/// What became of it.
#[derive(Debug)]
pub struct DiscardReport {
    /// How it ended.
    pub ending: Ending,
    /// The last check: of the image as it is now.
    pub last: Inspection,
    /// What was given back, or would be.
    pub listed: Listed,
    /// How many bytes less the storage holds for the image's file than before, where that is known.
    pub released_bytes: Option<u64>,
    /// The record that is in the way.
    pub record: Option<PathBuf>,
    /// What of the image may use clusters in a way that is not known, and its value.
    pub stranger: Option<(Stranger, u64)>,
}

impl DiscardReport {
    fn of(ending: Ending, last: Inspection) -> Self {
        Self { ending, last, listed: Listed::default(), released_bytes: None, record: None, stranger: None }
    }
}

/// Gives back what nothing uses. The exclusive lock is held from before the check until the end; a preview needs no
/// more than the read lock.
///
/// # Errors
/// Every [`HealError`]; [`HealError::ending`] says what each means.
pub fn discard(
    image: &ImageHandle,
    options: &DiscardOptions,
    inspector: &mut dyn Surveyor,
    observer: &mut dyn RepairObserver,
) -> Result<DiscardReport, HealError> {
    let site = FileSite::new(Arc::clone(image.file()), options.side_folder.as_deref())?;
    if options.preview {
        return discard_at(&site, true, inspector, observer);
    }
    exclusively(image, || discard_at(&site, false, inspector, observer))
}

/// As [`discard`], without locks.
///
/// # Errors
/// As [`discard`].
pub fn discard_at(
    site: &dyn Site,
    preview: bool,
    inspector: &mut dyn Surveyor,
    observer: &mut dyn RepairObserver,
) -> Result<DiscardReport, HealError> {
    look_again(site)?;
    let mut work = Work { site, inspector, observer };
    let since = work.state()?;
    let before = work.check(site.image(), Stage::Check).map_err(cage("the check"))?;
    if let Some((ending, path)) = record_in_the_way(site)? {
        return Ok(DiscardReport { record: Some(path), ..DiscardReport::of(ending, before) });
    }
    if let Some(ending) = reason_to_stop(&before) {
        return Ok(DiscardReport::of(ending, before));
    }
    let (listed, stranger) = work.list(&before)?;
    if stranger.is_some() {
        return Ok(DiscardReport { stranger, ..DiscardReport::of(Ending::UnknownOwner, before) });
    }
    if listed.is_empty() {
        return Ok(DiscardReport::of(Ending::NothingToDiscard, before));
    }
    work.observer.stage_begins(Stage::Prove);
    let proof = proof::prove(site.image(), &before, listed, work.inspector, work.observer)?;
    if preview {
        let listed = proof.into_listed();
        return Ok(DiscardReport { listed, ..DiscardReport::of(Ending::DiscardPreviewed, before) });
    }
    work.give_back(proof, &since)
}

/// A record with which clusters that have no user now could get one again.
fn record_in_the_way(site: &dyn Site) -> Result<Option<(Ending, PathBuf)>, HealError> {
    for (file, ending) in [
        (SideFile::Undoing, Ending::UndoInterrupted),
        (SideFile::Journal, Ending::JournalFound),
        (SideFile::Undo, Ending::UndoKept),
    ] {
        let path = site.folder().path_of(file);
        match site.folder().open(file) {
            Ok(None) => {}
            Ok(Some(_)) => return Ok(Some((ending, path))),
            // One that is not to be trusted is there all the same.
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                return Ok(Some((ending, path)));
            }
            Err(source) => return Err(HealError::Storage { path, action: "look for an undo file", source }),
        }
    }
    Ok(None)
}

fn reason_to_stop(before: &Inspection) -> Option<Ending> {
    match before.outcome() {
        Outcome::NotQcow2 => Some(Ending::NotAnImage),
        Outcome::Unsupported => Some(Ending::Unsupported),
        Outcome::Incomplete => Some(Ending::NotConsistent),
        Outcome::Complete if before.total() > 0 => Some(Ending::NotConsistent),
        Outcome::Complete => None,
    }
}

fn cage(stage: &'static str) -> impl FnOnce(SandboxError) -> HealError {
    move |source| HealError::Cage { stage, source }
}

/// What every step needs.
struct Work<'a> {
    site: &'a dyn Site,
    inspector: &'a mut dyn Surveyor,
    observer: &'a mut dyn RepairObserver,
}

/// What tells whether somebody else has changed the image.
struct Since {
    state: Option<FileState>,
    fingerprint: [u8; 32],
}

impl Work<'_> {
    fn storage(&self, action: &'static str) -> impl FnOnce(std::io::Error) -> HealError {
        let path = self.site.path().to_path_buf();
        move |source| HealError::Storage { path, action, source }
    }

    fn state(&self) -> Result<Since, HealError> {
        let state = self.site.state().map_err(self.storage("read the attributes"))?;
        let image = self.site.image();
        let fingerprint = fingerprint::of(image.as_ref(), &[]).map_err(self.storage("read"))?;
        Ok(Since { state, fingerprint })
    }

    fn check(&mut self, image: Arc<dyn Backend>, stage: Stage) -> Result<Inspection, SandboxError> {
        self.observer.stage_begins(stage);
        let mut tally = Tally::new(self.observer, Tier::All);
        let ran = self.inspector.check(image, &mut tally)?;
        Ok(tally.finish(ran))
    }

    /// What a fresh cage tells as free and storage is held for, or what keeps it from telling.
    fn list(&mut self, before: &Inspection) -> Result<(Listed, Option<(Stranger, u64)>), HealError> {
        self.observer.stage_begins(Stage::Plan);
        let image = self.site.image();
        let storage = self.site.storage().map_err(self.storage("ask about the storage"))?;
        let mut lister = list::Lister::new(image.as_ref(), &before.summary, storage);
        let ran = self.inspector.free(Arc::clone(&image), &mut lister).map_err(cage("the list"))?;
        let listed = lister.finish().map_err(|error| match error {
            list::ListError::Storage(source) => self.storage("look for holes")(source),
            list::ListError::Mistrust(mistrust) => HealError::Unproven(mistrust),
        })?;
        proof::compare(before, &ran.summary).map_err(HealError::Unproven)?;
        let stranger = Stranger::from_u32(ran.summary.stranger);
        Ok((listed, stranger.map(|stranger| (stranger, ran.summary.stranger_value))))
    }

    fn give_back(mut self, proof: proof::Proof, since: &Since) -> Result<DiscardReport, HealError> {
        let site = self.site;
        self.refuse_changed(since)?;
        self.observer.stage_begins(Stage::Land);
        let held = site.storage().map_err(self.storage("ask about the storage"))?.held_bytes;
        let listed = proof.into_listed();
        let (bytes, ranges) = (listed.bytes(), listed.ranges().len());
        tracing::info!(event = crate::event::DISCARDING.id, image = %escape_path(site.path()), bytes, ranges, "giving back what nothing uses");
        let live = Latch::new(site.open_writable()?);
        punch(site, &live, &listed)?;
        let left = site.storage().map_err(self.storage("ask about the storage"))?.held_bytes;
        let image = site.image_again()?;
        let last = self.check(image, Stage::Recheck).map_err(HealError::DiscardUnchecked)?;
        let released_bytes = held.zip(left).map(|(held, left)| held.saturating_sub(left));
        Ok(DiscardReport { listed, released_bytes, ..DiscardReport::of(Ending::Discarded, last) })
    }

    fn refuse_changed(&self, since: &Since) -> Result<(), HealError> {
        let now = self.state()?;
        let path = self.site.path().to_path_buf();
        if now.state != since.state {
            return Err(HealError::Changed {
                path,
                what: "its length or its times are not those from before the check",
            });
        }
        if now.fingerprint != since.fingerprint {
            return Err(HealError::Changed { path, what: "its header is not that from before the check" });
        }
        Ok(())
    }
}

/// Gives back all ranges, durably.
fn punch(site: &dyn Site, live: &Latch, listed: &Listed) -> Result<(), HealError> {
    let path = || site.path().to_path_buf();
    for (at, &(offset, len)) in listed.ranges().iter().enumerate() {
        live.punch(offset, len).map_err(|source| match source.kind() {
            std::io::ErrorKind::Unsupported if at == 0 => HealError::CannotDiscard { path: path(), source },
            _ => HealError::DiscardInterrupted { path: path(), offset, len, source },
        })?;
    }
    let (offset, len) = (0, live.len());
    live.sync().map_err(|source| HealError::DiscardInterrupted { path: path(), offset, len, source })
}
