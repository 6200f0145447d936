//! What is remembered of repairs, through the command line: retry budget, recurring damage, claims; and that a memory
//! that cannot be used never keeps a repair from being made.

mod support;

use std::path::{Path, PathBuf};
use std::process::Output;

use instar_mount::history::{Attempt, Claim, Folder, ImageKey, fingerprint};
use instar_mount::image::ImageFile;
use support::damage::recipe;
use support::image::TestImage;
use support::program::{document_of, instar};
use support::raw::Raw;
use support::tools;

/// A leaky image and a state folder.
struct Scene {
    _folder: tempfile::TempDir,
    image: TestImage,
    state: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a state folder and an image");
        let image = recipe("refcount-leak-run").make(folder.path());
        let state = folder.path().join("state");
        Self { _folder: folder, image, state }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = instar(arguments);
        tools::run(command.arg("--state-dir").arg(&self.state).arg(&self.image.path))
    }

    fn repair(&self) -> Output {
        self.run(&["check", "--repair=leaks"])
    }

    fn history(&self) -> serde_json::Value {
        document_of(&self.run(&["history", "--output=json"]), "history")
    }

    fn file(&self) -> ImageFile {
        ImageFile::open_read_only(&self.image.path).expect("an image")
    }

    fn key(&self) -> ImageKey {
        ImageKey::of(&self.file())
    }

    /// Adds an attempt that is like the last one, but failed.
    fn add_failure(&self) {
        let key = self.key();
        let mut store = Folder::make(&self.state)
            .expect("a state folder and an image")
            .store()
            .expect("a state folder and an image");
        let last = store.attempts(&key).expect("a state folder and an image").remove(0);
        let now = fingerprint(&self.file()).expect("a state folder and an image");
        let failure = Attempt {
            outcome: "quarantined".to_owned(),
            failed: true,
            fingerprint_before: now,
            fingerprint_after: now,
            ..last
        };
        store.add(&key, &failure).expect("a state folder and an image");
    }

    /// The leaks are back.
    fn leak_again(&self) {
        assert_eq!(tools::code(&self.run(&["undo"])), 0);
    }
}

fn said(output: &Output) -> String {
    tools::stdout(output) + &tools::stderr(output)
}

