//! `instar dump`: a copy with all metadata and no guest data.
#![allow(clippy::unwrap_used, reason = "a failing helper fails its test")]

mod support;

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use support::damage::{RECIPES, Recipe, recipe};
use support::image::{self, Flavour, TestImage};
use support::raw::{Raw, extension, field};
use support::{pattern, program, tools};

/// `instar dump` in one cage, with these options.
fn dump(image: &TestImage, out: &Path, cage: &str, options: &[&str]) -> Output {
    let mut command = program::instar(["dump", "--sandbox", cage]);
    command.args(options);
    if let Some(data) = image.data_file() {
        command.arg("--data-file").arg(data);
    }
    tools::run(command.arg(&image.path).arg(out))
}

/// What a check says of a file, without what it is called and how it was looked at.
fn findings(image: &TestImage, path: &Path, cage: &str) -> (i32, Value) {
    let output = program::check_in(cage, path, image.data_file().as_deref(), &["--all"]);
    let mut document = program::document(&output);
    let object = document.as_object_mut().unwrap();
    for key in ["sandbox", "filename"] {
        object.remove(key);
    }
    (tools::code(&output), document)
}

/// What `qemu-img check` says of a file.
fn qemu_findings(image: &TestImage, path: &Path) -> (i32, Value) {
    let mut command: Command = tools::qemu_img(["check", "--output=json"]);
    let output = tools::run(command.args(image.qemu_arguments_for(path)));
    let mut document: Value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    if let Some(object) = document.as_object_mut() {
        object.remove("filename");
    }
    (tools::code(&output), document)
}

/// Guest data in a file: sectors that begin as those of the patterns do.
fn guest_sectors(path: &Path) -> usize {
    let start = pattern::bytes(0, 0, 4, true);
    let bytes = std::fs::read(path).unwrap();
    bytes.chunks(pattern::SECTOR).filter(|sector| sector.starts_with(&start)).count()
}

fn is_left_out(output: &Output) -> bool {
    tools::stdout(output).contains("left out: ")
}

/// Dumps an image and says what is wrong with the copy, and whether something is left out of it.
fn judge(image: &TestImage, name: &str, cage: &str, options: &[&str]) -> (Option<String>, bool) {
    let out = image.path.with_extension("dump");
    let output = tools::ensure_untouched(&[&image.path], || dump(image, &out, cage, options));
    if tools::code(&output) != 0 {
        return (Some(format!("{name}: {}", tools::stderr(&output))), false);
    }
    let (before, after) = (findings(image, &image.path, cage), findings(image, &out, cage));
    let is_same = before == after;
    // Without its keys qemu-img opens no encrypted image.
    // Elsewhere it follows an entry into the middle of a table, and reads guest data as the rest of it.
    let is_for_qemu = is_same && image.flavour != Flavour::Luks && name != "l1-entry-unaligned";
    let (copy, original) = (out.metadata().unwrap(), image.path.metadata().unwrap());
    let fault = if guest_sectors(&out) > 0 {
        Some("guest data")
    } else if copy.len() != original.len() {
        Some("another length")
    } else if !is_same && !is_left_out(&output) {
        Some("other findings")
    } else if is_same != tools::stdout(&output).contains("finds the same in it") {
        Some("a wrong word on the findings")
    } else if is_for_qemu && qemu_findings(image, &image.path) != qemu_findings(image, &out) {
        Some("other findings of qemu-img")
    } else {
        None
    };
    std::fs::remove_file(&out).unwrap();
    let fault = fault.map(|what| {
        format!("{name}: {what}\n{}\nbefore {before:?}\nafter {after:?}", tools::stdout(&output))
    });
    (fault, is_left_out(&output))
}

/// Dumps each third recipe from `first` on; returns how many of the copies lack something.
fn sweep(first: usize) -> usize {
    let folder = tempfile::tempdir().unwrap();
    let cages = program::cages();
    let mut wrong = Vec::new();
    let mut left_out = 0;
    // Without its magic an image is none, and nothing is copied.
    let recipes = RECIPES.iter().filter(|recipe| !["not-qcow2", "header-magic"].contains(&recipe.name));
    for (recipe, cage) in recipes.skip(first).step_by(3).zip(cages.iter().cycle()) {
        let image = recipe.make(folder.path());
        let (fault, is_left_out) = judge(&image, recipe.name, cage, &[]);
        wrong.extend(fault);
        left_out += usize::from(is_left_out);
        std::fs::remove_file(&image.path).unwrap();
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    left_out
}

#[test]
fn dumps_of_damage_have_the_findings_of_the_image_and_no_guest_data() {
    need!(tools::qemu());
    let left_out = sweep(0);
    assert!(left_out < 10, "{left_out} copies lack something");
}

#[test]
fn dumps_of_more_damage_have_the_findings_of_the_image_and_no_guest_data() {
    need!(tools::qemu());
    let left_out = sweep(1);
    assert!(left_out < 10, "{left_out} copies lack something");
}

#[test]
fn dumps_of_yet_more_damage_have_the_findings_of_the_image_and_no_guest_data() {
    need!(tools::qemu());
    let left_out = sweep(2);
    assert!(left_out < 10, "{left_out} copies lack something");
}

#[test]
fn dumps_of_damaged_headers_hold_what_the_field_led_to() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    for name in ["header-version", "header-cluster-bits", "header-l1-offset", "header-refcount-order"] {
        let image = recipe(name).make(folder.path());
        assert_eq!(judge(&image, name, program::cages()[0], &[]), (None, false));
        let masked = judge(&image, name, program::cages()[0], &["--mask-names"]);
        assert_eq!(masked, (None, false), "{name}, masked");
    }
}

