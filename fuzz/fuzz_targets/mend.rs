//! Whatever is changed in an image of whatever shape: the repair of the tier `all` ends without a quarantine, writes
//! within its plan, keeps every guest byte that could be read, finds nothing to do the second time, and can be undone.
//!
//! The input is the seed of shape and changes; planner, staging, proof and landing are the product's own, on a disk
//! in memory. What the image holds is known from how it was built.
#![no_main]

#[path = "../../tests/native/mod.rs"]
mod native;
#[path = "../../tests/check_property/shapes.rs"]
#[allow(dead_code, reason = "each program uses its own part of this")]
mod shapes;
#[path = "../../tests/simdisk/mod.rs"]
mod simdisk;
#[path = "../../tests/heal_mixed/subject.rs"]
#[allow(dead_code, reason = "each program uses its own part of this")]
mod subject;
#[path = "shared/support.rs"]
mod support;

use libfuzzer_sys::fuzz_target;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use subject::Subject;

/// What the generator is seeded with.
const SEED_BYTES: usize = 32;

fuzz_target!(|data: &[u8]| {
    // The input is a seed: numbers taken from it as they are would all be zero behind its end, which some choices
    // are then never done with.
    let Some(seed) = data.get(..SEED_BYTES) else { return };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, seed);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let Ok(tree) = (shapes::shape(), shapes::choices(1..6)).new_tree(&mut runner) else { return };
    let (shape, choices) = tree.current();
    if let Err(error) = Subject::damaged(&shape, &choices).mend() {
        panic!("{error}\n{shape:?}\n{choices:?}");
    }
});
