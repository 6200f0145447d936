//! An inmate of bad will: whatever calls it makes, in whatever order and with whatever in its memory, the host neither
//! panics nor passes on anything that breaks a rule. What it reads are the bytes of the file and place that it named,
//! what it writes are the bytes that it had, within the scope of the open step.
#![no_main]

#[path = "shared/script.rs"]
mod script;

use std::io;
use std::sync::Arc;

use instar_abi::boot::JobKind;
use instar_abi::call::{DataRange, Op, ReadRange, SnapshotRecord, TEXT_BYTES_MAX, TextKind};
use instar_abi::choice::Decisions;
use instar_abi::cure::Cure;
use instar_abi::extent::{Extent, ExtentKind, INFLATED_BYTES_MAX, MapOp, MapRequest, REQUESTS_MAX};
use instar_abi::finding::{ACTIVE, Finding, NONE, Owner, Table};
use instar_abi::layout::{ARENA_BASE, CALL_BYTES, LARGE_PAGE};
use instar_abi::problem::{Problem, Tier};
use instar_abi::region::{FLAGS_KNOWN, Region};
use instar_mount::image::Backend;
use instar_mount::sandbox::error::SandboxError;
use instar_mount::sandbox::job::Job;
use instar_mount::sandbox::observer::Observer;
use instar_mount::sandbox::{Drill, Reply, Served};
use libfuzzer_sys::fuzz_target;
use script::Script;
use zerocopy::{FromBytes, IntoBytes};

const IMAGE_BYTES: u64 = 1 << 20;
const DATA_BYTES: u64 = 1 << 18;
/// From here on the image cannot be read.
const BAD_FROM: u64 = IMAGE_BYTES - 4096;
const CALLS_MAX: usize = 48;

/// A file whose bytes are known without being there.
#[derive(Debug)]
struct Known {
    salt: u64,
    len: u64,
    bad_from: u64,
}

impl Known {
    const fn at(&self, offset: u64) -> u8 {
        (offset.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(self.salt) >> 40) as u8 | 1
    }
}

impl Backend for Known {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset + into.len() as u64;
        assert!(end <= self.len, "a read past the end of the file");
        if end > self.bad_from {
            return Err(io::Error::from_raw_os_error(5));
        }
        (offset..).zip(into).for_each(|(at, byte)| *byte = self.at(at));
        Ok(())
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        panic!("the cage's file is written");
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        panic!("the cage's file is cut");
    }

    fn sync(&self) -> io::Result<()> {
        panic!("the cage's file is synced");
    }
}

/// Holds every report against what the server promises.
#[derive(Debug, Default)]
struct Strict {
    scope: Vec<(u64, u64)>,
    mapped: u64,
    findings: u64,
    /// Writes of the call under way.
    staged: Vec<(u64, Vec<u8>)>,
}

impl Strict {
    /// Whether ranges of the scope hold all of these bytes.
    fn allows(&self, offset: u64, len: u64) -> bool {
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let holding = self.scope.iter().filter(|(start, len)| *start <= at && at < start + len);
            let Some(next) = holding.map(|(start, len)| start + len).max() else { return false };
            at = next;
        }
        true
    }
}

impl Observer for Strict {
    fn finding(&mut self, problem: Problem, finding: &Finding) {
        self.findings += 1;
        assert!(problem as u32 == finding.problem && finding.count > 0);
        assert!(finding.host_offset == NONE || finding.host_offset.checked_add(finding.host_len).is_some());
    }

    fn owner(&mut self, owner: &Owner) {
        assert!(owner.finding < self.findings, "an owner of a finding that was not told");
    }

    fn finding_dropped(&mut self, problem: Problem, finding: &Finding) {
        self.finding(problem, finding);
    }

    fn text(&mut self, _: TextKind, _: u32, bytes: &[u8]) {
        assert!(bytes.len() <= TEXT_BYTES_MAX);
    }

    fn snapshot(&mut self, record: &SnapshotRecord) {
        assert_eq!(record.reserved, 0);
    }

    fn region(&mut self, table: Table, region: &Region) {
        assert!(region.len > 0 && region.offset + region.len <= IMAGE_BYTES);
        assert!(table as u32 == region.table && region.flags & !FLAGS_KNOWN == 0);
    }

