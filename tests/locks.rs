//! qemu's image locks, both ways, against real qemu programs that hold an image open.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a failing helper fails its test; skips are printed"
)]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use instar_mount::image::{Conflict, ImageFile, ImageLock, LockError, Mode};
use support::tools;

fn image() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.qcow2");
    tools::must(tools::qemu_img(["create", "-q", "-f", "qcow2"]).arg(&path).arg("16M"));
    (folder, path)
}

/// A qemu-io that keeps the image open until it is dropped.
struct QemuIo(Child);

impl QemuIo {
    fn open(path: &Path, options: &[&str]) -> Self {
        let mut child = Command::new("qemu-io")
            .args(options)
            .args(["-f", "qcow2"])
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // The image is open once it answers a command.
        child.stdin.as_mut().unwrap().write_all(b"length\n").unwrap();
        let mut answer = String::new();
        let mut lines = BufReader::new(child.stdout.as_mut().unwrap());
        while !answer.contains("MiB") {
            assert!(lines.read_line(&mut answer).unwrap() > 0, "qemu-io ended early: {answer}");
        }
        Self(child)
    }
}

impl Drop for QemuIo {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

fn lock(path: &Path, mode: Mode) -> Result<(ImageFile, ImageLock), LockError> {
    let file = ImageFile::open_read_only(path).unwrap();
    let lock = ImageLock::acquire(file.as_fd(), path, mode)?;
    Ok((file, lock))
}

fn qemu_io_once(path: &Path, options: &[&str], command: &str) -> Output {
    Command::new("qemu-io").args(options).args(["-f", "qcow2", "-c", command]).arg(path).output().unwrap()
}

fn refused_by_lock(output: &Output) -> bool {
    String::from_utf8_lossy(&output.stderr).contains("lock")
}

#[test]
fn writer_holds_image_reader_is_refused_and_told_who() {
    need!(tools::qemu());
    let (_folder, path) = image();
    let qemu = QemuIo::open(&path, &[]);
    for mode in [Mode::Read, Mode::Exclusive] {
        let error = lock(&path, mode).unwrap_err();
        let LockError::Busy { conflict, ref holders, .. } = error else { panic!("{error}") };
        assert!(matches!(conflict, Conflict::Uses(_) | Conflict::Refuses(_)));
        assert!(holders.iter().any(|h| h.pid == qemu.0.id() && h.name == "qemu-io"), "{error}");
        assert!(error.to_string().contains("disk.qcow2: is in use"), "{error}");
    }
    drop(qemu);
    lock(&path, Mode::Exclusive).unwrap();
}

#[test]
fn qemu_reader_holds_image_our_readers_coexist_and_repair_is_refused() {
    need!(tools::qemu());
    let (_folder, path) = image();
    let _qemu = QemuIo::open(&path, &["-r"]);
    lock(&path, Mode::Read).unwrap();
    assert!(matches!(lock(&path, Mode::Exclusive), Err(LockError::Busy { .. })));
}

#[test]
fn forced_share_reader_does_not_stop_us_reading_but_repairing() {
    need!(tools::qemu());
    let (_folder, path) = image();
    let _qemu = QemuIo::open(&path, &["-r", "-U"]);
    lock(&path, Mode::Read).unwrap();
    assert!(matches!(lock(&path, Mode::Exclusive), Err(LockError::Busy { .. })));
}

#[test]
fn our_reader_holds_image_qemu_may_read_but_not_write() {
    need!(tools::qemu());
    let (_folder, path) = image();
    let _ours = lock(&path, Mode::Read).unwrap();
    assert!(qemu_io_once(&path, &["-r"], "read 0 4096").status.success());
    let write = qemu_io_once(&path, &[], "write 0 4096");
    assert!(!write.status.success() && refused_by_lock(&write), "{write:?}");
    let check = Command::new("qemu-img").args(["check", "-q"]).arg(&path).output().unwrap();
    assert!(check.status.success(), "{check:?}");
}

#[test]
fn our_repair_holds_image_qemu_is_refused_in_every_way() {
    need!(tools::qemu());
    let (_folder, path) = image();
    let ours = lock(&path, Mode::Exclusive).unwrap();
    for options in [&["-r"][..], &[], &["-r", "-U"]] {
        let output = qemu_io_once(&path, options, "read 0 4096");
        assert!(!output.status.success() && refused_by_lock(&output), "{options:?}: {output:?}");
    }
    let check = Command::new("qemu-img").arg("check").arg(&path).output().unwrap();
    assert!(!check.status.success() && refused_by_lock(&check), "{check:?}");
    drop(ours);
    assert!(qemu_io_once(&path, &[], "write 0 4096").status.success());
}

#[test]
fn storage_daemon_holds_image_we_are_refused_until_it_ends() {
    need!(tools::qemu(), tools::program("qemu-storage-daemon"));
    let (folder, path) = image();
    let pid_file = folder.path().join("pid");
    let started = Command::new("qemu-storage-daemon")
        .arg("--daemonize")
        .arg("--pidfile")
        .arg(&pid_file)
        .arg("--blockdev")
        .arg(format!("driver=file,node-name=file,filename={}", path.display()))
        .args(["--blockdev", "driver=qcow2,node-name=disk,file=file"])
        .arg("--nbd-server")
        .arg(format!("addr.type=unix,addr.path={}", folder.path().join("socket").display()))
        .args(["--export", "type=nbd,id=export,node-name=disk,writable=on"])
        .status()
        .unwrap();
    assert!(started.success());
    let pid: u32 = std::fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
    let refused = lock(&path, Mode::Read);
    let ended = Command::new("kill").arg(pid.to_string()).status().unwrap();
    assert!(ended.success());
    let Err(LockError::Busy { holders, .. }) = refused else { panic!("{refused:?}") };
    assert!(holders.iter().any(|h| h.pid == pid), "{holders:?}");
    for _ in 0..100 {
        if lock(&path, Mode::Exclusive).is_ok() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("the lock outlived its holder");
}

#[test]
fn our_lock_held_storage_daemon_refuses_to_start() {
    need!(tools::qemu(), tools::program("qemu-storage-daemon"));
    let (_folder, path) = image();
    let _ours = lock(&path, Mode::Read).unwrap();
    let output = Command::new("timeout")
        .args(["20", "qemu-storage-daemon", "--blockdev"])
        .arg(format!("driver=file,node-name=file,filename={}", path.display()))
        .args(["--blockdev", "driver=qcow2,node-name=disk,file=file,read-only=off"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(refused_by_lock(&output), "{output:?}");
}
