//! The inmate's memory as the host sees it.
//!
//! Invariant: no reference into it ever exists. The inmate may run while the host looks only in theory (one
//! vCPU, one thread, stopped during a call), but nothing here relies on that: access is by bounded volatile
//! copies, and by handing raw ranges to the kernel.

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use instar_abi::layout::{ARENA_BASE, CALL_BYTES, LARGE_PAGE};
use instar_abi::to_usize;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use vm_memory::VolatileSlice;

/// A mapping that is unmapped when dropped.
#[derive(Debug)]
pub(super) struct Region {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to the region alone and may be used and unmapped by any thread.
unsafe impl Send for Region {}
// SAFETY: shared access is by volatile copies only; two at once can tear, not break, and the inmate's bytes are
// untrusted in any case.
unsafe impl Sync for Region {}

impl Region {
    /// Zeroed private memory on a large-page boundary.
    pub(super) fn private(len: u64) -> io::Result<Self> {
        let len = to_usize(len);
        let slack = to_usize(LARGE_PAGE);
        let reserved = len.checked_add(slack).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                reserved,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )?
        };
        let head = start.addr().next_multiple_of(slack) - start.addr();
        // SAFETY: head and tail lie within the mapping just made, and nothing else knows of them.
        let base = unsafe {
            let base = start.byte_add(head);
            trim(start, head)?;
            trim(base.byte_add(len), slack - head)?;
            base
        };
        Self::own(base.cast(), len)
    }

    /// Asks for large pages below, where the kernel has them: the first touch of a page is dear under KVM.
    pub(super) fn prefer_large_pages(&self) {
        // A kernel built without large pages refuses the advice; the memory is the same without.
        if let Err(error) = self.advise(Advice::LinuxHugepage) {
            tracing::debug!(%error, "no large pages for the inmate's memory");
        }
    }

    /// A shared mapping of `len` bytes of a file, which can never become shorter.
    pub(super) fn shared(file: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<Self> {
        let len = to_usize(len);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file,
                offset,
            )?
        };
        Self::own(base.cast(), len)
    }

    fn own(base: *mut u8, len: usize) -> io::Result<Self> {
        let base = NonNull::new(base).ok_or(io::ErrorKind::OutOfMemory)?;
        let region = Self { base, len };
        region.advise(Advice::LinuxDontDump)?;
        Ok(region)
    }

    fn advise(&self, advice: Advice) -> io::Result<()> {
        // SAFETY: the range is this region's own, and neither advice changes what is in it.
        unsafe { madvise(self.base.as_ptr().cast(), self.len, advice)? };
        Ok(())
    }

    /// Address in this process, for the hypervisor.
    pub(super) fn host_addr(&self) -> u64 {
        self.base.as_ptr().expose_provenance() as u64
    }

    /// Bytes.
    pub(super) fn len(&self) -> u64 {
        self.len as u64
    }

    /// `len` bytes from `offset` on, or `None` where they do not all lie in the region.
    pub(super) fn slice(&self, offset: u64, len: u64) -> Option<VolatileSlice<'_>> {
        if offset > self.len() || len > self.len() - offset {
            return None;
        }
        // SAFETY: the range was just checked to lie in the mapping, which lives as long as the borrow of self.
        Some(unsafe { VolatileSlice::new(self.base.as_ptr().add(to_usize(offset)), to_usize(len)) })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is the region's own; every slice of it borrows the region.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok());
    }
}

/// Unmaps `len` bytes, which may be none.
///
/// # Safety
/// Nothing may use the range any more.
unsafe fn trim(start: *mut core::ffi::c_void, len: usize) -> io::Result<()> {
    if len > 0 {
        // SAFETY: passed on from the caller.
        unsafe { munmap(start, len)? };
    }
    Ok(())
}

/// The parts of the inmate's memory that calls are about.
#[derive(Debug)]
pub(super) struct InmateMemory {
    small: Region,
    call_offset: u64,
    arena: Region,
    arena_offset: u64,
}

impl InmateMemory {
    /// Call area and arena within two mappings.
    pub(super) fn new(small: Region, call_offset: u64, arena: Region, arena_offset: u64) -> Self {
        Self { small, call_offset, arena, arena_offset }
    }

    /// The mapping that holds everything but the arena.
    pub(super) fn small(&self) -> &Region {
        &self.small
    }

    /// The mapping that holds the arena.
    pub(super) fn arena_region(&self) -> &Region {
        &self.arena
    }

    /// `len` bytes of the call area.
    pub(super) fn call(&self, offset: u64, len: u64) -> Option<VolatileSlice<'_>> {
        if offset > CALL_BYTES || len > CALL_BYTES - offset {
            return None;
        }
        self.small.slice(self.call_offset + offset, len)
    }

    /// `len` bytes of the arena from an inmate address on.
    pub(super) fn arena(&self, addr: u64, len: u64) -> Option<VolatileSlice<'_>> {
        let offset = addr.checked_sub(ARENA_BASE)?;
        self.arena.slice(offset.checked_add(self.arena_offset)?, len)
    }

    /// Bytes of arena.
    pub(super) fn arena_bytes(&self) -> u64 {
        self.arena.len() - self.arena_offset
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> InmateMemory {
        InmateMemory::new(
            Region::private(LARGE_PAGE).unwrap(),
            0x18_0000,
            Region::private(2 * LARGE_PAGE).unwrap(),
            0,
        )
    }

    #[test]
    fn arena_range_outside_is_none_even_when_it_overflows() {
        let memory = memory();
        assert!(memory.arena(ARENA_BASE, 2 * LARGE_PAGE).is_some());
        assert!(memory.arena(ARENA_BASE - 1, 1).is_none());
        assert!(memory.arena(ARENA_BASE + 1, 2 * LARGE_PAGE).is_none());
        assert!(memory.arena(ARENA_BASE + 1, u64::MAX).is_none());
        assert!(memory.arena(u64::MAX, 1).is_none());
        assert!(memory.call(0, CALL_BYTES).is_some());
        assert!(memory.call(1, CALL_BYTES).is_none());
        assert!(memory.call(u64::MAX, 2).is_none());
    }

    #[test]
    fn region_private_is_aligned_to_large_pages() {
        assert!(Region::private(LARGE_PAGE).unwrap().host_addr().is_multiple_of(LARGE_PAGE));
    }
}
