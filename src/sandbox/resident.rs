//! A cage that stays: its inmate keeps what it learned of the image and answers one request after the other.
//!
//! The cage lives on a thread of its own, because deadlines, a process cage's tie to its parent, and the
//! hypervisor all hang on one thread. Between requests the inmate is stopped at its doorbell and costs its memory
//! only. The thread has given up its rights before the cage is built.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use instar_abi::boot::JobKind;
use instar_abi::extent::{Extent, INFLATED_BYTES_MAX, MapOp, MapRequest, REQUESTS_MAX};
use instar_abi::finding::{ACTIVE, Finding};
use instar_abi::problem::Problem;

use super::cage::{Cage, CageKind};
use super::calls::{Reply, Served, Server};
use super::error::SandboxError;
use super::job::Job;
use super::lockdown::{self, Narrowing};
use super::observer::{Observer, RunStats};
use super::payload::EMBEDDED;
use super::run::{Built, SandboxChoice, build, settle};
use crate::disk::{ExtentSource, Inflated, Payload};

/// An answer, and what the cage cost up to it.
type Answered = (Result<Reply, SandboxError>, RunStats);

/// How a resident cage came about.
#[derive(Debug)]
struct Started {
    kind: CageKind,
    fallback: Option<String>,
}

/// See the module's documentation. Dropping it ends the inmate.
#[derive(Debug)]
pub struct Resident {
    requests: Option<Sender<Vec<MapRequest>>>,
    replies: Receiver<Answered>,
    thread: Option<JoinHandle<()>>,
    started: Started,
    stats: RunStats,
}

impl Resident {
    /// Starts a [`JobKind::Map`] job and waits until it is ready for requests.
    ///
    /// # Errors
    /// As [`super::run`].
    pub fn start(job: &Job, choice: SandboxChoice) -> Result<Self, SandboxError> {
        Self::start_elf(EMBEDDED, job, choice)
    }

    /// As [`Resident::start`], with a payload of the caller's. For the tests of the cages.
    ///
    /// # Errors
    /// As [`Resident::start`].
    #[doc(hidden)]
    pub fn start_elf(elf: &[u8], job: &Job, choice: SandboxChoice) -> Result<Self, SandboxError> {
        if job.kind != JobKind::Map {
            return Err(host("start a resident cage for another job than map", io::ErrorKind::InvalidInput));
        }
        // The cage's thread cannot open anything any more.
        settle(choice);
        let (requests, incoming) = channel();
        let (outgoing, replies) = channel();
        let (ready, started) = channel();
        let (job, elf) = (job.clone(), elf.to_vec());
        let live = move || {
            let opened = lockdown::give_up_rights_for_cage().map_err(SandboxError::from);
            let opened = opened.and_then(|()| open(&elf, &job, choice)).map(|(built, server)| {
                let Built { cage, kind, fallback } = built;
                (cage, server, Started { kind, fallback })
            });
            match opened {
                Ok((cage, server, started)) => {
                    let kind = started.kind;
                    if ready.send(Ok(started)).is_ok() {
                        serve(cage, kind, server, &incoming, &outgoing);
                    }
                }
                // A caller that has gone away needs no reason.
                Err(error) => drop(ready.send(Err(error))),
            }
        };
        let thread = std::thread::Builder::new()
            .name("instar-cage".into())
            .spawn(live)
            .map_err(|source| SandboxError::Host { action: "start the cage's thread".into(), source })?;
        let started = started.recv().map_err(|_| gone())??;
        Ok(Self {
            requests: Some(requests),
            replies,
            thread: Some(thread),
            started,
            stats: RunStats::default(),
        })
    }

    /// How the inmate is kept.
    #[must_use]
    pub fn kind(&self) -> CageKind {
        self.started.kind
    }

    /// Why [`SandboxChoice::Auto`] did not get KVM, where it did not.
    #[must_use]
    pub fn fallback(&self) -> Option<&str> {
        self.started.fallback.as_deref()
    }

    /// What the cage cost up to the last answer.
    #[must_use]
    pub fn stats(&self) -> RunStats {
        self.stats
    }

    /// Appends the extents of `guest_offset .. guest_offset + guest_len` of a snapshot
    /// ([`instar_abi::finding::ACTIVE`] for the active disk) to `into`: in guest order, without gap or overlap,
    /// from the first byte asked for or before it to the last one or behind it.
    ///
    /// # Errors
    /// `InvalidInput` for a range of no bytes or past the last offset. Otherwise as [`super::run`]: the cage has
    /// ended then, and every later request fails.
    pub fn map(
        &mut self,
        snapshot: u32,
        guest_offset: u64,
        guest_len: u64,
        into: &mut Vec<Extent>,
    ) -> Result<(), SandboxError> {
        if guest_len == 0 || guest_offset.checked_add(guest_len).is_none() {
            let action = format!("map {guest_len} guest bytes from {guest_offset} on");
            return Err(host(&action, io::ErrorKind::InvalidInput));
        }
        let op = MapOp::Map as u32;
        let request =
            MapRequest { op, snapshot, guest_offset, guest_len, host_offset: 0, host_len: 0, payload: 0 };
        match self.ask(vec![request])? {
            Reply::Extents(extents) => into.extend(extents),
            Reply::Clusters(_) => return Err(mixed_up()),
        }
        Ok(())
    }

