//! A server that serves has given up what it does not need, seen from outside; and an ordinary user's mount works
//! from begin to end, with a program that unmounts for a server that no longer can.
#![allow(clippy::print_stderr, reason = "skips are printed")]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use support::mount::Mount;
use support::program::cages;
use support::tools::{self, must};
use tempfile::TempDir;

/// Longer than any step here takes.
const PATIENCE: Duration = Duration::from_secs(20);
/// The user and the group called nobody and nogroup on Debian; any that are not root's would do.
const NOBODY: u32 = 65534;

/// An image of 16 MiB whose first MiB is ones.
fn image(folder: &Path) -> PathBuf {
    let image = folder.join("disk.qcow2");
    must(tools::qemu_img(["create", "-q", "-f", "qcow2"]).arg(&image).arg("16M"));
    must(tools::qemu_io("qcow2", ["write -q -P 1 0 1M"]).arg(&image));
    image
}

/// The process whose command line has both words.
fn process(word: &str, point: &Path) -> Option<Pid> {
    let point = point.as_os_str().as_encoded_bytes();
    let has = |line: &[u8], word: &[u8]| line.windows(word.len()).any(|part| part == word);
    let pids = fs::read_dir("/proc").expect("a /proc").flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(Pid::from_raw).find(|pid| {
        let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
        has(&line, word.as_bytes()) && has(&line, point)
    })
}

fn server(point: &Path) -> Pid {
    process("--background-server", point).expect("a process serves the mount")
}

/// A field of a thread's status.
fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
}

/// Name and status of each thread.
fn threads(pid: Pid) -> Vec<(String, String)> {
    let tasks = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())).expect("threads").flatten();
    let statuses = tasks.map(|task| fs::read_to_string(task.path().join("status")).expect("a status"));
    statuses.map(|status| (field(&status, "Name"), status)).collect()
}

/// The server tells that the mount answers a moment before it filters itself.
fn wait_for_the_filter(pid: Pid) {
    let start = Instant::now();
    while threads(pid).iter().any(|(_, status)| field(status, "Seccomp") != "2") {
        assert!(start.elapsed() < PATIENCE, "{:?}", threads(pid));
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn assert_locked_down(pid: Pid) {
    let threads = threads(pid);
    assert!(threads.len() >= 3, "{threads:?}");
    for (name, status) in threads {
        assert_eq!(field(&status, "NoNewPrivs"), "1", "{name}");
        assert_eq!(field(&status, "Seccomp"), "2", "{name}");
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(field(&status, set), "0000000000000000", "{set} of {name}");
        }
        let filters: u32 = field(&status, "Seccomp_filters").parse().expect("a number");
        // The server's two; the cage's thread has one more of its own.
        assert_eq!(filters, if name == "instar-cage" { 3 } else { 2 }, "{name}");
    }
    let limits = fs::read_to_string(format!("/proc/{}/limits", pid.as_raw_nonzero())).expect("limits");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a limit of cores");
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"]);
}

/// What its descriptors lead to, without numbers.
fn descriptors(pid: Pid) -> Vec<String> {
    let open = fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).expect("descriptors").flatten();
    let mut targets: Vec<String> = open
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .map(|target| target.to_string_lossy().split(":[").next().unwrap_or_default().to_owned())
        .collect();
    targets.sort();
    targets.dedup();
    targets
}