#[test]
fn repair_and_undo_are_remembered_with_findings_and_digests() {
    need!(tools::qemu());
    let scene = Scene::new();
    assert_eq!(tools::code(&scene.repair()), 0);
    scene.leak_again();
    let history = scene.history();
    let outcomes: Vec<_> =
        history["attempts"].as_array().unwrap().iter().map(|a| a["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["undone", "repaired"]);
    let repair = &history["attempts"][1];
    assert_eq!(repair["found"]["refcount-leak"], 40);
    assert_eq!(repair["left"], serde_json::json!({}));
    assert_eq!(repair["attestation"].as_str().unwrap().len(), 64);
    assert_ne!(repair["fingerprint-before"], repair["fingerprint-after"]);
    let human = said(&scene.run(&["history"]));
    assert!(human.contains("found: 40 x refcount-leak"), "{human}");
}

#[test]
fn check_without_repair_leaves_no_memory() {
    need!(tools::qemu());
    let scene = Scene::new();
    assert_eq!(tools::code(&scene.run(&["check"])), 3);
    assert_eq!(tools::code(&scene.run(&["check", "--repair", "--preview"])), 3);
    assert!(!scene.state.exists());
    assert!(said(&scene.run(&["history"])).contains("no repair is remembered"));
}

#[test]
fn repair_that_failed_three_times_is_exhausted_until_the_bytes_change() {
    need!(tools::qemu());
    let scene = Scene::new();
    assert_eq!(tools::code(&scene.repair()), 0);
    scene.leak_again();
    // The request stands in the attempt before the undo.
    let request = {
        let store = Folder::make(&scene.state).unwrap().store().unwrap();
        store.attempts(&scene.key()).unwrap()[1].request.clone()
    };
    let mut store = Folder::make(&scene.state).unwrap().store().unwrap();
    store.add(&scene.key(), &Attempt::of("no-space", &request)).unwrap();
    scene.add_failure();
    scene.add_failure();
    let exhausted = |output: &Output| said(output).contains("failed too often");
    scene.add_failure();
    let output = tools::ensure_untouched(&[&scene.image.path], || scene.repair());
    assert_eq!(tools::code(&output), 1);
    assert!(exhausted(&output), "{}", said(&output));
    assert!(
        said(&output).contains("3 attempts in a row, the last one ended as quarantined"),
        "{}",
        said(&output)
    );
    assert!(!exhausted(&scene.run(&["check"])), "a check is not a repair");
    Raw::open(&scene.image.path).append_clusters(1, 1);
    let output = scene.repair();
    assert_eq!(tools::code(&output), 0, "{}", said(&output));
}

#[test]
fn two_failures_leave_a_third_try() {
    need!(tools::qemu());
    let scene = Scene::new();
    assert_eq!(tools::code(&scene.run(&["check", "--repair=leaks", "--memory=64M"])), 0);
    scene.leak_again();
    assert_eq!(scene.history()["attempts"].as_array().unwrap().len(), 2);
    let mut store = Folder::make(&scene.state).unwrap().store().unwrap();
    let request = store.attempts(&scene.key()).unwrap()[1].request.clone();
    store.add(&scene.key(), &Attempt::of("no-space", &request)).unwrap();
    scene.add_failure();
    scene.add_failure();
    scene.add_failure();
    // More memory is another request: it may come to another end.
    assert_eq!(tools::code(&scene.repair()), 0);
}

#[test]
fn damage_that_comes_back_twice_is_called_recurring_and_changes_no_exit_code() {
    need!(tools::qemu());
    let scene = Scene::new();
    let damaged = std::fs::read(&scene.image.path).unwrap();
    let damage = || std::fs::write(&scene.image.path, &damaged).unwrap();
    for _ in 0..2 {
        let output = scene.repair();
        assert_eq!(tools::code(&output), 0);
        assert!(!said(&output).contains("recurring-damage"), "{}", said(&output));
        damage();
    }
    for arguments in [&["check"][..], &["check", "--repair", "--preview"]] {
        let output = scene.run(arguments);
        assert_eq!(tools::code(&output), 3);
        assert!(said(&output).contains("recurring-damage: refcount-leak"), "{}", said(&output));
    }
    let output = scene.run(&["check", "--repair", "--output=json"]);
    assert_eq!(tools::code(&output), 0);
    let document = document_of(&output, "report");
    let expected = serde_json::json!([{ "problem": "refcount-leak", "repairs": 2 }]);
    assert_eq!(document["recurring-damage"], expected);
    assert!(!said(&scene.run(&["check"])).contains("recurring-damage"), "nothing was found this time");
}

#[test]
fn second_healer_is_told_who_the_first_is() {
    need!(tools::qemu());
    let scene = Scene::new();
    let claim = Claim::take(&Folder::make(&scene.state).unwrap(), &scene.key()).unwrap();
    for arguments in [&["check", "--repair"][..], &["resume"], &["undo"]] {
        let output = tools::ensure_untouched(&[&scene.image.path], || scene.run(arguments));
        assert_eq!(tools::code(&output), 1);
        let holder = format!("it is being repaired by process {}", std::process::id());
        assert!(said(&output).contains(&holder), "{arguments:?}: {}", said(&output));
    }
    drop(claim);
    assert_eq!(tools::code(&scene.repair()), 0);
}

fn assert_repaired_with_a_warning(scene: &Scene, why: &str) {
    let output = scene.repair();
    assert_eq!(tools::code(&output), 0, "{}", said(&output));
    let warnings = tools::stderr(&output);
    assert_eq!(warnings.matches("warning: nothing is remembered").count(), 1, "{warnings}");
    assert!(warnings.contains(why), "{warnings}");
    assert_eq!(scene.image.qemu_check(), 0);
}

#[test]
fn state_folder_that_cannot_be_made_costs_a_warning() {
    need!(tools::qemu());
    let scene = Scene { state: "/proc/instar".into(), ..Scene::new() };
    assert_repaired_with_a_warning(&scene, "/proc/instar: cannot make the folder");
}

#[test]
fn damaged_database_costs_a_warning() {
    need!(tools::qemu());
    let scene = Scene::new();
    Folder::make(&scene.state).unwrap();
    std::fs::write(scene.state.join("history.sqlite3"), [0x5a; 9000]).unwrap();
    assert_repaired_with_a_warning(&scene, "not a database");
}

#[test]
fn locked_database_costs_a_warning() {
    need!(tools::qemu());
    let scene = Scene::new();
    drop(Folder::make(&scene.state).unwrap().store().unwrap());
    let holder = rusqlite::Connection::open(scene.state.join("history.sqlite3")).unwrap();
    holder.execute_batch("BEGIN EXCLUSIVE").unwrap();
    assert_repaired_with_a_warning(&scene, "locked");
}

/// A file system of one small page, unmounted when dropped.
struct Tiny(PathBuf);

impl Tiny {
    fn at(path: &Path) -> Self {
        std::fs::create_dir(path).expect("a folder can be made");
        let options = ["-t", "tmpfs", "-o", "size=4k,mode=700", "tmpfs"];
        tools::must(std::process::Command::new("mount").args(options).arg(path));
        Self(path.to_owned())
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        tools::must(std::process::Command::new("umount").arg(&self.0));
    }
}

#[test]
fn full_file_system_costs_a_warning() {
    need!(tools::qemu(), tools::root());
    let scene = Scene::new();
    let _tiny = Tiny::at(&scene.state);
    assert_repaired_with_a_warning(&scene, "warning");
}
