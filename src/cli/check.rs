//! `instar check`.

use instar_abi::problem::Tier;

use super::inspect::Inspector;
use super::options::{CheckArgs, ExitCodes, OutputFormat};
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
    let tier = args.repair.built_tier()?;
    let image = ImageHandle::open(&args.image, Mode::Read)?;
    let inspector = Inspector::new(&image, &args.cage, watch)?.with_deep(args.deep);
    let report = examine(&image, &inspector, tier, args.repair.preview)?.report;
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
    tier: Option<Tier>,
    preview: bool,
) -> Result<Repaired, Error> {
    match tier {
        None => {
            warn_of_interruption(image)?;
            Ok(Repaired { report: inspector.check()?, preview: None })
        }
        Some(tier) => repair::repair(image, inspector, tier, preview),
    }
}

/// Says that the image is not in the state that an interrupted repair or undo was to leave it in.
fn warn_of_interruption(image: &ImageHandle) -> Result<(), Error> {
    let pending = heal::pending(image, None)
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
