//! Whatever the bytes of an image are: a check, a description and a survey end without a panic, tell of places that
//! are there, and say the same the second time and with less memory. What is called free has no user that a second
//! reader of the format, which shares no code with the product, would know of.
#![no_main]

#[path = "shared/memory.rs"]
#[allow(dead_code, reason = "each target uses its own part of this")]
mod memory;
#[path = "shared/mutate.rs"]
mod mutate;
#[path = "shared/support.rs"]
mod support;

use instar_abi::summary::Outcome;
use instar_qcow2::{check, describe, free, survey};
use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use memory::Memory;
use support::reference;

/// One input of this many is looked at twice.
const TWICE: u8 = 4;

fn checked(image: &[u8], budget_bytes: usize, deep: bool) -> Memory {
    let mut host = Memory::new(image);
    host.budget_bytes = budget_bytes;
    let summary = check::run(&mut host, &check::Options { deep, ..check::Options::default() });
    assert!(Outcome::from_u32(summary.outcome).is_some());
    assert_eq!(summary.findings, host.findings.len() as u64);
    host
}

fn freed(image: &[u8]) {
    let mut host = Memory::new(image);
    free::run(&mut host);
    if host.regions.is_empty() {
        return;
    }
    let image = image.to_vec();
    // What the other reader does not like, it does not count.
    let Ok(users) = reference::users(&image) else { return };
    let cluster = reference::Head::of(&image).cluster();
    for region in host.regions {
        let clusters = region.offset / cluster..(region.offset + region.len).div_ceil(cluster);
        assert_eq!(users.range(clusters).next(), None, "{region:?} is called free");
    }
}

fuzz_mutator!(|data: &mut [u8], size: usize, size_max: usize, seed: u32| {
    mutate::mutate(data, size, size_max, seed)
});

fuzz_target!(|image: &[u8]| {
    let Some(last) = image.last() else { return };
    let first = checked(image, memory::BUDGET_BYTES, true);
    if last % TWICE == 0 {
        let again = checked(image, memory::BUDGET_BYTES / 8, true);
        assert_eq!(first.findings, again.findings);
    }
    describe::run(&mut Memory::new(image));
    freed(image);
    match last % 3 {
        0 => survey::picture(&mut Memory::new(image)),
        more => survey::dump(&mut Memory::new(image), more == 1),
    };
});
