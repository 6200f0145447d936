//! The command line of `instar`: wrong input, exit codes, help.

mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use support::damage::recipe;
use support::image::{self, Flavour};
use support::program::{cages, check_in, document, document_of, instar};
use support::tools;

/// Runs `instar check` on `path`, which must not be touched; returns exit code and what was said on both streams.
fn check(path: &Path) -> (i32, String) {
    let output = tools::ensure_untouched(&[path], || tools::run(instar(["check"]).arg(path)));
    (tools::code(&output), tools::stdout(&output) + &tools::stderr(&output))
}

fn assert_says(told: &(i32, String), code: i32, words: &[&str]) {
    assert_eq!(told.0, code, "{}", told.1);
    for word in words {
        assert!(told.1.contains(word), "'{word}' is not said:\n{}", told.1);
    }
}

#[test]
fn check_no_such_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gone.qcow2");
    assert_says(&check(&path), 1, &["gone.qcow2: no such file"]);
    assert!(!path.exists());
}

#[test]
fn check_directory_is_named_as_one() {
    let folder = tempfile::tempdir().unwrap();
    assert_says(&check(folder.path()), 1, &["is a directory"]);
}

#[test]
fn check_empty_file_is_named_as_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("empty.qcow2");
    std::fs::write(&path, b"").unwrap();
    assert_says(&check(&path), 1, &["empty.qcow2: is empty"]);
}

#[test]
fn check_raw_data_is_not_a_format_that_is_checked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    std::fs::write(&path, support::pattern::bytes(1, 0, 1 << 20, false)).unwrap();
    assert_says(&check(&path), 63, &["disk.raw: not a format that is checked", "raw disk"]);
}

#[test]
fn check_vmdk_is_not_a_format_that_is_checked_and_named() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.vmdk");
    tools::must(tools::qemu_img(["create", "-q", "-f", "vmdk"]).arg(&path).arg("10M"));
    assert_says(&check(&path), 63, &["not a format that is checked", "VMDK"]);
}

#[test]
fn check_truncated_image_is_corrupt_and_says_what_is_missing() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = recipe("l2-entry-past-eof-truncated").make(folder.path());
    assert_says(&check(&image.path), 2, &["corruption", "past the end of the file", "guest bytes"]);
}

/// `instar`, run by a user without rights of their own in `folder`, or by this user where it is not root.
fn as_ordinary_user(folder: &Path) -> Command {
    if tools::root().is_err() {
        return instar::<[&str; 0], &str>([]);
    }
    // A copy that another user can run, wherever the build tree lies.
    let program = folder.join("instar");
    std::fs::copy(env!("CARGO_BIN_EXE_instar"), &program).expect("the program can be copied");
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program);
    command
}

#[test]
fn check_unreadable_image_is_refused_with_a_hint() {
    need!(tools::qemu(), tools::program("setpriv"));
    let folder = tempfile::tempdir().unwrap();
    let image = image::make(folder.path(), "secret", Flavour::Plain, 65_536);
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(&image.path, std::fs::Permissions::from_mode(0o000)).unwrap();
    let mut command = as_ordinary_user(folder.path());
    command.arg("check");
    let output = tools::run(command.arg(&image.path));
    assert_says(
        &(tools::code(&output), tools::stderr(&output)),
        1,
        &["secret.qcow2: permission denied", "run as a user"],
    );
}

/// A `qemu-io` that holds an image open for writing until it is dropped.
struct Holder(Child);

impl Holder {
    fn new(image: &Path) -> Self {
        let mut child = Command::new("qemu-io")
            .arg(image)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("qemu-io runs");
        // The prompt comes when the image is open and locked.
        let mut prompt = [0; 8];
        std::io::Read::read_exact(child.stdout.as_mut().expect("piped"), &mut prompt).expect("a prompt");
        Self(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        if let Err(error) = self.0.wait() {
            panic!("qemu-io: {error}");
        }
    }
}

#[test]
fn check_locked_image_is_refused_and_the_holder_named() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = image::make(folder.path(), "busy", Flavour::Plain, 65_536);
    let holder = Holder::new(&image.path);
    let said = check(&image.path);
    assert_says(&said, 1, &["busy.qcow2: is in use", "qemu-io"]);
    drop(holder);
    assert_eq!(check(&image.path).0, 0);
}

