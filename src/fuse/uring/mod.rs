//! FUSE over io_uring: requests and replies in memory that is shared with the kernel, one system call for a reply and
//! the next request.
//!
//! It stands beside fuser's session, which makes the mount, does the handshake, and goes on to answer what the kernel
//! sends through `/dev/fuse` in any case: forgotten inodes, interrupts, and everything where the kernel goes back to the
//! device. Reads are answered here, with the code that answers them there; all else is handed to fuser as well ([`relay`]).
//!
//! Each possible processor has a queue in the kernel, and a request goes to the queue of the processor that it comes
//! from. A queue's thread stays on that processor: a reader and its server then take turns, and nothing has to be
//! sent to another processor.
//!
//! Everything that is unsafe is in [`ring`].

mod queue;
mod relay;
mod ring;
mod wire;

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};

use fuser::SessionACL;
use parking_lot::Mutex;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use thiserror::Error;

use self::queue::{Helpers, Queue};
use self::relay::Relay;
pub(super) use self::ring::PAYLOAD_BYTES;
use self::ring::Ring;
use super::adapter::Adapter;

/// The kernel's switch, which is not there where the kernel has no rings for FUSE.
const SWITCH: &str = "/sys/module/fuse/parameters/enable_uring";
/// The processors that the kernel has queues for, as a list of ranges.
const PROCESSORS: &str = "/sys/devices/system/cpu/possible";
/// Slots of all queues together, and of one queue. A slot takes up to 1 MiB while there is much to read.
const SLOTS_MAX: usize = 32;
const QUEUE_SLOTS: std::ops::RangeInclusive<usize> = 2..=8;
/// Threads for reads that take longer: as many as there are cages that could be asked.
const READERS_MAX: usize = 2;

