//! The parts of the tests' helpers that need no program under test.
#![allow(dead_code, reason = "each target uses its own part of this")]

#[path = "../../../tests/support/builder/mod.rs"]
pub mod builder;
#[path = "../../../tests/support/fields.rs"]
pub mod fields;
#[path = "../../../tests/support/pattern.rs"]
pub mod pattern;
#[path = "../../../tests/support/reading.rs"]
pub mod reading;
#[path = "../../../tests/support/reference.rs"]
pub mod reference;
#[path = "../../../tests/support/tools.rs"]
pub mod tools;
