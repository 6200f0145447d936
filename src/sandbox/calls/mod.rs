//! The host's side of every call, for both cages.
//!
//! Invariant: every argument is copied out of the inmate's memory once and checked before it is used, against the
//! call area, the arena, the files' lengths, the limits, the kind of the job, and for writes the scope of the open
//! step. What does not pass is a fault that names the value. An I/O error of an image is an answer, not a failure.

mod answer;
mod clusters;
mod files;
#[cfg(test)]
mod fuzz;
mod landing;
mod report;
mod steps;
mod survey;

use std::sync::Arc;
use std::time::Instant;

use instar_abi::boot::JobKind;
use instar_abi::call::{
    CallHeader, DataRange, DataRangesCall, InflatedRange, LandingRange, Op, ReadRange, ScopeRange,
    StageRange, records_max,
};
use instar_abi::extent::{Extent, MapOp, MapRequest};
use instar_abi::finding::{Finding, Owner};
use instar_abi::region::Region;
use instar_abi::summary::{Outcome, Summary};
use instar_abi::to_usize;
use vm_memory::VolatileSlice;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::cage::{Cage, Deadline};
use super::error::SandboxError;
use super::job::Job;
use super::limits::Limits;
use super::memory::InmateMemory;
use super::observer::{Observer, RunStats};
use crate::disk::Inflated;
use answer::Answer;
use clusters::Clusters;
use files::Files;
pub(super) use files::lengths;
use landing::Landing;
use report::Reports;
use steps::Steps;
use survey::Survey;

/// Where the records of a call start in the call area.
const RECORDS: u64 = size_of::<CallHeader>() as u64;

/// What a call came to.
#[derive(Debug)]
pub enum Served {
    /// It is answered; the inmate can go on.
    Answered,
    /// A resident job waits for its next request.
    Idle,
    /// The job is over.
    Done(Summary),
}

/// What the requests under way have been answered so far.
#[derive(Debug)]
enum Pending {
    Extents(Answer),
    Clusters(Clusters),
}

/// A whole answer of a resident job.
#[derive(Debug)]
pub enum Reply {
    /// The extents of a guest range.
    Extents(Vec<Extent>),
    /// What each payload inflated to.
    Clusters(Vec<Inflated>),
}

/// Serves the calls of one inmate.
#[derive(Debug)]
pub(super) struct Server {
    kind: JobKind,
    limits: Limits,
    memory: Arc<InmateMemory>,
    files: Files,
    reports: Reports,
    steps: Steps,
    survey: Survey,
    pending: Option<Pending>,
    waited: bool,
    landing: Option<Landing>,
    stats: RunStats,
    /// Calls and bytes read since the job or the request began; these are what the limits are about.
    calls: u64,
    bytes_read: u64,
    began: Instant,
}

/// The error for an inmate that broke the rules of a call.
fn violation(what: impl Into<String>) -> SandboxError {
    SandboxError::Fault { what: what.into() }
}

/// Counts `added` towards a limit.
fn charge(used: &mut u64, added: u64, limit: u64, what: &'static str) -> Result<(), SandboxError> {
    *used = used.saturating_add(added);
    if *used > limit { Err(SandboxError::Limit { what, limit }) } else { Ok(()) }
}

/// Bytes handed to an observer at once; longer ones come in pieces.
const PIECE_BYTES: usize = 1 << 20;

/// Copies bytes for a place of the image out of the inmate's memory, piece by piece.
fn in_pieces(offset: u64, bytes: &VolatileSlice<'_>, mut take: impl FnMut(u64, Vec<u8>)) {
    for at in (0..bytes.len()).step_by(PIECE_BYTES) {
        let len = (bytes.len() - at).min(PIECE_BYTES);
        let mut piece = vec![0; len];
        if let Ok(part) = bytes.subslice(at, len) {
            part.copy_to(&mut piece);
            take(offset + at as u64, piece);
        }
    }
}

/// Whether a job of this kind may make this call at all. A resident job that has `waited` for a request can only
/// answer; before, it may say why it cannot.
fn allowed(kind: JobKind, waited: bool, op: Op) -> bool {
    match op {
        Op::Read | Op::DataRanges | Op::Progress | Op::Fail => true,
        Op::Finding | Op::Owner | Op::Text | Op::Done => !waited,
        Op::Snapshot => kind == JobKind::Describe,
        Op::Scope | Op::Stage | Op::Barrier => matches!(kind, JobKind::Plan | JobKind::Evil),
        Op::Region => matches!(kind, JobKind::Survey | JobKind::Free),
        Op::Replace => kind == JobKind::Survey,
        Op::Extent => matches!(kind, JobKind::Map | JobKind::Survey),
        Op::Inflated | Op::Next => kind == JobKind::Map,
    }
}

