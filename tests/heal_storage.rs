//! `--repair=all` of the shipped program on real storage that lacks something: space, the right to write, room to
//! grow, or the will to do what it is asked.
//!
//! Where it can be known before, the refusal comes before the first write. Otherwise the image is no worse, and
//! resume and undo finish what was begun once the storage is well again.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a failing helper fails its test")]

mod support;

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use support::damage::recipe;
use support::program::instar;
use support::tools;

/// Needs two fresh clusters and an entry in place.
const GROWS: &str = "refcount-block-missing";
/// Writes in place.
const STAYS: &str = "refcount-too-low";

/// A file system in memory, unmounted when dropped.
struct Small(PathBuf);

impl Small {
    fn at(path: &Path) -> Self {
        std::fs::create_dir(path).unwrap();
        tools::must(
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=64m,mode=700", "tmpfs"]).arg(path),
        );
        Self(path.to_owned())
    }

    fn remount(&self, option: &str) {
        tools::must(Command::new("mount").args(["-o", &format!("remount,{option}")]).arg(&self.0));
    }

    /// Leaves so many bytes free.
    fn fill(&self, free_bytes: u64) {
        let stat = rustix::fs::statvfs(&self.0).unwrap();
        let len = stat.f_bavail * stat.f_frsize - free_bytes;
        std::fs::write(self.0.join("filler"), vec![1; usize::try_from(len).unwrap()]).unwrap();
    }

    fn make_room(&self) {
        std::fs::remove_file(self.0.join("filler")).unwrap();
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        tools::must(Command::new("umount").arg(&self.0));
    }
}

/// A loop device, given back when dropped.
struct Loop(PathBuf);

impl Loop {
    fn over(file: &Path) -> Result<Self, String> {
        let output = tools::run(Command::new("losetup").args(["-f", "--show"]).arg(file));
        match output.status.success() {
            true => Ok(Self(PathBuf::from(tools::stdout(&output).trim()))),
            false => Err(format!("no loop device here: {}", tools::stderr(&output))),
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        tools::must(Command::new("losetup").arg("-d").arg(&self.0));
    }
}

/// A damaged image in a folder, and its bytes.
fn damaged(name: &str, folder: &Path) -> (PathBuf, Vec<u8>) {
    let elsewhere = tempfile::tempdir().unwrap();
    let path = folder.join("disk.qcow2");
    let bytes = std::fs::read(recipe(name).make(elsewhere.path()).path).unwrap();
    std::fs::write(&path, &bytes).unwrap();
    (path, bytes)
}

fn run(arguments: &[&str], image: &Path) -> Output {
    tools::run(instar(arguments).arg(image))
}

fn repair(image: &Path) -> Output {
    run(&["check", "--repair=all", "--sandbox=process", "--state-dir=none"], image)
}

fn said(output: &Output) -> String {
    tools::stdout(output) + &tools::stderr(output)
}

/// Fails unless it was refused with these words.
fn assert_refused(output: &Output, words: &[&str]) {
    assert_eq!(tools::code(output), 1, "{}", said(output));
    for word in words {
        assert!(said(output).contains(word), "no {word:?} in {}", said(output));
    }
}

fn assert_done(output: &Output) {
    assert_eq!(tools::code(output), 0, "{}", said(output));
}

fn assert_clean_for_qemu(image: &Path) {
    let output = tools::run(tools::qemu_img(["check", "-f", "qcow2"]).arg(image));
    assert_eq!(tools::code(&output), 0, "{}", said(&output));
}

fn side(image: &Path, ending: &str) -> PathBuf {
    PathBuf::from(format!("{}.instar-{ending}", image.display()))
}

/// `instar` whose system calls of one name fail, or kill it, at certain times.
fn injected(call: &str, what: &str, arguments: &[&str], image: &Path) -> Output {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}")]);
    command.args(["-e", &format!("inject={call}:{what}"), env!("CARGO_BIN_EXE_instar")]);
    tools::run(command.args(arguments).arg(image))
}

const REPAIR: [&str; 4] = ["check", "--repair=all", "--sandbox=process", "--state-dir=none"];

/// Kills the program when it has written a part of the image.
fn interrupt(image: &Path, before: &[u8]) {
    for nth in 1..40 {
        let output = injected("pwrite64", &format!("signal=SIGKILL:when={nth}"), &REPAIR, image);
        assert!(output.status.signal() == Some(9) || output.status.code() == Some(137), "{}", said(&output));
        if side(image, "journal").exists() && std::fs::read(image).unwrap() != before {
            return;
        }
        for ending in ["journal", "undo", "journal.part", "undo.part"] {
            let file = side(image, ending);
            if file.exists() {
                std::fs::remove_file(file).unwrap();
            }
        }
    }
    panic!("the image was never written");
}

