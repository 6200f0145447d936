//! From a job to its result: picks a cage, puts the payload in, serves it to its end.

use instar_abi::ABI_VERSION;
use instar_abi::boot::{BOOT_MAGIC, BootPage, FLAG_DEEP, FLAG_DUMP, FLAG_MASK_NAMES, GATE_PORT, JobKind};
use instar_abi::layout::{ARENA_BYTES_MAX, LARGE_PAGE};
use instar_abi::summary::Summary;

use super::cage::{Cage, CageKind};
use super::calls::{Served, Server, lengths};
use super::error::SandboxError;
use super::job::{DumpNames, Job};
use super::kvm::KvmCage;
use super::observer::{Observer, RunStats};
use super::payload::{EMBEDDED, Payload};
use super::process::ProcessCage;

/// Which cage to use (`--sandbox`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SandboxChoice {
    /// KVM where it can be had, a process otherwise; the fallback is told.
    #[default]
    Auto,
    /// KVM or nothing.
    Kvm,
    /// A process.
    Process,
}

/// How a job ended that ended well.
#[derive(Debug, Clone)]
pub struct JobResult {
    /// The inmate's last word.
    pub summary: Summary,
    /// What it cost.
    pub stats: RunStats,
    /// How the inmate was kept.
    pub cage: CageKind,
    /// Why [`SandboxChoice::Auto`] did not get KVM, where it did not.
    pub fallback: Option<String>,
}

/// Runs a job to its end.
///
/// # Errors
/// Each way in which a job can end without a result is a kind of [`SandboxError`]; what the observer has been
/// told until then counts for nothing.
pub fn run(job: &Job, choice: SandboxChoice, observer: &mut dyn Observer) -> Result<JobResult, SandboxError> {
    run_elf(EMBEDDED, job, choice, observer)
}

/// As [`run`], with a payload of the caller's. For the tests of the cages, which need one of bad will.
///
/// # Errors
/// As [`run`].
#[doc(hidden)]
pub fn run_elf(
    elf: &[u8],
    job: &Job,
    choice: SandboxChoice,
    observer: &mut dyn Observer,
) -> Result<JobResult, SandboxError> {
    if job.kind == JobKind::Map {
        return Err(refused("run a resident job to its end"));
    }
    let mut built = build(elf, job, choice)?;
    let mut server = Server::new(job, built.cage.memory().clone());
    match server.drive(&mut *built.cage, observer)? {
        Served::Done(summary) => {
            tracing::debug!(job = ?job.kind, cage = ?built.kind, stats = ?server.stats(), "a cage has done its job");
            Ok(JobResult { summary, stats: server.stats(), cage: built.kind, fallback: built.fallback })
        }
        Served::Idle | Served::Answered => Err(refused("give requests to a job that is not resident")),
    }
}

fn refused(action: &str) -> SandboxError {
    SandboxError::Host { action: action.into(), source: std::io::ErrorKind::Unsupported.into() }
}

/// A cage with its inmate at the entry.
pub(super) struct Built {
    pub cage: Box<dyn Cage>,
    pub kind: CageKind,
    pub fallback: Option<String>,
}

/// Builds the cage that was asked for.
pub(super) fn build(elf: &[u8], job: &Job, choice: SandboxChoice) -> Result<Built, SandboxError> {
    let payload = Payload::parse(elf)?;
    let boot = boot_page(job);
    let kvm = || KvmCage::new(&payload, boot).map(|cage| Box::new(cage) as Box<dyn Cage>);
    let process = || ProcessCage::new(&payload, boot).map(|cage| Box::new(cage) as Box<dyn Cage>);
    let (cage, kind, fallback) = match choice {
        SandboxChoice::Kvm => (kvm()?, CageKind::Kvm, None),
        SandboxChoice::Process => (process()?, CageKind::Process, None),
        SandboxChoice::Auto => match kvm() {
            Ok(cage) => (cage, CageKind::Kvm, None),
            Err(SandboxError::Unavailable { action, source }) => {
                (process()?, CageKind::Process, Some(format!("cannot {action}: {source}")))
            }
            Err(other) => return Err(other),
        },
    };
    Ok(Built { cage, kind, fallback })
}

fn flags(job: &Job) -> u64 {
    let dump = match job.dump {
        None => 0,
        Some(DumpNames::Kept) => FLAG_DUMP,
        Some(DumpNames::Masked) => FLAG_DUMP | FLAG_MASK_NAMES,
    };
    dump | if job.deep { FLAG_DEEP } else { 0 }
}

/// What the inmate is told. The gate is the cage's matter.
fn boot_page(job: &Job) -> BootPage {
    let arena_bytes = job.limits.arena_bytes.clamp(LARGE_PAGE, ARENA_BYTES_MAX).next_multiple_of(LARGE_PAGE);
    BootPage {
        magic: BOOT_MAGIC,
        abi_version: ABI_VERSION,
        job: job.kind as u32,
        gate: GATE_PORT,
        tier: job.tier.map_or(0, |tier| tier as u32),
        flags: flags(job),
        decisions: job.decisions.0,
        arena_bytes,
        file_length: lengths(job),
        params: job.params,
    }
}