    fn replace(&mut self, offset: u64, bytes: Vec<u8>) {
        assert!(offset + bytes.len() as u64 <= IMAGE_BYTES);
        self.staged.push((offset, bytes));
    }

    fn extent(&mut self, kind: ExtentKind, extent: &Extent) {
        assert!(extent.guest_offset == self.mapped && kind as u32 == extent.kind);
        assert_within(extent);
        self.mapped += extent.guest_len;
    }

    fn scope(&mut self, _: Cure, ranges: &[(u64, u64)]) {
        assert!(ranges.iter().all(|(start, len)| *len > 0 && start.checked_add(*len).is_some()));
        self.scope = ranges.to_vec();
    }

    fn stage(&mut self, offset: u64, bytes: Vec<u8>) {
        assert!(self.allows(offset, bytes.len() as u64), "a write out of its step's scope");
        self.staged.push((offset, bytes));
    }
}

fn assert_within(extent: &Extent) {
    let len = if extent.file == 0 { IMAGE_BYTES } else { DATA_BYTES };
    let end = extent.host_offset.checked_add(extent.host_len).expect("a range");
    let kind = ExtentKind::from_u32(extent.kind).expect("a known kind");
    let has_place = matches!(kind, ExtentKind::Data | ExtentKind::Compressed | ExtentKind::Encrypted);
    assert!(extent.guest_len > 0 && (end <= len && extent.file <= 1 || !has_place), "{extent:?}");
}

/// What a field of a record is.
#[derive(Debug, Clone, Copy)]
enum Is {
    /// Offset in a file.
    Place,
    /// Bytes.
    Len,
    /// Address in the arena.
    Addr,
    /// Two halves: a small number, and zero or another.
    Halves(u8, u8),
    /// Guest offset, most often right behind the one before.
    Guest,
}

/// The fields of an operation's records.
const fn fields(op: Op) -> &'static [Is] {
    use Is::{Addr, Guest, Halves, Len, Place};
    match op {
        Op::Read => &[Place, Len, Addr, Halves(2, 2)],
        Op::DataRanges => &[Place, Len, Halves(2, 1)],
        Op::Scope => &[Place, Len, Halves(40, 1)],
        Op::Stage | Op::Replace => &[Place, Len, Addr],
        Op::Finding => &[Halves(90, 20), Halves(3, 3), Place, Len, Len, Len, Guest, Len, Len, Len],
        Op::Owner => &[Halves(4, 1), Halves(20, 3), Place, Guest],
        Op::Text | Op::Fail => &[Halves(9, 3), Halves(64, 1), Len, Len, Len],
        Op::Extent => &[Guest, Len, Place, Len, Halves(8, 2), Halves(90, 1)],
        Op::Progress => &[Halves(10, 3), Len, Len],
        Op::Barrier => &[],
        Op::Next => &[Addr, Len],
        Op::Done => &[
            Halves(5, 4),
            Len,
            Halves(2, 22),
            Halves(65, 3),
            Halves(3, 3),
            Len,
            Len,
            Len,
            Len,
            Len,
            Len,
            Len,
            Len,
            Len,
        ],
        Op::Inflated => &[Addr, Len, Halves(90, 1)],
        Op::Snapshot => &[Halves(9, 1), Len],
        Op::Region => &[Place, Len, Halves(20, 16)],
    }
}

struct Inmate<'a> {
    script: Script<'a>,
    drill: Drill,
    observer: Strict,
    /// Where the last extent ended.
    guest: u64,
    /// What was asked of a resident job last.
    asked: Vec<MapRequest>,
    /// A limit was hit. What was counted then was not told.
    is_over: bool,
}