#[test]
fn dumps_of_healthy_images_are_consistent_and_small() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let cages = program::cages();
    for (flavour, cage) in Flavour::ALL.into_iter().zip(cages.iter().cycle()) {
        for cluster_bytes in [4096, 65_536].into_iter().filter(|bytes| flavour.allows(*bytes)) {
            let name = format!("{flavour:?}-{cluster_bytes}");
            let image = image::make(folder.path(), &name, flavour, cluster_bytes);
            let judged = judge(&image, &name, cage, &[]);
            assert_eq!(judged, (None, false));
            let out = image.path.with_extension("dump");
            assert_eq!(tools::code(&dump(&image, &out, cage, &[])), 0);
            let (copy, original) = (out.metadata().unwrap(), image.path.metadata().unwrap());
            assert!(copy.blocks() <= original.blocks(), "{name}: {} blocks", copy.blocks());
            std::fs::remove_file(&image.path).unwrap();
        }
    }
}

/// The bytes of a name, as they stand in a file.
fn count(path: &Path, wanted: &[u8]) -> usize {
    let bytes = std::fs::read(path).unwrap();
    bytes.windows(wanted.len()).filter(|window| *window == wanted).count()
}

#[test]
fn names_are_kept_unless_they_are_to_be_masked() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = image::make(folder.path(), "rich", Flavour::Rich, 65_536);
    let cage = program::cages()[0];
    let info = program::document(&tools::run(program::instar(["info", "--output=json"]).arg(&image.path)));
    let mut names = vec![info["backing-file"].as_str().unwrap().to_owned()];
    for list in ["snapshots", "bitmaps"] {
        names.extend(
            info[list].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap().to_owned()),
        );
    }
    assert!(names.len() >= 3, "{info:#}");
    let (plain, masked) = (folder.path().join("plain.dump"), folder.path().join("masked.dump"));
    assert_eq!(tools::code(&dump(&image, &plain, cage, &[])), 0);
    assert_eq!(tools::code(&dump(&image, &masked, cage, &["--mask-names"])), 0);
    for name in &names {
        assert!(count(&image.path, name.as_bytes()) > 0 && count(&plain, name.as_bytes()) > 0, "{name}");
        assert_eq!(count(&masked, name.as_bytes()), 0, "{name}");
    }
    // The names aside, a check says the same; so does qemu-img where nobody looks for the backing file.
    let (before, after) = (findings(&image, &image.path, cage), findings(&image, &masked, cage));
    assert_eq!(before, after);
    let check = |path: &Path| {
        let file = path.to_str().unwrap();
        let options = format!(
            "json:{{\"driver\":\"qcow2\",\"backing\":null,\"file\":{{\"driver\":\"file\",\"filename\":\"{file}\"}}}}"
        );
        tools::code(&tools::run(&mut tools::qemu_img(["check", &options])))
    };
    assert_eq!((check(&image.path), check(&masked)), (0, 0));
}

#[test]
fn duplicate_names_stay_duplicates_when_they_are_masked() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    for name in ["snapshot-duplicate-id", "bitmap-duplicate-name"] {
        let image = recipe(name).make(folder.path());
        let out = image.path.with_extension("dump");
        let cage = program::cages()[0];
        assert_eq!(tools::code(&dump(&image, &out, cage, &["--mask-names"])), 0);
        let (_, after) = findings(&image, &out, cage);
        assert!(program::problems(&after).iter().any(|id| id == name), "{after:#}");
    }
}

#[test]
fn what_was_left_behind_in_metadata_clusters_is_not_copied() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = image::make(folder.path(), "stale", Flavour::Snapshots, 65_536);
    let raw = Raw::open(&image.path);
    let stale = pattern::bytes(9, 0, 8192, false);
    // Behind the extensions, behind the L1 table, behind the snapshot table.
    raw.write(0x8000, &stale);
    raw.write(raw.get(field::L1_OFFSET) + 0x8000, &stale);
    raw.write(raw.get(field::SNAPSHOTS_OFFSET) + 0x8000, &stale);
    assert!(guest_sectors(&image.path) > 0);
    assert_eq!(judge(&image, "stale", program::cages()[0], &[]).0, None);
}

