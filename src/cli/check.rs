//! `instar check`.

use super::inspect::Inspector;
use super::memory::Memory;
use super::options::{CheckArgs, ExitCodes, OutputFormat, RecordsArgs, RepairArgs, StateArgs};
use super::repair::Repaired;
use super::{chain, repair, say};
use crate::error::Error;
use crate::exit::Exit;
use crate::heal::{self, Pending};
use crate::image::{ImageHandle, Mode};
use crate::report::{CheckReport, HumanOptions, Watch, check_json, escape_path, write_check};

/// Runs it.
///
/// # Errors
/// Whatever kept the image from being checked.
pub fn run(args: &CheckArgs) -> Result<Exit, Error> {
    // Before anything is opened: a number that was meant for another file must not come to mean the image.
    let watch = watch(args)?;
    if args.chain.chain {
        return chain::run(args, &watch);
    }
    args.repair.built_tier()?;
    let image = ImageHandle::open(&args.image, Mode::Read)?;
    let inspector = Inspector::new(&image, &args.cage, watch)?.with_deep(args.deep);
    let report = examine(&image, &inspector, &args.repair, &args.state)?.report;
    print(&report, args.output, HumanOptions { all: args.all, quiet: args.quiet })?;
    Ok(report.exit(args.exit_code == ExitCodes::Detailed))
}

/// Who is to be told how far the jobs are.
///
/// # Errors
/// [`Error::ProgressFd`].
fn watch(args: &CheckArgs) -> Result<Watch, Error> {
    let people = Watch::people(args.quiet);
    match args.progress_fd {
        None => Ok(people),
        Some(fd) => people.and_program(fd).map_err(|source| Error::ProgressFd { fd, source }),
    }
}

/// Checks an image, and repairs it where a tier is asked for.
///
/// # Errors
/// [`Error::Sandbox`], [`Error::Heal`].
pub(super) fn examine(
    image: &ImageHandle,
    inspector: &Inspector,
    args: &RepairArgs,
    state: &StateArgs,
) -> Result<Repaired, Error> {
    match args.built_tier()? {
        None => {
            warn_of_interruption(image, &args.records)?;
            let mut report = inspector.check()?;
            report.recurring = Memory::of(image, state).recurring(&report.tally);
            Ok(Repaired { report, preview: None })
        }
        Some(tier) => repair::repair(image, inspector, tier, args, state),
    }
}

/// Says that the image is not in the state that an interrupted repair or undo was to leave it in.
fn warn_of_interruption(image: &ImageHandle, records: &RecordsArgs) -> Result<(), Error> {
    let pending = heal::pending(image, records.undo_dir.as_deref())
        .map_err(|source| Error::Heal { image: image.path().to_owned(), source })?;
    let name = escape_path(image.path());
    match pending {
        None => {}
        Some(Pending::Repair(journal)) => say::to_person(&format!(
            "warning: an interrupted repair has left {}; `instar resume {name}` finishes it, \
             `instar undo {name}` takes it back",
            escape_path(&journal)
        )),
        Some(Pending::Undo(undo)) => say::to_person(&format!(
            "warning: an interrupted undo has left {}; `instar undo {name}` finishes it",
            escape_path(&undo)
        )),
    }
    Ok(())
}

/// Prints a report.
///
/// # Errors
/// [`Error::Output`], [`Error::Json`].
pub fn print(report: &CheckReport, output: OutputFormat, options: HumanOptions) -> Result<(), Error> {
    match output {
        OutputFormat::Json => say::document(&check_json(report)),
        OutputFormat::Human => say::result(|out| write_check(report, options, out)),
    }
}