impl Server {
    /// A server for one inmate's whole life.
    pub(super) fn new(job: &Job, memory: Arc<InmateMemory>) -> Self {
        Self {
            kind: job.kind,
            limits: job.limits.clone(),
            stats: RunStats { arena_bytes: memory.arena_bytes(), ..RunStats::default() },
            memory,
            files: Files::new(job),
            reports: Reports::default(),
            steps: Steps::default(),
            survey: Survey::default(),
            pending: None,
            waited: false,
            landing: None,
            calls: 0,
            bytes_read: 0,
            began: Instant::now(),
        }
    }

    /// Runs the inmate until its job is over or it waits for a request.
    ///
    /// # Errors
    /// Those of the cage and of [`Server::serve`].
    pub(super) fn drive(
        &mut self,
        cage: &mut dyn Cage,
        observer: &mut dyn Observer,
    ) -> Result<Served, SandboxError> {
        loop {
            cage.enter(&self.deadline())?;
            match self.serve(observer)? {
                Served::Answered => {}
                ended => return Ok(ended),
            }
        }
    }

    /// What the job cost so far.
    pub(super) fn stats(&self) -> RunStats {
        let wall_us = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        let (findings, findings_dropped) = self.reports.counts(self.limits.findings_kept);
        RunStats { wall_us, findings, findings_dropped, ..self.stats }
    }

    /// The nearer of the two ends: silence from now on, or the job's own.
    fn deadline(&self) -> Deadline {
        let silence = Deadline {
            at: Instant::now() + self.limits.silence,
            what: "progress",
            limit: self.limits.silence,
        };
        let total = Deadline { at: self.began + self.limits.total, what: "result", limit: self.limits.total };
        if silence.at < total.at { silence } else { total }
    }

    /// Puts requests into the call area of an inmate that waits for some: one, or several that all are to inflate.
    pub(super) fn ask(&mut self, mut requests: Vec<MapRequest>) -> Result<(), SandboxError> {
        (self.calls, self.bytes_read, self.began) = (0, 0, Instant::now());
        self.pending = requests.first().map(|first| {
            if first.op == MapOp::Inflate as u32 {
                Pending::Clusters(Clusters::new(&requests))
            } else {
                Pending::Extents(Answer::new(first))
            }
        });
        if let (Some(Pending::Clusters(_)), Some(landing)) = (&self.pending, self.landing) {
            let landed = landing.land(&mut requests, &self.files, &self.memory);
            charge(&mut self.bytes_read, landed, self.limits.bytes_read, "bytes read")?;
            self.stats.bytes_read += landed;
        }
        let count = u32::try_from(requests.len()).unwrap_or(u32::MAX);
        self.write(std::mem::offset_of!(CallHeader, count) as u64, count.as_bytes())?;
        self.write(RECORDS, requests.as_bytes())
    }

    /// The answer to what was asked last, once the inmate waits again.
    pub(super) fn take_answer(&mut self) -> Result<Reply, SandboxError> {
        match self.pending.take() {
            Some(Pending::Extents(answer)) => answer.finish().map(Reply::Extents),
            Some(Pending::Clusters(clusters)) => clusters.finish().map(Reply::Clusters),
            None => Err(violation("an answer without a request")),
        }
    }

