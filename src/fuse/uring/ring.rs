//! One ring with its slots: everything that is unsafe about FUSE over io_uring, behind calls that are safe.
//!
//! A slot is a piece of memory that the kernel puts a request into and takes the reply from. Invariant: it is either the
//! kernel's, in [`Ring::lent`], where no reference into it exists, or a [`Slot`] that its owner alone can touch. It
//! goes to the kernel by value ([`Ring::commit`]) and comes back by value ([`Ring::next`]).
//!
//! Invariant: once [`Ring::enable`] has returned, the ring does two things, on two files that were named then: commands
//! to the FUSE device, and waiting for the bell. The kernel refuses every other operation, every other file and
//! every change of this, whoever writes to the ring's memory. What the ring cannot do is in [`tests`].
//!
//! What a request means is [`super::wire`]'s matter, who answers it [`super::queue`]'s.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use io_uring::register::Restriction;
use io_uring::squeue::{Entry128, Flags};
use io_uring::types::{Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode};
use rustix::event::{EventfdFlags, eventfd};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use zerocopy::{FromBytes, IntoBytes};

use super::wire::{Command, SLOT_HEADER_BYTES, SlotHeader};

/// Largest payload, which is also the largest read and what the kernel is told to be the largest write.
pub(in crate::fuse) const PAYLOAD_BYTES: u32 = 1 << 20;
/// The header has pages of its own, so that the payload is aligned and can be given back by itself.
const HEADER_BYTES: usize = 4096;
const SLOT_BYTES: usize = HEADER_BYTES + PAYLOAD_BYTES as usize;
/// Of an idle slot's payload so much is kept: what the kernel puts in for a request is shorter than this.
const KEPT_BYTES: usize = 128 << 10;
/// Places in the ring's table of files.
const DEVICE: Fixed = Fixed(0);
const BELL: Fixed = Fixed(1);
/// What completions of the bell are marked with; slots are marked with their index.
const BELL_MARK: u64 = u64::MAX;
/// `FUSE_IO_URING_CMD_REGISTER` and `FUSE_IO_URING_CMD_COMMIT_AND_FETCH`.
const REGISTER: u32 = 1;
const COMMIT_AND_FETCH: u32 = 2;
/// Byte of the submission entry at which its length stands.
const LEN_AT: usize = 24;

/// See the module's documentation.
pub(super) struct Ring {
    ring: IoUring<Entry128, cqueue::Entry>,
    bell: Bell,
    /// The slots that the kernel has, each at its index.
    lent: Vec<Option<Slot>>,
    /// Slots that the kernel may still give out or get back.
    alive: usize,
    /// What came while slots were registered.
    early: VecDeque<cqueue::Entry>,
}

/// Memory of one slot; see the module's documentation.
#[derive(Debug)]
pub(super) struct Slot {
    base: NonNull<u8>,
    queue: u16,
    index: usize,
    /// The payload's memory may be in use up to here.
    touched: usize,
}

// SAFETY: the mapping belongs to the slot alone and may be used and unmapped by any thread.
unsafe impl Send for Slot {}

/// Wakes the thread that waits in a ring.
#[derive(Debug, Clone)]
pub(super) struct Bell(Arc<OwnedFd>);

/// What came of waiting.
#[derive(Debug)]
pub(super) enum Came {
    /// A request.
    Request(Slot),
    /// The bell rang.
    Bell,
    /// A slot is no more: the mount has ended, or the kernel did not take a command, with this errno.
    Ended(i32),
}

impl Bell {
    /// Wakes it, now or when it next waits.
    pub fn ring(&self) -> io::Result<()> {
        Ok(rustix::io::write(&*self.0, 1_u64.as_bytes()).map(drop)?)
    }

    fn silence(&self) {
        // Nothing to read means that somebody else has silenced it.
        if let Err(error) = rustix::io::read(&*self.0, &mut [0_u8; 8]) {
            tracing::trace!(%error, "the bell was silent");
        }
    }
}

