//! `instar resume` and `instar undo`: the two ways out of an interrupted repair, and the way back from one that
//! was finished.

use super::inspect::Inspector;
use super::options::{ResumeArgs, UndoArgs};
use super::{check, repair, say};
use crate::error::Error;
use crate::exit::Exit;
use crate::heal;
use crate::image::{ImageHandle, Mode};
use crate::report::{HumanOptions, Watch, escape_path};

/// Finishes an interrupted repair.
///
/// # Errors
/// Whatever kept it from being finished.
pub fn resume(args: &ResumeArgs) -> Result<Exit, Error> {
    let image = ImageHandle::open(&args.image, Mode::Read)?;
    let inspector = Inspector::new(&image, &args.cage, Watch::default())?;
    let report = repair::resume(&image, &inspector)?.report;
    check::print(&report, args.output, HumanOptions::default())?;
    Ok(report.exit(false))
}

/// Puts back the bytes that the last repair overwrote.
///
/// # Errors
/// Whatever kept them from being put back.
pub fn undo(args: &UndoArgs) -> Result<Exit, Error> {
    let image = ImageHandle::open(&args.image, Mode::Read)?;
    let ending =
        heal::undo(&image, None).map_err(|source| Error::Heal { image: image.path().to_owned(), source })?;
    say::result(|out| writeln!(out, "{}: {}", escape_path(&args.image), ending.route().sentence))?;
    Ok(Exit::Consistent)
}
