//! Reads, seeks and surveys of a disk in any order, over sources that lie, die and come back, over files that fail, with
//! caches that hold next to nothing: what is served are the bytes that the source's honest word stands for, and
//! where a read stops there is a reason for it at that very place.
#![no_main]

#[path = "shared/script.rs"]
mod script;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use instar_abi::extent::{Extent, ExtentKind};
use instar_abi::finding::ACTIVE;
use instar_abi::problem::Problem;
use instar_mount::disk::{
    Backing, Disk, ExtentSource, Inflated, OnDamage, Payload, Revived, SharedSource, Stop, Unpacker,
};
use instar_mount::image::Backend;
use instar_mount::sandbox::error::SandboxError;
use libfuzzer_sys::fuzz_target;
use parking_lot::Mutex;
use script::Script;

const CLUSTER: u64 = 512;
/// Clusters that the file is said to have.
const FILE_CLUSTERS: u64 = 1 << 20;
/// From here on it cannot be read.
const BAD_FROM: u64 = FILE_CLUSTERS - 4096;
const RUNS_MAX: u64 = 24;
const OPS_MAX: usize = 32;

/// What a guest byte is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Guest {
    /// The file's byte at this offset.
    File(u64),
    Byte(u8),
    Zeros,
    Damaged,
    LeftOut,
    Encrypted,
    Unreadable,
}

/// The byte of the file at an offset; never 0.
fn file_byte(offset: u64) -> u8 {
    (offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) as u8 | 1
}

/// What a payload inflates to, if it does. Every seventh is damaged, every eleventh unreadable.
fn inflated(payload: Payload) -> Inflated {
    match payload.offset / CLUSTER {
        number if number % 7 == 6 => Err(Problem::CompressedDamaged),
        number if number % 11 == 10 => Err(Problem::ReadError),
        number => Ok(vec![number as u8 | 1; CLUSTER as usize].into()),
    }
}

#[derive(Debug)]
struct File;

impl Backend for File {
    fn len(&self) -> u64 {
        FILE_CLUSTERS * CLUSTER
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        if offset + into.len() as u64 > BAD_FROM * CLUSTER {
            return Err(io::Error::from_raw_os_error(5));
        }
        (offset..).zip(into).for_each(|(at, byte)| *byte = file_byte(at));
        Ok(())
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        panic!("a disk is read only");
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        panic!("a disk is read only");
    }

    fn sync(&self) -> io::Result<()> {
        panic!("a disk is read only");
    }
}

/// Clusters of one kind.
#[derive(Debug, Clone, Copy)]
struct Run {
    start: u64,
    end: u64,
    kind: ExtentKind,
    host: u64,
}

/// What is on a disk.
#[derive(Debug, Clone)]
struct Layout {
    runs: Arc<Vec<Run>>,
    size: u64,
}

impl Layout {
    fn draw(script: &mut Script<'_>) -> Self {
        let mut runs = Vec::new();
        let mut start = 0;
        for _ in 0..=script.below(RUNS_MAX) {
            let long = [4, 64, 1024, 12_000][usize::from(script.byte() % 4)];
            let kind = match script.byte() % 12 {
                0..=3 => ExtentKind::Data,
                4 => ExtentKind::Zero,
                5 | 6 => ExtentKind::Hole,
                7..=9 => ExtentKind::Compressed,
                10 => ExtentKind::Damaged,
                _ => ExtentKind::Encrypted,
            };
            // Each compressed cluster is an extent.
            let end =
                start + 1 + script.below(if kind == ExtentKind::Compressed { long.min(64) } else { long });
            let most = FILE_CLUSTERS - 2 * (end - start);
            let host = if script.one_in(8) { most - script.below(4096) } else { script.below(1 << 16) };
            runs.push(Run { start, end, kind, host });
            start = end;
        }
        let size = start * CLUSTER - script.below(CLUSTER);
        Self { runs: Arc::new(runs), size }
    }

    fn run(&self, cluster: u64) -> &Run {
        &self.runs[self.runs.partition_point(|run| run.end <= cluster)]
    }

