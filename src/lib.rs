//! instar-mount: a FUSE-mounted, self-healing virtual disk.
//!
//! The folder is the trust zone (`docs/design.md`): nothing in this package interprets a byte of an image.

pub mod chain;
pub mod cli;
pub mod disk;
pub mod error;
pub mod event;
pub mod exit;
pub mod fuse;
pub mod heal;
pub mod history;
pub mod image;
pub mod report;
pub mod sandbox;
