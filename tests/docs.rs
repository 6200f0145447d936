//! Documents that say what code says too are generated from it, or held against it.
//!
//! `UPDATE=1 cargo test --test docs` writes the generated ones anew.

mod support;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use instar_abi::problem::{Cost, Disposition, PROBLEMS, Severity, Tier};
use instar_mount::exit::Exit;
use support::tools;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn problems_document_is_the_one_of_the_table() {
    let fresh = problems_document();
    let path = root().join("docs/problems.md");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &fresh).unwrap();
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(stored == fresh, "docs/problems.md is stale: run `make docs`");
}

fn problems_document() -> String {
    let mut text = String::from(
        "# Problems\n\n\
         <!-- Generated from guest/abi/src/problem.rs by `make docs`; do not edit. -->\n\n\
         Everything that can be found to be wrong with an image. An id is permanent: it is never reused for \
         something else.\n\n\
         * **severity**: a *leak* loses space and nothing else; a *corruption* is metadata that contradicts \
         itself or the format; *fatal* means that the image cannot be looked at as a whole.\n\
         * **cure**: *leaks* and *all* name the least `--repair` tier that mends it; *choice* has several \
         outcomes, each of which gives something up, so a person has to decide; *refused* is not determined by \
         the rest of the image, and acting could lose what can still be saved.\n\
         * **price**: what the cure costs. *drops data*: bytes that could not be read before stay unreadable, \
         now for certain. *destroys evidence*: traces that a person could have used are gone.\n\n\
         A cure named here is what the table allows; whether it holds for an image is proven on a copy each time.\n",
    );
    for row in PROBLEMS {
        writeln!(text, "\n## {}\n", row.id).expect("a string takes anything");
        writeln!(
            text,
            "{} · cure: {} · price: {}\n",
            severity(row.severity),
            disposition(row.disposition),
            cost(row.disposition, row.cost)
        )
        .expect("a string takes anything");
        writeln!(text, "> {}\n\n{}", template(row.sentence), row.meaning).expect("a string takes anything");
    }
    text
}

/// A sentence with its place-holders in code style, without their formats.
fn template(sentence: &str) -> String {
    sentence.replace(":d}", "}").replace(":bytes}", "}").replace(['{', '}'], "`")
}

fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Leak => "leak",
        Severity::Corruption => "corruption",
        Severity::Fatal => "fatal",
    }
}

fn disposition(disposition: Disposition) -> &'static str {
    match disposition {
        Disposition::Curable(Tier::Leaks) => "leaks",
        Disposition::Curable(Tier::All) => "all",
        Disposition::Choice => "choice",
        Disposition::Refuse => "refused",
    }
}

fn cost(disposition: Disposition, cost: Cost) -> &'static str {
    match (disposition, cost) {
        (Disposition::Refuse, _) => "-",
        (_, Cost::Lossless) => "nothing",
        (_, Cost::DropsData) => "drops data",
        (_, Cost::DestroysEvidence) => "destroys evidence",
    }
}

#[test]
fn readme_table_of_exit_codes_is_the_enum() {
    let readme = read("README.md");
    let rows: Vec<_> = readme
        .lines()
        .skip_while(|line| *line != "| exit code | meaning |")
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .collect();
    let expected: Vec<_> =
        Exit::ALL.iter().map(|exit| format!("| {} | {} |", exit.code(), exit.meaning())).collect();
    assert_eq!(rows, expected);
}

#[test]
fn readme_and_documents_link_to_files_that_are_there() {
    for document in ["README.md", "CHANGELOG.md", "docs/design.md", "docs/threat-model.md"] {
        let text = read(document);
        let folder = root().join(document).parent().map(PathBuf::from).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = link.split('#').next().unwrap();
            if !path.is_empty() && !path.contains("://") {
                assert!(folder.join(path).exists(), "{document} links to {link}");
            }
        }
    }
}

#[test]
fn product_does_not_link_the_code_that_interprets_images() {
    let mut command = Command::new(env!("CARGO"));
    command
        .args(["metadata", "--format-version=1", "--no-deps", "--offline", "--locked"])
        .current_dir(root());
    let metadata: serde_json::Value = serde_json::from_slice(&tools::must(&mut command).stdout).unwrap();
    let mut seen = 0;
    for package in metadata["packages"].as_array().unwrap() {
        if !["instar-mount", "mount-instar", "instar-abi"].contains(&package["name"].as_str().unwrap()) {
            continue;
        }
        seen += 1;
        for dependency in package["dependencies"].as_array().unwrap() {
            let interprets = dependency["name"] == "instar-qcow2";
            assert!(!interprets || dependency["kind"] == "dev", "{} links instar-qcow2", package["name"]);
        }
    }
    assert!(seen >= 2, "the packages have other names now");
}

#[test]
fn makefile_help_names_the_targets_that_people_are_told_of() {
    let makefile = read("Makefile");
    for target in ["demo", "test", "check", "bench", "fuzz", "soak", "test-svm"] {
        assert!(makefile.lines().any(|line| line.starts_with(&format!("{target}: ##"))), "{target}");
    }
}
