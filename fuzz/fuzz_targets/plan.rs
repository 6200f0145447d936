//! Whatever the bytes of an image are: a repair of either tier is planned within its scopes and staged; if it is proven on
//! the copy, it is landed and attested; every guest byte that could be read is read as before; what is called repaired
//! has nothing left to repair, and can be taken back.
//!
//! Planner, staging, proof and landing are the product's own, on a disk in memory. That a repair whose proof fails is
//! one that should not have been planned is not held against images of this kind; `mend` does so with better ones.
#![no_main]

#[path = "shared/mutate.rs"]
mod mutate;
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

use instar_abi::problem::Tier;
use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use subject::Subject;

fuzz_mutator!(|data: &mut [u8], size: usize, size_max: usize, seed: u32| {
    mutate::mutate(data, size, size_max, seed)
});

fuzz_target!(|image: &[u8]| {
    let Some(last) = image.last() else { return };
    let tier = if last % 4 == 3 { Tier::Leaks } else { Tier::All };
    let subject = Subject {
        healthy: Vec::new(),
        damaged: image.to_vec(),
        data_file_bytes: None,
        tier,
        is_hostile: true,
    };
    if let Err(error) = subject.mend() {
        panic!("{tier:?}: {error}");
    }
});