    /// The honest extent of some clusters of one run.
    fn extent(run: &Run, clusters: std::ops::Range<u64>) -> Extent {
        let len = clusters.end - clusters.start;
        let skipped = clusters.start - run.start;
        let (host_offset, host_len) = match run.kind {
            ExtentKind::Data | ExtentKind::Encrypted => ((run.host + skipped) * CLUSTER, len * CLUSTER),
            ExtentKind::Compressed => ((run.host + skipped) * CLUSTER, CLUSTER - 1),
            _ => (0, 0),
        };
        Extent {
            guest_offset: clusters.start * CLUSTER,
            guest_len: len * CLUSTER,
            host_offset,
            host_len,
            kind: run.kind as u32,
            file: 0,
            problem: if run.kind == ExtentKind::Damaged { Problem::L2EntryPastEof as u32 } else { 0 },
            reserved: 0,
        }
    }

    fn guest(&self, at: u64, below: &Below) -> Guest {
        let run = self.run(at / CLUSTER);
        let host = run.host * CLUSTER + at - run.start * CLUSTER;
        match run.kind {
            ExtentKind::Data if host >= BAD_FROM * CLUSTER => Guest::Unreadable,
            ExtentKind::Data => Guest::File(host),
            ExtentKind::Zero => Guest::Zeros,
            ExtentKind::Damaged => Guest::Damaged,
            ExtentKind::Encrypted => Guest::Encrypted,
            ExtentKind::Hole => match below {
                Below::Disk(layout) if at < layout.size => layout.guest(at, &Below::Nothing),
                Below::LeftOut => Guest::LeftOut,
                Below::Disk(_) | Below::Nothing => Guest::Zeros,
            },
            ExtentKind::Compressed => match inflated(Payload { offset: host - host % CLUSTER, len: 1 }) {
                Ok(bytes) => Guest::Byte(bytes[0]),
                Err(Problem::ReadError) => Guest::Unreadable,
                Err(_) => Guest::Damaged,
            },
        }
    }

    /// Whether a place counts as data, as far as the extents alone say, and where that may change.
    fn is_data(&self, at: u64, below: &Below) -> (bool, u64) {
        let run = self.run(at / CLUSTER);
        let end = run.end * CLUSTER;
        match (run.kind, below) {
            (ExtentKind::Zero, _) | (ExtentKind::Hole, Below::Nothing) => (false, end),
            (ExtentKind::Hole, Below::Disk(layout)) if at < layout.size => {
                let (is_data, other) = layout.is_data(at, &Below::Nothing);
                (is_data, end.min(other).min(layout.size))
            }
            (ExtentKind::Hole, Below::Disk(_)) => (false, end),
            _ => (true, end),
        }
    }
}

/// What shows through the holes.
#[derive(Debug, Clone)]
enum Below {
    Nothing,
    Disk(Layout),
    LeftOut,
}

/// How a source behaves, question by question; shared by all that are started in its place.
#[derive(Debug)]
struct Moods {
    moods: Vec<u8>,
    next: usize,
}

impl Moods {
    fn next(&mut self) -> u8 {
        self.next += 1;
        self.moods.get(self.next - 1).copied().unwrap_or(0)
    }
}

/// Names extents, honestly or not, and counts the times that it was not of use.
#[derive(Debug)]
struct Source {
    layout: Layout,
    moods: Arc<Mutex<Moods>>,
    faults: Arc<AtomicU64>,
}

impl Source {
    fn dies(&self) -> SandboxError {
        self.faults.fetch_add(1, Ordering::Relaxed);
        SandboxError::Host { action: "live on".into(), source: io::ErrorKind::BrokenPipe.into() }
    }

    fn honest(&self, offset: u64, len: u64, cut: u64, into: &mut Vec<Extent>) {
        let end = (offset + len).div_ceil(CLUSTER);
        let mut at = offset / CLUSTER;
        while at < end {
            let run = self.layout.run(at);
            let most = if run.kind == ExtentKind::Compressed { 1 } else { cut };
            let stop = run.end.min(at + most).min(end);
            into.push(Layout::extent(run, at..stop));
            at = stop;
        }
    }

    fn spoil(&self, extents: &mut Vec<Extent>, how: u8) {
        self.faults.fetch_add(1, Ordering::Relaxed);
        let middle = extents.len() / 2;
        match how % 6 {
            0 => drop(extents.pop()),
            1 => extents[middle].guest_len = 0,
            2 => extents[middle].kind = 99,
            3 => extents[0].guest_offset += CLUSTER,
            4 => extents[middle].guest_len += 1 << 40,
            _ => extents.clear(),
        }
    }
}