#[test]
fn server_has_given_up_all_rights_and_descriptors_that_it_does_not_need() {
    need!(tools::fuse(), tools::qemu(), tools::program("fusermount3"), tools::root());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let image = image(folder.path());
    for cage in cages() {
        let mount = Mount::new(&image, ["--sandbox", cage]);
        let pid = server(mount.point());
        wait_for_the_filter(pid);
        assert_eq!(fs::read(mount.raw()).expect("the disk can be read").len(), 16 << 20);
        assert_locked_down(pid);
        let disk = image.to_str().expect("a plain name");
        let known = |target: &String| {
            // Without a name of its own: a ring, and the bell of a ring.
            let anonymous = "anon_inode";
            let known = [
                "/dev/null",
                "/dev/fuse",
                "/dev/kvm",
                "anon_inode:kvm-vm",
                anonymous,
                "pipe",
                "socket",
                disk,
            ];
            known.contains(&target.as_str())
                || target.starts_with("anon_inode:kvm-vcpu")
                || (cage == "process" && target.starts_with("/memfd:instar-"))
        };
        let open = descriptors(pid);
        assert!(open.iter().all(known), "{open:?}");
    }
}

/// What ordinary users have: no rights, fusermount3, and /dev/kvm through its group where it lets that in.
struct Ordinary {
    folder: TempDir,
    program: PathBuf,
}

impl Ordinary {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let program = folder.path().join("instar-mount");
        fs::copy(env!("CARGO_BIN_EXE_instar-mount"), &program).expect("a program that everybody may run");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("its permissions");
        fs::create_dir(folder.path().join("mnt")).expect("a mount point");
        let own = [folder.path().to_owned(), folder.path().join("mnt"), image(folder.path())];
        for path in own {
            chown(path, Some(NOBODY), Some(NOBODY)).expect("root may give files away");
        }
        Self { folder, program }
    }

    fn point(&self) -> PathBuf {
        self.folder.path().join("mnt")
    }

    /// A command as this user.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let groups = match fs::metadata("/dev/kvm") {
            Ok(kvm) if kvm.mode() & 0o060 == 0o060 => vec![format!("--groups={}", kvm.gid())],
            _ => vec!["--clear-groups".to_owned()],
        };
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--inh-caps=-all"]).args(groups).arg("--");
        command.arg(program).env("HOME", self.folder.path()).current_dir(self.folder.path());
        command
    }

    fn mount(&self) -> Pid {
        let image = self.folder.path().join("disk.qcow2");
        must(self.command(&self.program).arg(image).arg(self.point()));
        let pid = server(&self.point());
        wait_for_the_filter(pid);
        must(self.command("cmp").args(["-n", "1048576", "mnt/disk.raw"]).arg(self.ones()));
        pid
    }

    /// A file as the disk's first MiB.
    fn ones(&self) -> PathBuf {
        let ones = self.folder.path().join("ones");
        fs::write(&ones, vec![1; 1 << 20]).expect("a file");
        ones
    }

    fn is_mounted(&self) -> bool {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("a list of mounts");
        mounts.lines().any(|line| line.split(' ').nth(1).map(Path::new) == Some(&self.point()))
    }

    fn wait_for_the_end(&self, pid: Pid) {
        let start = Instant::now();
        let lives = || {
            // A zombie has no command line.
            let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero()));
            line.is_ok_and(|line| !line.is_empty()) || process("--mount-keeper", &self.point()).is_some()
        };
        while self.is_mounted() || lives() {
            assert!(start.elapsed() < PATIENCE, "mount, server or keeper is still there");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Ordinary {
    fn drop(&mut self) {
        // What a failed test has left; nothing is there otherwise.
        if self.is_mounted() {
            drop(tools::run(Command::new("umount").arg("-l").arg(self.point())));
        }
    }
}

#[test]
fn ordinary_user_mounts_reads_and_unmounts_in_every_way() {
    need!(
        tools::fuse(),
        tools::qemu(),
        tools::program("fusermount3"),
        tools::program("setpriv"),
        tools::root()
    );
    let user = Ordinary::new();
    let first = user.mount();
    assert_locked_down(first);
    must(user.command("fusermount3").args(["-u", "mnt"]));
    user.wait_for_the_end(first);
    for signal in [Signal::TERM, Signal::INT, Signal::KILL] {
        let pid = user.mount();
        kill_process(pid, signal).expect("the server is there");
        user.wait_for_the_end(pid);
    }
}