#[test]
fn unknown_values_and_options_are_wrong_usage() {
    for arguments in [
        &["check"][..],
        &["check", "--sandbox=vmware", "x"],
        &["check", "--memory=lots", "x"],
        &["check", "--memory=1", "x"],
        &["check", "--repair=some", "x"],
        &["check", "--preview", "x"],
        &["check", "--no-such-option", "x"],
        &["no-such-command"],
        &[],
    ] {
        let output = tools::run(&mut instar(arguments));
        assert_eq!(tools::code(&output), 1, "{arguments:?}");
        assert!(!output.stderr.is_empty() && output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn damaged_payload_is_found_under_deep_only() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = recipe("compressed-damaged").make(folder.path());
    assert_says(&check(&image.path), 0, &[]);
    let options = ["check", "--deep", "--all"];
    let output = tools::ensure_untouched(&[&image.path], || tools::run(instar(options).arg(&image.path)));
    let told = (tools::code(&output), tools::stdout(&output));
    assert_says(&told, 2, &["compressed-damaged", "does not inflate to one cluster", "0x140000"]);
}

#[test]
fn leaks_are_freed_beside_a_damaged_payload_under_deep() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = recipe("compressed-damaged").make(folder.path());
    let raw = support::raw::Raw::open(&image.path);
    raw.append_clusters(1, 1);
    let options = ["check", "--deep", "--repair=leaks"];
    let output = tools::run(instar(options).arg(&image.path));
    assert_eq!(tools::code(&output), 2, "{}{}", tools::stdout(&output), tools::stderr(&output));
    assert_says(&check(&image.path), 0, &[]);
}

#[test]
fn quiet_check_says_nothing_and_the_exit_code_tells() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    for (name, code) in [("refcount-leak-one", 3), ("refcount-too-low", 2)] {
        let image = recipe(name).make(folder.path());
        let output = tools::run(instar(["check", "-q", "--sandbox=process"]).arg(&image.path));
        assert_eq!((tools::code(&output), tools::stdout(&output)), (code, String::new()), "{name}");
        assert_eq!(tools::stderr(&output), "", "{name}");
    }
}

#[test]
fn log_tells_of_stages_and_cages() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = recipe("refcount-leak-one").make(folder.path());
    let output = tools::run(instar(["check", "--repair", "--log=debug"]).arg(&image.path));
    assert_eq!(tools::code(&output), 0);
    let log = tools::stderr(&output);
    for words in ["stage=Check", "stage=Prove", "stage=Recheck", "job=Plan", "cage="] {
        assert!(log.contains(words), "{words}: {log}");
    }
}

#[test]
fn help_goes_to_stdout_and_offers_what_works() {
    let output = tools::run(&mut instar(["check", "--help"]));
    assert_eq!(tools::code(&output), 0);
    let help = tools::stdout(&output);
    for offered in [
        "--repair",
        "--preview",
        "--sandbox",
        "--memory",
        "--data-file",
        "--output",
        "--all",
        "--quiet",
        "--decide",
        "--plan-out",
        "--apply-plan",
        "--undo-dir",
        "--state-dir",
        "--exit-code",
        "Exit codes:",
        "Examples:",
    ] {
        assert!(help.contains(offered), "{offered}");
    }
}

#[test]
fn exit_codes_of_each_kind_are_those_of_the_enum() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str], path: &Path| tools::code(&tools::run(instar(arguments).arg(path)));
    let clean = image::make(folder.path(), "clean", Flavour::Plain, 65_536);
    let leaky = recipe("refcount-leak-run").make(folder.path());
    let corrupt = recipe("refcount-too-low").make(folder.path());
    let foreign = recipe("not-qcow2").make(folder.path());
    assert_eq!(run(&["check"], &clean.path), 0);
    assert_eq!(run(&["check"], Path::new("/nonexistent")), 1);
    assert_eq!(run(&["check"], &corrupt.path), 2);
    assert_eq!(run(&["check"], &leaky.path), 3);
    assert_eq!(run(&["check", "--repair", "--preview", "--exit-code=detailed"], &leaky.path), 3);
    assert_eq!(run(&["check", "--repair", "--exit-code=detailed"], &leaky.path), 4);
    assert_eq!(run(&["check", "--repair", "--exit-code=detailed"], &leaky.path), 0);
    assert_eq!(run(&["undo"], &leaky.path), 0);
    assert_eq!(run(&["check"], &leaky.path), 3);
    assert_eq!(run(&["check", "--repair"], &leaky.path), 0);
    assert_eq!(run(&["check"], &foreign.path), 63);
}

