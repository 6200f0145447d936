//! The QCOW2 format as it lies on disk: decoded once, validated here.
//!
//! Source: the specification in QEMU's `docs/interop/qcow2.txt`; each module names the section that it follows.
//! Invariant: decoding reads nothing but the bytes handed in, never panics, and says what is wrong as a
//! [`Fault`] rather than dropping it. Whether an offset lies within a *file* is asked with
//! [`units::FileBounds`], because these modules know no file.
//!
//! What this does not do: no I/O, no walking, no opinion on cures.

pub mod bitmaps;
pub mod bytes;
pub mod extensions;
pub mod fault;
pub mod header;
pub mod l1;
pub mod l2;
pub mod refcount;
pub mod snapshots;
pub mod units;

pub use fault::Fault;
pub use header::Header;
