//! [`Host`] over the gate: what the QCOW2 code asks for becomes calls.
//!
//! Findings, owners and extents travel in batches; their order is kept, and everything is flushed before the
//! host could draw a conclusion (progress, text, steps, the next request, the end).

use alloc::vec;
use alloc::vec::Vec;

use instar_abi::boot::{BootPage, FILE_ABSENT};
use instar_abi::call::{
    DataRange, DataRangesCall, InflatedRange, LandingRange, Op, Phase, ProgressRecord, ReadRange, ScopeRange, SnapshotRecord, StageRange, TEXT_BYTES_MAX,
    TextHeader, TextKind, records_max,
};
use instar_abi::extent::{Extent, MapRequest, REQUESTS_MAX};
use instar_abi::finding::{Finding, Owner};
use instar_abi::layout::ARENA_BASE;
use instar_abi::cure::Cure;
use instar_abi::problem::Problem;
use instar_abi::region::Region;
use instar_abi::summary::Summary;
use instar_abi::to_usize;
use instar_qcow2::host::{Host, Range};

use crate::HEAP;
use crate::gate::Gate;

/// Records of a kind that are kept before they are sent.
const BATCH: usize = 1024;
/// Room for payloads that come with requests: those of a megabyte in clusters that two cages share. Longer ones are read.
const LANDING_BYTES: usize = 512 << 10;

/// The host as the jobs see it.
pub struct GateHost {
    gate: Gate,
    boot: BootPage,
    findings: Vec<Finding>,
    owners: Vec<Owner>,
    extents: Vec<Extent>,
    regions: Vec<Region>,
    ranges: Vec<ReadRange>,
    /// The next requests have come as the answer to the clusters of those before.
    asked: bool,
    /// Room for payloads, once there is a request to wait for. The host writes to it while it answers.
    landing: Vec<u8>,
}

impl GateHost {
    /// A host that knows the files of this boot page.
    pub fn new(boot: BootPage) -> Self {
        Self {
            gate: Gate::new(),
            boot,
            findings: Vec::with_capacity(BATCH),
            owners: Vec::new(),
            extents: Vec::new(),
            regions: Vec::new(),
            ranges: Vec::new(),
            asked: false,
            landing: Vec::new(),
        }
    }

    /// Ends the job with a summary.
    pub fn done(mut self, summary: Summary) -> ! {
        self.flush();
        let arena_bytes_peak = HEAP.peak_bytes() as u64;
        self.gate.send(Op::Done, &[Summary { arena_bytes_peak, ..summary }]);
        crate::gate::park()
    }

    fn flush(&mut self) {
        self.flush_findings();
        self.flush_owners();
        if !self.extents.is_empty() {
            self.gate.send(Op::Extent, &self.extents);
            self.extents.clear();
        }
        if !self.regions.is_empty() {
            self.gate.send(Op::Region, &self.regions);
            self.regions.clear();
        }
    }

    fn flush_findings(&mut self) {
        if !self.findings.is_empty() {
            self.gate.send(Op::Finding, &self.findings);
            self.findings.clear();
        }
    }

    fn flush_owners(&mut self) {
        if !self.owners.is_empty() {
            self.gate.send(Op::Owner, &self.owners);
            self.owners.clear();
        }
    }

    /// Sends bytes for a place of the image.
    fn send_bytes(&mut self, op: Op, offset: u64, bytes: &[u8]) {
        self.flush();
        let copy;
        let bytes = if in_arena(&self.boot, bytes) {
            bytes
        } else {
            copy = bytes.to_vec();
            &copy
        };
        let src = bytes.as_ptr().expose_provenance() as u64;
        self.gate.send(op, &[StageRange { offset, len: bytes.len() as u64, src }]);
    }

    /// Sends the collected read ranges and hands the errors back.
    fn send_reads(&mut self, asked: &mut [Range]) {
        self.gate.send(Op::Read, &self.ranges);
        for (index, range) in asked.iter_mut().enumerate() {
            range.error = self.gate.record::<ReadRange>(index).error;
        }
        self.ranges.clear();
    }

    /// Reads into memory of the arena.
    fn read_into_arena(&mut self, ranges: &mut [Range], into: &mut [u8]) {
        let mut dest = into.as_mut_ptr().expose_provenance() as u64;
        for asked in ranges.chunks_mut(records_max::<ReadRange>()) {
            for range in &*asked {
                let len = range.len as u64;
                self.ranges.push(ReadRange { offset: range.offset, len, dest, file: range.file, error: 0 });
                dest += len;
            }
            self.send_reads(asked);
        }
    }
}

fn in_arena(boot: &BootPage, bytes: &[u8]) -> bool {
    let (start, base) = (bytes.as_ptr().addr() as u64, ARENA_BASE);
    start >= base && start + bytes.len() as u64 <= base + boot.arena_bytes
}

