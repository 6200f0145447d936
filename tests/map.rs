//! `instar map`: who uses which part of the file, and what the disk is made of.

mod support;

use std::process::Command;

use serde_json::Value;
use support::damage::{RECIPES, recipe};
use support::image::{self, Flavour, TestImage};
use support::{program, tools};

/// `instar map` in one cage.
fn map(image: &TestImage, cage: &str, options: &[&str]) -> Command {
    let mut command = program::instar(["map", "--sandbox", cage]);
    command.args(options).env_remove("NO_COLOR").env("TERM", "xterm");
    if let Some(data) = image.data_file() {
        command.arg("--data-file").arg(data);
    }
    command.arg(&image.path);
    command
}

/// The document, which is the same in every cage.
fn document(image: &TestImage) -> Value {
    let mut told: Option<Value> = None;
    for cage in program::cages() {
        let output = tools::run(&mut map(image, cage, &["--output=json"]));
        let document = program::document_of(&output, "map");
        assert!(told.as_ref().is_none_or(|before| *before == document), "the cages differ");
        told = Some(document);
    }
    told.expect("a cage")
}

fn uses(document: &Value, stretch: &str, used_as: &str) -> u64 {
    document[stretch]["uses"][used_as].as_u64().unwrap_or(0)
}

#[test]
fn map_of_healthy_images_accounts_for_every_cluster_in_use() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    for flavour in Flavour::ALL {
        let image = image::make(folder.path(), &format!("{flavour:?}"), flavour, 65_536);
        let document = tools::ensure_untouched(&[&image.path], || document(&image));
        let (code, check) = program::check(&image);
        assert_eq!((code, &document["verdict"]), (0, &Value::from("consistent")), "{flavour:?}");
        let file = document["file"]["uses"].as_object().unwrap();
        let in_use: u64 = file.values().map(|bytes| bytes.as_u64().unwrap()).sum();
        let end = check["image-end-offset"].as_u64().unwrap();
        // Tables are told of by the byte, clusters in use as a whole.
        let rounded = in_use.next_multiple_of(65_536);
        assert!(in_use <= end && rounded + 65_536 * 24 > end, "{flavour:?}: {in_use} of {end}");
        assert_eq!(file.get("leaked"), None, "{flavour:?}");
        assert_eq!(uses(&document, "disk", "damaged"), 0, "{flavour:?}");
        let buckets = document["file"]["buckets"].as_array().unwrap();
        assert!(buckets.iter().all(|bucket| bucket.get("damage").is_none()), "{flavour:?}");
    }
}

#[test]
fn map_tells_data_zeros_and_compressed_clusters_as_qemu_does() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = image::make(folder.path(), "plain", Flavour::Plain, 65_536);
    let mut command = tools::qemu_img(["map", "--output=json"]);
    let qemu: Value = serde_json::from_slice(&tools::must(command.arg(&image.path)).stdout).unwrap();
    let sum = |wanted: &dyn Fn(&Value) -> bool| -> u64 {
        let runs = qemu.as_array().unwrap().iter().filter(|run| wanted(run));
        runs.map(|run| run["length"].as_u64().unwrap()).sum()
    };
    let document = document(&image);
    assert_eq!(uses(&document, "disk", "compressed"), sum(&|run| run["compressed"] == true));
    assert_eq!(uses(&document, "disk", "data"), sum(&|run| run["data"] == true && run["compressed"] != true));
    let plain_zeros = sum(&|run| run["zero"] == true && run["present"] == true);
    assert_eq!(uses(&document, "disk", "zero"), plain_zeros);
}

#[test]
fn map_of_damage_exits_as_check_and_shows_where_it_is() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let cages = program::cages();
    let recipes = RECIPES.iter().filter(|recipe| recipe.options.is_empty() && recipe.exit != 63);
    // A third of them is a sample of every structure, and takes half a minute.
    for (recipe, cage) in recipes.step_by(3).zip(cages.iter().cycle()) {
        let image = recipe.make(folder.path());
        let output = tools::run(&mut map(&image, cage, &["--output=json"]));
        assert_eq!(tools::code(&output), recipe.exit, "{}: {}", recipe.name, tools::stderr(&output));
        let document = program::document_of(&output, "map");
        let buckets = document["file"]["buckets"].as_array().unwrap();
        let has_damage = buckets.iter().any(|bucket| bucket["damage"].as_u64() > Some(0));
        let check =
            program::document(&program::check_in(cage, &image.path, image.data_file().as_deref(), &[]));
        // Damage past the end of the file has no place in it.
        let len = image.path.metadata().unwrap().len();
        let in_file = |finding: &Value| {
            finding["severity"] != "leak" && finding["host-offset"].as_u64().is_some_and(|at| at < len)
        };
        let findings = check["findings"].as_array().unwrap();
        assert_eq!(has_damage, findings.iter().any(in_file), "{}", recipe.name);
        std::fs::remove_file(&image.path).unwrap();
    }
}

#[test]
fn leaks_are_shown_as_such() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = recipe("refcount-leak-run").make(folder.path());
    assert_eq!(uses(&document(&image), "file", "leaked"), 40 * 65_536);
}

#[test]
fn damaged_ranges_are_told_as_a_mapfile_that_covers_the_disk() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = recipe("l2-entry-past-eof").make(folder.path());
    let output = tools::run(&mut map(&image, program::cages()[0], &["--output=ddrescue"]));
    let text = tools::stdout(&output);
    let blocks: Vec<Vec<&str>> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .skip(1)
        .map(|line| line.split_whitespace().collect())
        .collect();
    let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap();
    let mut at = 0;
    for block in &blocks {
        assert_eq!(number(block[0]), at, "{text}");
        at += number(block[1]);
    }
    let lost: u64 = blocks.iter().filter(|block| block[2] == "-").map(|block| number(block[1])).sum();
    assert_eq!((at, lost), (image.virtual_bytes, uses(&document(&image), "disk", "damaged")));
    assert!(lost > 0);
}

#[test]
fn map_is_as_wide_as_asked_for_and_coloured_only_where_wanted() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = recipe("l1-entry-past-eof").make(folder.path());
    let cage = program::cages()[0];
    for width in [40, 80, 200] {
        let output = tools::run(&mut map(&image, cage, &["--width", &width.to_string()]));
        let text = tools::stdout(&output);
        assert!(text.contains('!'), "{text}");
        let widest = text.lines().skip(1).map(|line| line.chars().count()).max().unwrap();
        assert!(widest <= width, "{text}");
        assert!(text.is_ascii() && !text.contains('\x1b'), "{text}");
    }
    let output = tools::run(&mut map(&image, cage, &["--color=always"]));
    assert!(tools::stdout(&output).contains("\x1b[0;1;97;41m!"));
    for wrong in ["39", "201", "wide"] {
        assert_eq!(tools::code(&tools::run(&mut map(&image, cage, &["--width", wrong]))), 1);
    }
}

#[test]
fn what_is_no_qcow2_image_has_no_map() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("raw");
    std::fs::write(&path, [7; 4096]).unwrap();
    let output = tools::run(program::instar(["map"]).arg(&path));
    assert_eq!((tools::code(&output), tools::stdout(&output).as_str()), (63, ""));
    assert!(tools::stderr(&output).contains("not a format that is checked"), "{}", tools::stderr(&output));
}
