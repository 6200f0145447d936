//! Where things are in the inmate's address space. The same in both cages, and guest-virtual equals
//! guest-physical under KVM.
//!
//! ```text
//! 0x0000_0000  nothing: a null dereference faults
//! 0x1000_0000  page tables (KVM only; supervisor pages, not reachable from CPL 3)
//! 0x4000_0000  ELF segments: text RX, constants R, data RW   (at most 1 MiB)
//! 0x4010_0000  guard
//! 0x4011_0000  stack RW (256 KiB)
//! 0x4015_0000  guard
//! 0x4016_0000  boot page R
//! 0x4017_0000  guard
//! 0x4018_0000  call area RW (256 KiB)
//! 0x401c_0000  guard
//! 0x401f_f000  task state (KVM only; a supervisor page: the processor looks up there that CPL 3 has one port)
//! 0x8000_0000  arena RW: heap and read buffers, `BootPage::arena_bytes` long
//! ```
//!
//! All permissions are set in 4 KiB pages below [`SMALL_END`] and in 2 MiB pages in the arena.

/// Bytes in one small page.
pub const PAGE: u64 = 4096;
/// Bytes in one large page; the arena is a whole number of them.
pub const LARGE_PAGE: u64 = 2 << 20;

/// Guest-physical base of the page tables (KVM cage only).
pub const PAGE_TABLES: u64 = 0x1000_0000;

/// First byte of the region that holds everything but the arena.
pub const SMALL_BASE: u64 = 0x4000_0000;
/// One past the last byte of that region: it is exactly one large page.
pub const SMALL_END: u64 = SMALL_BASE + LARGE_PAGE;

/// The ELF segments of the payload lie in `SMALL_BASE..ELF_END`.
pub const ELF_END: u64 = SMALL_BASE + 0x10_0000;
/// Lowest byte of the stack.
pub const STACK_BASE: u64 = SMALL_BASE + 0x11_0000;
/// Initial stack pointer.
pub const STACK_TOP: u64 = SMALL_BASE + 0x15_0000;
/// The boot page, read-only to the inmate.
pub const BOOT: u64 = SMALL_BASE + 0x16_0000;
/// The call area: a [`crate::call::CallHeader`] followed by records.
pub const CALL: u64 = SMALL_BASE + 0x18_0000;
/// Bytes in the call area.
pub const CALL_BYTES: u64 = 0x4_0000;

/// The task state segment (KVM cage only), in a supervisor page.
pub const TASK_STATE: u64 = SMALL_END - PAGE;

/// First byte of the arena.
pub const ARENA_BASE: u64 = 0x8000_0000;
/// Upper bound of `BootPage::arena_bytes`.
pub const ARENA_BYTES_MAX: u64 = 64 << 30;

/// The I/O port of the doorbell under KVM.
pub const DOORBELL_PORT: u16 = 0x1d5;
/// The process cage's inmate writes one byte here to ring...
pub const DOORBELL_FD: i32 = 1;
/// ...and reads one byte from here to wait for the answer.
pub const ANSWER_FD: i32 = 0;

/// Process cage: the descriptor of the memory that host and inmate share, while the inmate sets itself up.
pub const SHARED_FD: i32 = 2;
/// Where the boot page lies in the shared memory...
pub const SHARED_BOOT: u64 = 0;
/// ...the call area...
pub const SHARED_CALL: u64 = 0x1_0000;
/// ...and the arena.
pub const SHARED_ARENA: u64 = LARGE_PAGE;

const _: () = assert!(SHARED_CALL + CALL_BYTES <= SHARED_ARENA);
const _: () = assert!(CALL + CALL_BYTES < TASK_STATE && ARENA_BASE.is_multiple_of(LARGE_PAGE));
