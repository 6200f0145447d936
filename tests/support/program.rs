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

/// Runs `instar check --output=json` on an image in one cage, with `options` besides.
pub fn check_in(cage: &str, image: &Path, data_file: Option<&Path>, options: &[&str]) -> Output {
    let mut command = instar(["check", "--output=json", "--sandbox", cage]);
    command.args(options);
    if let Some(data) = data_file {
        command.arg("--data-file").arg(data);
    }
    tools::run(command.arg(image))
}

/// Exit code and document of a check with `options` in every cage that there is.
///
/// # Errors
/// What was said instead of a document; where two cages differ.
pub fn try_check(image: &TestImage, options: &[&str]) -> Result<(i32, Value), String> {
    let data_file = image.data_file();
    let mut told: Option<(i32, Value)> = None;
    for cage in cages() {
        let output = check_in(cage, &image.path, data_file.as_deref(), options);
        let parsed: Result<Value, _> = serde_json::from_slice(&output.stdout);
        let mut document = parsed.map_err(|_| format!("{cage}: {}", tools::stderr(&output)))?;
        let sandbox = document.as_object_mut().and_then(|object| object.remove("sandbox"));
        assert_eq!(sandbox.expect("a sandbox object")["cage"], cage);
        let now = (tools::code(&output), document);
        if told.as_ref().is_some_and(|before| *before != now) {
            return Err(format!("the cages differ: {told:?} {now:?}"));
        }
        told = Some(now);
    }
    told.ok_or_else(|| "no cage".to_owned())
}

/// [`try_check`] without options, where nothing may go wrong.
pub fn check(image: &TestImage) -> (i32, Value) {
    try_check(image, &[]).unwrap_or_else(|error| panic!("{}: {error}", image.path.display()))
}

/// The JSON that a program printed.
pub fn document(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {}{}", tools::stdout(output), tools::stderr(output));
    })
}

/// The JSON that a program printed, which follows the published schema called `schema`.
pub fn document_of(output: &Output, schema: &str) -> Value {
    let document = document(output);
    let path = format!("{}/docs/{schema}.schema.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let schema = serde_json::from_str(&text).expect("a schema is JSON");
    let validator = jsonschema::validator_for(&schema).expect("a schema that can be used");
    if let Err(error) = validator.validate(&document) {
        panic!("{path}: {error}\n{document:#}");
    }
    document
}

/// The ids of the problems in a document, in the order of the problem table.
pub fn problems(document: &Value) -> Vec<String> {
    let rows = document["problems"].as_array().expect("problems");
    rows.iter().map(|row| row["problem"].as_str().expect("an id").to_owned()).collect()
}
