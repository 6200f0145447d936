//! Runs the cage's code in this process, so that what uses a job can be tested without a cage.
#![allow(dead_code, reason = "each test program uses its own part of this")]

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use instar_abi::boot::{FILE_DATA, FILE_IMAGE, FILES_MAX};
use instar_abi::call::{DataRange, Phase, ProgressRecord, SnapshotRecord, TextKind};
use instar_abi::choice::Decisions;
use instar_abi::cure::Cure;
use instar_abi::extent::{Extent, ExtentKind, MapOp, MapRequest};
use instar_abi::finding::{Finding, Owner, Table};
use instar_abi::problem::{Problem, Tier};
use instar_abi::region::Region;
use instar_abi::summary::Summary;
use instar_abi::to_usize;
use instar_mount::disk::{ExtentSource, Inflated, Payload};
use instar_mount::heal::{Inspector, Ran, Surveyor};
use instar_mount::image::Backend;
use instar_mount::sandbox::error::SandboxError;
use instar_mount::sandbox::observer::{Ignore, Observer, RunStats};
use instar_qcow2::host::{Host, Range};

/// The files of a job, by index.
pub type Files = [Option<Arc<dyn Backend>>; FILES_MAX];

/// A file that is one hole of this many bytes.
#[derive(Debug)]
pub struct Hollow(pub u64);

impl Backend for Hollow {
    fn len(&self) -> u64 {
        self.0
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let is_inside = offset.checked_add(into.len() as u64).is_some_and(|end| end <= self.0);
        into.fill(0);
        if is_inside { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn data_ranges(&self, _: u64, _: u64) -> io::Result<Vec<(u64, u64)>> {
        Ok(Vec::new())
    }
}

/// The files of a job on an image alone.
pub fn files(image: Arc<dyn Backend>) -> Files {
    let mut files = Files::default();
    files[to_usize(u64::from(FILE_IMAGE))] = Some(image);
    files
}

/// What a resident job has answered.
#[derive(Debug, Default)]
struct Answer {
    extents: Vec<Extent>,
    clusters: Vec<Inflated>,
}

/// A host without a cage.
pub struct NativeHost<'a> {
    files: Files,
    observer: &'a mut dyn Observer,
    resident: Option<(Receiver<Vec<MapRequest>>, Sender<Answer>)>,
    answer: Option<Answer>,
    memory_bytes: usize,
}

impl<'a> NativeHost<'a> {
    /// A host for a job that ends by itself.
    pub fn new(files: Files, observer: &'a mut dyn Observer) -> Self {
        Self { files, observer, resident: None, answer: None, memory_bytes: 256 << 20 }
    }

    /// The same with another memory budget.
    pub fn with_memory(self, memory_bytes: usize) -> Self {
        Self { memory_bytes, ..self }
    }

    fn file(&self, file: u32) -> Option<&Arc<dyn Backend>> {
        self.files.get(to_usize(u64::from(file)))?.as_ref()
    }
}

impl Host for NativeHost<'_> {
    fn file_len(&self, file: u32) -> Option<u64> {
        self.file(file).map(|backend| backend.len())
    }

    fn read(&mut self, ranges: &mut [Range], into: &mut [u8]) {
        let mut rest = into;
        for range in ranges {
            let (bytes, after) = rest.split_at_mut(range.len);
            let backend = self.file(range.file).expect("a range names a file that is there");
            assert!(range.len > 0, "a range of no bytes");
            assert!(range.offset + range.len as u64 <= backend.len(), "a range past the end: {range:?}");
            range.error = match backend.read_at(bytes, range.offset) {
                Ok(()) => 0,
                Err(error) => {
                    bytes.fill(0);
                    error.raw_os_error().and_then(|errno| u32::try_from(errno).ok()).unwrap_or(5)
                }
            };
            rest = after;
        }
        assert!(rest.is_empty(), "the buffer is longer than its ranges");
    }

    fn data_ranges(&mut self, file: u32, offset: u64, len: u64, found: &mut Vec<DataRange>) {
        let backend = self.file(file).expect("a file that is there");
        let ranges = backend.data_ranges(offset, len).unwrap_or_else(|_| vec![(offset, len)]);
        found.extend(ranges.into_iter().map(|(offset, len)| DataRange { offset, len }));
    }

    fn finding(&mut self, finding: &Finding) {
        let problem = Problem::from_u32(finding.problem).expect("a known problem");
        self.observer.finding(problem, finding);
    }

    fn owner(&mut self, owner: &Owner) {
        self.observer.owner(owner);
    }

    fn text(&mut self, kind: TextKind, index: u32, bytes: &[u8]) {
        self.observer.text(kind, index, bytes);
    }

    fn snapshot(&mut self, record: &SnapshotRecord) {
        self.observer.snapshot(record);
    }

    fn progress(&mut self, phase: Phase, pass: u32, done: u64, total: u64) {
        self.observer.progress(phase, &ProgressRecord { phase: phase as u32, pass, done, total });
    }

    fn scope(&mut self, cure: Cure, ranges: &[(u64, u64)]) {
        self.observer.scope(cure, ranges);
    }

    fn stage(&mut self, offset: u64, bytes: &[u8]) {
        self.observer.stage(offset, bytes.to_vec());
    }

    fn barrier(&mut self) {
        self.observer.barrier();
    }

