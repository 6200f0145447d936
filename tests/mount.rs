//! `instar-mount` as a user runs it: to the background and back, its ends, its refusals.
#![allow(clippy::print_stderr, reason = "skips are printed")]

mod support;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use support::damage::recipe;
use support::image::{self, Flavour, TestImage};
use support::tools::{self, code, must, stderr};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_instar-mount");
/// Longer than any step here takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// An image, an empty mount point, and the promise that nothing stays mounted.
struct Scene {
    folder: TempDir,
    image: PathBuf,
}

impl Scene {
    /// 64 MiB: 1 MiB of ones, a MiB of twos at 32 MiB, holes elsewhere.
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let image = folder.path().join("disk.qcow2");
        tools::make_disk(&image, ["write -q -P 1 0 1M", "write -q -P 2 32M 1M"]);
        Self::with(folder, image)
    }

    fn with(folder: TempDir, image: PathBuf) -> Self {
        fs::create_dir(folder.path().join("mnt")).expect("an empty folder");
        Self { folder, image }
    }

    fn point(&self) -> PathBuf {
        self.folder.path().join("mnt")
    }

    fn raw(&self) -> PathBuf {
        self.point().join("disk.raw")
    }

    fn command(&self) -> Command {
        let mut command = Command::new(PROGRAM);
        command.arg(&self.image).arg(self.point());
        command
    }

    /// Mounts in the background.
    fn mount(&self) -> Output {
        let output = must(&mut self.command());
        assert!(is_mounted(&self.point()), "{}", stderr(&output));
        output
    }

    /// Mounts in the foreground, and waits until it is there.
    fn serve(&self) -> Child {
        let child = self.command().arg("-f").stderr(Stdio::piped()).spawn().expect("the program starts");
        wait_until("the mount is there", || is_mounted(&self.point()));
        child
    }

    fn unmount(&self) {
        // The server looks at its own mount once before it goes on; a mount that is looked at is in use.
        wait_until("the mount can be unmounted", || {
            tools::run(Command::new("fusermount3").arg("-u").arg(self.point())).status.success()
        });
    }

    /// The process that serves the mount point in the background.
    fn server(&self) -> Pid {
        self.process(b"--background-server").expect("a process serves the mount")
    }

    /// The process whose command line names the mount point and has `word` in it.
    fn process(&self, word: &[u8]) -> Option<Pid> {
        let point = self.point();
        let point = point.as_os_str().as_encoded_bytes();
        let has = |line: &[u8], word: &[u8]| line.windows(word.len()).any(|part| part == word);
        let ours = |pid: &Pid| {
            let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
            has(&line, word) && has(&line, point)
        };
        fs::read_dir("/proc")
            .expect("a /proc")
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter_map(Pid::from_raw)
            .find(ours)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // What a failed test has left; nothing is there otherwise.
        if is_mounted(&self.point()) {
            drop(tools::run(Command::new("fusermount3").arg("-uz").arg(self.point())));
        }
    }
}

fn is_mounted(point: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("a list of mounts");
    mounts.lines().any(|line| line.split(' ').nth(1).map(Path::new) == Some(point))
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn is_alive(pid: Pid) -> bool {
    // A zombie has no command line.
    fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).is_ok_and(|line| !line.is_empty())
}

fn send(pid: Pid, signal: Signal) {
    kill_process(pid, signal).expect("the process is there");
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}

fn byte_at(path: &Path, offset: u64) -> std::io::Result<u8> {
    let mut byte = [0];
    File::open(path)?.read_exact_at(&mut byte, offset)?;
    Ok(byte[0])
}

/// Held by a test that mounts. A program that another test starts meanwhile would have this one's open files until
/// its exec, and a mount with an open file cannot be unmounted.
static ALONE: Mutex<()> = Mutex::new(());

macro_rules! need_mounts {
    () => {
        need!(tools::fuse(), tools::qemu(), tools::program("fusermount3"));
        let _alone = ALONE.lock();
    };
}

#[test]
fn mount_in_the_background_serves_the_disk_and_ends_with_fusermount() {
    need_mounts!();
    let scene = Scene::new();
    let said = tools::ensure_untouched(&[&scene.image], || {
        let output = scene.mount();
        let raw = fs::read(scene.raw()).expect("the disk is read");
        assert_eq!((raw.len(), raw[0], raw[1 << 20], raw[32 << 20]), (64 << 20, 1, 0, 2));
        let report = fs::read(scene.point().join(".instar/report.json")).expect("the report is read");
        let report: serde_json::Value = serde_json::from_slice(&report).expect("the report is JSON");
        assert_eq!(report["verdict"], "consistent");
        let health = fs::read(scene.point().join(".instar/health")).expect("the health is read");
        let health: serde_json::Value = serde_json::from_slice(&health).expect("the health is JSON");
        assert_eq!(health["damaged-reads"], 0);
        let server = scene.server();
        scene.unmount();
        wait_until("the server ends", || !is_alive(server));
        stderr(&output)
    });
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("consistent") && said.contains("disk.raw"), "{said}");
}

