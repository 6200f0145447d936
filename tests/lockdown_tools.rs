//! A command that looks at an image has given up what it does not need before the first job begins, seen from outside:
//! it stands still in the middle of a job, because who listens to its progress does not read.
#![allow(clippy::print_stderr, reason = "skips are printed")]

mod support;

use std::fs;
use std::io::{ErrorKind, PipeReader, PipeWriter, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::damage::recipe;
use support::image::TestImage;
use support::program::{cages, instar};
use support::tools;

/// Longer than any step here takes.
const PATIENCE: Duration = Duration::from_secs(20);
/// The capabilities by which root reads, and writes, the files of others.
const FILES_OF_OTHERS: &str = "0000000000000006";
const NONE: &str = "0000000000000000";

/// A pipe that takes no byte any more.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    rustix::io::ioctl_fionbio(&writer, true).expect("a pipe can be made not to wait");
    for size in [4096, 1] {
        while match writer.write(&vec![b'x'; size]) {
            Ok(_) => true,
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            Err(error) => panic!("{error}"),
        } {}
    }
    (reader, writer)
}

/// A command that stands still in its first job.
struct Standing {
    child: Child,
    _reader: PipeReader,
}

impl Standing {
    fn new(command: &mut Command, image: &TestImage) -> Self {
        let (reader, writer) = full_pipe();
        command.arg("--progress-fd=2").arg(&image.path).stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.stderr(writer).spawn().expect("the program starts");
        let standing = Self { child, _reader: reader };
        let start = Instant::now();
        while standing.of("instar-job").is_none_or(|status| field(&status, "Seccomp_filters") != "3") {
            assert!(start.elapsed() < PATIENCE, "{:?}", standing.threads());
            std::thread::sleep(Duration::from_millis(5));
        }
        standing
    }

    /// The statuses of its threads.
    fn threads(&self) -> Vec<String> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("threads").flatten();
        tasks.filter_map(|task| fs::read_to_string(task.path().join("status")).ok()).collect()
    }

    /// The status of a thread.
    fn of(&self, name: &str) -> Option<String> {
        self.threads().into_iter().find(|status| field(status, "Name") == name)
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        self.child.kill().and_then(|()| self.child.wait()).expect("the program is there");
    }
}

/// A field of a thread's status.
fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
}

fn assert_given_up(status: &str, capabilities: &str, filters: &str) {
    assert_eq!(field(status, "NoNewPrivs"), "1");
    assert_eq!(field(status, "Seccomp"), "2");
    assert_eq!(field(status, "Seccomp_filters"), filters);
    for set in ["CapPrm", "CapEff"] {
        assert_eq!(field(status, set), capabilities, "{set}");
    }
    for set in ["CapInh", "CapAmb", "CapBnd"] {
        assert_eq!(field(status, set), NONE, "{set}");
    }
}

#[test]
fn command_has_given_up_its_rights_before_a_job_looks_at_the_image() {
    need!(tools::qemu(), tools::root());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let image = recipe("refcount-leak-run").make(folder.path());
    for cage in cages() {
        for (options, capabilities) in [(&["check"][..], NONE), (&["check", "--repair=all"], FILES_OF_OTHERS)]
        {
            let standing =
                Standing::new(instar(options).args(["--state-dir=none", "--sandbox", cage]), &image);
            // The kernel's own worker for a virtual machine is shown among the threads of who made it.
            let is_known = |name: &str| ["instar", "instar-job"].contains(&name) || name.starts_with("kvm-");
            assert!(standing.threads().iter().all(|status| is_known(&field(status, "Name"))));
            assert_given_up(&standing.of("instar").expect("a first thread"), capabilities, "2");
            assert_given_up(&standing.of("instar-job").expect("a job's thread"), NONE, "3");
            let limits = fs::read_to_string(format!("/proc/{}/limits", standing.child.id())).expect("limits");
            let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a limit");
            assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"]);
        }
    }
}
