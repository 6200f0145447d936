//! `--repair=all` against the repair of `qemu-img`, on images with two or three kinds of damage at once.
//!
//! Whatever the kinds are: guest clusters that read right, on the active disk and on every snapshot, are never fewer
//! than before the repair, nor than after `qemu-img check -r all` on a copy; data that could be carved out of the file
//! still can be; what is called repaired is clean for `qemu-img check`; a second run writes nothing; undo gives back
//! every byte. The code of the cage runs natively here.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a failing helper fails its test")]

#[path = "../native/mod.rs"]
mod native;
#[path = "../support/mod.rs"]
mod support;

mod pairs;
mod rival;
mod subject;