impl Inmate<'_> {
    fn field(&mut self, is: Is) -> u64 {
        if self.script.one_in(24) {
            return match self.script.byte() % 6 {
                0 => 1 << (self.script.byte() % 64),
                1 => u64::MAX - u64::from(self.script.byte() % 4),
                2 => IMAGE_BYTES - u64::from(self.script.byte() % 4),
                3 => ARENA_BASE + LARGE_PAGE - u64::from(self.script.byte() % 4),
                4 => 0,
                _ => self.script.word(),
            };
        }
        match is {
            Is::Place => match self.script.byte() % 4 {
                0 => BAD_FROM - 2048 + self.script.below(4096),
                _ => self.script.below(1 << 16) * 8 % IMAGE_BYTES,
            },
            Is::Len => u64::from(self.script.byte()) << (self.script.byte() % 5),
            Is::Addr => ARENA_BASE + self.script.below(1 << 16) * 8,
            Is::Guest => self.guest,
            Is::Halves(first, second) => {
                let first = u64::from(self.script.byte() % first);
                first | u64::from(self.script.byte() % second) << 32
            }
        }
    }

    fn records(&mut self, op: Op, count: u32) -> Vec<u64> {
        let mut words = Vec::new();
        for _ in 0..count.min(12) {
            let start = words.len();
            for is in fields(op) {
                let word = self.field(*is);
                words.push(word);
            }
            if matches!(op, Op::Extent) {
                let len = words[start + 1];
                // An extent of data has as many bytes on both sides.
                if self.script.byte() % 4 > 0 {
                    words[start + 3] = len;
                }
                self.guest = words[start].wrapping_add(len);
            }
        }
        words
    }

    fn call(&mut self) {
        let number = 1 + u32::from(self.script.byte()) % 18;
        let count = match self.script.byte() {
            count @ 0..=199 => u32::from(count % 4),
            200..=249 => 1,
            count => u32::MAX >> (count - 250) * 6,
        };
        let Some(op) = Op::from_u32(number) else {
            assert!(self.drill.put_call(number, count, &[]));
            assert!(self.drill.ring(&mut self.observer).is_err());
            return;
        };
        let count = if fields(op).is_empty() && count < 200 { 0 } else { count };
        let words = self.records(op, count);
        assert!(self.drill.put_call(number, count, words.as_bytes()));
        let held = self.held(op, &words);
        self.observer.staged.clear();
        let served = self.drill.ring(&mut self.observer);
        match (&served, op) {
            (Ok(_), Op::Read) => self.check_read(&words),
            (_, Op::Stage | Op::Replace) => self.check_writes(&held),
            (Ok(Served::Done(summary)), _) => assert!(op == Op::Done, "{summary:?}"),
            _ => {}
        }
        match served {
            Ok(Served::Idle) => self.idle(),
            Err(SandboxError::Limit { .. }) => self.is_over = true,
            _ => {}
        }
    }

    /// The bytes that a call to write names, as they are before it.
    fn held(&self, op: Op, words: &[u64]) -> Vec<(u64, Vec<u8>)> {
        if !matches!(op, Op::Stage | Op::Replace) {
            return Vec::new();
        }
        let records = words.chunks_exact(3).map_while(|record| {
            let mut bytes = vec![0; usize::try_from(record[1]).ok().filter(|len| *len <= 1 << 20)?];
            self.drill.get_arena(record[2], &mut bytes).then_some((record[0], bytes))
        });
        records.collect()
    }

    /// What was passed on are the first of the writes, with the bytes that the inmate had.
    fn check_writes(&self, held: &[(u64, Vec<u8>)]) {
        for (passed, held) in self.observer.staged.iter().zip(held) {
            assert!(passed == held, "other bytes than the inmate's: {:#x} and {:#x}", passed.0, held.0);
        }
    }

    /// The last range of a read holds the file's bytes, or zeros and an error.
    fn check_read(&self, words: &[u64]) {
        let Some(range) = words.chunks_exact(4).last() else { return };
        let range = ReadRange::read_from_bytes(range.as_bytes()).expect("a whole record");
        let file = file(range.file);
        assert!(range.len > 0 && range.offset + range.len <= file.len);
        let mut bytes = vec![0; usize::try_from(range.len).expect("a small range")];
        assert!(self.drill.get_arena(range.dest, &mut bytes));
        let is_bad = range.offset + range.len > file.bad_from;
        let is_right = (range.offset..).zip(&bytes).all(|(at, byte)| *byte == file.at(at));
        let is_cleared = bytes.iter().all(|byte| *byte == 0);
        assert!(if is_bad { is_cleared } else { is_right }, "{range:?}");
    }

    /// The host asks for something, and takes what it was answered before.
    fn idle(&mut self) {
        let asked = std::mem::take(&mut self.asked);
        match self.drill.take_answer() {
            Err(_) => {}
            Ok(Reply::Extents(extents)) => check_extents(&asked, &extents),
            Ok(Reply::Clusters(clusters)) => {
                assert_eq!(clusters.len(), asked.len());
                for (cluster, asked) in clusters.iter().zip(&asked) {
                    assert!(
                        cluster.as_ref().map_or(asked.guest_len, |bytes| bytes.len() as u64)
                            == asked.guest_len
                    );
                }
            }
        }
        let op = if self.script.one_in(2) { MapOp::Inflate } else { MapOp::Map };
        let count = if op == MapOp::Inflate { 1 + self.script.below(REQUESTS_MAX as u64 / 8) } else { 1 };
        let guest_offset = self.script.below(1 << 16) * 512;
        let guest_len = match op {
            MapOp::Inflate => (512 << self.script.below(3)).min(INFLATED_BYTES_MAX / count),
            _ => 1 + self.script.below(1 << 16),
        };
        let request = MapRequest {
            op: op as u32,
            snapshot: ACTIVE,
            guest_offset,
            guest_len,
            host_offset: BAD_FROM - self.script.below(1 << 14),
            host_len: 1 + self.script.below(4096),
            payload: 0,
        };
        self.guest = guest_offset;
        self.asked = vec![request; usize::try_from(count).expect("few")];
        if self.drill.ask(self.asked.clone()).is_err() {
            self.is_over = true;
        }
    }
}

