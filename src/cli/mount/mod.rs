//! `instar-mount`: check, heal if asked to, serve.
//!
//! Invariant: a mount comes about only for an image that was checked in a cage first, and is served from what a
//! resident cage names. Damage does not keep an image from being mounted, because a recovery needs what can still
//! be read; what would make wrong bytes look right does: an image of an unknown kind, one whose roots cannot be
//! found, one whose tables are of another kind than its header says, and one that has a backing file which is not
//! there.

mod background;
mod below;
mod disks;
mod documents;
mod error;
mod exec;
mod names;
mod serve;
mod snapshots;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use instar_abi::boot::JobKind;
use instar_abi::problem::Problem;
use instar_abi::summary::feature;
use parking_lot::Mutex;

pub use background::SERVER_OPTION;
use below::Below;
use disks::Disks;
pub use error::MountError;
use names::{Shown, file_name, served_path};
use serve::Ending;

use super::check::{examine, look_for_interruption};
use super::inspect::Inspector;
use super::options::{MountOptions, OnDamageArg};
use super::repair::Request;
use super::{log, say};
use crate::disk::{ExtentSource, OnDamage, Revived, SharedSource, forget_when_idle};
use crate::error::Error;
use crate::event;
use crate::exit::Exit;
use crate::fuse::{Attached, Keeper, MountPoint};
use crate::image::{HandleError, ImageHandle, Mode};
use crate::report::{self, CheckReport, HumanOptions, Verdict, Watch, escape_path};
use crate::sandbox::error::SandboxError;
use crate::sandbox::job::Job;
use crate::sandbox::{Resident, SandboxChoice, lockdown};

/// Resident cages of one image: as many as there are threads that could ask them.
const CAGES_MAX: usize = 2;
/// The folder of the snapshots' disks.
const SNAPSHOTS_FOLDER: &str = "snapshots";
/// Ending of a served disk's name.
const RAW_ENDING: &str = "raw";

impl From<OnDamageArg> for OnDamage {
    fn from(policy: OnDamageArg) -> Self {
        match policy {
            OnDamageArg::Eio => Self::Eio,
            OnDamageArg::Zero => Self::Zero,
        }
    }
}

/// The program.
///
/// # Errors
/// Why there is no mount, or why it ended badly.
pub fn run(options: &MountOptions) -> Result<Exit, Error> {
    match &options.exec {
        _ if options.background_server => {
            background::become_server(options.exec.is_some()).map_err(MountError::Background)?;
        }
        Some(command) => return exec::run(options, command),
        None if !options.foreground => return Ok(background::call_server().map_err(MountError::Background)?),
        None => {}
    }
    let point = options.mountpoint.as_deref().ok_or(MountError::NoPoint)?;
    serve(options, point)
}

