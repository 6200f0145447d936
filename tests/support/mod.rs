//! What the integration tests share: images made by the real qemu tools, a raw editor that damages them, and
//! helpers to run programs and to say why a test was skipped.
//!
//! This is test code: it interprets images on its own and on purpose knows nothing of `guest/qcow2`, so that a
//! mistake made there is not repeated here.
#![allow(dead_code, reason = "each test program uses its own part of this")]

pub mod builder;
pub mod damage;
pub mod disk;
pub mod failing;
pub mod fields;
pub mod image;
pub mod mendable;
pub mod mount;
pub mod pattern;
pub mod program;
pub mod raw;
pub mod reading;
pub mod reference;
pub mod rings;
pub mod scene;
pub mod soak;
pub mod tools;
