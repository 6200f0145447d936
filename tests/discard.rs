//! `instar check --discard` of the shipped program on images made by the real tools and real storage.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a failing helper fails its test")]

mod support;

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use support::damage::recipe;
use support::image::{self, Flavour, TestImage, sibling};
use support::program::{cages, document_of, instar};
use support::raw::Raw;
use support::tools;

/// Clusters of junk that leak.
const LEAKS: u64 = 64;

fn run(arguments: &[&str], image: &Path) -> Output {
    tools::run(instar(arguments).arg("--state-dir=none").arg(image))
}

/// Exit code and what became of the discard.
fn discard(cage: &str, options: &[&str], image: &Path) -> (i32, Value) {
    let mut arguments = vec!["check", "--discard", "--output=json", "--sandbox", cage];
    arguments.extend(options);
    let output = run(&arguments, image);
    (tools::code(&output), document_of(&output, "report")["discard"].clone())
}

fn ending(told: &(i32, Value)) -> (i32, &str) {
    (told.0, told.1["ending"].as_str().unwrap())
}

fn said(output: &Output) -> String {
    tools::stdout(output) + &tools::stderr(output)
}

fn undo_file(image: &Path) -> PathBuf {
    let mut name = image.as_os_str().to_owned();
    name.push(".instar-undo");
    PathBuf::from(name)
}

/// Bytes of storage that a file takes.
fn held(path: &Path) -> u64 {
    let file = std::fs::File::open(path).unwrap();
    file.sync_all().unwrap();
    file.metadata().unwrap().blocks() * 512
}

/// Adds clusters of junk that nothing refers to, counted as in use, where a refcount block is.
fn leak(path: &Path) -> u64 {
    let raw = Raw::open(path);
    let first = raw.append_clusters(LEAKS, 1);
    raw.write(
        first * raw.cluster_bytes,
        &b"junk".repeat(usize::try_from(LEAKS * raw.cluster_bytes / 4).unwrap()),
    );
    first
}

/// A healthy image with junk in clusters that nothing uses any more, and nothing to go back to.
fn with_free_junk(folder: &Path, flavour: Flavour, cluster_bytes: u64) -> TestImage {
    let image = image::make(folder, "disk", flavour, cluster_bytes);
    leak(&image.path);
    let repaired = run(&["check", "--repair=leaks", "--sandbox=process"], &image.path);
    assert_eq!(tools::code(&repaired), 0, "{}", said(&repaired));
    assert_eq!(tools::code(&run(&["undo", "--drop"], &image.path)), 0);
    image
}

fn assert_intact(image: &TestImage) {
    assert_eq!(image.qemu_check(), 0, "{:?}", image.flavour);
    image.assert_guest_intact();
    for name in image.snapshots.keys() {
        image.assert_snapshot_intact(name);
    }
}

#[test]
fn image_of_every_flavour_gives_storage_back_and_keeps_every_disk() {
    need!(tools::qemu());
    for flavour in Flavour::ALL.into_iter().filter(|flavour| !flavour.has_data_file()) {
        let folder = tempfile::tempdir().unwrap();
        let image = with_free_junk(folder.path(), flavour, 16_384);
        let (before, len) = (held(&image.path), image.path.metadata().unwrap().len());
        let is_plain = flavour == Flavour::Plain;
        for cage in cages().into_iter().filter(|_| is_plain) {
            let previewed =
                tools::ensure_untouched(&[&image.path], || discard(cage, &["--preview"], &image.path));
            assert_eq!(ending(&previewed), (0, "discard-previewed"), "{flavour:?}");
            assert!(previewed.1["bytes"].as_u64().unwrap() >= LEAKS * 16_384, "{flavour:?}: {previewed:?}");
        }
        let told = discard("process", &[], &image.path);
        assert_eq!(ending(&told), (0, "discarded"), "{flavour:?}");
        let released = before - held(&image.path);
        assert!(released >= LEAKS * 16_384, "{flavour:?}: {released}");
        assert_eq!(told.1["released-bytes"], released, "{flavour:?}");
        assert_eq!(image.path.metadata().unwrap().len(), len);
        assert_intact(&image);
        let again = tools::ensure_untouched(&[&image.path], || discard("process", &[], &image.path));
        assert_eq!(ending(&again), (0, "nothing-to-discard"), "{flavour:?}: {again:?}");
    }
}

#[test]
fn clusters_smaller_than_a_block_are_given_back_where_whole_blocks_are_free() {
    need!(tools::qemu());
    for flavour in [Flavour::Snapshots, Flavour::Rich, Flavour::Bitmaps] {
        let folder = tempfile::tempdir().unwrap();
        let image = with_free_junk(folder.path(), flavour, 512);
        let before = held(&image.path);
        assert_eq!(ending(&discard("process", &[], &image.path)), (0, "discarded"), "{flavour:?}");
        assert!(held(&image.path) < before, "{flavour:?}");
        assert_intact(&image);
        assert_eq!(ending(&discard("process", &[], &image.path)), (0, "nothing-to-discard"), "{flavour:?}");
    }
}

