//! One run of fio on one file, and what came of it.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::tools;

/// Seconds of a run that reads the same again and again, and most seconds of one that reads everything once.
const RUN_SECONDS: u32 = 2;
const ONCE_SECONDS_MAX: u32 = 6;

/// What is read, and how.
#[derive(Debug, Clone, Copy)]
pub struct Line {
    /// What it is called.
    pub name: &'static str,
    /// fio's own name of the order of reads.
    pub order: &'static str,
    /// Bytes of a read, as fio writes them.
    pub block: &'static str,
    /// Past the page cache of the mount.
    pub is_direct: bool,
    /// Reads under way at once, of each job.
    pub depth: u32,
    /// Processes.
    pub jobs: u32,
    /// Bytes of the disk that are read, from its start on.
    pub span_bytes: u64,
    /// The image is not in the page cache when the run begins.
    pub is_cold: bool,
}

/// What a run came to.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// Bytes per second.
    pub rate: f64,
    /// Reads.
    pub reads: f64,
}

/// Reads `file` as `line` says. Nothing of the file is in the mount's own page cache at the beginning, and nothing is
/// read twice through it.
pub fn run(line: &Line, file: &Path) -> Run {
    let mut command = Command::new("fio");
    let engine = if line.depth > 1 { "libaio" } else { "psync" };
    command.args([
        "--name=reads",
        "--readonly",
        "--output-format=json",
        "--group_reporting",
        "--invalidate=1",
    ]);
    command.args([format!("--rw={}", line.order), format!("--bs={}", line.block)]);
    command.args([format!("--ioengine={engine}"), format!("--iodepth={}", line.depth)]);
    command.args([format!("--numjobs={}", line.jobs), format!("--size={}", line.span_bytes)]);
    if line.is_direct {
        command.args(["--direct=1", "--time_based"]).arg(format!("--runtime={RUN_SECONDS}"));
    } else {
        command.arg(format!("--runtime={ONCE_SECONDS_MAX}"));
    }
    command.arg(format!("--filename={}", file.display()));
    let output = tools::must(&mut command);
    let told: Value = serde_json::from_slice(&output.stdout).expect("fio prints JSON");
    let read = &told["jobs"][0]["read"];
    let field = |name: &str| read[name].as_f64().unwrap_or_else(|| panic!("fio tells {name}: {read}"));
    Run { rate: field("bw_bytes"), reads: field("total_ios") }
}