impl Host for GateHost {
    fn file_len(&self, file: u32) -> Option<u64> {
        self.boot.file_length.get(to_usize(file.into())).copied().filter(|&len| len != FILE_ABSENT)
    }

    fn read(&mut self, ranges: &mut [Range], into: &mut [u8]) {
        assert_eq!(ranges.iter().map(|range| range.len).sum::<usize>(), into.len());
        if in_arena(&self.boot, into) {
            return self.read_into_arena(ranges, into);
        }
        // The host writes to nothing but the arena; small buffers elsewhere are filled from there.
        let mut copy = vec![0; into.len()];
        self.read_into_arena(ranges, &mut copy);
        into.copy_from_slice(&copy);
    }

    fn data_ranges(&mut self, file: u32, offset: u64, len: u64, found: &mut Vec<DataRange>) {
        self.gate.send(Op::DataRanges, &[DataRangesCall { offset, len, file, reserved: 0 }]);
        found.clear();
        found.extend((0..self.gate.answered()).map(|index| self.gate.record::<DataRange>(index)));
    }

    fn finding(&mut self, finding: &Finding) {
        self.flush_owners();
        if self.findings.len() == BATCH {
            self.flush_findings();
        }
        self.findings.push(*finding);
    }

    fn owner(&mut self, owner: &Owner) {
        self.flush_findings();
        if self.owners.len() == BATCH {
            self.flush_owners();
        }
        self.owners.push(*owner);
    }

    fn text(&mut self, kind: TextKind, index: u32, bytes: &[u8]) {
        self.flush();
        let bytes = &bytes[..bytes.len().min(TEXT_BYTES_MAX)];
        let len = u32::try_from(bytes.len()).unwrap_or(0);
        self.gate.send_text(Op::Text, &TextHeader { kind: kind as u32, index, len, reserved: 0 }, bytes);
    }

    fn snapshot(&mut self, record: &SnapshotRecord) {
        self.flush();
        self.gate.send(Op::Snapshot, &[*record]);
    }

    fn progress(&mut self, phase: Phase, pass: u32, done: u64, total: u64) {
        self.flush();
        self.gate.send(Op::Progress, &[ProgressRecord { phase: phase as u32, pass, done, total }]);
    }

    fn scope(&mut self, cure: Cure, ranges: &[(u64, u64)]) {
        self.flush();
        for part in ranges.chunks(records_max::<ScopeRange>()) {
            let part: Vec<ScopeRange> = part
                .iter()
                .map(|&(offset, len)| ScopeRange { offset, len, cure: cure as u32, reserved: 0 })
                .collect();
            self.gate.send(Op::Scope, &part);
        }
    }

    fn stage(&mut self, offset: u64, bytes: &[u8]) {
        self.send_bytes(Op::Stage, offset, bytes);
    }

    fn barrier(&mut self) {
        self.flush();
        self.gate.signal(Op::Barrier);
    }

    fn extent(&mut self, extent: &Extent) {
        if self.extents.len() == BATCH {
            self.flush();
        }
        self.extents.push(*extent);
    }

    fn region(&mut self, region: &Region) {
        if self.regions.len() == BATCH {
            self.flush();
        }
        self.regions.push(*region);
    }

    fn replace(&mut self, offset: u64, bytes: &[u8]) {
        self.send_bytes(Op::Replace, offset, bytes);
    }

    fn inflated(&mut self, clusters: &[Result<&[u8], Problem>]) {
        self.flush();
        let ranges: Vec<InflatedRange> = clusters
            .iter()
            .map(|cluster| match cluster {
                Ok(bytes) => {
                    assert!(in_arena(&self.boot, bytes));
                    let src = bytes.as_ptr().expose_provenance() as u64;
                    InflatedRange { src, len: bytes.len() as u64, problem: 0, reserved: 0 }
                }
                Err(problem) => InflatedRange { src: 0, len: 0, problem: *problem as u32, reserved: 0 },
            })
            .collect();
        self.gate.send(Op::Inflated, &ranges);
        self.asked = true;
    }

    fn next(&mut self, requests: &mut Vec<MapRequest>) {
        if !core::mem::take(&mut self.asked) {
            self.flush();
            if self.landing.is_empty() {
                self.landing = vec![0; LANDING_BYTES];
            }
            let dest = self.landing.as_mut_ptr().expose_provenance() as u64;
            self.gate.send(Op::Next, &[LandingRange { dest, len: LANDING_BYTES as u64 }]);
        }
        requests.clear();
        let asked = self.gate.answered().min(REQUESTS_MAX);
        requests.extend((0..asked).map(|index| self.gate.record::<MapRequest>(index)));
    }

    fn payload(&self, request: &MapRequest) -> Option<&[u8]> {
        let start = self.landing.as_ptr().addr() as u64;
        let at = to_usize(request.payload.checked_sub(start)?);
        self.landing.get(at..at.checked_add(to_usize(request.host_len))?)
    }

    fn memory_budget(&self) -> usize {
        HEAP.budget_bytes()
    }
}
