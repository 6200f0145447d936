//! `instar check --chain` on chains that the real qemu-img made.

mod support;

use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;
use support::program::{document_of, instar};
use support::tools;

/// top.qcow2 -> middle.qcow2 -> base.raw, each 1 MiB of disk.
fn make_chain() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    tools::must(tools::qemu_img(["create", "-q", "-f", "raw"]).arg(at("base.raw")).arg("1M"));
    for (name, below, format) in [("middle.qcow2", "base.raw", "raw"), ("top.qcow2", "middle.qcow2", "qcow2")]
    {
        let mut create = tools::qemu_img(["create", "-q", "-f", "qcow2", "-b", below, "-F", format]);
        tools::must(create.current_dir(folder.path()).arg(name));
    }
    let top = at("top.qcow2");
    (folder, top)
}

fn check_chain(top: &Path, options: &[&str]) -> (i32, Value) {
    let output = run(top, options);
    (tools::code(&output), document_of(&output, "chain"))
}

fn run(top: &Path, options: &[&str]) -> Output {
    let mut command = instar(["check", "--chain", "--output=json"]);
    tools::run(command.args(options).arg(top))
}

fn allowing(folder: &Path) -> String {
    format!("--allow-chain={}", folder.display())
}

#[test]
fn chain_with_leave_is_checked_to_its_raw_end() {
    need!(tools::qemu());
    let (folder, top) = make_chain();
    let (code, told) = check_chain(&top, &[&allowing(folder.path())]);
    assert_eq!(code, 0, "{told}");
    assert_eq!(told["whole"], true);
    let members = told["members"].as_array().unwrap();
    assert_eq!(members.len(), 3);
    assert_eq!(members[1]["check"]["verdict"], "consistent");
    assert_eq!((&members[2]["format"], &members[2]["virtual-size"]), (&"raw".into(), &(1 << 20).into()));
}

#[test]
fn chain_without_leave_opens_nothing_below_the_top_and_says_how() {
    need!(tools::qemu());
    let (_folder, top) = make_chain();
    let (code, told) = check_chain(&top, &[]);
    assert_eq!((code, &told["whole"]), (1, &false.into()));
    assert_eq!(told["members"].as_array().unwrap().len(), 1);
    let problem = told["members"][0]["problems"][0].as_str().unwrap();
    assert!(problem.contains("--backing") && problem.contains("--allow-chain"), "{problem}");
}

#[test]
fn chain_with_named_files_follows_them() {
    need!(tools::qemu());
    let (folder, top) = make_chain();
    let middle = format!("--backing={}", folder.path().join("middle.qcow2").display());
    let base = format!("--backing={}", folder.path().join("base.raw").display());
    assert_eq!(check_chain(&top, &[&middle, &base]).0, 0);
    assert_eq!(check_chain(&top, &[&middle]).0, 1);
}

#[test]
fn chain_with_missing_or_resized_member_says_so() {
    need!(tools::qemu());
    let (folder, top) = make_chain();
    let base = folder.path().join("base.raw");
    std::fs::OpenOptions::new().write(true).open(&base).unwrap().set_len(2 << 20).unwrap();
    let (code, told) = check_chain(&top, &[&allowing(folder.path())]);
    assert_eq!(code, 0, "a larger base is legal");
    assert!(told["members"][1]["notes"][0].as_str().unwrap().contains("resized"), "{told}");
    std::fs::remove_file(&base).unwrap();
    let (code, told) = check_chain(&top, &[&allowing(folder.path())]);
    assert_eq!(code, 1);
    assert!(told["members"][1]["problems"][0].as_str().unwrap().contains("base.raw"), "{told}");
}

#[test]
fn chain_whose_member_is_not_what_is_stated_ends_there() {
    need!(tools::qemu());
    let (folder, top) = make_chain();
    std::fs::write(folder.path().join("middle.qcow2"), [0x42; 4096]).unwrap();
    let (code, told) = check_chain(&top, &[&allowing(folder.path())]);
    assert_eq!((code, &told["whole"]), (1, &false.into()), "{told}");
}

#[test]
fn chain_whose_top_is_no_qcow2_is_not_checked() {
    let folder = tempfile::tempdir().expect("a folder");
    let top = folder.path().join("top.raw");
    std::fs::write(&top, [0x42; 4096]).unwrap();
    let (code, told) = check_chain(&top, &[]);
    assert_eq!((code, &told["members"][0]["check"]["verdict"]), (63, &"not-qcow2".into()), "{told}");
}

#[test]
fn chain_damage_below_the_top_is_the_exit_code() {
    need!(tools::qemu());
    let (folder, top) = make_chain();
    let middle = folder.path().join("middle.qcow2");
    let mut bytes = std::fs::read(&middle).unwrap();
    // The offset of the refcount table, a field of the header.
    bytes[48..56].copy_from_slice(&(1_u64 << 40).to_be_bytes());
    std::fs::write(&middle, bytes).unwrap();
    assert_eq!(check_chain(&top, &[&allowing(folder.path())]).0, 2);
}

#[test]
fn chain_and_repair_exclude_each_other() {
    let output = run(Path::new("top.qcow2"), &["--repair=leaks"]);
    assert_eq!(tools::code(&output), 1);
    assert!(tools::stderr(&output).contains("cannot be used with"), "{}", tools::stderr(&output));
}
