//! How many random cases a property has, and which.
//!
//! Without `INSTAR_SOAK_CASES` as many as a test run has time for, the same ones every time. With it that many, new
//! ones every time; what they find belongs into `proptest-regressions`.

use proptest::test_runner::{Config, RngSeed};

/// The cases of a test run without `INSTAR_SOAK_CASES` follow from this.
const SEED: u64 = 0x7163_6f77_3200_0001;

/// What a soak run asks for.
pub fn asked() -> Option<u32> {
    let asked = std::env::var("INSTAR_SOAK_CASES").ok();
    asked.map(|number| number.parse().expect("INSTAR_SOAK_CASES is a number"))
}

/// A configuration with `usual` cases in a test run.
pub fn config(usual: u32) -> Config {
    let asked = asked();
    let rng_seed = if asked.is_some() { RngSeed::Random } else { RngSeed::Fixed(SEED) };
    Config { rng_seed, max_shrink_iters: 2000, ..Config::with_cases(asked.unwrap_or(usual)) }
}