impl Slot {
    fn new(queue: u16, index: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
            mmap_anonymous(std::ptr::null_mut(), SLOT_BYTES, ProtFlags::READ | ProtFlags::WRITE, flags)?
        };
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, queue, index, touched: 0 })
    }

    /// The request or the reply, and its payload.
    pub fn parts(&mut self) -> (&mut SlotHeader, &mut [u8]) {
        // SAFETY: the mapping is SLOT_BYTES long, initialised (with zeros at first), and while there is a Slot the kernel
        // does not touch it; the borrow of self keeps everybody else away. The two ranges do not overlap.
        let (header, payload) = unsafe {
            let payload = self.base.add(HEADER_BYTES).as_ptr();
            (
                std::slice::from_raw_parts_mut(self.base.as_ptr(), SLOT_HEADER_BYTES),
                std::slice::from_raw_parts_mut(payload, PAYLOAD_BYTES as usize),
            )
        };
        let header =
            SlotHeader::mut_from_bytes(header).unwrap_or_else(|_| unreachable!("a page holds a header"));
        (header, payload)
    }

    /// Makes the slot's content the reply: an errno, or so many bytes of payload.
    pub fn answer(&mut self, outcome: Result<usize, i32>) {
        let (error, bytes) = outcome.map_or_else(|errno| (-errno, 0), |bytes| (0, bytes));
        self.touched = self.touched.max(bytes);
        self.parts().0.answer(error, u32::try_from(bytes).unwrap_or(0));
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // SAFETY: the mapping is the slot's own, and nothing refers to it any more.
        if let Err(error) = unsafe { munmap(self.base.as_ptr().cast(), SLOT_BYTES) } {
            tracing::error!(%error, "cannot unmap a slot");
        }
    }
}

