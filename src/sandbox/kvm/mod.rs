//! The KVM cage: a virtual machine with one vCPU that starts at CPL 3 and has no ring-0 code to go to.
//!
//! Invariant: the only way out that is not a fault is one byte to the doorbell's port. The page tables lie in a
//! memory slot that no page of the inmate maps.

mod alarm;
mod paging;
mod task;
mod vcpu;

use std::io;
use std::sync::{Arc, OnceLock};

use instar_abi::boot::{BootPage, GATE_PORT};
use instar_abi::layout::{
    ARENA_BASE, BOOT, CALL, DOORBELL_PORT, LARGE_PAGE, PAGE_TABLES, SMALL_BASE, TASK_STATE,
};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use zerocopy::IntoBytes;

use super::cage::{Cage, Deadline};
use super::error::SandboxError;
use super::memory::{InmateMemory, Region};
use super::payload::Payload;
use alarm::Alarm;

/// See the module's documentation. Fields are dropped in order: the machine before its memory.
#[derive(Debug)]
pub(super) struct KvmCage {
    vcpu: VcpuFd,
    _vm: VmFd,
    memory: Arc<InmateMemory>,
    _tables: Region,
    alarm: Alarm,
}

impl KvmCage {
    /// A cage with the payload loaded and the vCPU at its entry.
    ///
    /// # Errors
    /// [`SandboxError::Unavailable`], saying which step failed.
    pub(super) fn new(payload: &Payload<'_>, mut boot: BootPage) -> Result<Self, SandboxError> {
        boot.gate = GATE_PORT;
        let kvm = device().map_err(kvm_failed("open /dev/kvm"))?;
        let vm = kvm.create_vm().map_err(kvm_failed("create a virtual machine"))?;
        let memory = Arc::new(load(payload, &boot).map_err(unavailable("map the inmate's memory"))?);
        let tables = write_tables(payload, &boot).map_err(unavailable("map the inmate's page tables"))?;
        let slots =
            [(PAGE_TABLES, &tables), (SMALL_BASE, memory.small()), (ARENA_BASE, memory.arena_region())];
        for (slot, (guest_phys_addr, region)) in (0..).zip(slots) {
            let slot = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr,
                memory_size: region.len(),
                userspace_addr: region.host_addr(),
            };
            // SAFETY: the region is private to this cage, does not overlap another slot, and is dropped after
            // the machine (the order of the fields).
            unsafe { vm.set_user_memory_region(slot) }.map_err(kvm_failed("give memory to the machine"))?;
        }
        let vcpu = vm.create_vcpu(0).map_err(kvm_failed("create a vCPU"))?;
        vcpu::prepare(kvm, &vcpu, payload.entry).map_err(kvm_failed("set the vCPU's first state"))?;
        let alarm = Alarm::new().map_err(unavailable("make a timer for the vCPU's deadline"))?;
        Ok(Self { vcpu, _vm: vm, memory, _tables: tables, alarm })
    }

    /// Runs the vCPU until it rings, faults, or the deadline has passed.
    fn run(&mut self, deadline: &Deadline) -> Result<(), SandboxError> {
        loop {
            let what = match self.vcpu.run() {
                Ok(VcpuExit::IoOut(DOORBELL_PORT, [_])) => return Ok(()),
                Ok(VcpuExit::IoOut(port, data)) => {
                    format!("wrote {} bytes to I/O port {port:#x}", data.len())
                }
                Ok(VcpuExit::IoIn(port, data)) => format!("read {} bytes of I/O port {port:#x}", data.len()),
                Ok(VcpuExit::MmioRead(addr, _)) => format!("read address {addr:#x}, which is no memory"),
                Ok(VcpuExit::MmioWrite(addr, _)) => format!("wrote address {addr:#x}, which is no memory"),
                Ok(VcpuExit::Shutdown) => "the inmate faulted".into(),
                Ok(VcpuExit::FailEntry(reason, _)) => {
                    format!("the vCPU cannot be entered, reason {reason:#x}")
                }
                Ok(other) => format!("the vCPU stopped with {other:?}"),
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                    if deadline.left().is_zero() {
                        return Err(deadline.passed());
                    }
                    continue;
                }
                Err(error) => {
                    return Err(SandboxError::Host {
                        action: "run the vCPU".into(),
                        source: io_error(error),
                    });
                }
            };
            return Err(SandboxError::Fault { what: what + &vcpu::tell(&self.vcpu) });
        }
    }
}

impl Cage for KvmCage {
    fn memory(&self) -> &Arc<InmateMemory> {
        &self.memory
    }

    fn enter(&mut self, deadline: &Deadline) -> Result<(), SandboxError> {
        let timer = |source| SandboxError::Host { action: "set the vCPU's deadline".into(), source };
        let left = deadline.left();
        if left.is_zero() {
            return Err(deadline.passed());
        }
        self.alarm.set(left).map_err(timer)?;
        let ended = self.run(deadline);
        self.alarm.clear().map_err(timer)?;
        ended
    }
}

/// The hypervisor, opened once in a process: a server that has locked itself down can open nothing any more, and has to
/// start cages anew all the same.
///
/// # Errors
/// Why it could not be opened at the first call.
pub(super) fn device() -> Result<&'static Kvm, kvm_ioctls::Error> {
    static DEVICE: OnceLock<Result<Kvm, kvm_ioctls::Error>> = OnceLock::new();
    DEVICE.get_or_init(Kvm::new).as_ref().map_err(|&error| error)
}

/// Whether a virtual machine with a processor can be had.
///
/// # Errors
/// [`SandboxError::Unavailable`], saying which step failed.
pub(super) fn probe() -> Result<(), SandboxError> {
    let kvm = device().map_err(kvm_failed("open /dev/kvm"))?;
    let vm = kvm.create_vm().map_err(kvm_failed("create a virtual machine"))?;
    vm.create_vcpu(0).map_err(kvm_failed("create a vCPU")).map(drop)
}

/// Maps the inmate's memory and copies payload and boot page into it.
fn load(payload: &Payload<'_>, boot: &BootPage) -> io::Result<InmateMemory> {
    let small = Region::private(LARGE_PAGE)?;
    for segment in &payload.segments {
        put(&small, segment.addr - SMALL_BASE, segment.bytes)?;
    }
    put(&small, BOOT - SMALL_BASE, boot.as_bytes())?;
    put(&small, TASK_STATE - SMALL_BASE, &task::image())?;
    let arena = Region::private(boot.arena_bytes)?;
    arena.prefer_large_pages();
    Ok(InmateMemory::new(small, CALL - SMALL_BASE, arena, 0))
}

fn write_tables(payload: &Payload<'_>, boot: &BootPage) -> io::Result<Region> {
    let tables = Region::private(paging::bytes(boot.arena_bytes))?;
    for (at, entry) in paging::entries(payload, boot.arena_bytes) {
        put(&tables, at, &entry.to_le_bytes())?;
    }
    Ok(tables)
}

fn put(region: &Region, offset: u64, bytes: &[u8]) -> io::Result<()> {
    region.slice(offset, bytes.len() as u64).ok_or(io::ErrorKind::InvalidInput)?.copy_from(bytes);
    Ok(())
}

fn io_error(error: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}

fn unavailable(action: &'static str) -> impl Fn(io::Error) -> SandboxError {
    move |source| SandboxError::Unavailable { action: action.into(), source }
}

fn kvm_failed(action: &'static str) -> impl Fn(kvm_ioctls::Error) -> SandboxError {
    move |error| SandboxError::Unavailable { action: action.into(), source: io_error(error) }
}