fn check_extents(asked: &[MapRequest], extents: &[Extent]) {
    let asked = asked.first().expect("an answer to a request");
    let (Some(first), Some(last)) = (extents.first(), extents.last()) else {
        panic!("no extents for {asked:?}")
    };
    assert!(first.guest_offset <= asked.guest_offset);
    assert!(last.guest_offset + last.guest_len >= asked.guest_offset + asked.guest_len);
    extents.iter().for_each(assert_within);
    let mut joined = extents.iter().zip(&extents[1..]);
    assert!(joined.all(|(one, next)| one.guest_offset + one.guest_len == next.guest_offset));
}

const fn file(index: u32) -> Known {
    match index {
        0 => Known { salt: 77, len: IMAGE_BYTES, bad_from: BAD_FROM },
        _ => Known { salt: 0x1234_5678_9abc_def0, len: DATA_BYTES, bad_from: DATA_BYTES },
    }
}

fn job(script: &mut Script<'_>) -> Job {
    let kinds = [
        JobKind::Check,
        JobKind::Plan,
        JobKind::Map,
        JobKind::Describe,
        JobKind::Survey,
        JobKind::Plan,
        JobKind::Map,
        JobKind::Free,
    ];
    let kind = kinds[usize::from(script.byte()) % kinds.len()];
    let mut job = Job { tier: Some(Tier::All), decisions: Decisions(0), ..Job::new(kind, Arc::new(file(0))) };
    job.data_file = Some(Arc::new(file(1)));
    if script.one_in(4) {
        job.limits.findings = script.below(8);
        job.limits.findings_kept = script.below(4);
        job.limits.owners = script.below(4);
        job.limits.text_bytes = script.below(256);
        job.limits.bytes_read = script.below(1 << 16);
        job.limits.bytes_staged = script.below(1 << 12);
    }
    job
}

const _: () = assert!(size_of::<DataRange>() * 2 <= CALL_BYTES as usize);

fuzz_target!(|data: &[u8]| {
    let mut script = Script(data);
    let job = job(&mut script);
    let drill = Drill::new(&job).expect("memory");
    // What is staged comes from here.
    let arena: Vec<u8> = (0..=255).cycle().take(4096).collect();
    assert!(drill.put_arena(ARENA_BASE, &arena));
    let mut inmate =
        Inmate { script, drill, observer: Strict::default(), guest: 0, asked: Vec::new(), is_over: false };
    for _ in 0..CALLS_MAX {
        if inmate.script.is_over() || inmate.is_over {
            break;
        }
        inmate.call();
    }
});
