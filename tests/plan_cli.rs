//! Plans through the command line: decisions, previews, plan files, records in another folder.

mod support;

use std::path::Path;
use std::process::Output;

use support::damage::recipe;
use support::image::TestImage;
use support::program::{document_of, instar};
use support::tools;

fn run(arguments: &[&str], image: &TestImage) -> Output {
    tools::run(instar(arguments).arg(&image.path))
}

fn said(output: &Output) -> String {
    tools::stdout(output) + &tools::stderr(output)
}

/// Holds a plan file against its published schema.
fn assert_follows_schema(plan: &Path) {
    let read = |path: &Path| -> serde_json::Value {
        let text = std::fs::read_to_string(path).expect("a file");
        serde_json::from_str(&text).expect("JSON")
    };
    let schema = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/plan.schema.json"));
    let validator = jsonschema::validator_for(&schema).expect("a schema that can be used");
    let document = read(plan);
    assert!(validator.is_valid(&document), "{document:#}");
}

#[test]
fn corruptions_are_mended_and_undone_byte_by_byte() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    for name in ["refcount-too-low", "l2-copied-missing", "refcount-too-high"] {
        let image = recipe(name).make(folder.path());
        let before = std::fs::read(&image.path).unwrap();
        let output = run(&["check", "--repair=all", "--output=json", "--exit-code=detailed"], &image);
        assert_eq!(tools::code(&output), 4, "{name}: {}", said(&output));
        let document = document_of(&output, "report");
        assert_eq!(document["repair"]["ending"], "repaired", "{name}");
        assert_eq!(image.qemu_check(), 0, "{name}");
        image.assert_guest_intact();
        assert_eq!(tools::code(&run(&["undo"], &image)), 0);
        assert!(std::fs::read(&image.path).unwrap() == before, "{name}: undo left other bytes");
    }
}

#[test]
fn preview_tells_the_cures_with_their_prices_and_writes_nothing() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = recipe("refcount-too-low").make(folder.path());
    let preview = &["check", "--repair=all", "--preview"][..];
    let output = tools::ensure_untouched(&[&image.path], || run(preview, &image));
    assert_eq!(tools::code(&output), 2);
    for words in
        ["to do, in this order", "fix-counts", "loses nothing", "marked as corrupt", "without --preview"]
    {
        assert!(said(&output).contains(words), "{words}: {}", said(&output));
    }
    let output = run(&[preview, &["--output=json"]].concat(), &image);
    let document = document_of(&output, "report");
    assert_eq!(document["plan"]["to-do"][0]["cure"], "fix-counts");
    assert_eq!(document["corruptions-fixed"], serde_json::Value::Null);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "files were left behind");
}

#[test]
fn plan_is_the_same_each_time_and_is_carried_out_once_it_is_wanted() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = recipe("refcount-too-low").make(folder.path());
    let [one, two] = ["one.json", "two.json"].map(|name| folder.path().join(name).display().to_string());
    for plan in [&one, &two] {
        let output = tools::ensure_untouched(&[&image.path], || {
            run(&["check", "--repair=all", "--plan-out", plan], &image)
        });
        assert_eq!(tools::code(&output), 2, "{}", said(&output));
        assert!(
            said(&output).contains(&format!("next: instar check --apply-plan {plan}")),
            "{}",
            said(&output)
        );
    }
    assert_eq!(std::fs::read(&one).unwrap(), std::fs::read(&two).unwrap());
    assert_follows_schema(Path::new(&one));
    let again = run(&["check", "--repair=all", "--plan-out", &one], &image);
    assert_eq!(tools::code(&again), 1);
    assert!(said(&again).contains("exists"), "{}", said(&again));
    let preview = tools::ensure_untouched(&[&image.path], || {
        run(&["check", "--apply-plan", &one, "--preview"], &image)
    });
    assert_eq!(tools::code(&preview), 2, "{}", said(&preview));
    let output = run(&["check", "--apply-plan", &one], &image);
    assert_eq!(tools::code(&output), 0, "{}", said(&output));
    assert_eq!(image.qemu_check(), 0);
    image.assert_guest_intact();
}

#[test]
fn plan_for_another_image_is_refused_and_both_fingerprints_named() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = recipe("refcount-too-low").make(folder.path());
    let other = recipe("l2-copied-missing").make(folder.path());
    let plan = folder.path().join("plan.json").display().to_string();
    assert_eq!(tools::code(&run(&["check", "--repair=all", "--plan-out", &plan], &image)), 2);
    let refused = |image: &TestImage| {
        let output =
            tools::ensure_untouched(&[&image.path], || run(&["check", "--apply-plan", &plan], image));
        assert_eq!(tools::code(&output), 1);
        assert_eq!(said(&output).matches("bytes with fingerprint").count(), 2, "{}", said(&output));
    };
    refused(&other);
    assert_eq!(tools::code(&run(&["check", "--apply-plan", &plan], &image)), 0);
    refused(&image);
}