    /// Answers the call in the call area.
    ///
    /// # Errors
    /// [`SandboxError::Fault`] for a call that breaks a rule, [`SandboxError::Limit`] for one too many,
    /// [`SandboxError::Failed`] when the inmate gives up.
    pub(super) fn serve(&mut self, observer: &mut dyn Observer) -> Result<Served, SandboxError> {
        self.stats.exits += 1;
        charge(&mut self.calls, 1, self.limits.calls, "calls")?;
        let header: CallHeader = self.copy_out(0)?;
        let op =
            Op::from_u32(header.op).ok_or_else(|| violation(format!("call: unknown op {}", header.op)))?;
        if header.reserved != [0; 3] {
            return Err(violation(format!(
                "call {op:?}: reserved words {:x?}, must be zero",
                header.reserved
            )));
        }
        if !allowed(self.kind, self.waited, op) {
            return Err(violation(format!("call {op:?} is not for a {:?} job at this point", self.kind)));
        }
        match op {
            Op::Read => self.read(header.count)?,
            Op::DataRanges => self.data_ranges(header.count)?,
            Op::Scope => self.steps.open(&self.records::<ScopeRange>(op, header.count)?)?,
            Op::Stage => self.stage(header.count, observer)?,
            Op::Barrier => {
                self.no_records(op, header.count)?;
                observer.barrier();
            }
            Op::Finding => {
                let findings = self.records::<Finding>(op, header.count)?;
                self.reports.findings(&findings, &self.limits, observer)?;
            }
            Op::Owner => {
                let owners = self.records::<Owner>(op, header.count)?;
                self.reports.owners(&owners, &self.limits, observer)?;
            }
            Op::Text => self.text(header.count, observer)?,
            Op::Extent => {
                let extents = self.records::<Extent>(op, header.count)?;
                match &mut self.pending {
                    _ if self.kind == JobKind::Survey => {
                        self.survey.extents(&extents, &self.files, observer)?;
                    }
                    Some(Pending::Extents(answer)) => answer.extend(&extents, &self.files)?,
                    _ => return Err(violation("extents without a request")),
                }
            }
            Op::Inflated => {
                let ranges = self.records::<InflatedRange>(op, header.count)?;
                let Some(Pending::Clusters(clusters)) = &mut self.pending else {
                    return Err(violation("clusters without a request"));
                };
                clusters.extend(&ranges, &self.memory)?;
                return Ok(Served::Idle);
            }
            Op::Region => {
                let regions = self.records::<Region>(op, header.count)?;
                survey::regions(self.kind, &regions, &self.files, observer)?;
            }
            Op::Replace => self.replace(header.count, observer)?,
            Op::Snapshot => report::snapshot(&self.one(op, header.count)?, observer)?,
            Op::Progress => report::progress(&self.one(op, header.count)?, observer)?,
            Op::Next => {
                if header.count > 0 {
                    let range: LandingRange = self.one(op, header.count)?;
                    self.landing = Some(Landing::new(range, &self.memory)?);
                }
                self.waited = true;
                return Ok(Served::Idle);
            }
            Op::Done => return self.done(header.count).map(Served::Done),
            Op::Fail => return Err(self.failed(header.count)?),
        }
        Ok(Served::Answered)
    }

    /// A copy of the record at `offset` of the call area.
    fn copy_out<T: FromBytes + IntoBytes>(&self, offset: u64) -> Result<T, SandboxError> {
        let mut record = T::new_zeroed();
        self.memory
            .call(offset, size_of::<T>() as u64)
            .ok_or_else(|| violation(format!("record at {offset:#x} does not fit the call area")))?
            .copy_to(record.as_mut_bytes());
        Ok(record)
    }

    /// Copies of all records of a call, at least one.
    fn records<T>(&self, op: Op, count: u32) -> Result<Vec<T>, SandboxError>
    where
        T: FromBytes + IntoBytes + Immutable + Clone,
    {
        let wanted = to_usize(count.into());
        if wanted == 0 || wanted > records_max::<T>() {
            let most = records_max::<T>();
            return Err(violation(format!("call {op:?}: {count} records, allowed are 1 to {most}")));
        }
        let mut records = vec![T::new_zeroed(); wanted];
        let bytes = records.as_mut_slice().as_mut_bytes();
        self.memory
            .call(RECORDS, bytes.len() as u64)
            .ok_or_else(|| violation(format!("call {op:?}: records do not fit the call area")))?
            .copy_to(bytes);
        Ok(records)
    }

    /// The record of a call that has exactly one.
    fn one<T: FromBytes + IntoBytes>(&self, op: Op, count: u32) -> Result<T, SandboxError> {
        if count != 1 {
            return Err(violation(format!("call {op:?}: {count} records, must be 1")));
        }
        self.copy_out(RECORDS)
    }

    fn no_records(&self, op: Op, count: u32) -> Result<(), SandboxError> {
        if count != 0 {
            return Err(violation(format!("call {op:?}: {count} records, must be none")));
        }
        Ok(())
    }