impl ExtentSource for Source {
    fn map(
        &mut self,
        snapshot: u32,
        offset: u64,
        len: u64,
        into: &mut Vec<Extent>,
    ) -> Result<(), SandboxError> {
        assert!(snapshot == ACTIVE && len > 0 && offset + len <= self.layout.size);
        match self.moods.lock().next() {
            mood @ 230..=244 => {
                let known = into.len();
                self.honest(offset, len, 64, into);
                assert_eq!(known, 0);
                self.spoil(into, mood);
            }
            245.. => return Err(self.dies()),
            mood => {
                let cut = [u64::MAX / 2, 4096, 17, 3][usize::from(mood % 4)];
                self.honest(offset, len, if len > 1 << 20 { cut.max(512) } else { cut }, into);
            }
        }
        Ok(())
    }

    fn inflate(&mut self, payloads: &[Payload], cluster: u64) -> Result<Vec<Inflated>, SandboxError> {
        assert!(cluster == CLUSTER && !payloads.is_empty());
        if self.moods.lock().next() >= 245 {
            return Err(self.dies());
        }
        Ok(payloads.iter().map(|payload| inflated(*payload)).collect())
    }
}

/// A disk, and what is known of it.
struct Subject {
    layout: Layout,
    below: Below,
    disk: Disk,
    policy: OnDamage,
    faults: Arc<AtomicU64>,
}

fn source(layout: &Layout, moods: &Arc<Mutex<Moods>>, faults: &Arc<AtomicU64>) -> SharedSource {
    let (layout, moods, faults) = (layout.clone(), moods.clone(), faults.clone());
    let start = move || -> Result<Box<dyn ExtentSource>, SandboxError> {
        Ok(Box::new(Source { layout: layout.clone(), moods: moods.clone(), faults: faults.clone() }))
    };
    Arc::new(Mutex::new(Box::new(Revived::asleep(start))))
}

impl Subject {
    fn draw(script: &mut Script<'_>) -> Self {
        let faults = Arc::new(AtomicU64::new(0));
        let moods = (0..script.below(16)).map(|_| script.byte()).collect();
        let moods = Arc::new(Mutex::new(Moods { moods, next: 0 }));
        let cache_bytes = [0, 300, 4096, 1 << 20][usize::from(script.byte() % 4)];
        let plain = |layout: &Layout| {
            let file: Arc<dyn Backend> = Arc::new(File);
            let source = source(layout, &moods, &faults);
            Disk::new([Some(file), None, None, None], source, ACTIVE, layout.size, 9, cache_bytes)
        };
        let layout = Layout::draw(script);
        let (below, backing) = match script.byte() % 6 {
            0 | 1 => {
                let layout = Layout::draw(script);
                let backing = Backing::Disk(Arc::new(plain(&layout)));
                (Below::Disk(layout), backing)
            }
            2 => (Below::LeftOut, Backing::LeftOut),
            _ => (Below::Nothing, Backing::None),
        };
        let policy = if script.one_in(4) { OnDamage::Zero } else { OnDamage::Eio };
        let mut disk = plain(&layout).over(backing).on_damage(policy);
        if script.one_in(2) {
            // Two sources may share the work, on two threads.
            let count = if script.one_in(16) { 2 } else { 1 };
            let sources = (0..count).map(|_| source(&layout, &moods, &faults)).collect();
            let kept_bytes = script.below(1 << 12) as usize;
            disk = disk.with_unpacker(Arc::new(Unpacker::new(sources, CLUSTER, kept_bytes)));
        }
        Self { layout, below, disk, policy, faults }
    }

    fn guest(&self, at: u64) -> Guest {
        match (self.layout.guest(at, &self.below), self.policy, &self.below) {
            (Guest::LeftOut, OnDamage::Zero, _) => Guest::Zeros,
            (Guest::Damaged, OnDamage::Zero, Below::Disk(_)) if self.shows_below(at) => Guest::Damaged,
            (Guest::Damaged, OnDamage::Zero, _) => Guest::Zeros,
            (guest, ..) => guest,
        }
    }

    /// The disk below has a policy of its own.
    fn shows_below(&self, at: u64) -> bool {
        self.layout.run(at / CLUSTER).kind == ExtentKind::Hole
    }

    /// Where what a guest byte is a part of ends, or something before that.
    fn same_until(&self, at: u64) -> u64 {
        let end = at - at % CLUSTER + CLUSTER;
        match &self.below {
            Below::Disk(layout) if at < layout.size => end.min(layout.size),
            _ => end,
        }
    }

