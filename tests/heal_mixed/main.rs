//! `--repair=all` on images with several kinds of damage at once.
//!
//! Whatever the damage is: the repair ends without a quarantine, every guest byte that could be read is read as
//! before, what is called repaired is clean for everybody, a second run finds nothing to do, and undo gives back
//! every byte. The code of the cage runs natively here.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a failing helper fails its test")]

#[path = "../native/mod.rs"]
mod native;
#[path = "../check_property/shapes.rs"]
#[allow(dead_code, reason = "each test program uses its own part of this")]
mod shapes;
#[path = "../simdisk/mod.rs"]
mod simdisk;
#[path = "../support/mod.rs"]
mod support;

mod built;
mod found;
mod subject;
