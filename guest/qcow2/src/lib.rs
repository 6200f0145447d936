//! Everything that interprets QCOW2 bytes. Runs inside the cage; nothing of the product outside of it depends
//! on this crate.
//!
//! Invariant: safe code, no panics on any input, no clock, no randomness: the same bytes give the same calls
//! in the same order.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod check;
pub mod describe;
pub(crate) mod evidence;
mod facts;
pub mod free;
pub mod host;
pub mod inflate;
pub mod map;
pub mod ondisk;
pub mod plan;
pub mod survey;
