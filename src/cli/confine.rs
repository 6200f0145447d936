//! What each command still needs of the file system when it hands an image to a cage; the rest is closed then.
//!
//! Invariant: a command opens what it can before, so that what is named here is what has to be opened, made or named
//! later. A folder is open with all below it, because the kernel's rules know no names in a folder.

use std::path::{Path, PathBuf};

use super::memory;
use super::options::{BelowArgs, CheckArgs, RecordsArgs, ResumeArgs, Sandbox, StateArgs, UndoArgs};
use crate::error::Error;
use crate::heal::HealError;
use crate::image::{ImageHandle, Mode};
use crate::sandbox::lockdown::{self, Place};
use crate::sandbox::{CageKind, settle};

/// Where the database of repairs has its random numbers from.
const RANDOM: &str = "/dev/urandom";

/// A command that only looks at what is open.
///
/// # Errors
/// [`Error::Lockdown`].
pub fn to_look(sandbox: Sandbox) -> Result<(), Error> {
    enter(sandbox, &[])
}

/// `instar check`: `repairs` says whether the image is to be repaired.
///
/// # Errors
/// [`Error::Heal`] for an image to be repaired that others use; [`Error::Lockdown`].
pub fn to_check(image: &ImageHandle, args: &CheckArgs, repairs: bool) -> Result<(), Error> {
    let mut places = Vec::new();
    if repairs || (args.discard && !args.repair.preview) {
        places = to_repair_places(image, &args.repair.records, &args.state)?;
    } else {
        places.extend(memory::named(&args.state).map(Place::to_read));
        if args.repair.tier().is_some() || args.plan.apply_plan.is_some() || args.discard {
            places.extend(records(image, &args.repair.records).map(Place::to_read));
        }
    }
    let outputs = [args.html.as_deref(), args.plan.plan_out.as_deref()];
    places.extend(outputs.into_iter().flatten().map(|path| Place::to_write(folder_of(path))));
    if args.html.is_some() {
        places.push(Place::to_read(image.path()));
    }
    enter(args.cage.sandbox, &places)
}

/// `instar check --chain`: what the user has named below the image.
///
/// # Errors
/// [`Error::Lockdown`].
pub fn to_follow(sandbox: Sandbox, below: &BelowArgs) -> Result<(), Error> {
    let places: Vec<Place> = below.backing.iter().chain(&below.allow_chain).map(Place::to_read).collect();
    enter(sandbox, &places)
}

/// `instar dump`: the folder of the copy.
///
/// # Errors
/// [`Error::Lockdown`].
pub fn to_copy(sandbox: Sandbox, out: &Path) -> Result<(), Error> {
    enter(sandbox, &[Place::to_write(folder_of(out))])
}

/// `instar resume`.
///
/// # Errors
/// As [`to_check`].
pub fn to_resume(image: &ImageHandle, args: &ResumeArgs) -> Result<(), Error> {
    enter(args.cage.sandbox, &to_repair_places(image, &args.records, &args.state)?)
}

/// `instar undo`, which needs no cage.
///
/// # Errors
/// As [`to_check`].
pub fn to_undo(image: &ImageHandle, args: &UndoArgs) -> Result<(), Error> {
    Ok(lockdown::work_only(CageKind::Kvm, &to_repair_places(image, &args.records, &args.state)?)?)
}

/// Image, records and memory, to write. The image is locked for writing now: who else uses it cannot be told later.
fn to_repair_places(
    image: &ImageHandle,
    records_args: &RecordsArgs,
    state: &StateArgs,
) -> Result<Vec<Place>, Error> {
    let in_use = |error| Error::Heal { image: image.path().to_owned(), source: HealError::InUse(error) };
    image.change_mode(Mode::Exclusive).map_err(in_use)?;
    let mut places = vec![Place::to_write(image.path())];
    places.extend(records(image, records_args).map(Place::to_write));
    if let Some(folder) = memory::prepared(state) {
        places.extend([Place::to_write(folder), Place::to_read(RANDOM)]);
    }
    Ok(places)
}

/// The folder of undo file and journal. One that cannot be found is told of by the repair.
fn records(image: &ImageHandle, args: &RecordsArgs) -> Option<PathBuf> {
    let beside = || std::fs::canonicalize(image.path()).ok().map(|path| folder_of(&path).to_owned());
    match &args.undo_dir {
        Some(folder) => Some(folder.clone()),
        None if image.file().is_block_device() => None,
        None => beside(),
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn enter(sandbox: Sandbox, places: &[Place]) -> Result<(), Error> {
    Ok(lockdown::work_only(settle(sandbox.into()), places)?)
}
