//! Runs a check over bytes in memory or files, and keeps all that it says.

use std::io;
use std::sync::Arc;

use instar_abi::boot::FILE_DATA;
use instar_abi::finding::{Finding, Owner};
use instar_abi::problem::{Problem, Severity};
use instar_abi::summary::{Outcome, Summary};
use instar_mount::image::Backend;
use instar_mount::sandbox::observer::Observer;
use instar_qcow2::check;
use parking_lot::RwLock;

use crate::native::{self, Files, Hollow, NativeHost};

/// The memory that a check has unless a test says otherwise.
pub const MEMORY: usize = 64 << 20;

/// A file in memory.
#[derive(Debug)]
pub struct Memory(pub RwLock<Vec<u8>>);

impl Memory {
    /// A file of these bytes.
    pub fn new(bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Self(RwLock::new(bytes)))
    }
}

impl Backend for Memory {
    fn len(&self) -> u64 {
        self.0.read().len() as u64
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let bytes = self.0.read();
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let from = bytes.get(start..start + into.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        into.copy_from_slice(from);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut all = self.0.write();
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let end = start + bytes.len();
        if all.len() < end {
            all.resize(end, 0);
        }
        all[start..end].copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.write().resize(usize::try_from(len).map_err(io::Error::other)?, 0);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// All that a check said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    pub summary: Summary,
    pub findings: Vec<Finding>,
    pub owners: Vec<Owner>,
}

#[derive(Default)]
struct Kept {
    findings: Vec<Finding>,
    owners: Vec<Owner>,
}

impl Observer for Kept {
    fn finding(&mut self, problem: Problem, finding: &Finding) {
        assert_eq!(problem as u32, finding.problem);
        self.findings.push(*finding);
    }

    fn owner(&mut self, owner: &Owner) {
        self.owners.push(*owner);
    }
}

impl Checked {
    /// Checks with a memory budget.
    pub fn with_memory(files: &Files, memory_bytes: usize) -> Self {
        Self::with(files, memory_bytes, &check::Options::default())
    }

    /// Checks, and inflates every compressed cluster.
    pub fn deep(files: &Files) -> Self {
        Self::with(files, MEMORY, &check::Options { deep: true, ..check::Options::default() })
    }

    fn with(files: &Files, memory_bytes: usize, options: &check::Options) -> Self {
        let mut kept = Kept::default();
        let summary = {
            let mut host = NativeHost::new(files.clone(), &mut kept).with_memory(memory_bytes);
            check::run(&mut host, options)
        };
        assert_eq!(summary.findings, kept.findings.len() as u64, "the summary counts all findings");
        Self { summary, findings: kept.findings, owners: kept.owners }
    }

    /// Checks.
    pub fn of(files: &Files) -> Self {
        Self::with_memory(files, MEMORY)
    }

    /// Everything was looked at and nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty() && self.summary.outcome == Outcome::Complete as u32
    }

    /// The exit code of a check: 0, 2, 3 or 63.
    pub fn exit(&self) -> i32 {
        match Outcome::from_u32(self.summary.outcome) {
            Some(Outcome::Unsupported | Outcome::NotQcow2) => return 63,
            Some(Outcome::Complete) => {}
            Some(Outcome::Incomplete) | None => return 2,
        }
        match self.findings.iter().map(|finding| row(finding).severity).max() {
            None => 0,
            Some(Severity::Leak) => 3,
            Some(Severity::Corruption | Severity::Fatal) => 2,
        }
    }

    /// The ids of all findings, each once.
    pub fn ids(&self) -> Vec<&'static str> {
        let mut ids: Vec<_> = self.findings.iter().map(|finding| row(finding).id).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

fn row(finding: &Finding) -> &'static instar_abi::problem::Row {
    Problem::from_u32(finding.problem).expect("a known problem").row()
}

/// The files of a job on an image in memory, and a data file of so many bytes.
pub fn files(image: &Arc<Memory>, data_file_bytes: Option<u64>) -> Files {
    let mut files = native::files(Arc::<Memory>::clone(image));
    let slot = usize::try_from(FILE_DATA).expect("a small index");
    files[slot] = data_file_bytes.map(|bytes| -> Arc<dyn Backend> { Arc::new(Hollow(bytes)) });
    files
}
