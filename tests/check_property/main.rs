//! Properties of the check, on images of random shape: what is healthy is clean, what was changed is found or
//! provably harmless, and neither memory nor the run makes a difference.
//!
//! `INSTAR_SOAK_CASES` sets the number of cases of each property; without it there are as many as a test run
//! has time for. The code of the cage runs natively here: what is tested is what it decides.

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

/// How many cases to try.
fn cases(usual: u32) -> u32 {
    let asked = std::env::var("INSTAR_SOAK_CASES").ok();
    asked.map_or(usual, |number| number.parse().expect("INSTAR_SOAK_CASES is a number"))
}

fn config(usual: u32) -> proptest::test_runner::Config {
    proptest::test_runner::Config {
        max_shrink_iters: 2000,
        ..proptest::test_runner::Config::with_cases(cases(usual))
    }
}