impl Ring {
    /// A ring for so many slots that does nothing yet.
    ///
    /// # Errors
    /// Those of the system, which may forbid rings.
    pub fn new(slots: usize) -> io::Result<Self> {
        let entries = u32::try_from(slots.saturating_add(1)).map_err(io::Error::other)?;
        let ring = IoUring::<Entry128, cqueue::Entry>::builder()
            .setup_r_disabled()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(entries)?;
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { ring, bell: Bell(Arc::new(bell)), lent: Vec::new(), alive: 0, early: VecDeque::new() })
    }

    /// What wakes the thread that waits in this ring.
    pub fn bell(&self) -> Bell {
        self.bell.clone()
    }

    /// Ties the ring to the calling thread, to the device and to what the module's documentation says.
    ///
    /// # Errors
    /// Those of the system.
    pub fn enable(&mut self, device: BorrowedFd<'_>) -> io::Result<()> {
        let submitter = self.ring.submitter();
        submitter.register_files(&[device.as_raw_fd(), self.bell.0.as_fd().as_raw_fd()])?;
        let fixed = Flags::FIXED_FILE.bits();
        submitter.register_restrictions(&mut [
            Restriction::sqe_op(opcode::UringCmd80::CODE),
            Restriction::sqe_op(opcode::PollAdd::CODE),
            Restriction::sqe_flags_required(fixed),
            Restriction::sqe_flags_allowed(fixed),
        ])?;
        submitter.register_enable_rings()?;
        self.listen()
    }

    fn listen(&mut self) -> io::Result<()> {
        let events = u32::from(rustix::event::PollFlags::IN.bits());
        let poll = opcode::PollAdd::new(BELL, events).multi(true).build().user_data(BELL_MARK);
        self.push(poll.into())
    }

    fn push(&mut self, entry: Entry128) -> io::Result<()> {
        // SAFETY: what entries refer to: a table of files that lives as long as the ring; the memory of slots, which are in
        // `lent` from before their entry is pushed until its completion; and ranges that Ring::register keeps until
        // the entry was submitted, which is when the kernel reads them.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.map_err(|_| io::Error::other("a ring is full that has a place for each slot"))
    }

    /// Gives the kernel new slots for requests of one queue.
    ///
    /// # Errors
    /// Those of the system; what the kernel said to the slots, which then get no requests: the kernel has gone back to the
    /// device for this mount.
    pub fn register(&mut self, queue: u16, slots: usize) -> io::Result<()> {
        let first = self.lent.len();
        let mut ranges = Vec::with_capacity(slots);
        for index in first..first + slots {
            let slot = Slot::new(queue, index)?;
            let range = |at: usize, iov_len| libc::iovec {
                iov_base: slot.base.as_ptr().wrapping_add(at).cast(),
                iov_len,
            };
            ranges.push([range(0, SLOT_HEADER_BYTES), range(HEADER_BYTES, PAYLOAD_BYTES as usize)]);
            self.lent.push(Some(slot));
        }
        for (index, ranges) in (first..).zip(&ranges) {
            let command = Command { flags: 0, commit_id: 0, queue, padding: [0; 6] };
            let entry = with_len(command_entry(REGISTER, &command, index, Some(ranges.as_ptr().addr())), 2);
            self.push(entry)?;
            self.alive += 1;
        }
        self.ring.submit()?;
        drop(ranges);
        // The kernel answers at once where it refuses, and else when there is a request.
        self.early.extend(self.ring.completion());
        match self.early.iter().find(|done| done.result() < 0) {
            Some(refused) => Err(io::Error::from_raw_os_error(-refused.result())),
            None => Ok(()),
        }
    }

    /// Gives a slot with its reply back to the kernel, for the next request; it goes with the next [`Ring::wait`].
    ///
    /// # Errors
    /// None but a fault of this program.
    pub fn commit(&mut self, mut slot: Slot) -> io::Result<()> {
        let (queue, index) = (slot.queue, slot.index);
        let commit_id = slot.parts().0.commit_id();
        let command = Command { flags: 0, commit_id, queue, padding: [0; 6] };
        if let Some(place) = self.lent.get_mut(index) {
            *place = Some(slot);
        }
        self.push(command_entry(COMMIT_AND_FETCH, &command, index, None))
    }

    /// Hands over what was committed, and waits until something comes or the time is over. Told is whether something
    /// came; a signal may end the waiting early.
    ///
    /// # Errors
    /// Those of the system.
    pub fn wait(&mut self, most: Option<Duration>) -> io::Result<bool> {
        let submitter = self.ring.submitter();
        let done = match most {
            None => submitter.submit_and_wait(1),
            Some(most) => {
                let most = Timespec::from(most);
                submitter.submit_with_args(1, &SubmitArgs::new().timespec(&most))
            }
        };
        match done {
            Ok(_) => {}
            // The end of the time, a signal, or a moment without memory: what was to be handed over goes with the next call.
            Err(error) if is_passing(&error) => {}
            Err(error) => return Err(error),
        }
        // A call that handed something over does not tell that the time was over.
        Ok(!(self.early.is_empty() && self.ring.completion().is_empty()))
    }

    /// The next thing that came.
    ///
    /// # Errors
    /// None but a fault of this program or of the kernel's.
    pub fn next(&mut self) -> io::Result<Option<Came>> {
        let done = self.early.pop_front().or_else(|| self.ring.completion().next());
        let Some(done) = done else { return Ok(None) };
        if done.user_data() == BELL_MARK {
            self.bell.silence();
            if !cqueue::more(done.flags()) {
                self.listen()?;
            }
            return Ok(Some(Came::Bell));
        }
        let slot = usize::try_from(done.user_data()).ok().and_then(|at| self.lent.get_mut(at)?.take());
        let slot = slot.ok_or_else(|| io::Error::other("the kernel gave a slot that it did not have"))?;
        if done.result() < 0 {
            self.alive -= 1;
            return Ok(Some(Came::Ended(-done.result())));
        }
        Ok(Some(Came::Request(slot)))
    }

    /// Whether any request can still come.
    pub fn is_alive(&self) -> bool {
        self.alive > 0
    }

    /// Gives memory back that earlier replies have left in the slots that the kernel has.
    pub fn trim(&mut self) {
        for slot in self.lent.iter_mut().flatten().filter(|slot| slot.touched > KEPT_BYTES) {
            let len = PAYLOAD_BYTES as usize - KEPT_BYTES;
            // SAFETY: the range lies in the slot's mapping, to which there is no reference while the kernel has the slot. The
            // kernel writes to it only while this thread is in Ring::wait (DEFER_TASKRUN), and if a request came in
            // since, it is shorter than what is kept.
            let given = unsafe {
                let tail = slot.base.add(HEADER_BYTES + KEPT_BYTES);
                madvise(tail.as_ptr().cast(), len, Advice::LinuxDontNeed)
            };
            match given {
                Ok(()) => slot.touched = 0,
                Err(error) => tracing::debug!(%error, "a slot's memory is kept"),
            }
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // What the kernel still has must stay mapped: there is no moment from which on it is known not to write any more.
        self.lent.drain(..).flatten().for_each(std::mem::forget);
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY))
}

fn command_entry(code: u32, command: &Command, index: usize, ranges: Option<usize>) -> Entry128 {
    let mut bytes = [0; 80];
    bytes[..size_of::<Command>()].copy_from_slice(command.as_bytes());
    let entry = opcode::UringCmd80::new(DEVICE, code).cmd(bytes).addr(ranges.map(|at| at as u64)).build();
    entry.user_data(index as u64)
}

