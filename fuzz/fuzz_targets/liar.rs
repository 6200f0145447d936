//! A host of bad will, seen from the cage: reads that fail or say something else each time, holes where data is, no
//! memory, requests that mean nothing. Every job ends, without a panic, and what it says still follows the rules.
#![no_main]

#[path = "shared/memory.rs"]
#[allow(dead_code, reason = "each target uses its own part of this")]
mod memory;
#[path = "shared/mutate.rs"]
mod mutate;

use instar_abi::call::{DataRange, Phase, SnapshotRecord, TextKind};
use instar_abi::choice::Decisions;
use instar_abi::cure::Cure;
use instar_abi::extent::{Extent, MapRequest};
use instar_abi::finding::{Finding, Owner};
use instar_abi::problem::{Problem, Tier};
use instar_abi::region::Region;
use instar_qcow2::host::{Host, Range};
use instar_qcow2::{check, describe, map, plan, survey};
use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use memory::Memory;

/// Bytes at the start of the input that say when and how to lie.
const SCRIPT_BYTES: usize = 64;
/// Requests to a resident job.
const REQUESTS_MAX: usize = 24;

/// An honest host behind one that lies.
struct Liar<'a> {
    honest: Memory,
    script: &'a [u8],
    step: usize,
    requests_left: usize,
}

impl<'a> Liar<'a> {
    fn new(script: &'a [u8], image: &[u8]) -> Self {
        let mut honest = Memory::new(image);
        honest.may_grow = true;
        Self { honest, script, step: 0, requests_left: REQUESTS_MAX }
    }

    /// The script's next byte; it is read again and again.
    fn next_lie(&mut self) -> u8 {
        self.step += 1;
        self.script.get(self.step % SCRIPT_BYTES).copied().unwrap_or(0)
    }

    fn number(&mut self) -> u64 {
        let byte = u64::from(self.next_lie());
        match self.next_lie() % 4 {
            0 => byte,
            1 => byte << 9,
            2 => 1 << (byte % 64),
            _ => u64::MAX - byte,
        }
    }
}

impl Host for Liar<'_> {
    fn file_len(&self, file: u32) -> Option<u64> {
        self.honest.file_len(file)
    }

    fn read(&mut self, ranges: &mut [Range], into: &mut [u8]) {
        self.honest.read(ranges, into);
        match self.next_lie() {
            lie @ 192..=255 => {
                let which = usize::from(lie) % ranges.len();
                let start: usize = ranges[..which].iter().map(|range| range.len).sum();
                into[start..start + ranges[which].len].fill(0);
                ranges[which].error = 5;
            }
            lie @ 128..=191 => {
                let at = (usize::from(lie) * 257 + self.step) % into.len();
                into[at] ^= 1 << (lie % 8);
            }
            _ => {}
        }
    }

    fn data_ranges(&mut self, file: u32, offset: u64, len: u64, found: &mut Vec<DataRange>) {
        match self.next_lie() {
            0..=127 => self.honest.data_ranges(file, offset, len, found),
            lie => {
                let skip = (u64::from(lie) * 512) % len.max(1);
                found.push(DataRange { offset: offset + skip, len: len - skip });
            }
        }
    }

    fn finding(&mut self, finding: &Finding) {
        self.honest.finding(finding);
    }

    fn owner(&mut self, owner: &Owner) {
        self.honest.owner(owner);
    }

    fn text(&mut self, kind: TextKind, index: u32, bytes: &[u8]) {
        self.honest.text(kind, index, bytes);
    }

    fn snapshot(&mut self, record: &SnapshotRecord) {
        self.honest.snapshot(record);
    }

    fn progress(&mut self, phase: Phase, pass: u32, done: u64, total: u64) {
        self.honest.progress(phase, pass, done, total);
    }

    fn scope(&mut self, cure: Cure, ranges: &[(u64, u64)]) {
        self.honest.scope(cure, ranges);
    }

    fn stage(&mut self, offset: u64, bytes: &[u8]) {
        self.honest.stage(offset, bytes);
    }

    fn barrier(&mut self) {
        self.honest.barrier();
    }

    fn extent(&mut self, extent: &Extent) {
        self.honest.extent(extent);
    }

    fn region(&mut self, region: &Region) {
        self.honest.region(region);
    }

    fn replace(&mut self, offset: u64, bytes: &[u8]) {
        self.honest.replace(offset, bytes);
    }

    fn inflated(&mut self, clusters: &[Result<&[u8], Problem>]) {
        self.honest.inflated(clusters);
    }

    fn next(&mut self, requests: &mut Vec<MapRequest>) {
        if self.requests_left == 0 {
            return self.honest.next(requests);
        }
        self.requests_left -= 1;
        let count = usize::from(self.next_lie() % 4);
        let mut request = || MapRequest {
            // 1 and 2 are operations that there are; 3 would end the job before its time.
            op: [1, 1, 2, 2, 0, 77][usize::from(self.next_lie() % 6)],
            snapshot: if self.next_lie() % 2 == 0 { u32::MAX } else { u32::from(self.next_lie() % 4) },
            guest_offset: self.number(),
            guest_len: self.number() % (1 << 26),
            host_offset: self.number(),
            host_len: self.number(),
            payload: if self.next_lie() < 200 { 0 } else { self.number() },
        };
        *requests = (0..count).map(|_| request()).collect();
    }

    fn memory_budget(&self) -> usize {
        let size = self.script.get(1).map_or(26, |byte| 12 + byte % 15);
        1 << size
    }
}

fuzz_mutator!(|data: &mut [u8], size: usize, size_max: usize, seed: u32| {
    if size <= SCRIPT_BYTES || seed % 4 == 0 {
        return libfuzzer_sys::fuzzer_mutate(data, size, size_max);
    }
    SCRIPT_BYTES
        + mutate::mutate(&mut data[SCRIPT_BYTES..], size - SCRIPT_BYTES, size_max - SCRIPT_BYTES, seed)
});

fuzz_target!(|data: &[u8]| {
    if data.len() <= SCRIPT_BYTES {
        return;
    }
    let (script, image) = data.split_at(SCRIPT_BYTES);
    let host = || Liar::new(script, image);
    check::run(&mut host(), &check::Options { deep: true, ..check::Options::default() });
    for tier in [Tier::Leaks, Tier::All] {
        plan::run(&mut host(), &plan::Options { tier, decisions: Decisions::default() });
    }
    describe::run(&mut host());
    survey::picture(&mut host());
    survey::dump(&mut host(), true);
    map::serve(&mut host());
});