/// Checks, heals if asked to, mounts, and serves to the end.
fn serve(options: &MountOptions, point: &Path) -> Result<Exit, Error> {
    log::start(&options.log)?;
    let request = Request::of(&options.repair)?;
    let ending = Ending::catch().map_err(MountError::Signals)?;
    let image = Arc::new(ImageHandle::open(&options.image, Mode::Read)?);
    let point = MountPoint::check(point, image.file().identity()).map_err(MountError::Point)?;
    let inspector = Inspector::new(&image, &options.cage, Watch::people(options.quiet))?;
    look_for_interruption(&image, &request)?;
    let examined = examine(&image, &inspector, &request, &options.state)?;
    let inspector = match &examined.preview {
        Some(overlay) => inspector.of(overlay.clone()),
        // A repair may have made the file longer.
        None if examined.report.repair.is_some() => inspector.of(image.now().map_err(HandleError::Open)?),
        None => inspector,
    };
    let job = inspector.job(JobKind::Map);
    let source = match start(&examined.report, &job, &inspector)? {
        Ok(source) => source,
        Err(exit) => return Ok(exit),
    };
    let cages = source.kind();
    let has_below = examined.report.summary.features & feature::BACKING != 0;
    let memory = options.cache.memory().part(if has_below { 2 } else { 1 });
    let below = Below::open(options, &image, &examined.report, memory)?;
    let snapshots = match &point {
        MountPoint::File(_) => Vec::new(),
        MountPoint::Directory(_) => snapshots::find(&examined.report, &inspector)?,
    };
    let sources = Sources::new(source, &job, inspector.choice());
    let on_damage = options.on_damage.into();
    let disks = Disks::new(&examined.report, &job, sources, snapshots, &below, on_damage, memory);
    let unpackers = disks.unpackers.iter().map(Arc::downgrade).collect();
    let is_clean_below = below.is_clean();
    let shown = Shown { image: &image, report: &examined.report, disks, is_clean_below };
    let mut tree = shown.tree(&point)?;
    options.access.put_on(&mut tree);
    let name = file_name(image.path());
    let keeper = Keeper::start(Path::new("/proc/self/exe"), &point).map_err(MountError::Keeper)?;
    let (admitted, transport) = (options.access.admitted(), options.transport.choice());
    let attached = Attached::new(tree, &point, &name.to_string_lossy(), admitted, transport, keeper)
        .map_err(MountError::Session)?;
    lockdown::give_up_rights()?;
    let mounted = attached.start().map_err(MountError::Session)?;
    forget_when_idle(unpackers).map_err(MountError::Idle)?;
    tracing::info!(
        event = event::MOUNTED.id,
        image = %escape_path(image.path()),
        mountpoint = %escape_path(point.path()),
        verdict = report::verdict_name(examined.report.verdict()),
        "mounted"
    );
    if !options.quiet {
        let served = served_path(&point, image.path());
        say::to_person(&report::line(&examined.report, &served, options.on_damage.into()));
    }
    if options.background_server
        && let Err(error) = background::answer()
    {
        mounted.unmounter().unmount(true).map_err(MountError::Session)?;
        return Err(MountError::Background(error).into());
    }
    // Where it was unmounted before it could answer, its threads are still being made, only to end.
    if mounted.has_answered() {
        lockdown::serve_only(cages, mounted.has_rings())?;
    }
    ending.serve(mounted).map_err(MountError::Session)?;
    tracing::info!(event = event::UNMOUNTED.id, mountpoint = %escape_path(point.path()), "unmounted");
    Ok(Exit::Consistent)
}

/// Starts the resident cage. An image that cannot be served is told about, and its exit is the inner result.
fn start(report: &CheckReport, job: &Job, inspector: &Inspector) -> Result<Result<Resident, Exit>, Error> {
    if matches!(report.verdict(), Verdict::NotQcow2 | Verdict::Unsupported) || is_another_map(report) {
        return refuse(report).map(Err);
    }
    match Resident::start(job, inspector.choice()) {
        Ok(source) => Ok(Ok(source)),
        Err(SandboxError::NotMappable { .. }) if report.verdict() != Verdict::Consistent => {
            refuse(report).map(Err)
        }
        Err(source) => Err(Error::Sandbox { image: report.image.clone(), source }),
    }
}

/// Whether every cluster of the disk would be looked up in the wrong place.
fn is_another_map(report: &CheckReport) -> bool {
    report.tally.row(Problem::HeaderExtendedL2Flag).is_some()
}

/// Says what was found in an image that cannot be mounted.
fn refuse(report: &CheckReport) -> Result<Exit, Error> {
    let mut text = Vec::new();
    report::write_check(report, HumanOptions::default(), &mut text).map_err(Error::Output)?;
    say::to_person(String::from_utf8_lossy(&text).trim_end());
    Ok(report.exit(false))
}

/// What answers for one image: the cage that maps it, and those that help it to inflate, which are started when they
/// are first needed. All of them are started anew when they die.
#[derive(Debug)]
struct Sources {
    /// The first one maps. At least one.
    all: Vec<SharedSource>,
    /// How often each of them was started anew.
    restarts: Vec<Arc<AtomicU64>>,
}

impl Sources {
    fn new(source: Resident, job: &Job, choice: SandboxChoice) -> Self {
        let start = || {
            let job = job.clone();
            move || Resident::start(&job, choice).map(|source| Box::new(source) as Box<dyn ExtentSource>)
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let first = Revived::new(Box::new(source), start());
        let helpers = (1..cores.min(CAGES_MAX)).map(|_| Revived::asleep(start()));
        let all: Vec<Revived> = std::iter::once(first).chain(helpers).collect();
        let restarts = all.iter().map(Revived::restarts).collect();
        let share = |source| -> SharedSource { Arc::new(Mutex::new(Box::new(source))) };
        Self { all: all.into_iter().map(share).collect(), restarts }
    }
}