/// Why a mount is not served through rings.
#[derive(Debug, Error)]
pub enum NoRings {
    /// The kernel does not know of them.
    #[error("this kernel has no FUSE over io_uring")]
    Unknown,
    /// They are switched off.
    #[error("FUSE over io_uring is switched off in the kernel")]
    Off,
    /// They cannot be made.
    #[error("cannot make an io_uring")]
    Made(#[source] io::Error),
    /// The kernel refused what was made.
    #[error("the kernel refuses an io_uring of this mount")]
    Refused(#[source] io::Error),
}

/// Rings that nothing is served through yet.
pub(super) struct Rings {
    rings: Vec<Ring>,
    /// How many queues the kernel has.
    queues: u16,
}

/// Threads that serve; they end with the mount.
#[derive(Debug)]
pub(super) struct Serving(Vec<JoinHandle<()>>);

impl Rings {
    /// Makes rings, where the kernel may want them.
    ///
    /// # Errors
    /// Why there are none.
    pub fn prepare() -> Result<Self, NoRings> {
        match fs::read_to_string(SWITCH) {
            Ok(text) if text.trim() == "Y" => {}
            Ok(_) => return Err(NoRings::Off),
            Err(_) => return Err(NoRings::Unknown),
        }
        let queues = queues(&fs::read_to_string(PROCESSORS).map_err(NoRings::Made)?);
        let queues = queues.ok_or_else(|| NoRings::Made(io::ErrorKind::InvalidData.into()))?;
        let threads = processors().min(queues.into());
        let slots = slots_of_a_queue(queues) * usize::from(queues).div_ceil(threads);
        let rings = (0..threads).map(|_| Ring::new(slots)).collect::<io::Result<_>>();
        Ok(Self { rings: rings.map_err(NoRings::Made)?, queues })
    }

    /// Starts to serve what comes from `device`. The kernel has agreed to rings in the handshake, and holds all requests
    /// back until this has succeeded or failed.
    ///
    /// # Errors
    /// [`NoRings::Refused`]: the kernel has gone back to the device. Others leave it waiting.
    pub fn start(self, device: OwnedFd, adapter: &Adapter, acl: SessionACL) -> Result<Serving, NoRings> {
        let (helpers, mut threads) = start_helpers(adapter, acl)?;
        let device = Arc::new(device);
        let (all, slots) = (self.rings.len(), slots_of_a_queue(self.queues));
        let mut waiting = Vec::new();
        for (nth, ring) in self.rings.into_iter().enumerate() {
            let queues = (0..self.queues).skip(nth).step_by(all).collect();
            let setting = Setting { ring, queues, slots, device: device.clone() };
            let (thread, one) = setting.start(adapter.clone(), helpers.clone())?;
            threads.push(thread);
            waiting.push(one);
        }
        let_go(waiting)?;
        Ok(Serving(threads))
    }
}

fn start_helpers(adapter: &Adapter, acl: SessionACL) -> Result<(Helpers, Vec<JoinHandle<()>>), NoRings> {
    let (reads, read) = channel();
    let (others, other) = channel();
    let (read, other) = (Arc::new(Mutex::new(read)), Mutex::new(other));
    let mut relay = Relay::start(adapter.clone(), acl).map_err(NoRings::Made)?;
    let relaying = move || {
        queue::help(&other, |slot| relay.answer(slot))?;
        relay.end()
    };
    let mut threads = vec![spawn("instar-relay", relaying)?];
    for _ in 0..processors().min(READERS_MAX) {
        let (read, adapter) = (read.clone(), adapter.clone());
        let reading = move || queue::help(&read, |slot| queue::answer_read(&adapter, slot));
        threads.push(spawn("instar-reader", reading)?);
    }
    Ok((Helpers { reads, others }, threads))
}

/// A ring's thread that has taken its place, or could not, and waits for the others.
struct Waiting {
    told: Receiver<Result<(), NoRings>>,
    go: Sender<()>,
}

/// Lets the threads serve once all of them have taken their place; none does if one could not.
fn let_go(waiting: Vec<Waiting>) -> Result<(), NoRings> {
    let gone = || NoRings::Made(io::ErrorKind::BrokenPipe.into());
    for one in &waiting {
        one.told.recv().unwrap_or_else(|_| Err(gone()))?;
    }
    waiting.into_iter().try_for_each(|one| one.go.send(()).map_err(|_| gone()))
}

/// What a ring's thread begins with.
struct Setting {
    ring: Ring,
    queues: Vec<u16>,
    /// Of each queue.
    slots: usize,
    device: Arc<OwnedFd>,
}

impl Setting {
    fn start(self, adapter: Adapter, helpers: Helpers) -> Result<(JoinHandle<()>, Waiting), NoRings> {
        let (tell, told) = channel();
        let (go, start) = channel();
        let live = move || match self.take_place() {
            Ok(ring) => {
                let goes = tell.send(Ok(())).is_ok() && start.recv().is_ok();
                if goes { Queue::new(ring, adapter, helpers).serve() } else { Ok(()) }
            }
            Err(error) => tell.send(Err(error)).map_err(io::Error::other),
        };
        Ok((spawn("instar-ring", live)?, Waiting { told, go }))
    }

    fn take_place(mut self) -> Result<Ring, NoRings> {
        stay_on(&self.queues);
        self.ring.enable(self.device.as_fd()).map_err(NoRings::Made)?;
        for queue in self.queues {
            self.ring.register(queue, self.slots).map_err(NoRings::Refused)?;
        }
        Ok(self.ring)
    }
}

impl Serving {
    /// Waits until all have ended, which they do when the mount has.
    pub fn join(self) {
        for thread in self.0 {
            // One that panicked has ended the process.
            thread.join().unwrap_or_default();
        }
    }
}

/// Keeps the calling thread on the processors of its queues, as far as it may run there.
fn stay_on(queues: &[u16]) {
    let stay = || {
        let allowed = sched_getaffinity(None)?;
        let mut own = CpuSet::new();
        let cpus = queues.iter().map(|&queue| usize::from(queue));
        cpus.filter(|&cpu| cpu < CpuSet::MAX_CPU && allowed.is_set(cpu)).for_each(|cpu| own.set(cpu));
        if own.count() > 0 { sched_setaffinity(None, &own) } else { Ok(()) }
    };
    if let Err(error) = stay() {
        tracing::debug!(%error, "a ring's thread stays on no processor of its own");
    }
}

/// A thread that serves. Requests that it held would wait for ever if it failed alone, so the process then ends as a
/// whole: the keeper unmounts, and readers get an error.
fn spawn(
    name: &str,
    live: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> Result<JoinHandle<()>, NoRings> {
    let guarded = move || {
        let whole = Whole;
        if let Err(error) = live() {
            tracing::error!(%error, "a thread of the rings failed");
            std::process::abort();
        }
        drop(whole);
    };
    Builder::new().name(name.into()).spawn(guarded).map_err(NoRings::Made)
}

/// Ends the process if the thread that holds it panics.
struct Whole;

impl Drop for Whole {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn slots_of_a_queue(queues: u16) -> usize {
    (SLOTS_MAX / usize::from(queues.max(1))).clamp(*QUEUE_SLOTS.start(), *QUEUE_SLOTS.end())
}

/// How many queues the kernel has: one for each processor in its list of ranges.
fn queues(processors: &str) -> Option<u16> {
    processors.trim().split(',').try_fold(0_u16, |sum, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
        sum.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_are_as_many_as_processors() {
        assert_eq!(queues("0-1\n"), Some(2));
        assert_eq!(queues("0\n"), Some(1));
        assert_eq!(queues("0,2-5,8-11"), Some(9));
        for nonsense in ["", "0-", "3-1", "0-65535", "a"] {
            assert_eq!(queues(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn slots_are_fewer_on_machines_with_many_processors() {
        assert_eq!([1, 2, 4, 8, 16, 256].map(slots_of_a_queue), [8, 8, 8, 4, 2, 2]);
    }
}