#[test]
fn undo_file_keeps_everything_until_it_is_dropped_and_undo_still_works() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = image::make(folder.path(), "disk", Flavour::Snapshots, 16_384);
    leak(&image.path);
    let leaky = std::fs::read(&image.path).unwrap();
    let undo = undo_file(&image.path);
    // Leaks are not free yet.
    let told = tools::ensure_untouched(&[&image.path], || discard("process", &[], &image.path));
    assert_eq!(ending(&told), (3, "not-consistent"));
    // A repair that leaves an undo file is made, and nothing is given back.
    let told = discard("process", &["--repair=leaks"], &image.path);
    assert_eq!(ending(&told), (1, "undo-kept"));
    assert_eq!(told.1["record"], undo.to_str().unwrap());
    let told = tools::ensure_untouched(&[&image.path, &undo], || discard("process", &[], &image.path));
    assert_eq!(ending(&told), (1, "undo-kept"));
    let quiet = run(&["check", "--discard", "--quiet", "--sandbox=process"], &image.path);
    assert_eq!(tools::code(&quiet), 1);
    let name = undo.file_name().unwrap().to_str().unwrap();
    assert!(tools::stdout(&quiet).is_empty() && tools::stderr(&quiet).contains(name), "{}", said(&quiet));
    assert_eq!(tools::code(&run(&["undo"], &image.path)), 0);
    assert!(std::fs::read(&image.path).unwrap() == leaky);
    // In a folder of its own it is found where that folder is named.
    let records = folder.path().join("records");
    std::fs::create_dir(&records).unwrap();
    let option = format!("--undo-dir={}", records.display());
    assert_eq!(ending(&discard("process", &["--repair=leaks", &option], &image.path)), (1, "undo-kept"));
    assert_eq!(ending(&discard("process", &[&option], &image.path)), (1, "undo-kept"));
    assert_eq!(tools::code(&run(&["undo", "--drop", &option], &image.path)), 0);
    assert_eq!(std::fs::read_dir(&records).unwrap().count(), 0);
    let nothing = run(&["undo", "--drop", &option], &image.path);
    assert_eq!(tools::code(&nothing), 1, "{}", said(&nothing));
    // With nothing to repair, both can be asked for at once.
    let told = discard("process", &["--repair=all", &option], &image.path);
    assert_eq!(ending(&told), (0, "discarded"));
    assert_intact(&image);
}

#[test]
fn image_with_something_wrong_keeps_every_byte() {
    need!(tools::qemu());
    for (name, code) in [
        ("orphan-table", 2),
        ("orphan-data", 3),
        ("refcount-too-low", 2),
        ("bitmap-in-use", 3),
        ("header-corrupt", 2),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let image = recipe(name).make(folder.path());
        let told = tools::ensure_untouched(&[&image.path], || discard("process", &[], &image.path));
        assert_eq!(told.1["ending"], "not-consistent", "{name}: {told:?}");
        assert!([2, 3].contains(&told.0), "{name}: {told:?}, {code}");
    }
}

#[test]
fn image_whose_parts_are_not_all_known_is_refused_by_their_name() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = image::make(folder.path(), "data", Flavour::DataFile, 16_384);
    let data = format!("--data-file={}", image.data_file().unwrap().display());
    let told = tools::ensure_untouched(&[&image.path], || discard("process", &[&data], &image.path));
    assert_eq!(ending(&told), (1, "unknown-owner"));
    assert!(told.1["not-known"].as_str().unwrap().contains("external data file"), "{told:?}");
    for (offset, value, words) in [(80, 2, "compatible features (0x2)"), (88, 8, "autoclear features (0x8)")]
    {
        let image = with_free_junk(folder.path(), Flavour::Plain, 16_384);
        Raw::open(&image.path).change(offset, |bits| bits | value);
        let told = tools::ensure_untouched(&[&image.path], || discard("process", &[], &image.path));
        assert_eq!(ending(&told), (1, "unknown-owner"));
        assert!(told.1["not-known"].as_str().unwrap().contains(words), "{told:?}");
        std::fs::remove_file(&image.path).unwrap();
    }
}