#[test]
fn repaired_leaks_are_gone_for_qemu_too_and_the_guest_is_as_before() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    for name in [
        "refcount-leak-one",
        "refcount-leak-run",
        "refcount-leak-v2",
        "refcount-leak-1-bit",
        "refcount-leak-64-bits",
        "refcount-leak-snapshots",
        "refcount-leak-4k",
    ] {
        let image = recipe(name).make(folder.path());
        assert_eq!(image.qemu_check(), 3, "{name}");
        let output = tools::run(instar(["check", "--repair=leaks", "--output=json"]).arg(&image.path));
        assert_eq!(tools::code(&output), 0, "{name}: {}", tools::stderr(&output));
        let document = document(&output);
        assert!(document["leaks-fixed"].as_u64() > Some(0), "{name}: {document:#}");
        assert_eq!(document["attestation"]["proven"], true, "{name}");
        assert_eq!(image.qemu_check(), 0, "{name}");
        image.assert_guest_intact();
    }
}

#[test]
fn preview_writes_nothing_and_tells_the_plan() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = recipe("refcount-leak-run").make(folder.path());
    let output = tools::ensure_untouched(&[&image.path], || {
        tools::run(instar(["check", "--repair", "--preview", "--output=json"]).arg(&image.path))
    });
    let document = document(&output);
    assert_eq!(document["repair"]["ending"], "previewed");
    assert!(document["plan"]["writes"].as_u64() > Some(0));
    assert_eq!(document["leaks"], 40);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "files were left behind");
}

#[test]
fn healthy_image_is_untouched_by_every_command() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = image::make(folder.path(), "clean", Flavour::Rich, 65_536);
    for arguments in [&["check"][..], &["check", "--repair"], &["check", "--repair", "--preview"], &["info"]]
    {
        let output =
            tools::ensure_untouched(&[&image.path], || tools::run(instar(arguments).arg(&image.path)));
        assert_eq!(tools::code(&output), 0, "{arguments:?}: {}", tools::stderr(&output));
    }
}

#[test]
fn document_has_the_keys_and_figures_of_qemu() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    for flavour in [Flavour::Plain, Flavour::V2, Flavour::Snapshots, Flavour::Bitmaps, Flavour::Preallocated]
    {
        let image = image::make(folder.path(), &format!("{flavour:?}"), flavour, 65_536);
        let qemu = tools::must(tools::qemu_img(["check", "--output=json"]).arg(&image.path));
        let theirs = document(&qemu);
        let ours = document(&check_in(cages()[0], &image.path, None, &[]));
        for (key, value) in theirs.as_object().unwrap() {
            assert_eq!(ours.get(key), Some(value), "{flavour:?}: {key}");
        }
        for key in ["corruptions", "leaks", "corruptions-fixed", "leaks-fixed"] {
            assert_eq!(ours.get(key), theirs.get(key), "{flavour:?}: {key}");
        }
    }
}

#[test]
fn info_names_snapshots_and_features_in_both_forms() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = image::make(folder.path(), "rich", Flavour::Rich, 65_536);
    let human = tools::stdout(&tools::must(instar(["info"]).arg(&image.path)));
    for word in ["version 3", "64 KiB", "snapshot 0:", "s1", "backing file:", "rich.base.qcow2", "bitmap-a"] {
        assert!(human.contains(word), "'{word}' is not said:\n{human}");
    }
    let output = tools::must(instar(["info", "--output=json"]).arg(&image.path));
    let document = document_of(&output, "info");
    assert_eq!(document["virtual-size"], image.virtual_bytes);
    assert_eq!(document["snapshots"][1]["name"], "s2");
}