#[test]
fn mount_with_either_cage_reads_the_same() {
    need_mounts!();
    for cage in ["kvm", "process"] {
        if cage == "kvm" && tools::kvm().is_err() {
            eprintln!("skipped: kvm cage: no /dev/kvm");
            continue;
        }
        let scene = Scene::new();
        must(scene.command().arg(format!("--sandbox={cage}")));
        assert_eq!(byte_at(&scene.raw(), 32 << 20).expect("the disk is read"), 2);
        scene.unmount();
    }
}

/// Waits for the end of a program, which says why where it is not a good one.
fn assert_ends_well(child: Child) {
    let output = child.wait_with_output().expect("the program ends");
    assert_eq!(output.status.code(), Some(0), "{}", tools::stderr(&output));
}

#[test]
fn mount_in_the_foreground_ends_with_fusermount_and_exit_code_0() {
    need_mounts!();
    let scene = Scene::new();
    let child = scene.serve();
    scene.unmount();
    assert_ends_well(child);
}

#[test]
fn signals_unmount() {
    need_mounts!();
    for signal in [Signal::TERM, Signal::INT] {
        let scene = Scene::new();
        let child = scene.serve();
        send(pid_of(&child), signal);
        assert_ends_well(child);
        assert!(!is_mounted(&scene.point()), "{signal:?}");
    }
    let scene = Scene::new();
    scene.mount();
    let server = scene.server();
    send(server, Signal::TERM);
    wait_until("the server ends", || !is_alive(server));
    assert!(!is_mounted(&scene.point()));
}

#[test]
fn signal_to_a_mount_in_use_detaches_it_and_serves_its_last_user() {
    need_mounts!();
    let scene = Scene::new();
    scene.mount();
    let server = scene.server();
    let file = File::open(scene.raw()).expect("the disk is opened");
    send(server, Signal::TERM);
    wait_until("the mount is gone from its place", || !is_mounted(&scene.point()));
    let mut byte = [0];
    file.read_exact_at(&mut byte, 32 << 20).expect("the last user still reads");
    assert_eq!(byte, [2]);
    assert!(is_alive(server));
    drop(file);
    wait_until("the server ends", || !is_alive(server));
}

#[test]
fn killed_server_leaves_no_dead_mount() {
    need_mounts!();
    need!(tools::root());
    let scene = Scene::new();
    // The order in which a killed process lets go of its files is not the same each time.
    for _ in 0..12 {
        scene.mount();
        send(scene.server(), Signal::KILL);
        wait_until("the mount is gone", || !is_mounted(&scene.point()));
    }
    scene.mount();
    scene.unmount();
}

/// A mount that nobody unmounts when its server is killed, made by killing the keeper first.
#[test]
fn dead_mount_is_told_apart_and_can_be_released() {
    need_mounts!();
    need!(tools::root());
    let scene = Scene::new();
    scene.mount();
    assert!(fs::metadata(scene.point()).is_ok(), "the kernel remembers the root's attributes");
    let keeper = scene.process(b"--mount-keeper").expect("a keeper waits for the server's end");
    send(keeper, Signal::KILL);
    send(scene.server(), Signal::KILL);
    wait_until("the server is gone", || {
        fs::File::open(scene.point().join("none"))
            .is_err_and(|error| error.raw_os_error() == Some(libc::ENOTCONN))
    });
    let output = tools::run(&mut scene.command());
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("whose server is gone"), "{}", stderr(&output));
    scene.unmount();
    scene.mount();
    scene.unmount();
}

#[test]
fn mount_on_a_file_covers_it() {
    need_mounts!();
    let scene = Scene::new();
    let point = scene.folder.path().join("disk.img");
    fs::write(&point, b"covered").expect("a file");
    must(Command::new(PROGRAM).arg(&scene.image).arg(&point));
    assert_eq!(byte_at(&point, 32 << 20).expect("the disk is read"), 2);
    must(Command::new("fusermount3").arg("-u").arg(&point));
    assert_eq!(fs::read(&point).expect("the file is back"), b"covered");
}

