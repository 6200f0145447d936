//! `instar check`.

use super::inspect::Inspector;
use super::memory::Memory;
use super::options::{CheckArgs, ExitCodes, OutputFormat, StateArgs};
use super::repair::{Repaired, Request, What};
use super::{chain, confine, discard, page, repair, say};
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
    let request = request(args)?;
    let image = ImageHandle::open(&args.image, Mode::Read)?;
    let inspector = Inspector::new(&image, &args.cage, watch)?.with_deep(args.deep);
    // Before anything is repaired: a page that cannot be written is no reason to stop half-way.
    let page = args.html.as_deref().map(|path| page::begin(path, &image)).transpose()?;
    look_for_interruption(&image, &request)?;
    confine::to_check(&image, args, request.writes())?;
    let report = if args.discard {
        let report = discard::run(&image, &inspector, &request, &args.state)?;
        if args.quiet {
            discard::say_refusal(&report);
        }
        report
    } else {
        examine(&image, &inspector, &request, &args.state)?.report
    };
    print(&report, args.output, HumanOptions { all: args.all, quiet: args.quiet })?;
    if let Some(page) = page {
        page::write(page, &image, inspector, &report)?;
    }
    Ok(report.exit(args.exit_code == ExitCodes::Detailed))
}

/// What is asked for. A plan file is read before the image is opened.
fn request(args: &CheckArgs) -> Result<Request, Error> {
    let request = Request::of(&args.repair)?;
    if let Some(path) = &args.plan.apply_plan {
        let bound = heal::read_plan_file(path).map_err(Error::PlanFile)?;
        return Ok(Request { what: Some(What::Apply(Box::new(bound))), ..request });
    }
    let may_ask = request.may_ask && args.output == OutputFormat::Human;
    Ok(Request { plan_out: args.plan.plan_out.clone(), may_ask, ..request })
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
    request: &Request,
    state: &StateArgs,
) -> Result<Repaired, Error> {
    match &request.what {
        None => {
            let mut report = inspector.check()?;
            report.recurring = Memory::of(image, state).recurring(&report.tally);
            Ok(Repaired { report, preview: None, bound: None })
        }
        Some(what) => repair::repair(image, inspector, what, request, state),
    }
}

/// Says that an image which is not to be repaired is not in the state that an interrupted repair or undo was to leave
/// it in.
///
/// # Errors
/// [`Error::Heal`].
pub(super) fn look_for_interruption(image: &ImageHandle, request: &Request) -> Result<(), Error> {
    if request.what.is_some() {
        return Ok(());
    }
    let pending = heal::pending(image, request.undo_dir.as_deref())
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
