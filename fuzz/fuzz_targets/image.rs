//! Whatever the bytes of an image are: every job ends without a panic, names only places that are there, a repair of
//! the leaks tier writes within its scope and leaves nothing to repair and nothing new to find, and the rounds of the
//! tier `all` write within their scopes and come to an end.
#![no_main]

#[path = "shared/memory.rs"]
mod memory;
#[path = "shared/mutate.rs"]
mod mutate;

use instar_abi::choice::Decisions;
use instar_abi::extent::{Extent, ExtentKind, MapOp, MapRequest};
use instar_abi::finding::{ACTIVE, Finding};
use instar_abi::problem::{Problem, Tier};
use instar_abi::summary::{Outcome, Summary};
use instar_qcow2::{check, describe, map, plan};
use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use memory::Memory;

/// Guest bytes asked for at most.
const MAPPED_MAX: u64 = 64 << 20;
/// Most rounds in which something may be proposed, as for the host.
const ROUNDS_MAX: u32 = 12;
/// No repair of an image of the fuzzer's sizes makes it this long.
const GROWN_BYTES_MAX: usize = 64 << 20;

fn checked(image: &[u8]) -> (Summary, Vec<Finding>) {
    let mut host = Memory::new(image);
    let summary = check::run(&mut host, &check::Options { deep: true, ..check::Options::default() });
    (summary, host.findings)
}

fn of(problem: Problem, findings: &[Finding]) -> u64 {
    findings.iter().filter(|found| found.problem == problem as u32).map(|found| found.count).sum()
}

/// Findings that the leaks tier cures are gone, and no other kind has grown.
fn assert_better(before: &[Finding], after: &[Finding]) {
    assert_eq!(of(Problem::RefcountLeak, after), 0);
    for found in after {
        let problem = Problem::from_u32(found.problem).expect("a known problem");
        assert!(of(problem, after) <= of(problem, before), "{problem:?} grew");
    }
}

fn repair(image: &[u8], before: &[Finding]) {
    let mut host = Memory::new(image);
    plan::run(&mut host, &plan::Options { tier: Tier::Leaks, decisions: Decisions::default() });
    if host.writes.is_empty() {
        return;
    }
    let mut healed = image.to_vec();
    for (offset, bytes) in &host.writes {
        let start = usize::try_from(*offset).expect("an offset in memory");
        healed[start..start + bytes.len()].copy_from_slice(bytes);
    }
    let (_, after) = checked(&healed);
    assert_better(before, &after);
}

/// Rounds of the tier `all`, each on what the ones before would leave, as the host asks for them.
fn rounds(image: &[u8]) {
    let mut now = image.to_vec();
    for _ in 0..=ROUNDS_MAX {
        let mut host = Memory::new(&now);
        host.may_grow = true;
        plan::run(&mut host, &plan::Options { tier: Tier::All, decisions: Decisions::default() });
        if host.writes.is_empty() {
            return;
        }
        for (offset, bytes) in &host.writes {
            let start = usize::try_from(*offset).expect("an offset in memory");
            assert!(start + bytes.len() <= GROWN_BYTES_MAX, "a write far behind the end: {offset:#x}");
            if now.len() < start + bytes.len() {
                now.resize(start + bytes.len(), 0);
            }
            now[start..start + bytes.len()].copy_from_slice(bytes);
        }
    }
    panic!("the rounds come to no end");
}

fn mapped(image: &[u8], virtual_size: u64) {
    let guest_len = virtual_size.min(MAPPED_MAX);
    if guest_len == 0 {
        return;
    }
    let mut host = Memory::new(image);
    host.requests.push_back(MapRequest {
        op: MapOp::Map as u32,
        snapshot: ACTIVE,
        guest_offset: 0,
        guest_len,
        host_offset: 0,
        host_len: 0,
    });
    map::serve(&mut host);
    let mut covered = 0;
    for extent in &host.extents {
        assert!(extent.guest_len > 0 && (covered == 0 || extent.guest_offset == covered), "{extent:?}");
        covered = extent.guest_offset + extent.guest_len;
        if matches!(ExtentKind::from_u32(extent.kind), Some(ExtentKind::Data | ExtentKind::Compressed)) {
            assert!(
                extent.host_offset + extent.host_len <= image.len() as u64 || extent.file != 0,
                "{extent:?}"
            );
        }
    }
    assert!(host.extents.is_empty() || covered >= guest_len);
    inflate(image, &host.extents);
}

/// Inflates the first compressed clusters.
fn inflate(image: &[u8], extents: &[Extent]) {
    let mut host = Memory::new(image);
    let packed = extents.iter().filter(|extent| extent.kind == ExtentKind::Compressed as u32);
    host.requests.extend(packed.take(16).map(|extent| MapRequest {
        op: MapOp::Inflate as u32,
        snapshot: ACTIVE,
        guest_offset: extent.guest_offset,
        guest_len: extent.guest_len,
        host_offset: extent.host_offset,
        host_len: extent.host_len,
    }));
    map::serve(&mut host);
}

fuzz_mutator!(|data: &mut [u8], size: usize, size_max: usize, seed: u32| {
    mutate::mutate(data, size, size_max, seed)
});

fuzz_target!(|image: &[u8]| {
    if image.is_empty() {
        return;
    }
    let (summary, findings) = checked(image);
    assert!(Outcome::from_u32(summary.outcome).is_some());
    describe::run(&mut Memory::new(image));
    repair(image, &findings);
    rounds(image);
    if Outcome::from_u32(summary.outcome) == Some(Outcome::Complete) {
        mapped(image, summary.virtual_size);
    }
});
