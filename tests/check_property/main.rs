//! Properties of the check, on images of random shape: what is healthy is clean, what was changed is found or
//! provably harmless, and neither memory nor the run makes a difference.
//!
//! The code of the cage runs natively here: what is tested is what it decides.

#[path = "../native/mod.rs"]
mod native;
#[path = "../support/mod.rs"]
mod support;

mod changed;
mod checked;
mod free;
mod harmless;
mod healthy;
mod hostile;
mod qemu;
mod shapes;
mod windows;

use support::soak::config;
