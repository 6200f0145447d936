//! The first instructions.
//!
//! Under KVM the host has mapped everything and set rdi to the boot page and rsp to the top of the stack. In the
//! process cage the kernel's loader clears rdi: a stack is mapped first, then [`crate::process::build_cage`]
//! does the rest on it.

use core::arch::naked_asm;

use instar_abi::layout::{BOOT, STACK_BASE, STACK_TOP};

use crate::process::{MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, PROT_READ_WRITE, SYS_MMAP};

/// Where both cages start.
///
/// # Safety
/// Only the loader of a cage may come here.
#[unsafe(no_mangle)]
#[unsafe(naked)]
#[unsafe(link_section = ".text.entry")]
unsafe extern "C" fn _start() -> ! {
    naked_asm!(
        "test rdi, rdi",
        "jnz 2f",
        "mov eax, {mmap}",
        "mov edi, {stack_base}",
        "mov esi, {stack_len}",
        "mov edx, {prot}",
        "mov r10d, {flags}",
        "mov r8, -1",
        "xor r9d, r9d",
        "syscall",
        "mov edi, {stack_base}",
        "cmp rax, rdi",
        "jne 3f",
        "mov esp, {stack_top}",
        "call {build}",
        "2:",
        "mov edi, {boot}",
        "xor ebp, ebp",
        "mov esp, {stack_top}",
        "call {run}",
        "3:",
        "ud2",
        mmap = const SYS_MMAP,
        stack_base = const STACK_BASE,
        stack_len = const STACK_TOP - STACK_BASE,
        stack_top = const STACK_TOP,
        prot = const PROT_READ_WRITE,
        flags = const MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
        boot = const BOOT,
        run = sym crate::run,
        build = sym crate::process::build_cage,
    )
}
