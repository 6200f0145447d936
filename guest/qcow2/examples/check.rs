//! Checks an image natively, without a cage: for people who work on the checker.
//!
//! `check IMAGE [--data-file FILE] [--memory BYTES] [--deep] [--quiet]` prints every finding, owner and the summary, and
//! exits with 0, 2 (corruptions), 3 (leaks only) or 63 (no verdict).
#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use std::time::Instant;

use instar_abi::boot::FILE_IMAGE;
use instar_abi::call::{DataRange, Phase, SnapshotRecord, TextKind};
use instar_abi::cure::Cure;
use instar_abi::extent::{Extent, MapOp, MapRequest};
use instar_abi::finding::{ACTIVE, Finding, Owner, Table};
use instar_abi::problem::{Problem, Severity};
use instar_abi::region::Region;
use instar_abi::summary::Outcome;
use instar_qcow2::check;
use instar_qcow2::host::{Host, Range};
use rustix::fs::{SeekFrom, seek};

struct Native {
    files: [Option<(File, u64)>; 2],
    memory: usize,
    quiet: bool,
    findings: u64,
    worst: Option<Severity>,
    reads: u64,
}

impl Native {
    fn file(&self, index: u32) -> Option<&(File, u64)> {
        self.files.get(index as usize)?.as_ref()
    }
}

impl Host for Native {
    fn file_len(&self, file: u32) -> Option<u64> {
        self.file(file).map(|(_, len)| *len)
    }

    fn read(&mut self, ranges: &mut [Range], mut into: &mut [u8]) {
        self.reads += 1;
        for range in ranges {
            let (bytes, rest) = into.split_at_mut(range.len);
            into = rest;
            if let Some((file, _)) = self.file(range.file)
                && let Err(error) = file.read_exact_at(bytes, range.offset)
            {
                range.error = error.raw_os_error().unwrap_or(5).unsigned_abs();
                bytes.fill(0);
            }
        }
    }

    fn data_ranges(&mut self, file: u32, offset: u64, len: u64, found: &mut Vec<DataRange>) {
        let Some((file, _)) = self.file(file) else { return };
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let Ok(start) = seek(file, SeekFrom::Data(at)) else { return };
            if start >= end {
                return;
            }
            let stop = seek(file, SeekFrom::Hole(start)).unwrap_or(end).min(end);
            found.push(DataRange { offset: start, len: stop - start });
            at = stop;
        }
    }

    fn finding(&mut self, finding: &Finding) {
        let row = Problem::from_u32(finding.problem).expect("a known problem").row();
        self.worst = self.worst.max(Some(row.severity));
        if !self.quiet {
            let table = Table::from_u32(finding.table).expect("a known table");
            println!(
                "{:4} {:?} {} {table:?} of {} index {:?} x{} host {:#x}+{:#x} guest {:#x}+{:#x} stored {:#x} expected {:#x}",
                self.findings,
                row.severity,
                row.id,
                if finding.snapshot == ACTIVE { -1 } else { i64::from(finding.snapshot) },
                finding.index.cast_signed(),
                finding.count,
                finding.host_offset,
                finding.host_len,
                finding.guest_offset,
                finding.guest_len,
                finding.stored,
                finding.expected,
            );
        }
        self.findings += 1;
    }

    fn owner(&mut self, owner: &Owner) {
        if !self.quiet {
            println!("     {owner:x?}");
        }
    }

    fn text(&mut self, kind: TextKind, index: u32, bytes: &[u8]) {
        println!("{kind:?} {index} {}", String::from_utf8_lossy(bytes));
    }

    fn snapshot(&mut self, record: &SnapshotRecord) {
        println!("{record:?}");
    }

    fn progress(&mut self, _: Phase, _: u32, _: u64, _: u64) {}

    fn scope(&mut self, _: Cure, _: &[(u64, u64)]) {}

    fn stage(&mut self, _: u64, _: &[u8]) {}

    fn barrier(&mut self) {}

    fn extent(&mut self, _: &Extent) {}

    fn region(&mut self, _: &Region) {}

    fn replace(&mut self, _: u64, _: &[u8]) {}

    fn inflated(&mut self, _: &[Result<&[u8], Problem>]) {}

    fn next(&mut self, requests: &mut Vec<MapRequest>) {
        let exit = MapOp::Exit as u32;
        let none = MapRequest {
            op: exit,
            snapshot: 0,
            guest_offset: 0,
            guest_len: 0,
            host_offset: 0,
            host_len: 0,
            payload: 0,
        };
        *requests = vec![none];
    }

    fn memory_budget(&self) -> usize {
        self.memory
    }
}

fn open(path: &str) -> Option<(File, u64)> {
    let file = File::open(path).expect("the file opens");
    let len = file.metadata().expect("its length is known").len();
    Some((file, len))
}

fn main() -> ExitCode {
    let mut host =
        Native { files: [None, None], memory: 256 << 20, quiet: false, findings: 0, worst: None, reads: 0 };
    let mut options = check::Options::default();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().expect("an option's value");
        match argument.as_str() {
            "--data-file" => host.files[1] = open(&value()),
            "--memory" => host.memory = value().parse().expect("a number of bytes"),
            "--quiet" => host.quiet = true,
            "--deep" => options.deep = true,
            path => host.files[FILE_IMAGE as usize] = open(path),
        }
    }
    let start = Instant::now();
    let checked = check::inspect(&mut host, &options);
    let (summary, time) = (checked.summary, start.elapsed());
    let freeable: u64 = checked.free.iter().map(|run| run.count).sum();
    println!("{summary:?}");
    println!("{time:?}, {} reads, {} findings, {freeable} clusters to free", host.reads, host.findings);
    ExitCode::from(match Outcome::from_u32(summary.outcome) {
        Some(Outcome::Complete | Outcome::Incomplete) => match host.worst {
            None => 0,
            Some(Severity::Leak) => 3,
            Some(_) => 2,
        },
        _ => 63,
    })
}
