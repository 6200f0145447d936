//! The threads of the rings.
//!
//! A queue's thread takes requests out of its ring and gives replies back. It answers by itself only what takes no
//! longer than a copy: reads of bytes whose place is known, unless they are read ahead. All other reads go to workers, as many as there are cages
//! that could be asked, and what is no read to one more, which asks fuser. These are shared by all queues. So nothing
//! but another read of its kind keeps a read waiting for a cage, and it keeps nothing else waiting.
//!
//! ```text
//! kernel --ring--> queue's thread --- read at hand ------------- ring --> kernel
//!                        |--- other read --> worker ------> bell --/
//!                        |--- all else ----> relay -------> bell --/
//! ```
//!
//! Invariant: a slot has one owner at a time.

use std::io;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use parking_lot::Mutex;

use super::ring::{Bell, Came, Ring, Slot};
use super::wire::Read;
use crate::fuse::adapter::Adapter;

/// A queue that had nothing to do for so long gives memory back.
const IDLE: Duration = Duration::from_secs(1);

/// Reads into the page cache that are longer than this are ahead of a reader on the same processor, and are left to
/// another while he reads on.
const AHEAD_BYTES: u32 = 64 << 10;

/// A request on its way to a worker and back.
#[derive(Debug)]
pub(super) struct Job {
    slot: Slot,
    home: Home,
}

/// Where a slot goes back to.
#[derive(Debug, Clone)]
struct Home {
    slots: Sender<Slot>,
    bell: Bell,
}

/// Who takes what a queue's thread does not answer.
#[derive(Debug, Clone)]
pub(super) struct Helpers {
    /// Reads that may have to ask a cage.
    pub reads: Sender<Job>,
    /// What is no read.
    pub others: Sender<Job>,
}

/// What a queue's thread works with.
pub(super) struct Queue {
    ring: Ring,
    adapter: Adapter,
    helpers: Helpers,
    home: Home,
    back: Receiver<Slot>,
}

impl Queue {
    /// A queue of a ring that has its slots.
    pub fn new(ring: Ring, adapter: Adapter, helpers: Helpers) -> Self {
        let (slots, back) = std::sync::mpsc::channel();
        let home = Home { slots, bell: ring.bell() };
        Self { ring, adapter, helpers, home, back }
    }

    /// Serves until the mount ends.
    ///
    /// # Errors
    /// Those of the ring.
    pub fn serve(mut self) -> io::Result<()> {
        let mut idle = Some(IDLE);
        while self.ring.is_alive() {
            let came = self.ring.wait(idle)?;
            if !came {
                self.ring.trim();
            }
            // Nothing more can be given back before something came.
            idle = came.then_some(IDLE);
            while let Some(came) = self.ring.next()? {
                self.take(came)?;
            }
        }
        Ok(())
    }

    fn take(&mut self, came: Came) -> io::Result<()> {
        match came {
            Came::Request(slot) => self.request(slot),
            Came::Bell => {
                while let Ok(slot) = self.back.try_recv() {
                    self.ring.commit(slot)?;
                }
                Ok(())
            }
            Came::Ended(libc::ENOTCONN | libc::ECONNABORTED | libc::ECANCELED) => Ok(()),
            Came::Ended(errno) => {
                let error = io::Error::from_raw_os_error(errno);
                tracing::error!(%error, "the kernel did not take a reply");
                Ok(())
            }
        }
    }

    fn request(&mut self, mut slot: Slot) -> io::Result<()> {
        let helper = match slot.parts().0.read() {
            Some(read) if self.is_answered_here(read) => {
                answer_read(&self.adapter, &mut slot);
                return self.ring.commit(slot);
            }
            Some(_) => &self.helpers.reads,
            None => &self.helpers.others,
        };
        let job = Job { slot, home: self.home.clone() };
        helper.send(job).map_err(|_| io::Error::other("the helpers of the rings are gone"))
    }

    fn is_answered_here(&self, read: Read) -> bool {
        let is_ahead = !read.direct && read.size > AHEAD_BYTES;
        !is_ahead && self.adapter.is_at_hand(read.ino, read.offset, read.size)
    }
}

/// Has jobs answered until there are no queues any more.
///
/// # Errors
/// Those of the bell.
pub(super) fn help(jobs: &Mutex<Receiver<Job>>, mut answer: impl FnMut(&mut Slot)) -> io::Result<()> {
    loop {
        let job = jobs.lock().recv();
        let Ok(Job { mut slot, home }) = job else { return Ok(()) };
        answer(&mut slot);
        if home.slots.send(slot).is_err() {
            tracing::debug!("a reply came after the end of its queue");
        }
        home.bell.ring()?;
    }
}

/// Answers a slot's request, which is a read.
pub(super) fn answer_read(adapter: &Adapter, slot: &mut Slot) {
    let (header, payload) = slot.parts();
    let outcome = header.read().ok_or(libc::EINVAL).and_then(|read| {
        let into =
            usize::try_from(read.size).ok().and_then(|size| payload.get_mut(..size)).ok_or(libc::EINVAL)?;
        adapter.read_into(read.ino, read.offset, read.direct, into).map_err(|errno| errno.code())
    });
    slot.answer(outcome);
}
