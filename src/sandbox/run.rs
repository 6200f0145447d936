//! From a job to its result: picks a cage, puts the payload in, serves it to its end.
//!
//! Invariants: a job is served by a thread of its own, which has given up its rights before the cage is built and has
//! nothing left but what serving takes before the inmate's first word is looked at; and which kind of cage
//! [`SandboxChoice::Auto`] means is decided once in a process, so that all of its cages, those that are started anew
//! included, are of one kind.

use std::panic::resume_unwind;
use std::sync::OnceLock;

use instar_abi::ABI_VERSION;
use instar_abi::boot::{BOOT_MAGIC, BootPage, FLAG_DEEP, FLAG_DUMP, FLAG_MASK_NAMES, GATE_PORT, JobKind};
use instar_abi::layout::{ARENA_BYTES_MAX, LARGE_PAGE};
use instar_abi::summary::Summary;

use super::cage::{Cage, CageKind};
use super::calls::{Served, Server, lengths};
use super::error::SandboxError;
use super::job::{DumpNames, Job};
use super::kvm::{self, KvmCage};
use super::lockdown;
use super::observer::{Observer, RunStats};
use super::payload::{EMBEDDED, Payload};
use super::process::ProcessCage;

/// Which cage to use (`--sandbox`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SandboxChoice {
    /// KVM where a virtual machine can be had at all, a process otherwise; the fallback is told.
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

/// Which kind of cage `choice` means on this machine, and what it takes to build one later without opening anything:
/// to be asked before the program locks itself down. That KVM was asked for and cannot be had is told when a cage is
/// built.
pub fn settle(choice: SandboxChoice) -> CageKind {
    match choice {
        SandboxChoice::Process => CageKind::Process,
        SandboxChoice::Auto => automatic().0,
        SandboxChoice::Kvm => {
            if let Err(error) = kvm::device() {
                tracing::debug!(%error, "no hypervisor");
            }
            CageKind::Kvm
        }
    }
}

/// What [`SandboxChoice::Auto`] means in this process, and why it is not KVM where it is not.
fn automatic() -> (CageKind, Option<String>) {
    static OBSTACLE: OnceLock<Option<String>> = OnceLock::new();
    let obstacle = || match kvm::probe() {
        Ok(()) => None,
        Err(SandboxError::Unavailable { action, source }) => Some(format!("cannot {action}: {source}")),
        Err(other) => Some(other.to_string()),
    };
    match OBSTACLE.get_or_init(obstacle) {
        None => (CageKind::Kvm, None),
        Some(reason) => (CageKind::Process, Some(reason.clone())),
    }
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
    settle(choice);
    std::thread::scope(|scope| {
        let work = || run_without_rights(elf, job, choice, observer);
        let thread = std::thread::Builder::new().name("instar-job".into()).spawn_scoped(scope, work);
        let start = |source| SandboxError::Host { action: "start the job's thread".into(), source };
        thread.map_err(start)?.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// In the job's own thread.
fn run_without_rights(
    elf: &[u8],
    job: &Job,
    choice: SandboxChoice,
    observer: &mut dyn Observer,
) -> Result<JobResult, SandboxError> {
    lockdown::give_up_rights_for_cage()?;
    let mut built = build(elf, job, choice)?;
    lockdown::serve_only_a_job(built.kind)?;
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
    let (kind, fallback) = match choice {
        SandboxChoice::Kvm => (CageKind::Kvm, None),
        SandboxChoice::Process => (CageKind::Process, None),
        SandboxChoice::Auto => automatic(),
    };
    let cage: Box<dyn Cage> = match kind {
        CageKind::Kvm => Box::new(KvmCage::new(&payload, boot)?),
        CageKind::Process => Box::new(ProcessCage::new(&payload, boot)?),
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