    /// Inflates payloads of the image to clusters of `cluster_bytes` bytes each: one outcome for each, in order.
    ///
    /// # Errors
    /// `InvalidInput` for no payloads, or more of them than [`ExtentSource::inflate`] allows. Otherwise as
    /// [`super::run`]: the cage has ended then, and every later request fails. A payload that is damaged is not
    /// an error of this kind.
    pub fn inflate(
        &mut self,
        payloads: &[Payload],
        cluster_bytes: u64,
    ) -> Result<Vec<Inflated>, SandboxError> {
        let count = payloads.len();
        let bytes = cluster_bytes.saturating_mul(count as u64);
        if cluster_bytes == 0 || !(1..=REQUESTS_MAX).contains(&count) || bytes > INFLATED_BYTES_MAX {
            let action = format!("inflate {count} clusters of {cluster_bytes} bytes");
            return Err(host(&action, io::ErrorKind::InvalidInput));
        }
        let requests = payloads.iter().map(|payload| MapRequest {
            op: MapOp::Inflate as u32,
            snapshot: ACTIVE,
            guest_offset: 0,
            guest_len: cluster_bytes,
            host_offset: payload.offset,
            host_len: u64::from(payload.len),
            payload: 0,
        });
        match self.ask(requests.collect())? {
            Reply::Clusters(clusters) => Ok(clusters),
            Reply::Extents(_) => Err(mixed_up()),
        }
    }

    fn ask(&mut self, request: Vec<MapRequest>) -> Result<Reply, SandboxError> {
        let requests = self.requests.as_ref().ok_or_else(gone)?;
        requests.send(request).map_err(|_| gone())?;
        let (reply, stats) = self.replies.recv().map_err(|_| gone())?;
        self.stats = stats;
        reply
    }
}

impl ExtentSource for Resident {
    fn map(
        &mut self,
        snapshot: u32,
        guest_offset: u64,
        guest_len: u64,
        into: &mut Vec<Extent>,
    ) -> Result<(), SandboxError> {
        Self::map(self, snapshot, guest_offset, guest_len, into)
    }

    fn inflate(&mut self, payloads: &[Payload], cluster_bytes: u64) -> Result<Vec<Inflated>, SandboxError> {
        Self::inflate(self, payloads, cluster_bytes)
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        // The thread ends when there can be no more requests.
        drop(self.requests.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the resident cage's thread panicked");
        }
    }
}

fn host(action: &str, kind: io::ErrorKind) -> SandboxError {
    SandboxError::Host { action: action.into(), source: kind.into() }
}

/// The error for a cage that has ended before.
fn gone() -> SandboxError {
    host("ask the resident cage, which has ended", io::ErrorKind::BrokenPipe)
}

/// The error for a reply of the wrong kind, which the call server does not let through.
fn mixed_up() -> SandboxError {
    host("take the resident cage's reply", io::ErrorKind::InvalidData)
}

/// The ids of the problems that keep a resident job from serving.
#[derive(Debug, Default)]
struct Reasons(Vec<&'static str>);

impl Observer for Reasons {
    fn finding(&mut self, problem: Problem, _finding: &Finding) {
        self.0.push(problem.row().id);
    }
}

/// Builds the cage and lets the inmate come to its first wait.
fn open(elf: &[u8], job: &Job, choice: SandboxChoice) -> Result<(Built, Server), SandboxError> {
    let mut built = build(elf, job, choice)?;
    let mut server = Server::new(job, built.cage.memory().clone());
    to_idle(&mut *built.cage, &mut server)?;
    Ok((built, server))
}

fn to_idle(cage: &mut dyn Cage, server: &mut Server) -> Result<(), SandboxError> {
    let mut reasons = Reasons::default();
    match server.drive(cage, &mut reasons)? {
        Served::Idle => Ok(()),
        Served::Done(_) | Served::Answered => Err(SandboxError::NotMappable { reason: reasons.0.join(", ") }),
    }
}

/// Answers requests until there are no more, or until one fails.
fn serve(
    mut cage: Box<dyn Cage>,
    kind: CageKind,
    mut server: Server,
    requests: &Receiver<Vec<MapRequest>>,
    replies: &Sender<Answered>,
) {
    let mut narrowing = Narrowing::default();
    for request in requests {
        let narrowed = narrowing.when_serving(kind).map_err(SandboxError::from);
        let reply =
            narrowed.and_then(|()| server.ask(request)).and_then(|()| to_idle(&mut *cage, &mut server));
        let reply = reply.and_then(|()| server.take_answer());
        let failed = reply.is_err();
        if replies.send((reply, server.stats())).is_err() || failed {
            return;
        }
    }
}
