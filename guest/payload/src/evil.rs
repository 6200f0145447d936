//! Misbehaviour on demand, for the tests of the cages; in place of the jobs when the `evil` feature is on.
//!
//! `BootPage::params[0]` is the deed's number, as in [`dispatch`]; the next one is its argument. What comes back from
//! a deed that should have ended the cage is told by a summary with `passes` set to [`SURVIVED`].

use core::arch::asm;
use core::hint::spin_loop;
use core::ptr;

use alloc::vec;
use alloc::vec::Vec;

use instar_abi::boot::BootPage;
use instar_abi::finding::{ACTIVE, Finding, NONE};
use instar_abi::layout::{ARENA_BASE, BOOT, CALL, SMALL_BASE, STACK_BASE, TASK_STATE};
use instar_abi::problem::Problem;
use instar_abi::summary::{Outcome, Summary};
use instar_qcow2::host::{Host, Range};

use crate::gate::forge;
use crate::host::GateHost;

/// `Summary::passes` of a job that is still there after its deed.
const SURVIVED: u32 = 0x600d;
/// Bytes of an x86 `ret`, to jump to.
const RETURN: u8 = 0xc3;

/// Does the deed that the boot page names.
pub fn dispatch(boot: BootPage) -> ! {
    let [deed, a, ..] = boot.params;
    match deed {
        0 => good(boot),
        1 => loop {
            spin_loop();
        },
        2 => unmapped(a),
        3 => write(a),
        4 => jump(a),
        5 => drop(core::hint::black_box(recurse(1))),
        6 => privileged(a),
        7 => forged(boot, a),
        8 => flood(boot),
        9 => panic!("a panic of bad will\u{7}"),
        10 => out_of_memory(a),
        11 => resident(boot, a),
        12 => exercise_heap(boot),
        _ => {}
    }
    survive(boot, 0)
}

/// A well-behaved end, with a value to check.
fn survive(boot: BootPage, value: u64) -> ! {
    let outcome = Outcome::Complete as u32;
    GateHost::new(boot).done(Summary { outcome, passes: SURVIVED, virtual_size: value, ..Summary::default() })
}

/// Reads the whole image in pieces, reports one finding for each byte that is not zero, up to 100, and sums up
/// all bytes.
fn good(boot: BootPage) -> ! {
    const PIECE: usize = 4096;
    let mut host = GateHost::new(boot);
    let len = instar_abi::to_usize(host.file_len(0).unwrap_or(0));
    let mut bytes = vec![0; len];
    let mut ranges: Vec<Range> = (0..len)
        .step_by(PIECE)
        .map(|at| Range { offset: at as u64, len: PIECE.min(len - at), file: 0, error: 0 })
        .collect();
    host.read(&mut ranges, &mut bytes);
    let sum = bytes.iter().map(|&byte| u64::from(byte)).sum();
    let odd = bytes.iter().enumerate().filter(|(_, byte)| **byte != 0).take(100);
    for (at, &byte) in odd {
        host.finding(&Finding { host_offset: at as u64, stored: byte.into(), ..finding() });
    }
    let errors = ranges.iter().filter(|range| range.error != 0).count() as u64;
    host.done(Summary {
        outcome: Outcome::Complete as u32,
        passes: SURVIVED,
        virtual_size: sum,
        allocated_clusters: errors,
        ..Summary::default()
    })
}

fn finding() -> Finding {
    Finding {
        problem: Problem::ReadError as u32,
        table: 0,
        snapshot: ACTIVE,
        witnesses: 0,
        host_offset: 0,
        host_len: 1,
        index: NONE,
        count: 1,
        guest_offset: NONE,
        guest_len: 0,
        stored: 0,
        expected: NONE,
    }
}

/// A place by number, for the deeds that touch one.
fn place(which: u64) -> *mut u8 {
    let address = match which {
        0 => 8,
        1 => SMALL_BASE,
        2 => BOOT,
        3 => ARENA_BASE,
        4 => CALL,
        5 => TASK_STATE,
        6 => STACK_BASE - 8,
        7 => (&raw const RETURNS).addr() as u64,
        other => other,
    };
    ptr::with_exposed_provenance_mut(instar_abi::to_usize(address))
}

/// Code among the constants.
static RETURNS: [u8; 64] = [RETURN; 64];

fn unmapped(which: u64) {
    // SAFETY: none; whether this faults is what the test is about.
    unsafe { place(which).read_volatile() };
}

fn write(which: u64) {
    // SAFETY: none, as above.
    unsafe { place(which).write_volatile(RETURN) };
}

fn jump(which: u64) {
    let target = place(which);
    if which == 3 || which == 4 {
        // SAFETY: arena and call area may be written.
        unsafe { target.write_volatile(RETURN) };
    }
    // SAFETY: none, as above; where it does not fault, a `ret` comes straight back.
    unsafe { asm!("call {}", in(reg) target, clobber_abi("C")) };
}

