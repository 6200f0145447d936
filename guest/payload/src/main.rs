//! The payload: the program that runs in the cage, with the QCOW2 code in it.
//!
//! Freestanding and static: no operating system, no standard library, nothing but the memory that
//! [`instar_abi::layout`] names and the doorbell. The only unsafe code on the inmate's side.
//!
//! It deliberately handles no fault: a fault ends the cage, and the host says so.
#![no_std]
#![no_main]

extern crate alloc;

mod entry;
#[cfg(feature = "evil")]
mod evil;
mod gate;
mod heap;
mod host;
#[cfg(not(feature = "evil"))]
mod jobs;
mod mem;
mod process;

#[cfg(feature = "evil")]
use evil as jobs;

use core::fmt::{self, Write};
use core::panic::PanicInfo;

use instar_abi::call::FailKind;
use instar_abi::to_usize;

#[global_allocator]
static HEAP: heap::Heap = heap::Heap::new();

/// Everything behind the first instructions.
extern "C" fn run() -> ! {
    let boot = gate::boot_page();
    if let Some(problem) = gate::boot_problem(&boot) {
        gate::fail(FailKind::BadBoot, line!(), format_args!("{problem}"));
    }
    HEAP.grant(to_usize(boot.arena_bytes));
    jobs::dispatch(boot)
}

/// Start of the message that the standard library panics with when an allocation fails.
const OUT_OF_MEMORY: &str = "memory allocation of ";

/// Compares what is formatted into it with the start of an out-of-memory message.
struct OutOfMemoryProbe {
    matched: usize,
    parted: bool,
}

impl Write for OutOfMemoryProbe {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let wanted = &OUT_OF_MEMORY.as_bytes()[self.matched..];
        let len = wanted.len().min(text.len());
        self.parted |= wanted[..len] != text.as_bytes()[..len];
        self.matched += len;
        Ok(())
    }
}

fn is_out_of_memory(info: &PanicInfo<'_>) -> bool {
    let mut probe = OutOfMemoryProbe { matched: 0, parted: false };
    let written = write!(probe, "{}", info.message()).is_ok();
    HEAP.refused_bytes() > 0 && written && !probe.parted && probe.matched == OUT_OF_MEMORY.len()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let line = info.location().map_or(0, core::panic::Location::line);
    if is_out_of_memory(info) {
        gate::fail(FailKind::OutOfMemory, line, format_args!("{}", info.message()));
    }
    match info.location() {
        Some(place) => gate::fail(FailKind::Panic, line, format_args!("{} at {place}", info.message())),
        None => gate::fail(FailKind::Panic, line, format_args!("{}", info.message())),
    }
}

/// Named by precompiled code; never called, because a panic ends the job.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// As [`rust_eh_personality`].
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    gate::park()
}
