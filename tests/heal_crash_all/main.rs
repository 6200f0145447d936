//! Power cuts at every operation of `--repair=all` on real QCOW2 images, judged by bytes, by a reader of the tests'
//! own, and by qemu; and storage that fails at every operation.
//!
//! Every cure has its sweep: undecided and decided ones, with the guard of version 3 and without one in version 2.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a failing helper fails its test")]

#[path = "../native/mod.rs"]
mod native;
#[path = "../simdisk/recovery.rs"]
mod recovery;
#[path = "../simdisk/mod.rs"]
mod simdisk;
#[path = "../support/mod.rs"]
mod support;

mod failures;
mod scenes;
mod sweeps;