    fn read(&self, offset: u64, len: usize) {
        let before = self.faults.load(Ordering::Relaxed);
        let mut bytes = vec![0xee; len];
        let outcome = self.disk.read(offset, &mut bytes);
        let mut filled = &bytes[..outcome.filled];
        while !filled.is_empty() {
            let at = offset + (outcome.filled - filled.len()) as u64;
            let (part, rest) = filled.split_at(filled.len().min((self.same_until(at) - at) as usize));
            let is_right = match self.guest(at) {
                Guest::File(host) => (host..).zip(part).all(|(host, byte)| *byte == file_byte(host)),
                Guest::Byte(right) => part.iter().all(|byte| *byte == right),
                Guest::Zeros => part.iter().all(|byte| *byte == 0),
                _ => false,
            };
            assert!(
                is_right,
                "{at:#x} of {offset:#x} + {len:#x} is {:?} and reads as {part:x?}",
                self.guest(at)
            );
            filled = rest;
        }
        let at = offset + outcome.filled as u64;
        let is_end = outcome.filled == len || at >= self.layout.size;
        match &outcome.stopped {
            None => assert!(is_end, "a read that stops at {at:#x} for no reason"),
            Some(Stop::Source) => {
                assert!(self.faults.load(Ordering::Relaxed) > before, "{at:#x}: a source at fault")
            }
            Some(stop) => self.assert_reason(at, stop),
        }
        if let Some(left) = &outcome.left_over {
            let cluster = left.cluster.as_ref().as_ref().expect("a cluster that inflated");
            for (at, byte) in (left.offset..).zip(&cluster[..left.len]).step_by(61) {
                assert_eq!(self.guest(at), Guest::Byte(*byte), "left over at {at:#x}");
            }
        }
    }

    /// What the reason is true of lies in the cluster of the stop or, where a read of a file is one, behind it.
    fn assert_reason(&self, at: u64, stop: &Stop) {
        let guest = self.guest(at);
        let is_right = match stop {
            Stop::Damaged(_) => guest == Guest::Damaged,
            Stop::LeftOut => guest == Guest::LeftOut,
            Stop::Encrypted => guest == Guest::Encrypted,
            Stop::Io(_) => {
                let ahead = (at..self.layout.size).step_by(CLUSTER as usize).take(32);
                guest == Guest::Unreadable || ahead.into_iter().any(|at| self.guest(at) == Guest::Unreadable)
            }
            Stop::Source => false,
        };
        assert!(is_right, "{at:#x} is {guest:?}, and a read stops there with {stop:?}");
    }

    fn seek(&self, offset: u64, data: bool) {
        let Ok(found) = self.disk.seek(offset, data) else { return };
        let mut at = offset;
        while at < self.layout.size {
            let (is_data, end) = self.layout.is_data(at, &self.below);
            if is_data == data {
                break;
            }
            at = end;
        }
        assert_eq!(found, (at < self.layout.size).then_some(at), "from {offset:#x}, data: {data}");
    }

    fn survey(&self) {
        let survey = self.disk.survey();
        let (mut at, mut data) = (0, 0);
        while at < survey.seen_bytes {
            let (is_data, end) = self.layout.is_data(at, &self.below);
            let end = end.min(survey.seen_bytes);
            data += if is_data { end - at } else { 0 };
            at = end;
        }
        assert_eq!(survey.data_bytes, data);
        let is_lost = |at| matches!(self.layout.guest(at, &self.below), Guest::Damaged | Guest::LeftOut);
        for range in &survey.damaged {
            assert!(is_lost(range.start) && is_lost(range.end - 1), "{range:?}");
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let mut script = Script(data);
    let subject = Subject::draw(&mut script);
    for _ in 0..OPS_MAX {
        if script.is_over() {
            break;
        }
        // Near the beginning of a run more often than not.
        let run = script.below(subject.layout.runs.len() as u64) as usize;
        let offset = match script.byte() % 4 {
            0 => script.below(subject.layout.size),
            _ => (subject.layout.runs[run].start * CLUSTER + script.below(2048)).saturating_sub(512),
        };
        match script.byte() % 8 {
            0 => subject.seek(offset, true),
            1 => subject.seek(offset, false),
            2 if script.one_in(4) => subject.survey(),
            _ => subject.read(offset, 1 + script.below(6000) as usize),
        }
    }
});