#[test]
fn image_in_use_by_another_program_is_refused_and_keeps_every_byte() {
    need!(tools::qemu(), tools::program("qemu-nbd"));
    let folder = tempfile::tempdir().unwrap();
    let image = with_free_junk(folder.path(), Flavour::Plain, 16_384);
    let socket = sibling(&image.path, "socket");
    let mut server = Command::new("qemu-nbd")
        .args(["-r", "-f", "qcow2", "-k"])
        .args([&socket, &image.path])
        .spawn()
        .unwrap();
    while !socket.exists() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let output = tools::ensure_untouched(&[&image.path], || {
        run(&["check", "--discard", "--sandbox=process"], &image.path)
    });
    server.kill().unwrap();
    server.wait().unwrap();
    assert_eq!(tools::code(&output), 1, "{}", said(&output));
    assert!(said(&output).contains("qemu-nbd"), "{}", said(&output));
}

#[test]
fn call_that_fails_is_told_with_its_place_and_the_next_run_finishes() {
    need!(tools::qemu(), tools::program("strace"));
    for (call, error, words) in [
        ("fallocate", "EIO", &["bytes at 0x", "nput/output error"][..]),
        ("fallocate", "EOPNOTSUPP", &["cannot give back a part", "qemu-img convert"]),
        ("fdatasync", "EIO", &["for certain", "nput/output error"]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let image = with_free_junk(folder.path(), Flavour::Snapshots, 16_384);
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}")]);
        command.args(["-e", &format!("inject={call}:error={error}:when=1")]);
        command.arg(env!("CARGO_BIN_EXE_instar"));
        command.args(["check", "--discard", "--sandbox=process", "--state-dir=none"]).arg(&image.path);
        let output = tools::run(&mut command);
        assert_eq!(tools::code(&output), 1, "{call} {error}: {}", said(&output));
        for word in words {
            assert!(said(&output).contains(word), "{call} {error}: no {word:?} in {}", said(&output));
        }
        assert_intact(&image);
        let told = discard("process", &[], &image.path);
        assert_eq!(told.0, 0, "{told:?}");
        assert_intact(&image);
    }
}

#[test]
fn call_that_a_signal_stops_is_made_again() {
    need!(tools::qemu(), tools::program("strace"));
    let folder = tempfile::tempdir().unwrap();
    let image = with_free_junk(folder.path(), Flavour::Plain, 16_384);
    let before = held(&image.path);
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o", "/dev/null", "-e", "inject=fallocate:error=EINTR:when=1..3"]);
    command.arg(env!("CARGO_BIN_EXE_instar"));
    command.args(["check", "--discard", "--sandbox=process", "--state-dir=none"]).arg(&image.path);
    tools::must(&mut command);
    assert!(held(&image.path) < before);
}

#[test]
fn block_device_asks_for_the_folder_of_its_records_and_gives_back_within_the_image() {
    need!(tools::qemu(), tools::root(), tools::program("losetup"));
    let folder = tempfile::tempdir().unwrap();
    let image = image::make(folder.path(), "disk", Flavour::Snapshots, 16_384);
    leak(&image.path);
    // What is written now comes behind the leaks.
    tools::must(tools::qemu_io("qcow2", ["write -q -P 9 0 256k"]).arg(&image.path));
    let file = sibling(&image.path, "device");
    let mut bytes = std::fs::read(&image.path).unwrap();
    let foreign = bytes.len().next_multiple_of(16_384);
    bytes.resize(foreign, 0);
    bytes.resize(foreign + (1 << 20), 0x5a);
    std::fs::write(&file, &bytes).unwrap();
    let made = tools::run(Command::new("losetup").args(["-f", "--show"]).arg(&file));
    if !made.status.success() {
        eprintln!("skipped: no loop device here: {}", tools::stderr(&made));
        return;
    }
    let device = PathBuf::from(tools::stdout(&made).trim());
    let option = format!("--undo-dir={}", folder.path().display());
    let unnamed = run(&["check", "--discard", "--sandbox=process"], &device);
    let repaired = run(&["check", "--repair=leaks", "--sandbox=process", &option], &device);
    let dropped = run(&["undo", "--drop", &option], &device);
    let before = held(&file);
    let told = discard("process", &[&option], &device);
    tools::must(Command::new("losetup").arg("-d").arg(&device));
    assert_eq!(tools::code(&unnamed), 1, "{}", said(&unnamed));
    assert!(said(&unnamed).contains("--undo-dir"), "{}", said(&unnamed));
    assert_eq!((tools::code(&repaired), tools::code(&dropped)), (0, 0), "{}", said(&repaired));
    assert_eq!(ending(&told), (0, "discarded"));
    assert!(told.1["bytes"].as_u64().unwrap() >= LEAKS * 16_384, "{told:?}");
    assert!(held(&file) <= before - LEAKS * 16_384);
    assert!(
        std::fs::read(&file).unwrap()[foreign..] == bytes[foreign..],
        "what lies behind the image was written"
    );
}
