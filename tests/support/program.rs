//! The programs under test.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use super::image::TestImage;
use super::tools;

/// `instar` with these arguments.
pub fn instar<I: IntoIterator<Item = S>, S: AsRef<std::ffi::OsStr>>(arguments: I) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_instar"));
    command.args(arguments);
    command
}

/// The cages that this machine has; that it lacks one is printed.
#[expect(clippy::print_stderr, reason = "a skipped part of a test is to be seen")]
pub fn cages() -> Vec<&'static str> {
    match tools::kvm() {
        Ok(()) => vec!["kvm", "process"],
        Err(reason) => {
            eprintln!("skipped for the KVM cage: {reason}");
            vec!["process"]
        }
    }
}

/// Runs `instar check --output=json` on an image in one cage.
pub fn check_in(cage: &str, image: &Path, data_file: Option<&Path>) -> Output {
    let mut command = instar(["check", "--output=json", "--sandbox", cage]);
    if let Some(data) = data_file {
        command.arg("--data-file").arg(data);
    }
    tools::run(command.arg(image))
}

/// Exit code and document of a check in every cage that there is. Fails where two cages say different things.
pub fn check(image: &TestImage) -> (i32, Value) {
    let data_file = image.data_file();
    let mut told: Vec<(i32, Value)> = Vec::new();
    for cage in cages() {
        let output = check_in(cage, &image.path, data_file.as_deref());
        let mut document = document(&output);
        let sandbox = document.as_object_mut().expect("an object").remove("sandbox");
        assert_eq!(sandbox.expect("a sandbox object")["cage"], cage);
        told.push((tools::code(&output), document));
    }
    let first = told.pop().expect("there is a cage");
    for other in told {
        assert_eq!(first, other, "{}: the cages differ", image.path.display());
    }
    first
}

/// The JSON that a program printed.
pub fn document(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {}{}", tools::stdout(output), tools::stderr(output));
    })
}

/// The ids of the problems in a document, sorted, each once.
pub fn problems(document: &Value) -> Vec<String> {
    let findings = document["findings"].as_array().expect("findings");
    let mut ids: Vec<_> = findings.iter().map(|f| f["problem"].as_str().expect("an id").to_owned()).collect();
    ids.sort();
    ids.dedup();
    ids
}
