//! A cage that stays: its inmate keeps what it learned of the image and answers one request after the other.
//!
//! The cage lives on a thread of its own, because deadlines, a process cage's tie to its parent, and the
//! hypervisor all hang on one thread. Between requests the inmate is stopped at its doorbell and costs its memory
//! only.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use instar_abi::boot::JobKind;
use instar_abi::extent::{Extent, MapOp, MapRequest};
use instar_abi::finding::Finding;
use instar_abi::problem::Problem;

use super::cage::{Cage, CageKind};
use super::calls::{Served, Server};
use super::error::SandboxError;
use super::job::Job;
use super::observer::{Observer, RunStats};
use super::payload::EMBEDDED;
use super::run::{Built, SandboxChoice, build};
use crate::disk::ExtentSource;

type Reply = Result<Vec<Extent>, SandboxError>;

/// How a resident cage came about.
#[derive(Debug)]
struct Started {
    kind: CageKind,
    fallback: Option<String>,
}

/// See the module's documentation. Dropping it ends the inmate.
#[derive(Debug)]
pub struct Resident {
    requests: Option<Sender<MapRequest>>,
    replies: Receiver<(Reply, RunStats)>,
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
        let (requests, incoming) = channel();
        let (outgoing, replies) = channel();
        let (ready, started) = channel();
        let (job, elf) = (job.clone(), elf.to_vec());
        let live = move || {
            let opened = open(&elf, &job, choice).map(|(built, server)| {
                let Built { cage, kind, fallback } = built;
                (cage, server, Started { kind, fallback })
            });
            match opened {
                Ok((cage, server, started)) => {
                    if ready.send(Ok(started)).is_ok() {
                        serve(cage, server, &incoming, &outgoing);
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
        let request = MapRequest { op, snapshot, guest_offset, guest_len, host_offset: 0, host_len: 0 };
        let requests = self.requests.as_ref().ok_or_else(gone)?;
        requests.send(request).map_err(|_| gone())?;
        let (reply, stats) = self.replies.recv().map_err(|_| gone())?;
        self.stats = stats;
        into.extend(reply?);
        Ok(())
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
    mut server: Server,
    requests: &Receiver<MapRequest>,
    replies: &Sender<(Reply, RunStats)>,
) {
    for request in requests {
        let reply = server.ask(request).and_then(|()| to_idle(&mut *cage, &mut server));
        let reply = reply.and_then(|()| server.take_answer());
        let failed = reply.is_err();
        if replies.send((reply, server.stats())).is_err() || failed {
            return;
        }
    }
}
