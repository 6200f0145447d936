//! Ways back: a claim that did not hold, and a repair that its user does not want.
//!
//! Invariant: from an undo file nothing is written unless the image is, sector by sector, in a state that the
//! repair (or an interruption of it, or of going back) can have left. Before the first byte is put back the
//! undo file takes the name that says so and the journal goes, so that an interruption of going back is
//! followed by going back, never by going forward from a mixture.

use std::io;

use super::ending::Ending;
use super::error::HealError;
use super::resume::{self, Pending};
use super::site::{Folder, SideFile, Site};
use super::undo::{Trace, Undo};
use super::verify::Doubt;
use crate::image::Latch;

/// Puts back an image whose proof failed after it had been written.
pub(super) fn roll_back(site: &dyn Site, live: &Latch, undo: &Undo, doubt: Doubt) -> HealError {
    let folder = site.folder();
    let back = begin(folder).and_then(|()| undo.put_back(live)).and_then(|()| end(folder));
    match back {
        Ok(()) => HealError::RolledBack(doubt),
        Err(source) => HealError::RollbackFailed { doubt, source },
    }
}

/// Puts back an image from the undo file of its last repair, finished or not.
pub(super) fn undo(site: &dyn Site) -> Result<Ending, HealError> {
    let begun = matches!(resume::pending(site)?, Some(Pending::Undo(_)));
    let undo = resume::undo_file(site, if begun { SideFile::Undoing } else { SideFile::Undo })?;
    let image = site.image();
    let path = || site.path().to_path_buf();
    let storage = |action| move |source| HealError::Storage { path: path(), action, source };
    if let Trace::Foreign { offset } = undo.trace(image.as_ref()).map_err(storage("read"))? {
        return Err(HealError::UsedSince { path: path(), offset });
    }
    if !undo.fits(image).map_err(storage("read"))? {
        return Err(HealError::UsedSince { path: path(), offset: 0 });
    }
    let live = Latch::new(site.open_writable()?);
    let folder = site.folder();
    let interrupted = |action| move |source| HealError::UndoFailed { path: path(), action, source };
    begin(folder).map_err(interrupted("rename the undo file"))?;
    undo.put_back(&live).map_err(interrupted("put back the old bytes"))?;
    end(folder).map_err(interrupted("remove the undo file"))?;
    Ok(Ending::Undone)
}

/// Removes the undo file of a repair that was finished. It need not be one that could be used.
pub(super) fn drop_undo(site: &dyn Site) -> Result<Ending, HealError> {
    match resume::pending(site)? {
        Some(Pending::Undo(path)) => return Err(HealError::UndoInterrupted(path)),
        Some(Pending::Repair(path)) => return Err(HealError::JournalFound(path)),
        None => {}
    }
    let folder = site.folder();
    let path = || folder.path_of(SideFile::Undo);
    let storage = |action| move |source| HealError::Storage { path: path(), action, source };
    match folder.open(SideFile::Undo) {
        Ok(None) => return Err(HealError::NoUndo(path())),
        Ok(Some(_)) => {}
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
        Err(source) => return Err(storage("look for the undo file")(source)),
    }
    folder.remove(SideFile::Undo).and_then(|()| folder.sync()).map_err(storage("remove the undo file"))?;
    Ok(Ending::UndoDropped)
}

/// From here on there is no way but back.
fn begin(folder: &dyn Folder) -> io::Result<()> {
    if folder.open(SideFile::Undoing)?.is_none() {
        folder.rename(SideFile::Undo, SideFile::Undoing)?;
        folder.sync()?;
    }
    folder.remove(SideFile::Journal)?;
    folder.sync()
}

fn end(folder: &dyn Folder) -> io::Result<()> {
    folder.remove(SideFile::Undoing)?;
    folder.sync()
}
