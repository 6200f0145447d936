//! The state that the one vCPU starts in: long mode, CPL 3, interrupts off, no descriptor tables.
//!
//! With no interrupt table every exception becomes a triple fault, and a triple fault leaves the machine. What is
//! here is also what VT-x and SVM check on entry: CS/SS with DPL 3, a busy 64-bit TSS in TR, no LDT, EFER, CR0
//! and CR4 that agree, bit 1 of RFLAGS.

use instar_abi::layout::{BOOT, PAGE_TABLES, STACK_TOP, TASK_STATE};
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_dtable, kvm_fpu, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::{Kvm, VcpuFd};

use super::task;

/// Protected mode, FPU present and monitored, 387, native FPU errors, write protection, paging.
const CR0: u64 = 1 << 0 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 31;
/// Time stamp counter for CPL 0 only (a job has no clock), PAE, SSE and its exceptions.
const CR4: u64 = 1 << 2 | 1 << 5 | 1 << 9 | 1 << 10;
/// Long mode enabled and active, no-execute pages; no SYSCALL.
const EFER: u64 = 1 << 8 | 1 << 10 | 1 << 11;
/// Bit 1 is always set. Privilege level 3 for I/O, because some implementations look at nothing else; others lose it
/// on the way and look into the task state segment, which allows the doorbell only. What the level allows beyond
/// that is worth nothing here: every port leaves the machine, and there are no interrupts to turn off.
const RFLAGS: u64 = 1 << 1 | 3 << 12;

const CODE_SELECTOR: u16 = 0x33;
const DATA_SELECTOR: u16 = 0x2b;
const TASK_SELECTOR: u16 = 0x40;

/// Puts the vCPU into the state described above, at `entry`.
pub(super) fn prepare(kvm: &Kvm, vcpu: &VcpuFd, entry: u64) -> Result<(), kvm_ioctls::Error> {
    vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
    let mut sregs = vcpu.get_sregs()?;
    set_system_state(&mut sregs);
    vcpu.set_sregs(&sregs)?;
    // rdi tells the payload that its memory is in place.
    let regs = kvm_regs { rip: entry, rsp: STACK_TOP, rflags: RFLAGS, rdi: BOOT, ..kvm_regs::default() };
    vcpu.set_regs(&regs)?;
    vcpu.set_fpu(&kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..kvm_fpu::default() })
}

fn set_system_state(sregs: &mut kvm_sregs) {
    let code = kvm_segment {
        limit: u32::MAX,
        selector: CODE_SELECTOR,
        type_: 0xb,
        present: 1,
        dpl: 3,
        s: 1,
        l: 1,
        g: 1,
        ..kvm_segment::default()
    };
    let data = kvm_segment { selector: DATA_SELECTOR, type_: 3, l: 0, db: 1, ..code };
    sregs.cs = code;
    for segment in [&mut sregs.ss, &mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs] {
        *segment = data;
    }
    sregs.tr = kvm_segment {
        base: TASK_STATE,
        limit: task::LIMIT,
        selector: TASK_SELECTOR,
        type_: 0xb,
        present: 1,
        ..kvm_segment::default()
    };
    sregs.ldt = kvm_segment { unusable: 1, ..kvm_segment::default() };
    sregs.gdt = kvm_dtable::default();
    sregs.idt = kvm_dtable::default();
    sregs.cr0 = CR0;
    sregs.cr3 = PAGE_TABLES;
    sregs.cr4 = CR4;
    sregs.efer = EFER;
}

/// What the vCPU's state tells about a fault. SVM resets the processor on a shutdown: its state tells nothing then.
pub(super) fn tell(vcpu: &VcpuFd) -> String {
    if vcpu.get_sregs().is_ok_and(|sregs| sregs.efer != EFER) {
        return " (this processor keeps no record of where)".into();
    }
    let mut told = String::new();
    if let Ok(regs) = vcpu.get_regs() {
        told.push_str(&format!(", rip {:#x}, rsp {:#x}", regs.rip, regs.rsp));
    }
    if let Ok(sregs) = vcpu.get_sregs() {
        told.push_str(&format!(", cr2 {:#x}", sregs.cr2));
    }
    if let Ok(events) = vcpu.get_vcpu_events() {
        let exception = events.exception;
        if exception.injected != 0 || exception.pending != 0 {
            told.push_str(&format!(", exception {} error {:#x}", exception.nr, exception.error_code));
        }
    }
    told
}