/// The entry with a length, which the crate has no call for.
fn with_len(mut entry: Entry128, len: u32) -> Entry128 {
    const { assert!(size_of::<Entry128>() == 128 && LEN_AT + size_of::<u32>() <= size_of::<Entry128>()) };
    // SAFETY: an Entry128 is laid out as the kernel's struct io_uring_sqe of 128 bytes (`repr(C)` in the crate, which hands
    // it to the kernel as it is), in which the length is a 32-bit word at byte 24. The place is inside and aligned.
    unsafe { (&raw mut entry).byte_add(LEN_AT).cast::<u32>().write(len) };
    entry
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    /// A ring as a server has it, with another file in the device's place.
    fn enabled() -> Option<Ring> {
        let mut ring = match Ring::new(2) {
            Ok(ring) => ring,
            Err(error) => {
                println!("skipped: no rings on this machine: {error}");
                return None;
            }
        };
        let device = File::open("/dev/null").unwrap();
        ring.enable(device.as_fd()).unwrap();
        Some(ring)
    }

    /// What the kernel says to an entry that somebody has written into the ring.
    fn refused(ring: &mut Ring, entry: impl Into<Entry128>) -> i32 {
        ring.push(entry.into().user_data(77)).unwrap();
        assert!(ring.wait(Some(Duration::from_secs(5))).unwrap(), "the kernel says nothing");
        let done = ring.ring.completion().find(|done| done.user_data() == 77).unwrap();
        -done.result()
    }

    #[test]
    fn enabled_ring_refuses_every_operation_but_its_own() {
        let Some(mut ring) = enabled() else { return };
        let path = c"/etc/hostname";
        let open = opcode::OpenAt::new(io_uring::types::Fd(libc::AT_FDCWD), path.as_ptr()).build();
        assert_eq!(refused(&mut ring, open), libc::EACCES);
        let mut bytes = [0; 8];
        let read = opcode::Read::new(BELL, bytes.as_mut_ptr(), 8).build();
        assert_eq!(refused(&mut ring, read), libc::EACCES);
        let socket = opcode::Socket::new(libc::AF_UNIX, libc::SOCK_STREAM, 0).build();
        assert_eq!(refused(&mut ring, socket), libc::EACCES);
        assert_eq!(refused(&mut ring, opcode::Nop::new().build()), libc::EACCES);
    }

    #[test]
    fn enabled_ring_refuses_every_file_but_its_own() {
        let Some(mut ring) = enabled() else { return };
        let other = File::open("/dev/zero").unwrap();
        let other = io_uring::types::Fd(other.as_raw_fd());
        assert_eq!(refused(&mut ring, opcode::PollAdd::new(other, 1).build()), libc::EACCES);
        assert_eq!(refused(&mut ring, opcode::UringCmd80::new(other, REGISTER).build()), libc::EACCES);
        let linked = opcode::PollAdd::new(BELL, 1).build().flags(Flags::IO_LINK);
        assert_eq!(refused(&mut ring, linked), libc::EACCES);
    }

    #[test]
    fn enabled_ring_cannot_be_given_other_rules_or_files() {
        let Some(ring) = enabled() else { return };
        let refused = |outcome: io::Result<()>| outcome.unwrap_err().raw_os_error().unwrap();
        let submitter = ring.ring.submitter();
        let more = Restriction::sqe_op(opcode::OpenAt::CODE);
        assert!(
            [libc::EACCES, libc::EBADFD].contains(&refused(submitter.register_restrictions(&mut [more])))
        );
        assert_eq!(refused(submitter.unregister_files()), libc::EACCES);
        assert_eq!(refused(submitter.register_files_update(0, &[0]).map(drop)), libc::EACCES);
    }

    #[test]
    fn bell_wakes_the_thread_that_waits() {
        let Some(mut ring) = enabled() else { return };
        assert!(!ring.wait(Some(Duration::from_millis(1))).unwrap(), "nobody has rung");
        for _ in 0..3 {
            ring.bell().ring().unwrap();
            assert!(ring.wait(Some(Duration::from_secs(5))).unwrap());
            assert!(matches!(ring.next().unwrap(), Some(Came::Bell)));
            assert!(ring.next().unwrap().is_none());
        }
    }

    #[test]
    fn slot_holds_a_header_and_a_payload_of_the_largest_size() {
        let mut slot = Slot::new(0, 0).unwrap();
        let (header, payload) = slot.parts();
        assert_eq!((header.commit_id(), payload.len()), (0, PAYLOAD_BYTES as usize));
        payload.fill(7);
        slot.answer(Err(libc::EIO));
        let (header, payload) = slot.parts();
        assert_eq!(
            (header.request().opcode, payload[0]),
            ((-libc::EIO).cast_unsigned(), 7),
            "the error is the second word"
        );
    }
}