    /// Writes an answer into the call area.
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), SandboxError> {
        self.memory
            .call(offset, bytes.len() as u64)
            .ok_or_else(|| violation(format!("answer at {offset:#x} does not fit the call area")))?
            .copy_from(bytes);
        Ok(())
    }

    fn read(&mut self, count: u32) -> Result<(), SandboxError> {
        let ranges = self.records::<ReadRange>(Op::Read, count)?;
        let mut total = 0u64;
        for range in &ranges {
            self.files.check(range.file, range.offset, range.len)?;
            if self.memory.arena(range.dest, range.len).is_none() {
                let ReadRange { dest, len, .. } = range;
                return Err(violation(format!("read: {len:#x} bytes to {dest:#x} are not in the arena")));
            }
            total = total.saturating_add(range.len);
        }
        charge(&mut self.bytes_read, total, self.limits.bytes_read, "bytes read")?;
        self.stats.bytes_read += total;
        let errors = self.files.read(&ranges, &self.memory);
        for (index, (range, error)) in ranges.iter().zip(errors).enumerate() {
            if range.error != error {
                let record = RECORDS + (index * size_of::<ReadRange>()) as u64;
                let at = record + std::mem::offset_of!(ReadRange, error) as u64;
                self.write(at, error.as_bytes())?;
            }
        }
        Ok(())
    }

    fn data_ranges(&mut self, count: u32) -> Result<(), SandboxError> {
        let asked: DataRangesCall = self.one(Op::DataRanges, count)?;
        if asked.reserved != 0 {
            return Err(violation(format!("data ranges: reserved word {:#x}, must be zero", asked.reserved)));
        }
        self.files.check(asked.file, asked.offset, asked.len)?;
        let found = self.files.data_ranges(&asked, records_max::<DataRange>());
        self.write(RECORDS, found.as_bytes())?;
        let count = u32::try_from(found.len()).unwrap_or(u32::MAX);
        self.write(std::mem::offset_of!(CallHeader, count) as u64, count.as_bytes())
    }

    fn stage(&mut self, count: u32, observer: &mut dyn Observer) -> Result<(), SandboxError> {
        let ranges = self.records::<StageRange>(Op::Stage, count)?;
        self.steps.announce(observer);
        for range in ranges {
            self.steps.charge(&range, &self.limits)?;
            let StageRange { offset, len, src } = range;
            let bytes = self.memory.arena(src, len).ok_or_else(|| {
                violation(format!("stage: {len:#x} bytes from {src:#x} are not in the arena"))
            })?;
            in_pieces(offset, &bytes, |at, piece| observer.stage(at, piece));
        }
        Ok(())
    }

    fn replace(&mut self, count: u32, observer: &mut dyn Observer) -> Result<(), SandboxError> {
        for range in self.records::<StageRange>(Op::Replace, count)? {
            self.survey.charge(&range, &self.files, &self.limits)?;
            let StageRange { offset, len, src } = range;
            let bytes = self.memory.arena(src, len).ok_or_else(|| {
                violation(format!("replace: {len:#x} bytes from {src:#x} are not in the arena"))
            })?;
            in_pieces(offset, &bytes, |at, piece| observer.replace(at, piece));
        }
        Ok(())
    }

    fn text(&mut self, count: u32, observer: &mut dyn Observer) -> Result<(), SandboxError> {
        let header = self.one(Op::Text, count)?;
        let bytes = self.text_bytes(&header)?;
        self.reports.text(&header, &bytes, &self.limits, observer)
    }

    /// The bytes behind a text header.
    fn text_bytes(&self, header: &instar_abi::call::TextHeader) -> Result<Vec<u8>, SandboxError> {
        report::check_text(header)?;
        let mut bytes = vec![0; to_usize(header.len.into())];
        let at = RECORDS + size_of::<instar_abi::call::TextHeader>() as u64;
        self.memory
            .call(at, header.len.into())
            .ok_or_else(|| violation(format!("text of {} bytes does not fit the call area", header.len)))?
            .copy_to(&mut bytes);
        Ok(bytes)
    }

    fn done(&self, count: u32) -> Result<Summary, SandboxError> {
        let summary: Summary = self.one(Op::Done, count)?;
        if Outcome::from_u32(summary.outcome).is_none() {
            return Err(violation(format!("done: unknown outcome {}", summary.outcome)));
        }
        report::check_summary(&summary)?;
        Ok(summary)
    }

    fn failed(&self, count: u32) -> Result<SandboxError, SandboxError> {
        let header = self.one(Op::Fail, count)?;
        report::failure(&header, &self.text_bytes(&header)?)
    }
}
