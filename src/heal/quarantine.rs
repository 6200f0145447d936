//! Ways back: a claim that did not hold, and a repair that its user does not want.
//!
//! Invariant: from an undo file nothing is written unless the image is, sector by sector, in a state that the
//! repair (or an interruption of it, or of going back) can have left. The journal goes before the undo file
//! does, so that no crash leaves one that would take the image forward again.

use super::ending::Ending;
use super::error::HealError;
use super::resume;
use super::site::{SideFile, Site};
use super::undo::{Trace, Undo};
use super::verify::Doubt;
use crate::image::{Backend, Latch};
use std::io;

/// Puts back an image whose proof failed after it had been written.
pub(super) fn roll_back(site: &dyn Site, live: &Latch, undo: &Undo, doubt: Doubt) -> HealError {
    match undo.put_back(live).and_then(|()| remove_records(site)) {
        Ok(()) => HealError::RolledBack(doubt),
        Err(source) => HealError::RollbackFailed { doubt, source },
    }
}

/// Puts back an image from the undo file of its last repair, finished or not.
pub(super) fn undo(site: &dyn Site) -> Result<Ending, HealError> {
    let undo = resume::undo_file(site)?;
    let image = site.image();
    let path = || site.path().to_path_buf();
    let storage =
        |action| move |source| HealError::Storage { path: site.path().to_path_buf(), action, source };
    if let Trace::Foreign { offset } = undo.trace(image.as_ref()).map_err(storage("read"))? {
        return Err(HealError::UsedSince { path: path(), offset });
    }
    if !undo.fits(image).map_err(storage("read"))? {
        return Err(HealError::UsedSince { path: path(), offset: 0 });
    }
    let live = Latch::new(site.open_writable()?);
    let interrupted = |action| {
        move |source: io::Error| HealError::Interrupted { path: site.path().to_path_buf(), action, source }
    };
    undo.put_back(&live).map_err(interrupted("put back the old bytes"))?;
    remove_records(site).map_err(interrupted("remove the records"))?;
    debug_assert_eq!(live.len(), undo.binding.len_before);
    Ok(Ending::Undone)
}

fn remove_records(site: &dyn Site) -> io::Result<()> {
    let folder = site.folder();
    folder.remove(SideFile::Journal)?;
    folder.sync()?;
    folder.remove(SideFile::Undo)?;
    folder.sync()
}
