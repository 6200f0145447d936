//! How the payload shuts itself into the process cage, before it has seen a byte of an image: maps the shared
//! memory, unmaps everything that is not named in [`instar_abi::layout`], and installs the host's filter.
//!
//! Invariant: [`build_cage`] returns only when nothing but the inmate's own memory is mapped and no system call
//! is left but read on descriptor 0, write on descriptor 1 and exit. Under KVM nothing of this module runs.

use core::arch::asm;

use instar_abi::boot::BootPage;
use instar_abi::layout::{
    ANSWER_FD, ARENA_BASE, ARENA_BYTES_MAX, BOOT, CALL, CALL_BYTES, DOORBELL_FD, LARGE_PAGE, PAGE,
    SHARED_ARENA, SHARED_BOOT, SHARED_CALL, SHARED_FD, STACK_BASE, STACK_TOP,
};

pub const SYS_MMAP: u64 = 9;
pub const PROT_READ_WRITE: u64 = 3;
pub const MAP_PRIVATE: u64 = 2;
pub const MAP_ANONYMOUS: u64 = 0x20;
/// `MAP_FIXED_NOREPLACE`: an address that is taken is an error.
pub const MAP_FIXED: u64 = 0x10_0000;

const SYS_READ: u64 = 0;
const SYS_WRITE: u64 = 1;
const SYS_CLOSE: u64 = 3;
const SYS_MUNMAP: u64 = 11;
const SYS_EXIT: u64 = 60;
const SYS_PRCTL: u64 = 157;
const SYS_SECCOMP: u64 = 317;
const PROT_READ: u64 = 1;
const MAP_SHARED: u64 = 1;
const PR_SET_DUMPABLE: u64 = 4;
const PR_SET_TSC: u64 = 26;
const PR_TSC_SIGSEGV: u64 = 2;
const SECCOMP_SET_MODE_FILTER: u64 = 1;
/// One past the last address of a program with four-level page tables.
const ADDRESSES_END: u64 = 0x7fff_ffff_f000;

unsafe extern "C" {
    /// First byte behind the payload's segments, page-aligned by the link script.
    static payload_end: u8;
}

/// One system call.
///
/// # Safety
/// The call must not take away or change memory that the program still relies on.
unsafe fn syscall(number: u64, args: [u64; 6]) -> u64 {
    let result;
    // SAFETY: the kernel keeps every register but rax, rcx and r11; what the call does is the caller's matter.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") args[0], in("rsi") args[1],
            in("rdx") args[2], in("r10") args[3], in("r8") args[4], in("r9") args[5],
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

/// Ends the process; `code` tells the host how far it came.
pub fn exit(code: u64) -> ! {
    loop {
        // SAFETY: ends the program.
        unsafe { syscall(SYS_EXIT, [code, 0, 0, 0, 0, 0]) };
    }
}

/// Rings the host through the pipe and waits for its answer.
pub fn ring() {
    let mut byte = 0u8;
    let address = (&raw mut byte).expose_provenance() as u64;
    // SAFETY: one byte is read from and written to a local variable.
    let passed = unsafe {
        syscall(SYS_WRITE, [fd(DOORBELL_FD), address, 1, 0, 0, 0]) == 1
            && syscall(SYS_READ, [fd(ANSWER_FD), address, 1, 0, 0, 0]) == 1
    };
    if !passed {
        exit(1);
    }
}

fn fd(number: i32) -> u64 {
    u64::from(number.unsigned_abs())
}

/// Goes on if the call gave what it must; ends the process with the step's number otherwise.
fn expect(step: u64, got: u64, wanted: u64) {
    if got != wanted {
        exit(step);
    }
}

/// Maps a part of the shared memory at its place.
fn map_shared(step: u64, address: u64, bytes: u64, prot: u64, offset: u64) {
    // SAFETY: a new mapping where nothing was before.
    let got =
        unsafe { syscall(SYS_MMAP, [address, bytes, prot, MAP_SHARED | MAP_FIXED, fd(SHARED_FD), offset]) };
    expect(step, got, address);
}

fn unmap(step: u64, from: u64, to: u64) {
    if from < to {
        // SAFETY: build_cage passes only ranges outside of the segments, stack, boot page, call area and arena.
        expect(step, unsafe { syscall(SYS_MUNMAP, [from, to - from, 0, 0, 0, 0]) }, 0);
    }
}

/// See the module's documentation. Runs on the inmate's own stack.
pub extern "C" fn build_cage() {
    map_shared(65, BOOT, PAGE, PROT_READ, SHARED_BOOT);
    map_shared(66, CALL, CALL_BYTES, PROT_READ_WRITE, SHARED_CALL);
    // SAFETY: the boot page has just been mapped and the host does not write it any more.
    let boot = unsafe { core::ptr::with_exposed_provenance::<BootPage>(instar_abi::to_usize(BOOT)).read() };
    let arena_bytes = boot.arena_bytes;
    if !arena_bytes.is_multiple_of(LARGE_PAGE) || arena_bytes == 0 || arena_bytes > ARENA_BYTES_MAX {
        exit(67);
    }
    map_shared(68, ARENA_BASE, arena_bytes, PROT_READ_WRITE, SHARED_ARENA);
    // SAFETY: nothing uses the descriptor from here on.
    expect(69, unsafe { syscall(SYS_CLOSE, [fd(SHARED_FD), 0, 0, 0, 0, 0]) }, 0);

    let text = instar_abi::layout::SMALL_BASE;
    let end = (&raw const payload_end).expose_provenance() as u64;
    unmap(70, 0, text);
    unmap(71, end, STACK_BASE);
    unmap(72, STACK_TOP, BOOT);
    unmap(73, BOOT + PAGE, CALL);
    unmap(74, CALL + CALL_BYTES, ARENA_BASE);
    unmap(75, ARENA_BASE + arena_bytes, ADDRESSES_END);

    // SAFETY: these take away abilities, no memory.
    unsafe {
        expect(76, syscall(SYS_PRCTL, [PR_SET_DUMPABLE, 0, 0, 0, 0, 0]), 0);
        expect(77, syscall(SYS_PRCTL, [PR_SET_TSC, PR_TSC_SIGSEGV, 0, 0, 0, 0]), 0);
        // The host has left the filter at the start of the call area.
        expect(78, syscall(SYS_SECCOMP, [SECCOMP_SET_MODE_FILTER, 0, CALL, 0, 0, 0]), 0);
    }
}
