//! The gate: the one way out. Puts a call into the call area, rings the doorbell, reads the answer.
//!
//! Invariant: there is one [`Gate`], and while it is borrowed nobody else touches the call area, the panic
//! handler aside, after which nothing else runs.

use core::arch::asm;
use core::fmt::{self, Write};
use core::ptr;

use instar_abi::boot::{BOOT_MAGIC, BootPage, GATE_PIPE, GATE_PORT};
use instar_abi::call::{CallHeader, FailKind, Op, RECORD_BYTES, TextHeader};
use instar_abi::layout::{ARENA_BYTES_MAX, BOOT, CALL, DOORBELL_PORT, LARGE_PAGE};
use instar_abi::{ABI_VERSION, to_usize};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::process;

/// Longest message of a `Fail` call.
const MESSAGE_BYTES_MAX: usize = 4096;

/// A copy of the boot page.
pub fn boot_page() -> BootPage {
    // SAFETY: both cages map the boot page, readable and aligned, before the first instruction of `run`.
    unsafe { ptr::with_exposed_provenance::<BootPage>(to_usize(BOOT)).read() }
}

/// What is wrong with the boot page, if anything is.
pub fn boot_problem(boot: &BootPage) -> Option<&'static str> {
    if boot.magic != BOOT_MAGIC {
        return Some("boot page: magic not as expected");
    }
    if boot.abi_version != ABI_VERSION {
        return Some("boot page: the host speaks another version of the wire");
    }
    if boot.gate != GATE_PORT && boot.gate != GATE_PIPE {
        return Some("boot page: unknown gate");
    }
    if !boot.arena_bytes.is_multiple_of(LARGE_PAGE) || !(1..=ARENA_BYTES_MAX).contains(&boot.arena_bytes) {
        return Some("boot page: arena size not a whole number of large pages within bounds");
    }
    None
}

/// Lets the host act on what stands in the call area.
fn ring() {
    if boot_page().gate == GATE_PIPE {
        process::ring();
    } else {
        // SAFETY: leaves the cage; the host writes to nothing but the call area and the arena places named in
        // the call or, for requests, in the last `Next`, and the lack of `nomem` tells the compiler so.
        unsafe {
            asm!("out dx, al", in("dx") DOORBELL_PORT, in("al") 0u8, options(nostack, preserves_flags))
        };
    }
}

fn records() -> *mut u8 {
    ptr::with_exposed_provenance_mut(to_usize(CALL) + size_of::<CallHeader>())
}

/// Writes bytes among the records.
///
/// # Panics
/// If they do not fit: the callers cut to size.
fn put_bytes(at: usize, bytes: &[u8]) {
    assert!(at <= RECORD_BYTES && bytes.len() <= RECORD_BYTES - at);
    // SAFETY: the range lies within the call area, which no reference points into.
    unsafe { records().add(at).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
}

fn call(op: Op, count: usize) {
    let header =
        CallHeader { op: op as u32, count: u32::try_from(count).unwrap_or(u32::MAX), reserved: [0; 3] };
    // SAFETY: the call area is mapped, writable and aligned; no reference points into it.
    unsafe { ptr::with_exposed_provenance_mut::<CallHeader>(to_usize(CALL)).write_volatile(header) };
    ring();
}

/// The way out, for whoever holds it.
pub struct Gate(());

impl Gate {
    /// The gate. To be made once.
    pub const fn new() -> Self {
        Self(())
    }

    /// A call whose records are `records`.
    pub fn send<T: IntoBytes + Immutable>(&mut self, op: Op, records: &[T]) {
        put_bytes(0, records.as_bytes());
        call(op, records.len());
    }

    /// A call with one record and bytes behind it.
    pub fn send_text(&mut self, op: Op, header: &TextHeader, bytes: &[u8]) {
        put_bytes(0, header.as_bytes());
        put_bytes(size_of::<TextHeader>(), bytes);
        call(op, 1);
    }

    /// A call with no records.
    pub fn signal(&mut self, op: Op) {
        call(op, 0);
    }

    /// How many records the answer says it has.
    pub fn answered(&self) -> usize {
        // SAFETY: as in `call`.
        let header = unsafe { ptr::with_exposed_provenance::<CallHeader>(to_usize(CALL)).read_volatile() };
        to_usize(u64::from(header.count))
    }

    /// A record of the answer.
    ///
    /// # Panics
    /// If it lies outside of the call area.
    pub fn record<T: FromBytes>(&self, index: usize) -> T {
        assert!(index < RECORD_BYTES / size_of::<T>());
        // SAFETY: the record lies within the call area, and any bytes make a T.
        unsafe { records().cast::<T>().add(index).read_unaligned() }
    }
}

/// A call area exactly as given, true or not.
#[cfg(feature = "evil")]
pub fn forge(bytes: &[u8]) {
    let (header, records) = bytes.split_at(size_of::<CallHeader>());
    put_bytes(0, records);
    if let Ok(header) = CallHeader::read_from_bytes(header) {
        // SAFETY: as in `call`.
        unsafe { ptr::with_exposed_provenance_mut::<CallHeader>(to_usize(CALL)).write_volatile(header) };
        ring();
    }
}

/// Message text, written into the call area as it is formatted.
struct Message {
    len: usize,
}

impl Write for Message {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = MESSAGE_BYTES_MAX - self.len;
        let bytes = &text.as_bytes()[..text.len().min(room)];
        put_bytes(size_of::<TextHeader>() + self.len, bytes);
        self.len += bytes.len();
        Ok(())
    }
}

/// Gives up: tells the host why. Uses no heap.
pub fn fail(kind: FailKind, line: u32, message: fmt::Arguments<'_>) -> ! {
    let mut text = Message { len: 0 };
    // The writer takes everything, so an error can only be a Display implementation's own; what it wrote
    // before is the message then.
    if text.write_fmt(message).is_err() {
        text.len = text.len.min(MESSAGE_BYTES_MAX);
    }
    let len = u32::try_from(text.len).unwrap_or(0);
    let header = TextHeader { kind: kind as u32, index: line, len, reserved: 0 };
    put_bytes(0, header.as_bytes());
    call(Op::Fail, 1);
    park()
}

/// The job is over; the host does not let the inmate run again.
pub fn park() -> ! {
    loop {
        ring();
    }
}