#[test]
fn file_system_without_space_is_told_before_the_first_write_and_undo_needs_none() {
    need!(tools::qemu(), tools::root());
    let folder = tempfile::tempdir().unwrap();
    for (index, name) in [GROWS, STAYS].into_iter().enumerate() {
        let small = Small::at(&folder.path().join(index.to_string()));
        let (image, before) = damaged(name, &small.0);
        for free_bytes in [0, 65_536, 1 << 20] {
            small.fill(free_bytes);
            let output = tools::ensure_untouched(&[&image], || repair(&image));
            assert_refused(&output, &["bytes", "free"]);
            assert_eq!(small.names(), ["disk.qcow2", "filler"], "{name}");
            small.make_room();
        }
        assert_done(&repair(&image));
        assert_clean_for_qemu(&image);
        small.fill(0);
        assert_done(&run(&["undo"], &image));
        assert!(std::fs::read(&image).unwrap() == before, "{name}");
    }
}

#[test]
fn interrupted_repair_goes_on_or_back_once_a_full_file_system_has_room() {
    need!(tools::qemu(), tools::root(), tools::program("strace"));
    let folder = tempfile::tempdir().unwrap();
    let small = Small::at(&folder.path().join("small"));
    let (image, before) = damaged(GROWS, &small.0);
    interrupt(&image, &before);
    let interrupted = std::fs::read(&image).unwrap();
    small.fill(0);
    // What has its place already may be written again; what has none is told.
    let output = run(&["resume", "--sandbox=process", "--state-dir=none"], &image);
    if tools::code(&output) != 0 {
        assert_refused(&output, &["space"]);
        assert!(side(&image, "journal").exists() && side(&image, "undo").exists(), "{:?}", small.names());
    }
    small.make_room();
    let output = repair(&image);
    assert_done(&output);
    assert_clean_for_qemu(&image);
    assert_done(&run(&["undo"], &image));
    assert!(std::fs::read(&image).unwrap() == before);
    // And back without room.
    interrupt(&image, &before);
    assert!(std::fs::read(&image).unwrap() == interrupted, "interrupted elsewhere");
    small.fill(0);
    assert_done(&run(&["undo"], &image));
    assert!(std::fs::read(&image).unwrap() == before);
    assert_eq!(small.names(), ["disk.qcow2", "filler"]);
}

#[test]
fn read_only_file_system_is_told_and_nothing_is_left_elsewhere() {
    need!(tools::qemu(), tools::root(), tools::program("strace"));
    let folder = tempfile::tempdir().unwrap();
    let small = Small::at(&folder.path().join("small"));
    let (image, before) = damaged(GROWS, &small.0);
    let records = folder.path().join("records");
    std::fs::create_dir(&records).unwrap();
    let option = format!("--undo-dir={}", records.display());
    small.remount("ro");
    assert_refused(&repair(&image), &["disk.qcow2", "ead-only"]);
    let output = run(&["check", "--repair=all", "--sandbox=process", "--state-dir=none", &option], &image);
    assert_refused(&output, &["disk.qcow2", "ead-only"]);
    assert_eq!(std::fs::read_dir(&records).unwrap().count(), 0);
    // The image may be written, but not the folder of the records.
    let (other, bytes) = damaged(GROWS, folder.path());
    let option = format!("--undo-dir={}", small.0.display());
    let output = tools::ensure_untouched(&[&other], || {
        run(&["check", "--repair=all", "--sandbox=process", "--state-dir=none", &option], &other)
    });
    assert_refused(&output, &["ead-only"]);
    assert!(std::fs::read(&other).unwrap() == bytes);
    small.remount("rw");
    interrupt(&image, &before);
    let interrupted = std::fs::read(&image).unwrap();
    small.remount("ro");
    for what in [&["resume", "--sandbox=process", "--state-dir=none"][..], &["undo"]] {
        assert_refused(&run(what, &image), &["ead-only"]);
        assert!(std::fs::read(&image).unwrap() == interrupted, "{what:?}");
    }
    small.remount("rw");
    assert_done(&run(&["resume", "--sandbox=process", "--state-dir=none"], &image));
    assert_done(&run(&["undo"], &image));
    assert!(std::fs::read(&image).unwrap() == before);
}

