//! The landing: from a proven copy to the image itself.
//!
//! Order, each line durable before the next begins: undo file, its name; journal, its name; the guard, raised; the
//! plan's writes, group by group; after the attestation, the guard, lowered; the journal's absence. Invariant:
//! nothing is asked of the image's storage after the first error of a write or sync, and no error is dropped. The
//! guard is lowered by [`lower`] alone, which takes an attestation by value, and the journal goes only after that.

use std::io;

use super::error::HealError;
use super::guard::Guard;
use super::plan::PlanError;
use super::resume;
use super::side::SIDE_BYTES_MAX;
use super::site::{Folder, SideFile, Site};
use super::state::Staged;
use super::undo::{self, Undo};
use super::verify::{Attestation, Attested, Proof};
use super::{fingerprint, journal};
use crate::image::{Backend, Latch};
use crate::report::escape_path;

/// Room left over for what the file system itself needs.
const SLACK_BYTES: u64 = 1 << 20;

/// Lands what `proof` was given for. Gives the image, open for writing, and its undo file.
pub(super) fn land(staged: &Staged<'_>, proof: Proof) -> Result<(Latch, Undo), HealError> {
    let site = staged.context.site;
    tracing::info!(event = crate::event::REPAIR_LANDING.id, image = %escape_path(site.path()), cured = proof.cured(), "landing a proven repair");
    refuse_changed_image(staged)?;
    let live = Latch::new(site.open_writable()?);
    if !staged.recorded {
        refuse_full_storage(staged)?;
        write_records(staged)?;
    }
    let undo = resume::undo_file(site, SideFile::Undo)?;
    write_image(staged, &live)?;
    Ok((live, undo))
}

/// A guard, if there is one, is as it is to stay, and durably so. Only [`lower`] makes this.
#[derive(Debug)]
struct Lowered(Attestation);

/// Ends the repair: lowers the guard, then removes the journal. This is the only way for it to go after a repair.
pub(super) fn close(
    site: &dyn Site,
    live: &Latch,
    guard: Option<&Guard>,
    attestation: Attestation,
) -> Result<Attested, HealError> {
    let lowered = lower(live, guard, attestation).map_err(|source| HealError::Interrupted {
        path: site.path().to_path_buf(),
        action: "lower the guard",
        source,
    })?;
    remove_journal(site.folder(), lowered).map_err(|source| HealError::Interrupted {
        path: site.folder().path_of(SideFile::Journal),
        action: "remove the journal",
        source,
    })
}

/// Lets others write to the image again: what stands in it has been attested, with the guard shown as it will be.
fn lower(live: &Latch, guard: Option<&Guard>, attestation: Attestation) -> io::Result<Lowered> {
    if let Some(guard) = guard {
        live.write_at(guard.lowered(), guard.offset())?;
        live.sync()?;
    }
    Ok(Lowered(attestation))
}

fn remove_journal(folder: &dyn Folder, lowered: Lowered) -> io::Result<Attested> {
    folder.remove(SideFile::Journal)?;
    folder.sync()?;
    Ok(lowered.0.into_facts())
}

fn refuse_changed_image(staged: &Staged<'_>) -> Result<(), HealError> {
    let context = &staged.context;
    let changed = |what| Err(HealError::Changed { path: context.site.path().to_path_buf(), what });
    if context.state()? != staged.since {
        return changed("its length or its times are not those from before the check");
    }
    if staged.recorded {
        // Its bytes have been compared with the undo file, sector by sector.
        return Ok(());
    }
    let image = context.site.image();
    if image.len() != staged.binding.len_before {
        return changed("its length is not that from before the check");
    }
    let now = fingerprint::of(image.as_ref(), &staged.ranges).map_err(|source| {
        if source.kind() == io::ErrorKind::UnexpectedEof {
            HealError::Changed { path: context.site.path().to_path_buf(), what: "it has become shorter" }
        } else {
            context.storage("read")(source)
        }
    })?;
    if now != staged.binding.fingerprint {
        return changed("bytes that are to be replaced are not those that were checked");
    }
    Ok(())
}

fn refuse_full_storage(staged: &Staged<'_>) -> Result<(), HealError> {
    let site = staged.context.site;
    let growth_bytes = staged.binding.len_after.saturating_sub(staged.binding.len_before);
    let undo_bytes = undo::size_estimate(&staged.ranges);
    let journal_bytes = journal::size_estimate(&staged.plan);
    let records_bytes = undo_bytes.saturating_add(journal_bytes).saturating_add(SLACK_BYTES);
    if undo_bytes > SIDE_BYTES_MAX || journal_bytes > SIDE_BYTES_MAX {
        let error = PlanError::TooMuch { what: "bytes of undo file or journal", limit: SIDE_BYTES_MAX };
        return Err(HealError::BadPlan(error));
    }
    if growth_bytes > 0 {
        let free_bytes = site.room_to_grow().map_err(staged.context.storage("ask for free space"))?;
        let needed_bytes = growth_bytes.saturating_add(SLACK_BYTES);
        if free_bytes < needed_bytes {
            return Err(HealError::NoSpace { path: site.path().to_path_buf(), needed_bytes, free_bytes });
        }
    }
    // Records and image may share their storage.
    let needed_bytes = records_bytes.saturating_add(growth_bytes);
    let path = site.folder().path_of(SideFile::Undo);
    match site.folder().free_bytes() {
        Ok(free_bytes) if free_bytes < needed_bytes => {
            Err(HealError::NoSpace { path, needed_bytes, free_bytes })
        }
        Ok(_) => Ok(()),
        Err(source) => Err(HealError::Storage { path, action: "ask for free space", source }),
    }
}

fn write_records(staged: &Staged<'_>) -> Result<(), HealError> {
    let site = staged.context.site;
    let folder = site.folder();
    let failed = |file: SideFile| move |source: io::Error| record_failed(site, file, source);
    let digest =
        undo::write(folder, &staged.plan, &staged.overlay, staged.binding).map_err(failed(SideFile::Undo))?;
    journal::write(folder, &staged.plan, staged.binding, digest).map_err(failed(SideFile::Journal))
}

/// An error before the image was touched; a journal that got its name all the same says nothing wrong, but is
/// told, because it will be found.
fn record_failed(site: &dyn Site, file: SideFile, source: io::Error) -> HealError {
    let path = site.folder().path_of(file);
    let action = match file {
        SideFile::Journal | SideFile::JournalPart => "write the journal",
        SideFile::Undo | SideFile::Undoing | SideFile::UndoPart => "write the undo file",
    };
    match source.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            HealError::NoPlaceForRecords { image: site.path().to_path_buf(), folder: None, source }
        }
        _ => HealError::Storage { path, action, source },
    }
}

fn write_image(staged: &Staged<'_>, live: &Latch) -> Result<(), HealError> {
    let interrupted = |action| {
        let path = staged.context.site.path().to_path_buf();
        move |source| HealError::Interrupted { path, action, source }
    };
    if let Some(guard) = staged.plan.guard() {
        let raised = live.write_at(guard.raised(), guard.offset()).and_then(|()| live.sync());
        raised.map_err(interrupted("raise the guard"))?;
    }
    for group in staged.plan.steps().iter().flat_map(|step| &step.groups) {
        for write in group {
            live.write_at(&write.bytes, write.offset).map_err(interrupted("write the repaired bytes"))?;
        }
        live.sync().map_err(interrupted("make the repaired bytes durable"))?;
    }
    Ok(())
}
