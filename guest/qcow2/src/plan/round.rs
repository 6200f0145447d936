//! One round's proposals, with the guard round them.
//!
//! A round is a host itself, so that what walks the image may propose while it does.
//!
//! Invariant: where anything but plain frees is proposed, the first step raises the guard and the last one lowers
//! it; where nothing is proposed there is no step at all.

use alloc::vec::Vec;

use instar_abi::call::{DataRange, Phase, SnapshotRecord, TextKind};
use instar_abi::cure::Cure;
use instar_abi::extent::{Extent, MapRequest};
use instar_abi::finding::{Finding, Owner};
use instar_abi::problem::Problem;
use instar_abi::region::Region;

use super::guard::Guard;
use crate::host::{Host, Range};

/// A proposed write: offset in the file and bytes.
pub type Proposal = (u64, Vec<u8>);

/// Adds a write; one right behind the last becomes part of it.
pub fn push(writes: &mut Vec<Proposal>, (at, bytes): Proposal) {
    match writes.last_mut() {
        Some((offset, before)) if offset.checked_add(before.len() as u64) == Some(at) => before.extend(bytes),
        _ => writes.push((at, bytes)),
    }
}

/// Proposes a step of a cure: writes within ranges of `(offset, len)`. Without writes it is none.
pub fn step<H: Host>(host: &mut H, cure: Cure, scope: &[(u64, u64)], writes: &[Proposal]) {
    if writes.is_empty() {
        return;
    }
    host.scope(cure, scope);
    for (offset, bytes) in writes {
        host.stage(*offset, bytes);
    }
    host.barrier();
}

/// The proposals of one round.
#[derive(Debug)]
pub struct Round<'h, H> {
    /// Whom they are made to.
    pub host: &'h mut H,
    guard: Option<Guard>,
    is_guarded: bool,
    steps: u64,
}

impl<'h, H: Host> Round<'h, H> {
    /// A round without proposals. Images of a version that has no guard have none.
    pub const fn new(host: &'h mut H, guard: Option<Guard>) -> Self {
        Self { host, guard, is_guarded: false, steps: 0 }
    }

    /// Whether anything was proposed.
    #[must_use]
    pub const fn is_begun(&self) -> bool {
        self.steps > 0
    }

    /// Proposes a step of writes that are its scope themselves.
    pub fn writes(&mut self, cure: Cure, writes: &[Proposal]) {
        let scope: Vec<(u64, u64)> =
            writes.iter().map(|(offset, bytes)| (*offset, bytes.len() as u64)).collect();
        step(self, cure, &scope, writes);
    }

    fn guard(&mut self, cure: Cure, (offset, bytes): &Proposal) {
        self.host.scope(cure, &[Guard::PLACE]);
        self.host.stage(*offset, bytes);
        self.host.barrier();
        self.steps += 1;
    }

    fn raise(&mut self) {
        if let (Some(guard), false) = (self.guard, self.is_guarded) {
            self.is_guarded = true;
            self.guard(Cure::RaiseGuard, &guard.raised());
        }
    }

    /// Raises the guard where lowering it again is all that there is to do.
    pub fn mend_guard(&mut self) {
        if self.guard.is_some_and(Guard::changes) {
            self.raise();
        }
    }

    /// Ends the round.
    pub fn finish(mut self) {
        if let (Some(guard), true) = (self.guard, self.is_guarded) {
            self.guard(Cure::LowerGuard, &guard.lowered());
        }
    }
}

impl<H: Host> Host for Round<'_, H> {
    fn file_len(&self, file: u32) -> Option<u64> {
        self.host.file_len(file)
    }

    fn read(&mut self, ranges: &mut [Range], into: &mut [u8]) {
        self.host.read(ranges, into);
    }

    fn data_ranges(&mut self, file: u32, offset: u64, len: u64, found: &mut Vec<DataRange>) {
        self.host.data_ranges(file, offset, len, found);
    }

    fn finding(&mut self, finding: &Finding) {
        self.host.finding(finding);
    }

    fn owner(&mut self, owner: &Owner) {
        self.host.owner(owner);
    }

    fn text(&mut self, kind: TextKind, index: u32, bytes: &[u8]) {
        self.host.text(kind, index, bytes);
    }

    fn snapshot(&mut self, record: &SnapshotRecord) {
        self.host.snapshot(record);
    }

    fn progress(&mut self, phase: Phase, pass: u32, done: u64, total: u64) {
        self.host.progress(phase, pass, done, total);
    }

    /// Opens a step, behind the guard unless it frees only. Whoever opens one has writes for it.
    fn scope(&mut self, cure: Cure, ranges: &[(u64, u64)]) {
        if cure != Cure::FreeLeaks {
            self.raise();
        }
        self.steps += 1;
        self.host.scope(cure, ranges);
    }

    fn stage(&mut self, offset: u64, bytes: &[u8]) {
        self.host.stage(offset, bytes);
    }

    fn barrier(&mut self) {
        self.host.barrier();
    }

    fn extent(&mut self, extent: &Extent) {
        self.host.extent(extent);
    }

    fn region(&mut self, region: &Region) {
        self.host.region(region);
    }

    fn replace(&mut self, offset: u64, bytes: &[u8]) {
        self.host.replace(offset, bytes);
    }

    fn inflated(&mut self, clusters: &[Result<&[u8], Problem>]) {
        self.host.inflated(clusters);
    }

    fn next(&mut self, requests: &mut Vec<MapRequest>) {
        self.host.next(requests);
    }

    fn memory_budget(&self) -> usize {
        self.host.memory_budget()
    }
}