#[test]
fn mount_points_that_are_none_are_refused() {
    need_mounts!();
    let scene = Scene::new();
    fs::write(scene.folder.path().join("mnt/something"), b"x").expect("a file");
    let point = scene.point();
    let missing = scene.folder.path().join("missing");
    for (point, says) in [
        (missing.as_path(), "does not exist"),
        (point.as_path(), "not empty: something"),
        (Path::new("/dev/null"), "neither a folder nor a regular file"),
        (Path::new("/proc"), "a mount point already"),
        (scene.image.as_path(), "the image itself"),
    ] {
        let output = tools::ensure_untouched(&[&scene.image], || {
            tools::run(Command::new(PROGRAM).arg(&scene.image).arg(point))
        });
        assert_eq!(code(&output), 1, "{}", point.display());
        assert!(stderr(&output).contains(says), "{}: {}", point.display(), stderr(&output));
    }
}

#[test]
fn mount_on_a_mount_is_refused() {
    need_mounts!();
    let scene = Scene::new();
    scene.mount();
    let output = tools::run(&mut scene.command());
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("a mount point already"), "{}", stderr(&output));
    scene.unmount();
}

#[test]
fn files_that_are_no_images_are_refused_with_their_exit_codes() {
    need_mounts!();
    let scene = Scene::new();
    let file = |name: &str, bytes: &[u8]| {
        let path = scene.folder.path().join(name);
        fs::write(&path, bytes).expect("a file");
        path
    };
    let whole = fs::read(&scene.image).expect("the image");
    for (image, exit) in [
        (scene.folder.path().join("missing.qcow2"), 1),
        (scene.folder.path().to_owned(), 1),
        (file("empty.qcow2", b""), 1),
        (file("raw.img", &[7; 4096]), 63),
        (file("disk.vmdk", b"KDMV\x01\x00\x00\x00"), 63),
        (file("cut.qcow2", &whole[..60]), 2),
    ] {
        let output = tools::run(Command::new(PROGRAM).arg(&image).arg(scene.point()));
        assert_eq!(code(&output), exit, "{}: {}", image.display(), stderr(&output));
        assert!(!stderr(&output).is_empty(), "{}", image.display());
        assert!(!is_mounted(&scene.point()));
    }
}

#[test]
fn unknown_option_value_ends_with_the_tools_own_exit_code() {
    let _alone = ALONE.lock();
    let output = tools::run(Command::new(PROGRAM).args(["--sandbox=moon", "image", "mnt"]));
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("moon"), "{}", stderr(&output));
}

#[test]
fn image_in_use_is_refused_and_a_mounted_one_is_locked() {
    need_mounts!();
    let scene = Scene::new();
    let mut writer = Command::new("qemu-io")
        .args(["-f", "qcow2"])
        .arg(&scene.image)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("qemu-io starts");
    // Its prompt says that it has opened the image.
    let mut prompt = [0; 8];
    writer.stdout.as_mut().expect("a pipe").read_exact(&mut prompt).expect("a prompt");
    let output = tools::run(&mut scene.command());
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("in use"), "{}", stderr(&output));
    drop(writer.stdin.take());
    writer.wait().expect("qemu-io ends");
    scene.mount();
    let write = tools::run(tools::qemu_io("qcow2", ["write 0 512"]).arg(&scene.image));
    assert_ne!(code(&write), 0, "qemu writes to a mounted image");
    scene.unmount();
}

#[test]
fn damaged_image_is_mounted_and_read_round_the_damage() {
    need_mounts!();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let damaged = recipe("l2-entry-past-eof").make(folder.path());
    let scene = Scene::with(folder, damaged.path.clone());
    let output = tools::ensure_untouched(&[&scene.image], || must(&mut scene.command()));
    assert!(stderr(&output).contains("corruption"), "{}", stderr(&output));
    let raw = scene.point().join("l2-entry-past-eof.raw");
    let (mut read, mut failed) = (0, 0);
    for &index in damaged.model.keys() {
        match byte_at(&raw, index * damaged.cluster_bytes) {
            Ok(_) => read += 1,
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EIO), "cluster {index}");
                failed += 1;
            }
        }
    }
    assert_eq!(failed, 1, "{read} clusters were read");
    let health = fs::read_to_string(scene.point().join(".instar/health")).expect("the health is read");
    assert!(!health.contains("\"damaged-reads\": 0"), "{health}");
    scene.unmount();
}

#[test]
fn image_without_its_l1_table_is_not_mounted() {
    need_mounts!();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let damaged = recipe("header-l1-offset").make(folder.path());
    let scene = Scene::with(folder, damaged.path);
    let output = tools::run(&mut scene.command());
    assert_eq!(code(&output), 2, "{}", stderr(&output));
    assert!(stderr(&output).contains("header-l1-offset"), "{}", stderr(&output));
    assert!(!is_mounted(&scene.point()));
}