#[test]
fn block_device_is_mended_in_place_with_its_records_elsewhere_and_never_grown() {
    need!(tools::qemu(), tools::root(), tools::program("losetup"), tools::program("strace"));
    let folder = tempfile::tempdir().unwrap();
    let records = folder.path().join("records");
    std::fs::create_dir(&records).unwrap();
    let option = format!("--undo-dir={}", records.display());
    let with_records = [&REPAIR[..], &[&option]].concat();
    for name in [STAYS, GROWS] {
        let (file, mut before) = damaged(name, folder.path());
        before.resize(before.len().next_multiple_of(1 << 20) + (1 << 20), 0);
        std::fs::write(&file, &before).unwrap();
        let device = match Loop::over(&file) {
            Ok(device) => device,
            Err(reason) => {
                eprintln!("skipped: {reason}");
                return;
            }
        };
        let read = || std::fs::read(&device.0).unwrap();
        assert_refused(&repair(&device.0), &["block device"]);
        assert!(read() == before, "{name}");
        if name == GROWS {
            assert_refused(&run(&with_records, &device.0), &["bytes", "free"]);
            assert!(read() == before && std::fs::read_dir(&records).unwrap().count() == 0);
            continue;
        }
        assert_done(&run(&with_records, &device.0));
        assert_clean_for_qemu(&device.0);
        assert_done(&run(&["undo", &option], &device.0));
        assert!(read() == before);
        // Interrupted in the middle of the landing.
        let output = injected("pwrite64", "signal=SIGKILL:when=7", &with_records, &device.0);
        assert!(output.status.signal() == Some(9) || output.status.code() == Some(137), "{}", said(&output));
        let forward = run(&with_records, &device.0);
        assert_done(&forward);
        assert_clean_for_qemu(&device.0);
        assert_done(&run(&["undo", &option], &device.0));
        assert!(read() == before);
    }
}

#[test]
fn calls_that_fail_at_any_time_are_told_and_resume_and_undo_finish_what_was_begun() {
    need!(tools::qemu(), tools::program("strace"));
    let folder = tempfile::tempdir().unwrap();
    let (image, before) = damaged(GROWS, folder.path());
    assert_done(&repair(&image));
    assert_clean_for_qemu(&image);
    let after = std::fs::read(&image).unwrap();
    assert_done(&run(&["undo"], &image));
    let mut failures = 0;
    for (call, error, kind) in [
        ("pwrite64", "EIO", "nput/output error"),
        ("pwrite64", "ENOSPC", "o space left"),
        ("fdatasync", "EIO", "nput/output error"),
        ("fsync", "EIO", "nput/output error"),
        ("ftruncate", "ENOSPC", "o space left"),
        ("renameat2", "EIO", "nput/output error"),
        ("renameat", "EIO", "nput/output error"),
    ] {
        for nth in 1..40 {
            // From that time on, as of a disk that has gone.
            let output = injected(call, &format!("error={error}:when={nth}+"), &REPAIR, &image);
            if tools::code(&output) == 0 {
                assert_done(&run(&["undo"], &image));
                break;
            }
            failures += 1;
            let what = format!("{call} {nth}, {error}");
            assert_refused(&output, &[kind]);
            if side(&image, "journal").exists() {
                assert_done(&run(&["resume", "--sandbox=process", "--state-dir=none"], &image));
            } else {
                let now = std::fs::read(&image).unwrap();
                assert!(now == before || now == after, "{what}: in between, without a journal");
                assert_done(&repair(&image));
            }
            assert!(std::fs::read(&image).unwrap() == after, "{what}");
            assert_done(&run(&["undo"], &image));
            assert!(std::fs::read(&image).unwrap() == before, "{what}");
        }
    }
    eprintln!("{failures} failures");
    assert!(failures >= 12, "{failures}");
}

#[test]
fn reads_that_fail_at_any_time_leave_the_image_no_worse_and_the_way_back_open() {
    need!(tools::qemu(), tools::program("strace"));
    let folder = tempfile::tempdir().unwrap();
    let (image, before) = damaged(GROWS, folder.path());
    let mut failures = 0;
    for nth in 1..60 {
        let output = injected("pread64", &format!("error=EIO:when={nth}"), &REPAIR, &image);
        let what = format!("read {nth}: {}", said(&output));
        failures += u64::from(tools::code(&output) != 0);
        if side(&image, "journal").exists() {
            assert_done(&run(&["resume", "--sandbox=process", "--state-dir=none"], &image));
            assert_clean_for_qemu(&image);
        }
        if side(&image, "undo").exists() {
            assert_done(&run(&["undo"], &image));
        }
        assert!(std::fs::read(&image).unwrap() == before, "{what}");
    }
    eprintln!("{failures} failures");
    assert!(failures > 10, "{failures}");
}
