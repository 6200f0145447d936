//! A server of one disk, as a process with a mount.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::passthrough;
use crate::support::tools;

/// Microseconds of one tick of the processor accounts; the same on every x86-64 Linux.
const TICK_US: f64 = 10_000.0;
/// How long a server may take to answer, and to end.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often is looked whether it did.
const LOOK: Duration = Duration::from_micros(500);

/// Who serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The program under test, through `/dev/fuse`.
    Ours,
    /// The same through rings.
    OursWithRings,
    /// QEMU's own daemon.
    Qemu,
    /// The bare server of the raw file.
    Passthrough,
}

/// See the module's documentation. Dropping it unmounts.
#[derive(Debug)]
pub struct Contestant {
    /// Who it is.
    pub kind: Kind,
    /// The file below the mount.
    below: PathBuf,
    point: tempfile::TempPath,
    process: Child,
    /// From the start of the process to the first byte.
    pub first_byte: Duration,
}

impl Kind {
    /// What it is called in print.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ours => "instar-mount",
            Self::OursWithRings => "instar-mount, rings",
            Self::Qemu => "qemu-storage-daemon",
            Self::Passthrough => "passthrough of raw",
        }
    }

    /// Whether it is a program of this project's.
    pub const fn is_ours(self) -> bool {
        matches!(self, Self::Ours | Self::OursWithRings)
    }

    fn ours(transport: &str, below: &str, point: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_instar-mount"));
        command.args(["--foreground", "--quiet", "--transport", transport, below, point]);
        command
    }

    fn command(self, below: &Path, point: &Path) -> Command {
        let (below, point) = (below.display(), point.display());
        let of = |program: &str, arguments: &[String]| {
            let mut command = Command::new(program);
            command.args(arguments);
            command
        };
        match self {
            Self::Ours => Self::ours("fuse", &below.to_string(), &point.to_string()),
            Self::OursWithRings => Self::ours("uring", &below.to_string(), &point.to_string()),
            Self::Qemu => of(
                "qemu-storage-daemon",
                &[
                    "--blockdev".into(),
                    format!("driver=file,node-name=file,filename={below},read-only=on"),
                    "--blockdev".into(),
                    "driver=qcow2,node-name=disk,file=file,read-only=on".into(),
                    "--export".into(),
                    format!("type=fuse,id=export,node-name=disk,mountpoint={point},writable=off"),
                ],
            ),
            Self::Passthrough => {
                let own = std::env::current_exe().expect("this program has a path");
                of(
                    &own.to_string_lossy(),
                    &[passthrough::OPTION.into(), below.to_string(), point.to_string()],
                )
            }
        }
    }
}

impl Contestant {
    /// Starts the server of `below` and waits for the first byte of the disk, which is `disk_bytes` long.
    pub fn start(kind: Kind, below: &Path, disk_bytes: u64) -> Self {
        let point = tempfile::NamedTempFile::new().expect("a temporary file").into_temp_path();
        let mut command = kind.command(below, &point);
        let began = Instant::now();
        let process = command.stdin(Stdio::null()).spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let answers = || {
            let is_mounted = fs::metadata(&point).is_ok_and(|found| found.len() == disk_bytes);
            is_mounted && File::open(&point).is_ok_and(|disk| disk.read_exact_at(&mut [0], 0).is_ok())
        };
        wait(&answers, &format!("{command:?} to answer"));
        let first_byte = began.elapsed();
        Self { kind, below: below.to_owned(), point, process, first_byte }
    }

    /// The disk.
    pub fn disk(&self) -> &Path {
        &self.point
    }

    /// Leaves nothing of the file below in the page cache.
    pub fn cool(&self) {
        tools::must(Command::new("sync").arg(&self.below));
        let file = File::open(&self.below).expect("the file below opens");
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("the hint is taken");
    }

    /// Has all of the file below in the page cache.
    pub fn warm(&self) {
        let mut file = File::open(&self.below).expect("the file below opens");
        let mut block = vec![0; 1 << 20];
        while file.read(&mut block).expect("the file below reads") > 0 {}
    }

    /// Microseconds of processor time so far, of all threads.
    pub fn processor_us(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.id())).expect("the server lives");
        let (_, fields) = stat.rsplit_once(')').expect("the name ends");
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let ticks = |at: usize| fields[at].parse::<f64>().expect("ticks are a number");
        (ticks(11) + ticks(12)) * TICK_US
    }

    /// KiB of memory that the server holds now.
    pub fn resident_kib(&self) -> u64 {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.process.id())).expect("the server lives");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("there is such a line");
        line.trim().trim_end_matches(" kB").parse().expect("KiB are a number")
    }
}

impl Drop for Contestant {
    fn drop(&mut self) {
        if self.kind == Kind::Qemu {
            let process = Pid::from_child(&self.process);
            kill_process(process, Signal::TERM).expect("the server lives");
        } else {
            tools::must(Command::new("umount").arg(&*self.point));
        }
        let began = Instant::now();
        while self.process.try_wait().expect("the server is our child").is_none() {
            if began.elapsed() > PATIENCE {
                self.process.kill().expect("the server lives");
            }
            std::thread::sleep(LOOK);
        }
    }
}

fn wait(is_so: &dyn Fn() -> bool, what: &str) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(LOOK);
    }
}