#[test]
fn names_inside_an_image_cannot_drive_the_terminal() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = image::make(folder.path(), "evil", Flavour::Plain, 65_536);
    tools::must(tools::qemu_img(["snapshot", "-c", "a\x1b[2J\u{202e}b"]).arg(&image.path));
    for arguments in [&["info"][..], &["info", "--output=json"]] {
        let said = tools::stdout(&tools::must(instar(arguments).arg(&image.path)));
        assert!(!said.contains(['\x1b', '\u{202e}']), "{said:?}");
        assert!(said.contains("u{1b}[2J"), "{said}");
    }
}

#[test]
fn info_of_a_broken_header_tells_what_is_there_and_what_is_wrong() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    for (at, value, id) in [(103, 96, "header-length"), (99, 7, "header-refcount-order")] {
        let image = image::make(folder.path(), "broken", Flavour::Plain, 65_536);
        let mut bytes = std::fs::read(&image.path).unwrap();
        bytes[at] = value;
        std::fs::write(&image.path, bytes).unwrap();
        let told = tools::stdout(&tools::must(instar(["info"]).arg(&image.path)));
        for word in ["version 3", "disk size:", "64 KiB", id] {
            assert!(told.contains(word), "'{word}' is not said:\n{told}");
        }
        assert!(!told.contains(" 0 bits"), "{told}");
    }
}

#[test]
fn info_of_an_impossible_cluster_size_tells_the_other_fields_and_names_and_no_cluster_size() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = image::make(folder.path(), "sizeless", Flavour::Backing, 65_536);
    let mut bytes = std::fs::read(&image.path).unwrap();
    bytes[23] = 63;
    std::fs::write(&image.path, bytes).unwrap();
    let told = tools::stdout(&tools::must(instar(["info"]).arg(&image.path)));
    for word in
        ["version 3", "disk size:", "16 bits", "backing file:", "backing format:", "header-cluster-bits"]
    {
        assert!(told.contains(word), "'{word}' is not said:\n{told}");
    }
    assert!(!told.contains("clusters:"), "{told}");
}

/// A descriptor that was opened for reading only is no place for progress, least of all where it is the image:
/// neither one that the caller handed down, nor a number that the program's own files could come to have.
#[test]
fn progress_to_a_descriptor_for_reading_is_refused_and_the_image_untouched() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = image::make(folder.path(), "read", Flavour::Plain, 65_536);
    for fd in 0..16 {
        let output = tools::ensure_untouched(&[&image.path], || {
            let stdin = std::fs::File::open(&image.path).unwrap();
            let mut command = instar(["check", "--progress-fd", &fd.to_string()]);
            tools::run(command.arg(&image.path).stdin(stdin))
        });
        let refused = tools::stderr(&output).contains("--progress-fd");
        assert!(refused || tools::code(&output) == 0, "{fd}: {}", tools::stderr(&output));
        assert!(refused || fd != 0, "standard input was the image, for reading");
    }
}

#[test]
fn repair_without_a_place_for_records_writes_nothing_and_tells_what_can_be_done() {
    need!(tools::qemu(), tools::program("setpriv"));
    let folder = tempfile::tempdir().unwrap();
    let image = recipe("refcount-leak-run").make(folder.path());
    let mut command = as_ordinary_user(folder.path());
    std::fs::set_permissions(&image.path, std::fs::Permissions::from_mode(0o666)).unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o555)).unwrap();
    command.args(["check", "--sandbox=process", "--repair"]).arg(&image.path);
    let output = tools::ensure_untouched(&[&image.path], || tools::run(&mut command));
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let said = (tools::code(&output), tools::stderr(&output));
    assert_says(&said, 1, &["beside the image, nothing was written", "repair a copy"]);
}

#[test]
fn info_of_an_older_format_tells_no_facts_that_it_lacks() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("old.qcow");
    tools::must(tools::qemu_img(["create", "-q", "-f", "qcow"]).arg(&path).arg("10M"));
    let said = tools::stdout(&tools::run(instar(["info"]).arg(&path)));
    assert!(said.contains("header-version"), "{said}");
    assert!(!said.contains("refcounts:"), "{said}");
}