#[test]
fn names_behind_an_empty_snapshot_entry_are_masked() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = image::make(folder.path(), "empty-first", Flavour::Snapshots, 65_536);
    let info = program::document(&tools::run(program::instar(["info", "--output=json"]).arg(&image.path)));
    let name = info["snapshots"][0]["name"].as_str().unwrap();
    let raw = Raw::open(&image.path);
    let table = raw.snapshot_entry(0);
    let first = raw.read(table, instar_abi::to_usize(raw.snapshot_entry(1) - table));
    raw.write(table, &[&[0; 40], &first[..]].concat());
    raw.set(field::SNAPSHOTS, 2);
    let out = image.path.with_extension("dump");
    assert_eq!(tools::code(&dump(&image, &out, program::cages()[0], &["--mask-names"])), 0);
    assert!(count(&image.path, name.as_bytes()) > 0);
    assert_eq!(count(&out, name.as_bytes()), 0);
}

#[test]
fn what_no_entry_of_a_bitmap_directory_is_in_is_not_copied() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = image::make(folder.path(), "long-directory", Flavour::Rich, 65_536);
    let raw = Raw::open(&image.path);
    let size = raw.bitmaps_extension() + 8;
    raw.set_number(size, 8, raw.number(size, 8) + 0x2000);
    raw.write(raw.number(size + 8, 8) + 0x1000, &pattern::bytes(9, 0, 8192, false));
    assert!(guest_sectors(&image.path) > 0);
    assert_eq!(judge(&image, "long-directory", program::cages()[0], &[]).0, None);
}

#[test]
fn keys_of_an_encrypted_image_are_not_copied() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = image::make(folder.path(), "luks", Flavour::Luks, 65_536);
    let out = image.path.with_extension("dump");
    assert_eq!(tools::code(&dump(&image, &out, program::cages()[0], &[])), 0);
    let raw = Raw::open(&image.path);
    let at = raw.number(raw.extension(extension::CRYPTO).unwrap().0, 8);
    let copy = Raw::open(&out);
    assert_eq!(copy.read(at, 8), raw.read(at, 8));
    assert!(copy.read(at + 8, 0x1000).iter().all(|byte| *byte == 0));
}

#[test]
fn table_that_lies_on_guest_data_is_left_out_and_said_to_be() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = image::make(folder.path(), "table-on-data", Flavour::Plain, 65_536);
    let raw = Raw::open(&image.path);
    // The second L1 entry leads to the first guest cluster.
    raw.set_number(raw.get(field::L1_OFFSET) + 8, 8, raw.host_offset(0) | 1 << 63);
    let out = image.path.with_extension("dump");
    let output = dump(&image, &out, program::cages()[0], &[]);
    assert!(is_left_out(&output), "{}", tools::stdout(&output));
    assert_eq!(guest_sectors(&out), 0);
}

#[test]
fn nothing_is_written_over_what_is_there_and_nothing_is_left_of_a_failure() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = image::make(folder.path(), "image", Flavour::Plain, 65_536);
    let cage = program::cages()[0];
    let before = std::fs::read_dir(folder.path()).unwrap().count();
    tools::ensure_untouched(&[&image.path], || {
        let output = dump(&image, &image.path, cage, &[]);
        assert_eq!(tools::code(&output), 1);
        assert!(tools::stderr(&output).contains("there is a file with this name already"));
    });
    let nowhere: PathBuf = folder.path().join("no/such/folder");
    assert_eq!(tools::code(&dump(&image, &nowhere, cage, &[])), 1);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), before);
    let text = folder.path().join("text");
    std::fs::write(&text, "guest data").unwrap();
    let raw = tools::run(program::instar(["dump"]).args([&text, &folder.path().join("out")]));
    assert_eq!(tools::code(&raw), 63, "{}", tools::stderr(&raw));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), before + 1);
}

#[test]
fn payloads_of_compressed_clusters_are_not_copied() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = Recipe::make(recipe("compressed-damaged"), folder.path());
    let out = image.path.with_extension("dump");
    assert_eq!(tools::code(&dump(&image, &out, program::cages()[0], &[])), 0);
    let raw = Raw::open(&image.path);
    let payload = raw.number(raw.l2_entry(20), 8) & ((1 << 54) - 1);
    assert_eq!(raw.read(payload, 16), [0xff; 16]);
    assert_eq!(Raw::open(&out).read(payload, 16), [0; 16]);
}
