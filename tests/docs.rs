//! Documents that say what code says too are generated from it, or held against it.
//!
//! `UPDATE=1 cargo test --test docs` writes the generated ones anew.

#[allow(dead_code, reason = "its main function is not called here")]
#[path = "../examples/manual.rs"]
mod manual;
mod support;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::CommandFactory as _;
use instar_abi::problem::{Cost, Disposition, PROBLEMS, Severity, Tier};
use instar_mount::cli::options::Instar;
use instar_mount::event;
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

/// The rows of the table in a document that has this head.
fn table(document: &str, head: &str) -> Vec<String> {
    let text = read(document);
    let rows = text.lines().skip_while(|line| *line != head).skip(2).take_while(|line| line.starts_with('|'));
    rows.map(str::to_owned).collect()
}

#[test]
fn tables_of_exit_codes_are_the_enum() {
    let expected: Vec<_> =
        Exit::ALL.iter().map(|exit| format!("| {} | {} |", exit.code(), exit.meaning())).collect();
    for document in ["README.md", "docs/guide.md"] {
        assert_eq!(table(document, "| exit code | meaning |"), expected, "{document}");
    }
}

#[test]
fn guides_table_of_events_is_that_of_the_code() {
    let expected: Vec<_> =
        event::ALL.iter().map(|event| format!("| {} | {} |", event.id, event.meaning)).collect();
    assert_eq!(table("docs/guide.md", "| event | meaning |"), expected);
}

#[test]
fn pages_and_completions_are_made_for_every_command_and_are_well_formed() {
    let folder = tempfile::tempdir().unwrap();
    manual::write(folder.path()).unwrap();
    let mut pages: Vec<PathBuf> =
        std::fs::read_dir(folder.path().join("man")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let has = |name: &str| pages.iter().any(|page| page.file_name().is_some_and(|own| own == name));
    for subcommand in Instar::command().get_subcommands() {
        assert!(has(&format!("instar-{}.1", subcommand.get_name())), "{pages:?}");
    }
    assert!(has("instar.1") && has("instar-mount.1"), "{pages:?}");
    let bash = std::fs::read_to_string(folder.path().join("completions/instar-mount.bash")).unwrap();
    assert!(bash.contains("--on-damage"), "{bash}");
    need!(tools::program("man"));
    pages.push(root().join("docs/man/mount.instar.8"));
    for page in pages {
        let output = tools::must(
            Command::new("man").args(["--warnings", "-l"]).arg(&page).env("MANROFFOPT", "-rHY=0"),
        );
        assert_eq!(tools::stderr(&output), "", "{}", page.display());
        assert!(tools::stdout(&output).contains("NAME"), "{}", page.display());
    }
}

#[test]
fn page_of_the_mount_helper_names_every_option_that_is_passed_on() {
    let page = read("docs/man/mount.instar.8");
    let helper = read("mount-helper/src/request.rs");
    let options = helper.split("const NOT_FOR_US").next().expect("the tables of options");
    let quoted: Vec<_> = options.split('"').skip(1).step_by(2).collect();
    assert!(quoted.len() > 10, "{quoted:?}");
    for option in quoted {
        assert!(page.lines().any(|line| is_about(line, option)), "{option}");
    }
}

/// `.BI uid= UID`, `.B preview`: a line that begins with the option in bold.
fn is_about(line: &str, option: &str) -> bool {
    let Some((macro_name, rest)) = line.split_once(' ') else { return false };
    let name = rest.split(['=', ' ']).next();
    macro_name.starts_with(".B") && name == Some(option)
}

#[test]
fn readme_and_documents_link_to_files_that_are_there() {
    for document in [
        "README.md",
        "CHANGELOG.md",
        "docs/design.md",
        "docs/guide.md",
        "docs/map-and-dump.md",
        "docs/comparison.md",
        "docs/threat-model.md",
    ] {
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
    for target in ["demo", "test", "check", "bench", "fuzz", "soak", "test-svm", "deb", "test-deb"] {
        assert!(makefile.lines().any(|line| line.starts_with(&format!("{target}: ##"))), "{target}");
    }
}
