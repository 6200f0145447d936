//! `instar check --html`: one page that stands by itself.
#![allow(clippy::unwrap_used, reason = "a failing helper fails its test")]

mod support;

use std::path::Path;
use std::process::Output;

use support::damage::{RECIPES, recipe};
use support::image::{self, Flavour, TestImage};
use support::raw::Raw;
use support::{program, tools};

/// Elements that have no end.
const VOID: [&str; 4] = ["br", "input", "link", "meta"];

/// `instar check --html`.
fn check(image: &Path, page: &Path, options: &[&str]) -> Output {
    let mut command = program::instar(["check", "--quiet", "--state-dir=none"]);
    tools::run(command.args(options).arg("--html").arg(page).arg(image))
}

/// The elements of a page, in order of their beginning. Fails where one is not closed, or the page asks for anything.
fn elements(page: &str) -> Vec<String> {
    let body = page.strip_prefix("<!DOCTYPE html>").expect("a document type");
    let (mut open, mut seen): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
    for part in body.split('<').skip(1) {
        let (tag, text) = part.split_once('>').unwrap_or_else(|| panic!("'<{part}' has no end"));
        assert!(!text.contains('>') || open.last().is_some_and(|name| name == "style"), "a bare '>': {part}");
        if tag.starts_with("!--") {
            continue;
        }
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(name), "in {tag}");
            continue;
        }
        let name = tag.split_whitespace().next().unwrap().to_owned();
        assert!(name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit()), "<{tag}>");
        for attribute in [" src=", " href=", " action=", " onload=", " onclick="] {
            assert!(!tag.contains(attribute), "<{tag}>");
        }
        assert_eq!(tag.matches('"').count() % 2, 0, "<{tag}>");
        seen.push(name.clone());
        if !VOID.contains(&name.as_str()) {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "not closed: {open:?}");
    for forbidden in ["http:", "https:", "url(", "@import", "javascript:", "\u{1b}"] {
        assert!(!page.contains(forbidden), "the page has {forbidden:?}");
    }
    assert!(!seen.iter().any(|name| ["script", "link", "iframe", "object", "img"].contains(&name.as_str())));
    seen
}

fn page_of(image: &TestImage) -> (i32, String) {
    let page = image.path.with_extension("html");
    let output = tools::ensure_untouched(&[&image.path], || check(&image.path, &page, &[]));
    let text =
        std::fs::read_to_string(&page).unwrap_or_else(|error| panic!("{error}: {}", tools::stderr(&output)));
    std::fs::remove_file(&page).unwrap();
    (tools::code(&output), text)
}

#[test]
fn page_of_healthy_leaky_and_damaged_images_is_well_formed_and_asks_for_nothing() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let healthy = image::make(folder.path(), "healthy", Flavour::Rich, 65_536);
    let (code, page) = page_of(&healthy);
    let seen = elements(&page);
    assert_eq!(code, 0);
    assert!(page.contains("Nothing is wrong.") && page.contains("consistent"));
    assert!(seen.iter().filter(|name| *name == "rect").count() > 50 && !page.contains("<details"));
    let sample = RECIPES.iter().filter(|recipe| recipe.options.is_empty()).step_by(9);
    for recipe in sample.chain([recipe("refcount-leak-run")]) {
        let image = recipe.make(folder.path());
        let (code, page) = page_of(&image);
        let seen = elements(&page);
        assert_eq!(code, recipe.exit, "{}", recipe.name);
        assert!(recipe.problems.iter().all(|id| page.contains(id)), "{}", recipe.name);
        assert!(seen.iter().any(|name| name == "details"), "{}", recipe.name);
        assert_eq!(recipe.exit == 63, !seen.iter().any(|name| name == "svg"), "{}", recipe.name);
    }
}

