//! A host whose only file is a vector of bytes, and which holds the inmate to the rules of the wire.

use std::collections::VecDeque;

use instar_abi::call::{DataRange, Phase, SnapshotRecord, TextKind};
use instar_abi::cure::Cure;
use instar_abi::extent::{Extent, MapOp, MapRequest};
use instar_abi::finding::{Finding, Owner};
use instar_abi::problem::Problem;
use instar_abi::region::Region;
use instar_qcow2::host::{Host, Range};

/// Bytes that one job may have reported before it counts as one that never ends.
const REPORTS_MAX: usize = 1 << 20;
/// What a job is told that it may use.
pub const BUDGET_BYTES: usize = 64 << 20;

pub struct Memory {
    pub image: Vec<u8>,
    pub findings: Vec<Finding>,
    pub writes: Vec<(u64, Vec<u8>)>,
    /// Requests that come alone.
    pub requests: VecDeque<MapRequest>,
    /// Requests that come together, once the others are answered.
    pub batches: VecDeque<Vec<MapRequest>>,
    pub extents: Vec<Extent>,
    pub regions: Vec<Region>,
    /// Clusters, and nothing for payloads that are damaged.
    pub inflated: Vec<Option<Vec<u8>>>,
    pub budget_bytes: usize,
    /// Writes may lie behind the end of the file.
    pub may_grow: bool,
    scope: Vec<(u64, u64)>,
    reports: usize,
}

impl Memory {
    pub fn new(image: &[u8]) -> Self {
        Self {
            image: image.to_vec(),
            findings: Vec::new(),
            writes: Vec::new(),
            requests: VecDeque::new(),
            batches: VecDeque::new(),
            extents: Vec::new(),
            regions: Vec::new(),
            inflated: Vec::new(),
            budget_bytes: BUDGET_BYTES,
            may_grow: false,
            scope: Vec::new(),
            reports: 0,
        }
    }

    fn count(&mut self) {
        self.reports += 1;
        assert!(self.reports < REPORTS_MAX, "reports without end");
    }

    fn len(&self) -> u64 {
        self.image.len() as u64
    }
}

impl Host for Memory {
    fn file_len(&self, file: u32) -> Option<u64> {
        (file == 0).then(|| self.len())
    }

    fn read(&mut self, ranges: &mut [Range], into: &mut [u8]) {
        let mut rest = into;
        for range in ranges {
            let (bytes, after) = rest.split_at_mut(range.len);
            let start = usize::try_from(range.offset).expect("an offset in memory");
            assert!(range.file == 0 && range.len > 0);
            bytes.copy_from_slice(&self.image[start..start + range.len]);
            range.error = 0;
            rest = after;
        }
        assert!(rest.is_empty(), "a buffer longer than its ranges");
    }

    fn data_ranges(&mut self, _file: u32, offset: u64, len: u64, found: &mut Vec<DataRange>) {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len()));
        found.push(DataRange { offset, len });
    }

    fn finding(&mut self, finding: &Finding) {
        self.count();
        assert!(Problem::from_u32(finding.problem).is_some() && finding.count > 0, "{finding:?}");
        self.findings.push(*finding);
    }

    fn owner(&mut self, owner: &Owner) {
        self.count();
        assert!(owner.finding < self.findings.len() as u64, "an owner of a finding that was not told");
    }

    fn text(&mut self, _kind: TextKind, _index: u32, _bytes: &[u8]) {
        self.count();
    }

    fn snapshot(&mut self, _record: &SnapshotRecord) {
        self.count();
    }

    fn progress(&mut self, _phase: Phase, _pass: u32, _done: u64, _total: u64) {}

    fn scope(&mut self, _cure: Cure, ranges: &[(u64, u64)]) {
        self.count();
        self.scope = ranges.to_vec();
    }

    fn stage(&mut self, offset: u64, bytes: &[u8]) {
        self.count();
        let end = offset + bytes.len() as u64;
        assert!(self.may_grow || end <= self.len(), "a write past the end of the file");
        assert!(
            self.scope.iter().any(|&(start, len)| start <= offset && end <= start + len),
            "a write out of its step's scope"
        );
        self.writes.push((offset, bytes.to_vec()));
    }

    fn barrier(&mut self) {
        self.count();
    }

    fn extent(&mut self, extent: &Extent) {
        self.count();
        self.extents.push(*extent);
    }

    fn region(&mut self, region: &Region) {
        self.count();
        assert!(region.len > 0 && region.offset.checked_add(region.len).is_some_and(|end| end <= self.len()));
        self.regions.push(*region);
    }

    fn replace(&mut self, offset: u64, bytes: &[u8]) {
        self.count();
        assert!(offset + bytes.len() as u64 <= self.len(), "bytes in place of none");
    }

    fn inflated(&mut self, clusters: &[Result<&[u8], Problem>]) {
        self.count();
        assert!(clusters.iter().flatten().all(|cluster| (512..=2 << 20).contains(&cluster.len())));
        self.inflated.extend(clusters.iter().map(|cluster| cluster.ok().map(<[u8]>::to_vec)));
    }

    fn next(&mut self, requests: &mut Vec<MapRequest>) {
        let exit = MapRequest {
            op: MapOp::Exit as u32,
            snapshot: 0,
            guest_offset: 0,
            guest_len: 0,
            host_offset: 0,
            host_len: 0,
            payload: 0,
        };
        let alone = self.requests.pop_front().map(|request| vec![request]);
        *requests = alone.or_else(|| self.batches.pop_front()).unwrap_or_else(|| vec![exit]);
    }

    fn memory_budget(&self) -> usize {
        self.budget_bytes
    }
}
