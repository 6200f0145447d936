//! `instar-mount --exec`: one command with the disk at hand, and nothing mounted afterwards.
#![allow(clippy::print_stderr, reason = "skips are printed")]

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use support::tools;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_instar-mount");
/// Longer than any step here takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// An image of a 64 MiB disk whose first MiB is ones, and a folder for temporary files.
struct Scene {
    folder: TempDir,
    image: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let image = folder.path().join("disk.qcow2");
        tools::make_disk(&image, ["write -q -P 1 0 1M"]);
        fs::create_dir(folder.path().join("tmp")).expect("a new folder");
        Self { folder, image }
    }

    fn command(&self, script: &str) -> Command {
        let mut command = Command::new(PROGRAM);
        command.env("TMPDIR", self.folder.path().join("tmp")).arg("--exec").arg(script).arg(&self.image);
        command
    }

    fn run(&self, script: &str) -> Output {
        tools::run(&mut self.command(script))
    }

    /// Starts a command that says where the disk is before it does the rest of `script`.
    fn start(&self, script: &str) -> (Child, PathBuf) {
        let script = format!("echo \"$INSTAR_DISK\"; {script}");
        let mut child = self.command(&script).stdout(Stdio::piped()).spawn().expect("the program starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("the command says where the disk is");
        (child, PathBuf::from(line.trim_end()))
    }

    /// Nothing is mounted, no folder is left and the image is free.
    fn assert_left_clean(&self) {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("a list of mounts");
        assert!(!mounts.contains(self.folder.path().to_str().expect("a plain name")), "{mounts}");
        let left: Vec<_> = fs::read_dir(self.folder.path().join("tmp")).expect("the folder").collect();
        assert!(left.is_empty(), "{left:?}");
        tools::must(tools::qemu_io("qcow2", ["write -q -P 2 1M 64k"]).arg(&self.image));
    }
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn is_mounted(point: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("a list of mounts");
    mounts.lines().any(|line| line.split(' ').nth(1).map(Path::new) == Some(point))
}

macro_rules! need_mounts {
    () => {
        need!(tools::fuse(), tools::qemu(), tools::program("fusermount3"));
    };
}

#[test]
fn command_has_the_disk_and_its_exit_code_is_the_programs() {
    need_mounts!();
    let scene = Scene::new();
    let output = scene.run(
        "stat -c %s \"$INSTAR_DISK\"; od -An -tu1 -N1 \"$INSTAR_DISK\"; ls -A \"$INSTAR_MOUNT\"; stat -c %a \"$(dirname \"$INSTAR_MOUNT\")\"; exit 7",
    );
    let said = tools::stdout(&output);
    assert_eq!(tools::code(&output), 7, "{}", tools::stderr(&output));
    assert_eq!(said.split_whitespace().take(4).collect::<Vec<_>>(), ["67108864", "1", ".instar", "disk.raw"]);
    scene.assert_left_clean();
}

#[test]
fn command_sees_its_own_arguments_and_the_callers_input() {
    need_mounts!();
    let scene = Scene::new();
    let mut command = Command::new("sh");
    command.env("TMPDIR", scene.folder.path().join("tmp"));
    command.args(["-c", "echo asked | \"$0\" --quiet --exec 'cat; echo \"$A\"' -- \"$1\"", PROGRAM]);
    let output = tools::run(command.env("A", "a 'b' \"c\"").arg(&scene.image));
    assert_eq!((tools::code(&output), tools::stdout(&output)), (0, "asked\na 'b' \"c\"\n".to_owned()));
    assert_eq!(tools::stderr(&output), "");
    scene.assert_left_clean();
}

#[test]
fn command_ended_by_a_signal_gives_128_and_its_number() {
    need_mounts!();
    let scene = Scene::new();
    assert_eq!(tools::code(&scene.run("kill -9 $$")), 137);
    scene.assert_left_clean();
}

#[test]
fn signals_reach_the_command_and_the_disk_is_unmounted() {
    need_mounts!();
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 129)] {
        let scene = Scene::new();
        let (mut child, disk) = scene.start("exec sleep 100");
        assert!(disk.starts_with(scene.folder.path()));
        kill_process(Pid::from_child(&child), signal).expect("the program is there");
        assert_eq!(child.wait().expect("the program ends").code(), Some(code), "{signal:?}");
        scene.assert_left_clean();
    }
}

#[test]
fn killed_caller_leaves_no_mount() {
    need_mounts!();
    let scene = Scene::new();
    let (mut child, disk) = scene.start("exec sleep 3");
    let point = disk.parent().expect("a folder").to_owned();
    assert!(is_mounted(&point));
    child.kill().expect("the program is there");
    child.wait().expect("the program ends");
    wait_until("the mount is gone", || !is_mounted(&point));
}

#[test]
fn disk_that_stays_in_use_is_detached_and_said_so() {
    need_mounts!();
    let scene = Scene::new();
    let output = scene.run("exec 3<\"$INSTAR_DISK\"; sleep 30 >/dev/null 2>&1 & echo $!");
    let sleeper: i32 = tools::stdout(&output).trim().parse().expect("a process");
    let said = tools::stderr(&output);
    kill_process(Pid::from_raw(sleeper).expect("a process"), Signal::KILL).expect("it is there");
    assert_eq!(tools::code(&output), 0, "{said}");
    assert!(said.contains("still uses the disk"), "{said}");
    wait_until("the image is free", || {
        tools::run(tools::qemu_io("qcow2", ["write -q -P 2 1M 64k"]).arg(&scene.image)).status.success()
    });
    scene.assert_left_clean();
}

#[test]
fn mount_point_that_is_given_is_used_and_stays() {
    need_mounts!();
    let scene = Scene::new();
    let file = scene.folder.path().join("disk.img");
    fs::write(&file, b"covered").unwrap();
    let output = tools::must(scene.command("echo \"$INSTAR_DISK\"; stat -c %s \"$INSTAR_DISK\"").arg(&file));
    let canonical = file.canonicalize().unwrap();
    assert_eq!(tools::stdout(&output), format!("{}\n67108864\n", canonical.display()));
    assert_eq!(fs::read(&file).unwrap(), b"covered");
    scene.assert_left_clean();
}

#[test]
fn image_that_cannot_be_mounted_runs_nothing_and_gives_its_own_code() {
    need_mounts!();
    let scene = Scene::new();
    fs::write(&scene.image, [7; 4096]).unwrap();
    let output = scene.run("echo run");
    assert_eq!((tools::code(&output), tools::stdout(&output)), (63, String::new()));
    let left: Vec<_> = fs::read_dir(scene.folder.path().join("tmp")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}
