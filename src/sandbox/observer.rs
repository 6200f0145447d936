//! What a job tells while it runs. The records are checked for form (known numbers, ranges in bounds) before
//! they get here; whether they are true is another question, which only a fresh cage can answer.

use instar_abi::call::{Phase, ProgressRecord, SnapshotRecord, TextKind};
use instar_abi::cure::Cure;
use instar_abi::extent::{Extent, ExtentKind};
use instar_abi::finding::{Finding, Owner, Table};
use instar_abi::problem::Problem;
use instar_abi::region::Region;

/// Receives what an inmate reports, in the thread that serves it, which can open nothing. Every method has a default
/// that ignores it.
pub trait Observer: Send {
    /// A finding that is kept.
    fn finding(&mut self, problem: Problem, finding: &Finding) {
        let _ = (problem, finding);
    }

    /// A finding past [`super::limits::Limits::findings_kept`]: to be counted, not kept.
    fn finding_dropped(&mut self, problem: Problem, finding: &Finding) {
        let _ = (problem, finding);
    }

    /// A user of a finding's place.
    fn owner(&mut self, owner: &Owner) {
        let _ = owner;
    }

    /// Opaque bytes from the image.
    fn text(&mut self, kind: TextKind, index: u32, bytes: &[u8]) {
        let _ = (kind, index, bytes);
    }

    /// An internal snapshot. Its names come as texts.
    fn snapshot(&mut self, record: &SnapshotRecord) {
        let _ = record;
    }

    /// How far the job is.
    fn progress(&mut self, phase: Phase, record: &ProgressRecord) {
        let _ = (phase, record);
    }

    /// A step of a plan opens with this write scope: (offset, len) ranges.
    fn scope(&mut self, cure: Cure, ranges: &[(u64, u64)]) {
        let _ = (cure, ranges);
    }

    /// A proposed write, already checked to lie within the step's scope.
    fn stage(&mut self, offset: u64, bytes: Vec<u8>) {
        let _ = (offset, bytes);
    }

    /// Who uses a part of the image, or that nothing does; within the file.
    fn region(&mut self, table: Table, region: &Region) {
        let _ = (table, region);
    }

    /// Bytes that a copy without guest data holds in place of the image's; within the file.
    fn replace(&mut self, offset: u64, bytes: Vec<u8>) {
        let _ = (offset, bytes);
    }

    /// An extent of the active disk, right behind the one before.
    fn extent(&mut self, kind: ExtentKind, extent: &Extent) {
        let _ = (kind, extent);
    }

    /// A barrier between the writes before and those after.
    fn barrier(&mut self) {}
}

/// Ignores everything.
#[derive(Debug, Clone, Copy)]
pub struct Ignore;

impl Observer for Ignore {}

/// What running a job cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RunStats {
    /// Times the inmate rang the doorbell.
    pub exits: u64,
    /// Bytes read from files for it.
    pub bytes_read: u64,
    /// Wall time in microseconds.
    pub wall_us: u64,
    /// Arena bytes granted.
    pub arena_bytes: u64,
    /// Findings reported, kept or not.
    pub findings: u64,
    /// Of those, not kept.
    pub findings_dropped: u64,
}