    fn extent(&mut self, extent: &Extent) {
        match &mut self.answer {
            Some(answer) => answer.extents.push(*extent),
            None => {
                let kind = ExtentKind::from_u32(extent.kind).expect("a known kind");
                self.observer.extent(kind, extent);
            }
        }
    }

    fn region(&mut self, region: &Region) {
        let table = Table::from_u32(region.table).expect("a known table");
        self.observer.region(table, region);
    }

    fn replace(&mut self, offset: u64, bytes: &[u8]) {
        self.observer.replace(offset, bytes.to_vec());
    }

    fn inflated(&mut self, clusters: &[Result<&[u8], Problem>]) {
        let answer = self.answer.as_mut().expect("a cluster belongs to a request");
        answer.clusters.extend(clusters.iter().map(|cluster| cluster.map(Box::from)));
    }

    fn next(&mut self, into: &mut Vec<MapRequest>) {
        let (requests, answers) = self.resident.as_ref().expect("only a resident job waits");
        if let Some(done) = self.answer.take() {
            answers.send(done).expect("somebody waits for the answer");
        }
        self.answer = Some(Answer::default());
        *into = requests.recv().unwrap_or_else(|_| vec![request(MapOp::Exit)]);
    }

    fn memory_budget(&self) -> usize {
        self.memory_bytes
    }
}

fn request(op: MapOp) -> MapRequest {
    MapRequest {
        op: op as u32,
        snapshot: 0,
        guest_offset: 0,
        guest_len: 0,
        host_offset: 0,
        host_len: 0,
        payload: 0,
    }
}

/// Runs `describe` without a cage.
pub fn describe(files: Files, observer: &mut dyn Observer) -> Summary {
    instar_qcow2::describe::run(&mut NativeHost::new(files, observer))
}

/// Looks at images for the healer without a cage.
#[derive(Debug, Default)]
pub struct NativeInspector {
    /// The external data file.
    pub data_file: Option<Arc<dyn Backend>>,
}

impl NativeInspector {
    fn files(&self, image: Arc<dyn Backend>) -> Files {
        let mut files = files(image);
        files[to_usize(u64::from(FILE_DATA))].clone_from(&self.data_file);
        files
    }
}

impl Inspector for NativeInspector {
    fn check(&mut self, image: Arc<dyn Backend>, observer: &mut dyn Observer) -> Result<Ran, SandboxError> {
        let mut host = NativeHost::new(self.files(image), observer);
        let summary = instar_qcow2::check::run(&mut host, &instar_qcow2::check::Options::default());
        Ok(Ran { summary, stats: RunStats::default() })
    }

    fn plan(
        &mut self,
        image: Arc<dyn Backend>,
        tier: Tier,
        decisions: Decisions,
        observer: &mut dyn Observer,
    ) -> Result<Ran, SandboxError> {
        let mut host = NativeHost::new(self.files(image), observer);
        let summary = instar_qcow2::plan::run(&mut host, &instar_qcow2::plan::Options { tier, decisions });
        Ok(Ran { summary, stats: RunStats::default() })
    }
}

impl Surveyor for NativeInspector {
    fn free(&mut self, image: Arc<dyn Backend>, observer: &mut dyn Observer) -> Result<Ran, SandboxError> {
        let summary = instar_qcow2::free::run(&mut NativeHost::new(self.files(image), observer));
        Ok(Ran { summary, stats: RunStats::default() })
    }

    fn survey(&mut self, image: Arc<dyn Backend>, observer: &mut dyn Observer) -> Result<Ran, SandboxError> {
        let summary = instar_qcow2::survey::picture(&mut NativeHost::new(self.files(image), observer));
        Ok(Ran { summary, stats: RunStats::default() })
    }
}

/// A resident map job on a thread of this process. It ends when this is dropped.
#[derive(Debug)]
pub struct NativeSource {
    requests: Sender<Vec<MapRequest>>,
    answers: Receiver<Answer>,
}

impl NativeSource {
    /// Starts the job.
    pub fn start(files: Files) -> Self {
        let (requests, next) = channel();
        let (done, answers) = channel();
        std::thread::spawn(move || {
            let mut observer = Ignore;
            let mut host = NativeHost::new(files, &mut observer);
            host.resident = Some((next, done));
            instar_qcow2::map::serve(&mut host)
        });
        Self { requests, answers }
    }

    fn ask(&self, requests: Vec<MapRequest>) -> Result<Answer, SandboxError> {
        let over = || SandboxError::Fault { what: "the job is over".into() };
        self.requests.send(requests).map_err(|_| over())?;
        self.answers.recv().map_err(|_| over())
    }
}

impl ExtentSource for NativeSource {
    fn map(
        &mut self,
        snapshot: u32,
        guest_offset: u64,
        guest_len: u64,
        into: &mut Vec<Extent>,
    ) -> Result<(), SandboxError> {
        let request = MapRequest { snapshot, guest_offset, guest_len, ..request(MapOp::Map) };
        into.append(&mut self.ask(vec![request])?.extents);
        Ok(())
    }

    fn inflate(&mut self, payloads: &[Payload], cluster_bytes: u64) -> Result<Vec<Inflated>, SandboxError> {
        let requests = payloads.iter().map(|payload| MapRequest {
            guest_len: cluster_bytes,
            host_offset: payload.offset,
            host_len: u64::from(payload.len),
            ..request(MapOp::Inflate)
        });
        Ok(self.ask(requests.collect())?.clusters)
    }
}
