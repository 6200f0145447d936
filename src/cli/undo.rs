//! `instar resume` and `instar undo`: the two ways out of an interrupted repair, and the way back from one that
//! was finished.

use super::inspect::Inspector;
use super::memory::{Ended, Memory};
use super::options::{ResumeArgs, UndoArgs};
use super::{check, confine, repair, say};
use crate::error::Error;
use crate::exit::Exit;
use crate::heal::{self, HealError};
use crate::image::{ImageHandle, Mode};
use crate::report::{HumanOptions, Tally, Watch, escape_path};

/// Finishes an interrupted repair.
///
/// # Errors
/// Whatever kept it from being finished.
pub fn resume(args: &ResumeArgs) -> Result<Exit, Error> {
    let image = ImageHandle::open(&args.image, Mode::Read)?;
    let inspector = Inspector::new(&image, &args.cage, Watch::default())?;
    confine::to_resume(&image, args)?;
    let report = repair::resume(&image, &inspector, &args.records, &args.state)?.report;
    check::print(&report, args.output, HumanOptions::default())?;
    Ok(report.exit(false))
}

/// Puts back the bytes that the last repair overwrote, or makes it one that stays.
///
/// # Errors
/// Whatever kept them from being put back.
pub fn undo(args: &UndoArgs) -> Result<Exit, Error> {
    let image = ImageHandle::open(&args.image, Mode::Read)?;
    confine::to_undo(&image, args)?;
    let request = if args.drop { "undo --drop" } else { "undo" };
    let attempt = Memory::of(&image, &args.state).begin(request.to_owned())?;
    let folder = args.records.undo_dir.as_deref();
    let result = if args.drop { heal::drop_undo(&image, folder) } else { heal::undo(&image, folder) };
    let outcome = result.as_ref().map_or_else(HealError::ending, |ending| *ending).id();
    attempt.end(&Ended {
        outcome,
        failed: false,
        plan_digest: None,
        attested: None,
        before: &Tally::default(),
        after: None,
    });
    let ending = result.map_err(|source| Error::Heal { image: image.path().to_owned(), source })?;
    say::result(|out| writeln!(out, "{}: {}", escape_path(&args.image), ending.route().sentence))?;
    Ok(Exit::Consistent)
}
