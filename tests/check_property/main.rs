//! Properties of the check, on images of random shape: what is healthy is clean, what was changed is found or
//! provably harmless, and neither memory nor the run makes a difference.
//!
//! Without `INSTAR_SOAK_CASES` each property has as many cases as a test run has time for, the same ones every
//! time. With it there are that many, new ones every time; what they find belongs into `proptest-regressions`.
//! The code of the cage runs natively here: what is tested is what it decides.

#[path = "../native/mod.rs"]
mod native;
#[path = "../support/mod.rs"]
mod support;

mod changed;
mod checked;
mod harmless;
mod healthy;
mod hostile;
mod qemu;
mod shapes;
mod windows;

use proptest::test_runner::{Config, RngSeed};

/// The cases of a test run without `INSTAR_SOAK_CASES` follow from this.
const SEED: u64 = 0x7163_6f77_3200_0001;

fn config(usual: u32) -> Config {
    let asked = std::env::var("INSTAR_SOAK_CASES").ok();
    let asked = asked.map(|number| number.parse().expect("INSTAR_SOAK_CASES is a number"));
    let rng_seed = if asked.is_some() { RngSeed::Random } else { RngSeed::Fixed(SEED) };
    Config { rng_seed, max_shrink_iters: 2000, ..Config::with_cases(asked.unwrap_or(usual)) }
}