#[test]
fn hostile_names_stay_text() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = image::make(folder.path(), "hostile", Flavour::Snapshots, 65_536);
    let name = "<script>alert(\"1\")</script>&'\u{202e}";
    tools::must(tools::qemu_img(["snapshot", "-c", name]).arg(&image.path));
    let evil = folder.path().join("<img src=x onerror=y>\n&quot;.qcow2");
    std::fs::rename(&image.path, &evil).unwrap();
    // A finding that names the snapshot too.
    let raw = Raw::open(&evil);
    raw.set_number(raw.number(raw.snapshot_entry(2), 8), 8, 1 << 5);
    let page = folder.path().join("page.html");
    assert_eq!(tools::code(&check(&evil, &page, &[])), 2);
    let text = std::fs::read_to_string(&page).unwrap();
    elements(&text);
    assert!(text.contains("&lt;script&gt;alert(") && text.contains("&lt;img src=x"), "{text}");
    assert!(!text.contains("<script") && !text.contains("<img") && !text.contains('\u{202e}'));
}

#[test]
fn page_of_a_repair_says_what_was_done() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = recipe("refcount-leak-run").make(folder.path());
    let page = folder.path().join("page.html");
    assert_eq!(tools::code(&check(&image.path, &page, &["--repair=leaks", "--preview"])), 3);
    let preview = std::fs::read_to_string(&page).unwrap();
    elements(&preview);
    assert!(preview.contains("What was done") && preview.contains("to do, in this order"), "{preview}");
    // The report of before is replaced.
    assert_eq!(tools::code(&check(&image.path, &page, &["--repair=leaks"])), 0);
    let repaired = std::fs::read_to_string(&page).unwrap();
    elements(&repaired);
    assert!(repaired.contains("A fresh cage has found the repaired image as promised."));
    assert!(repaired.contains("40 leaks") && repaired.contains("undo file"));
}

#[test]
fn page_is_never_written_over_anything_but_a_page() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = image::make(folder.path(), "image", Flavour::Plain, 65_536);
    let other = folder.path().join("notes.html");
    std::fs::write(&other, "<!DOCTYPE html><p>mine</p>").unwrap();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&image.path, &link).unwrap();
    let entries = || std::fs::read_dir(folder.path()).unwrap().count();
    let before = entries();
    for target in [&image.path, &other, &link, &folder.path().to_owned()] {
        let output = tools::ensure_untouched(&[&image.path, &other], || check(&image.path, target, &[]));
        assert_eq!(tools::code(&output), 1, "{}", target.display());
        assert!(!tools::stderr(&output).is_empty());
    }
    assert_eq!(entries(), before);
    let chained = check(&image.path, &folder.path().join("new"), &["--chain"]);
    assert_eq!(tools::code(&chained), 1);
}

#[test]
fn browser_shows_the_page_and_its_filter() {
    need!(tools::qemu(), tools::program("chromium"));
    let folder = tempfile::tempdir().unwrap();
    let image = recipe("l1-entry-past-eof").make(folder.path());
    let page = folder.path().join("page.html");
    assert_eq!(tools::code(&check(&image.path, &page, &[])), 2);
    let profile = format!("--user-data-dir={}", folder.path().join("profile").display());
    let chromium = |what: &str| {
        let mut command = std::process::Command::new("timeout");
        command.args([
            "120",
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--window-size=1000,1400",
        ]);
        command.args([&profile, what, &format!("file://{}", page.display())]);
        tools::must(&mut command)
    };
    let dom = tools::stdout(&chromium("--dump-dom"));
    let written = std::fs::read_to_string(&page).unwrap();
    // A browser that had to mend the page would have other elements than were written.
    for element in ["<rect", "<details", "<svg", "<tr", "<li", "<input"] {
        assert_eq!(dom.matches(element).count(), written.matches(element).count(), "{element}");
    }
    let picture = folder.path().join("page.png");
    chromium(&format!("--screenshot={}", picture.display()));
    let bytes = std::fs::read(&picture).unwrap();
    assert!(bytes.starts_with(b"\x89PNG") && bytes.len() > 20_000, "{} bytes", bytes.len());
}
