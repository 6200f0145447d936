//! The wire between the host and the caged inmate.
//!
//! Invariant: everything in here is plain data of fixed size and layout. Neither side trusts a value because
//! it came over the wire: the host checks every argument of every call, the inmate checks the boot page.
//!
//! This crate deliberately has no behaviour: no allocation, no I/O, no interpretation of image bytes. The
//! tables in it ([`problem`], [`cure`], [`choice`]) are data that both sides must agree on.
#![no_std]
#![forbid(unsafe_code)]

pub mod boot;
pub mod call;
pub mod choice;
pub mod cure;
pub mod extent;
pub mod finding;
pub mod layout;
pub mod problem;
pub mod region;
pub mod summary;

/// Version of the wire. Host and inmate are built together; a mismatch means a stale embedded payload.
pub const ABI_VERSION: u32 = 8;

const _: () = assert!(usize::BITS == 64, "host and inmate are 64-bit programs");

/// A 64-bit length or offset as an index. Lossless: both sides are 64-bit programs.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "usize is asserted to be 64 bits wide")]
pub const fn to_usize(value: u64) -> usize {
    value as usize
}