#[test]
fn plan_file_that_was_changed_or_is_none_is_refused_before_the_image_is_opened() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = recipe("refcount-too-low").make(folder.path());
    let plan = folder.path().join("plan.json");
    let name = plan.display().to_string();
    assert_eq!(tools::code(&run(&["check", "--repair=all", "--plan-out", &name], &image)), 2);
    let text = std::fs::read_to_string(&plan).unwrap();
    for (content, words) in [
        (text.replace("\"all\"", "\"leaks\""), "plan file: "),
        (text.replacen("fix-counts", "fix-\\u001b[2J", 1), "unknown cure 'fix-\\u{1b}[2J'"),
        (text[..text.len() / 2].to_owned(), "is not a plan file"),
        (String::new(), "is not a plan file"),
    ] {
        std::fs::write(&plan, content).unwrap();
        let output = tools::run(&mut instar(["check", "--apply-plan", &name, "/nonexistent"]));
        assert_eq!(tools::code(&output), 1);
        assert!(said(&output).contains(words), "{words}: {}", said(&output));
        assert!(!said(&output).contains('\x1b'));
    }
    let missing = tools::run(&mut instar(["check", "--apply-plan", "/nonexistent.json", "/nonexistent"]));
    assert!(said(&missing).contains("cannot open the plan file"), "{}", said(&missing));
}

#[test]
fn plan_of_an_image_with_nothing_to_do_is_no_file() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = recipe("refcount-leak-one").make(folder.path());
    assert_eq!(tools::code(&run(&["check", "--repair"], &image)), 0);
    let plan = folder.path().join("plan.json").display().to_string();
    let output = run(&["check", "--repair=all", "--plan-out", &plan], &image);
    assert_eq!(tools::code(&output), 0);
    assert!(said(&output).contains("no plan was written") && !Path::new(&plan).exists(), "{}", said(&output));
}

#[test]
fn choices_are_named_as_options_and_only_made_when_given() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = recipe("orphan-table").make(folder.path());
    let output = tools::ensure_untouched(&[&image.path], || run(&["check", "--repair=all"], &image));
    for words in ["for you to decide", "--decide orphan-table=free", "--decide orphan-table=attach"] {
        assert!(said(&output).contains(words), "{words}: {}", said(&output));
    }
    let output = run(&["check", "--output=json"], &image);
    let document = document_of(&output, "report");
    let choices = document["choices"].as_array().unwrap();
    assert!(choices.iter().any(|choice| choice["problem"] == "orphan-table" && choice["choice"] == "attach"));
}

#[test]
fn decision_is_told_with_its_price_in_the_preview() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = recipe("orphan-data").make(folder.path());
    let options = ["check", "--repair=all", "--decide=orphan-data=free", "--preview"];
    let output = tools::ensure_untouched(&[&image.path], || run(&options, &image));
    for words in ["you decided orphan-data=free", "may hold guest data", "at the price of what you decided"] {
        assert!(said(&output).contains(words), "{words}: {}", said(&output));
    }
    let document = document_of(&run(&[&options[..], &["--output=json"]].concat(), &image), "report");
    assert_eq!(document["plan"]["decided"], serde_json::json!(["orphan-data=free"]));
}

#[test]
fn unknown_decisions_are_answered_with_those_that_there_are() {
    let output =
        tools::run(&mut instar(["check", "--repair=all", "--decide", "orphan-table=burn", "/nonexistent"]));
    assert_eq!(tools::code(&output), 1);
    assert!(said(&output).contains("orphan-table=free, orphan-table=attach"), "{}", said(&output));
    let leaks =
        tools::run(&mut instar(["check", "--repair=leaks", "--decide=orphan-data=free", "/nonexistent"]));
    assert_eq!(tools::code(&leaks), 1);
    assert!(said(&leaks).contains("decisions are for --repair=all"), "{}", said(&leaks));
}

#[test]
fn records_are_kept_in_the_folder_that_was_named() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = recipe("refcount-leak-one").make(folder.path());
    let records = folder.path().join("records");
    std::fs::create_dir(&records).unwrap();
    let option = format!("--undo-dir={}", records.display());
    let before = std::fs::read(&image.path).unwrap();
    assert_eq!(tools::code(&run(&["check", "--repair", &option], &image)), 0);
    assert_eq!(std::fs::read_dir(&records).unwrap().count(), 1);
    assert_eq!(tools::code(&run(&["undo"], &image)), 1, "the records are elsewhere");
    assert_eq!(tools::code(&run(&["undo", &option], &image)), 0);
    assert!(std::fs::read(&image.path).unwrap() == before);
}
