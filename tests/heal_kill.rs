//! The shipped program, killed at each system call with which it writes during a repair.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a failing helper fails its test")]

mod support;

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};

use support::image::{self, Flavour, TestImage};
use support::raw::Raw;
use support::tools;

const WRITING_CALLS: [&str; 6] = ["pwrite64", "fdatasync", "fsync", "renameat", "renameat2", "unlinkat"];

fn instar(arguments: &[&str], image: &Path) -> Output {
    tools::run(Command::new(env!("CARGO_BIN_EXE_instar")).args(arguments).arg(image))
}

/// Repairs, and is killed on entering the `nth` of `call`. False if it never got there.
fn repair_killed_at(call: &str, nth: u32, image: &Path) -> bool {
    let output = tools::run(
        Command::new("strace")
            .args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}")])
            .args(["-e", &format!("inject={call}:signal=SIGKILL:when={nth}")])
            .args([env!("CARGO_BIN_EXE_instar"), "check", "--repair=leaks", "--sandbox=process"])
            .arg(image),
    );
    output.status.signal() == Some(9) || output.status.code() == Some(137)
}

fn leaky(folder: &Path) -> TestImage {
    let image = image::make(folder, "image", Flavour::Plain, 65_536);
    Raw::open(&image.path).append_clusters(9, 1);
    image
}

#[test]
fn program_killed_at_any_write_resumes_to_clean_and_undoes_to_the_byte() {
    need!(tools::qemu(), tools::program("strace"));
    let folder = tempfile::tempdir().unwrap();
    let image = leaky(folder.path());
    let before = std::fs::read(&image.path).unwrap();
    let mut kills = 0;
    for call in WRITING_CALLS {
        for nth in 1..30 {
            std::fs::write(&image.path, &before).unwrap();
            if !repair_killed_at(call, nth, &image.path) {
                break;
            }
            kills += 1;
            let what = format!("killed at {call} {nth}");
            assert!([0, 3].contains(&image.qemu_check()), "{what}");
            let healed = instar(&["check", "--repair=leaks", "--sandbox=process"], &image.path);
            assert_eq!(tools::code(&healed), 0, "{what}: {}", tools::stderr(&healed));
            assert_eq!(image.qemu_check(), 0, "{what}");
            let undone = instar(&["undo"], &image.path);
            assert!(undone.status.success(), "{what}: {}", tools::stderr(&undone));
            assert!(std::fs::read(&image.path).unwrap() == before, "{what}");
        }
    }
    eprintln!("{kills} kills");
    assert!(kills >= 8, "{kills}");
}
