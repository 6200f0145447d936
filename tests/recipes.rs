//! The ways to attach a mounted disk, as the scripts in `tests/recipes` do it.
#![allow(clippy::print_stderr, reason = "skips are printed")]

mod support;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use support::disk::{HELLO, Partitioned, SERIAL_GREETING};
use support::tools;

/// Exit code of a script that the machine lacks something for.
const SKIPPED: i32 = 77;

fn recipe(name: &str) -> Command {
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recipes").join(name));
    command.env("PATH", search_path());
    command
}

/// The programs under test first, and the folders of the system's own tools.
fn search_path() -> OsString {
    let own = Path::new(env!("CARGO_BIN_EXE_instar-mount")).parent().expect("a folder");
    let given = std::env::var_os("PATH").unwrap_or_default();
    let all = [own.to_owned()].into_iter().chain(std::env::split_paths(&given));
    std::env::join_paths(all.chain(["/usr/sbin".into(), "/sbin".into()])).expect("plain names")
}

/// What a script printed, or `None`, with the reason printed, where it skipped itself.
fn said(output: &Output) -> Option<String> {
    if tools::code(output) == SKIPPED {
        eprint!("{}", tools::stderr(output));
        return None;
    }
    assert!(output.status.success(), "{}{}", tools::stdout(output), tools::stderr(output));
    Some(tools::stdout(output))
}

macro_rules! need_disk {
    () => {
        need!(tools::fuse(), tools::qemu(), tools::program("fusermount3"), Partitioned::possible());
    };
}

#[test]
fn partitions_of_a_loop_device_can_be_mounted() {
    need_disk!();
    need!(tools::root(), tools::device("/dev/loop-control"));
    let disk = Partitioned::new();
    let output = tools::run(recipe("partitions").arg(&disk.image).args(["1", "cat", "hello.txt"]));
    if let Some(said) = said(&output) {
        assert_eq!(said, HELLO);
    }
    disk.assert_free();
}

#[test]
fn file_system_is_mounted_from_the_disk_in_one_command() {
    need_disk!();
    need!(tools::root(), tools::device("/dev/loop-control"));
    let disk = Partitioned::new();
    let output = tools::must(recipe("filesystem").arg(&disk.image).args(["1", "cat", "hello.txt"]));
    assert_eq!(tools::stdout(&output), HELLO);
    let failed = tools::run(recipe("filesystem").arg(&disk.image).args(["1", "cat", "nothing"]));
    assert_eq!(tools::code(&failed), 1);
    disk.assert_free();
}

#[test]
fn guest_boots_from_the_disk() {
    need_disk!();
    let Some(emulator) = emulator() else {
        eprintln!("skipped: no qemu-system-x86_64 (Debian package qemu-system-x86)");
        return;
    };
    let disk = Partitioned::new();
    let mut command = recipe("emulator");
    command.env("QEMU", emulator).arg(&disk.image);
    command.args(["-accel", "tcg", "-m", "32", "-display", "none", "-serial", "stdio", "-nodefaults"]);
    let output = tools::run(command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]));
    assert_eq!(tools::stdout(&output), SERIAL_GREETING, "{}", tools::stderr(&output));
    assert_eq!(tools::code(&output), 33, "{}", tools::stderr(&output));
    disk.assert_free();
}

/// The machine's emulator, or a script that runs the one that the second lane has unpacked.
fn emulator() -> Option<PathBuf> {
    if tools::program("qemu-system-x86_64").is_ok() {
        return Some("qemu-system-x86_64".into());
    }
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/svm");
    unpacked.join("complete").is_file().then(|| {
        let script = Path::new(env!("CARGO_TARGET_TMPDIR")).join("qemu-system-x86_64");
        let root = unpacked.join("root");
        let root = root.display();
        let text = format!(
            "#!/bin/sh\n\
             QEMU_MODULE_DIR={root}/usr/lib/x86_64-linux-gnu/qemu \\\n\
             LD_LIBRARY_PATH={root}/usr/lib/x86_64-linux-gnu:{root}/lib/x86_64-linux-gnu \\\n\
             exec {root}/usr/bin/qemu-system-x86_64 -L {root}/usr/share/qemu -L {root}/usr/share/seabios \"$@\"\n"
        );
        tools::write_script(&script, &text);
        script
    })
}

#[test]
fn nbd_servers_export_the_disk() {
    need_disk!();
    for server in ["nbdkit", "qemu-nbd"] {
        if let Err(reason) = tools::program(server) {
            eprintln!("skipped: {reason}");
            continue;
        }
        let disk = Partitioned::new();
        let copy = disk.folder().join("copy.raw");
        let convert = format!("qemu-img convert -f raw -O raw \"$uri\" '{}'", copy.display());
        let output = tools::must(recipe("nbd").arg(server).arg(&disk.image).arg(convert));
        assert!(
            fs::read(&copy).unwrap() == fs::read(&disk.raw).unwrap(),
            "{server}: {}",
            tools::stderr(&output)
        );
        disk.assert_free();
    }
}