#[expect(unconditional_recursion, reason = "it runs into the guard below the stack")]
fn recurse(depth: u64) -> u64 {
    let block = core::hint::black_box([depth; 512]);
    recurse(block[7].wrapping_add(1)).wrapping_add(block[9])
}

/// One instruction that an inmate has no business with.
fn privileged(which: u64) {
    // SAFETY: none, as above. Every register that an instruction changes is named.
    unsafe {
        match which {
            0 => asm!("hlt"),
            1 => {
                asm!("cli");
                loop {
                    spin_loop();
                }
            }
            2 => asm!("in al, dx", in("dx") 0x60u16, out("al") _),
            3 => asm!("out dx, al", in("dx") 0x80u16, in("al") 0u8),
            4 => asm!("rdmsr", in("ecx") 0x1bu32, out("eax") _, out("edx") _),
            5 => asm!("int 0x80", inout("rax") 20u64 => _),
            6 => asm!("int3"),
            7 => asm!("syscall", inout("rax") 39u64 => _, out("rcx") _, out("r11") _),
            8 => asm!("mov cr3, {}", in(reg) 0u64),
            9 => asm!("lgdt [{}]", in(reg) CALL),
            10 => asm!("push 0x202", "popfq", "cli", "sti"),
            11 => asm!("ud2"),
            12 => asm!("rdtsc", out("eax") _, out("edx") _),
            13 => asm!("sysenter"),
            14 => asm!("vmcall", inout("rax") 1u64 => _),
            15 => asm!("vmmcall", inout("rax") 1u64 => _),
            16 => asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq", "nop"),
            17 => asm!("mov ss, {0:e}", in(reg) 0x10u32),
            18 => asm!("cpuid", inout("eax") 0u32 => _, out("ecx") _, out("edx") _, out("r8") _),
            19 => asm!("rep outsb", in("dx") instar_abi::layout::DOORBELL_PORT, inout("rcx") 64u64 => _,
                inout("rsi") CALL => _),
            20 => asm!("out dx, eax", in("dx") instar_abi::layout::DOORBELL_PORT, in("eax") 0u32),
            21 => asm!("div {0:e}", in(reg) 0u32, inout("eax") 1u32 => _, inout("edx") 1u32 => _),
            _ => {}
        }
    }
}

/// Bytes of the image that hold one call: header and records, for the deeds that make calls of the test's choice.
const CALL_IMAGE_BYTES: usize = 4096;

/// The first `count` calls that the image holds.
fn scripted(host: &mut GateHost, count: u64) -> Vec<u8> {
    let mut bytes = vec![0; instar_abi::to_usize(count) * CALL_IMAGE_BYTES];
    let len = bytes.len();
    host.read(&mut [Range { offset: 0, len, file: 0, error: 0 }], &mut bytes);
    bytes
}

/// Makes calls exactly as the image says, and goes on.
fn forged(boot: BootPage, count: u64) {
    let calls = scripted(&mut GateHost::new(boot), count);
    calls.chunks(CALL_IMAGE_BYTES).for_each(forge);
}

/// Makes the image's first call for ever.
fn flood(boot: BootPage) -> ! {
    let call = scripted(&mut GateHost::new(boot), 1);
    loop {
        forge(&call);
    }
}

/// Asks for more than the arena has; `which` 1 only tries to.
fn out_of_memory(which: u64) {
    let mut block: Vec<u8> = Vec::new();
    if which == 1 {
        assert!(block.try_reserve_exact(1 << 40).is_err());
        return;
    }
    block.reserve_exact(1 << 40);
    core::hint::black_box(&mut block);
}

/// Waits for requests and answers each one with the image's first `count` calls.
fn resident(boot: BootPage, count: u64) -> ! {
    let mut host = GateHost::new(boot);
    let calls = scripted(&mut host, count);
    let mut requests = Vec::new();
    loop {
        host.next(&mut requests);
        calls.chunks(CALL_IMAGE_BYTES).for_each(forge);
    }
}

/// Allocates, grows, frees and checks what the allocator promises; the value that comes back is the peak.
fn exercise_heap(boot: BootPage) -> ! {
    const ROUNDS: usize = 64;
    for round in 0..ROUNDS {
        let mut grown: Vec<u64> = Vec::new();
        (0..100_000).for_each(|value| grown.push(value));
        assert!(grown.iter().copied().eq(0..100_000));
        let zeroed = vec![0u8; 3 << 20];
        assert!(zeroed.iter().all(|&byte| byte == 0));
        let mut small: Vec<Vec<u8>> = (0..2_000usize).map(|len| vec![7; len % 700]).collect();
        small.retain(|block| block.len() % 3 == round % 3);
        assert!(small.iter().all(|block| block.iter().all(|&byte| byte == 7)));
        let mut dirty = vec![0xffu8; (1 << 20) + round];
        dirty.truncate(5);
        dirty.shrink_to_fit();
        assert_eq!(dirty, [0xff; 5]);
    }
    let peak = crate::HEAP.peak_bytes() as u64;
    survive(boot, peak)
}