#[test]
fn image_with_a_backing_file_is_refused_by_name() {
    need_mounts!();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let overlay = image::make(folder.path(), "overlay", Flavour::Backing, 65_536);
    let scene = Scene::with(folder, overlay.path);
    let output = tools::run(&mut scene.command());
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("backing file"), "{}", stderr(&output));
    assert!(!is_mounted(&scene.point()));
}

#[test]
fn quiet_mount_of_a_consistent_image_says_nothing() {
    need_mounts!();
    let scene = Scene::new();
    let output = must(scene.command().arg("--quiet"));
    assert_eq!(stderr(&output), "");
    scene.unmount();
}

#[test]
fn leaks_are_repaired_before_the_mount_and_every_guest_byte_stays() {
    need_mounts!();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let leaky = recipe("refcount-leak-one").make(folder.path());
    assert_eq!(leaky.qemu_check(), 3, "the recipe leaks");
    let scene = Scene::with(folder, leaky.path.clone());
    let preview = tools::ensure_untouched(&[&scene.image], || {
        let output = must(scene.command().args(["--repair=leaks", "--preview"]));
        assert_eq!(byte_at(&scene.point().join("refcount-leak-one.raw"), 0).expect("the disk is read"), b'I');
        scene.unmount();
        output
    });
    assert!(stderr(&preview).contains("leak"), "{}", stderr(&preview));
    let output = must(scene.command().arg("--repair=leaks"));
    assert!(stderr(&output).contains("repaired"), "{}", stderr(&output));
    scene.unmount();
    assert_eq!(leaky.qemu_check(), 0);
    leaky.assert_guest_intact();
}

#[test]
fn corruptions_are_served_repaired_in_a_preview_and_repaired_before_a_mount() {
    need_mounts!();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let corrupt = recipe("refcount-too-low").make(folder.path());
    assert_eq!(corrupt.qemu_check(), 2, "the recipe corrupts");
    let scene = Scene::with(folder, corrupt.path.clone());
    let preview = tools::ensure_untouched(&[&scene.image], || {
        let output = must(scene.command().args(["--repair=all", "--preview"]));
        assert_eq!(byte_at(&scene.point().join("refcount-too-low.raw"), 0).expect("the disk is read"), b'I');
        let report = fs::read_to_string(scene.point().join(".instar/report.json")).expect("a report");
        assert!(report.contains("\"ending\": \"previewed\""), "{report}");
        scene.unmount();
        output
    });
    for words in ["corruption", "shown as the repair would leave it, nothing was written"] {
        assert!(stderr(&preview).contains(words), "{}", stderr(&preview));
    }
    let output = must(scene.command().arg("--repair=all"));
    assert!(stderr(&output).contains("repaired"), "{}", stderr(&output));
    scene.unmount();
    assert_eq!(corrupt.qemu_check(), 0);
    corrupt.assert_guest_intact();
}

#[test]
fn repair_that_makes_the_file_longer_is_served_to_its_new_end() {
    need_mounts!();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shared = recipe("l2-entry-shared").make(folder.path());
    let before = fs::metadata(&shared.path).expect("the image").len();
    let scene = Scene::with(folder, shared.path.clone());
    let decided = ["--repair=all", "--decide=orphan-data=free", "--decide=orphan-table=free"];
    must(scene.command().args(decided));
    assert!(fs::metadata(&scene.image).expect("the image").len() > before, "the repair copies a cluster");
    let disk = File::open(scene.point().join("l2-entry-shared.raw")).expect("the disk is opened");
    let clusters: Vec<Vec<u8>> =
        shared.model.keys().map(|index| cluster_of(&disk, &shared, *index)).collect();
    drop(disk);
    scene.unmount();
    let guest = scene.folder.path().join("guest.raw");
    must(tools::qemu_img(["convert", "-f", "qcow2", "-O", "raw"]).arg(&scene.image).arg(&guest));
    let guest = File::open(guest).expect("qemu-img has written it");
    for (index, cluster) in shared.model.keys().zip(clusters) {
        assert!(
            cluster_of(&guest, &shared, *index) == cluster,
            "guest cluster {index}: qemu reads another one"
        );
    }
}

fn cluster_of(disk: &File, image: &TestImage, index: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(image.cluster_bytes).expect("clusters fit memory")];
    disk.read_exact_at(&mut bytes, index * image.cluster_bytes).expect("all of the disk is read");
    bytes
}
