//! The documents against qemu's keys and against the published schema.

use instar_abi::problem::Problem;
use instar_abi::summary::Outcome;
use serde_json::Value;

use super::super::{samples, schema};
use super::*;

fn document(report: &CheckReport) -> Value {
    serde_json::to_value(check_json(report)).unwrap()
}

#[test]
fn schema_in_docs_is_the_one_of_the_types() {
    schema::assert_published::<CheckDocument>("report");
    schema::assert_published::<ImageDocument>("info");
}

#[test]
fn documents_hold_to_the_published_schema() {
    let validator = schema::validator("report");
    for report in [samples::leaky(), samples::corrupt(), samples::repaired()] {
        let document = document(&report);
        if let Err(error) = validator.validate(&document) {
            panic!("{error}\n{document:#}");
        }
    }
    assert!(!validator.is_valid(&serde_json::json!({ "filename": "x" })), "the schema accepts anything");
}

#[test]
fn keys_of_qemu_are_left_out_when_zero_and_there_otherwise() {
    let clean = document(&samples::report(&[], Outcome::Complete));
    for absent in ["corruptions", "leaks", "corruptions-fixed", "leaks-fixed", "fragmented-clusters"] {
        assert_eq!(clean.get(absent), None, "{absent}");
    }
    assert_eq!(clean["check-errors"], 0);
    assert_eq!(clean["format"], "qcow2");
    let corrupt = document(&samples::corrupt());
    assert_eq!(corrupt["leaks"], 12);
    assert_eq!(corrupt["corruptions"], 2);
    assert_eq!(document(&samples::repaired())["leaks-fixed"], 12);
}

#[test]
fn names_in_a_document_are_escaped() {
    let text = serde_json::to_string(&check_json(&samples::corrupt())).unwrap();
    assert!(!text.contains("\\u001b") && !text.contains('\x1b'), "{text}");
}

#[test]
fn verdict_and_exit_follow_severity() {
    let exit = |report: &CheckReport| report.exit(true).code();
    assert_eq!(exit(&samples::report(&[], Outcome::Complete)), 0);
    assert_eq!(exit(&samples::report(&[], Outcome::Incomplete)), 1);
    assert_eq!(exit(&samples::corrupt()), 2);
    assert_eq!(exit(&samples::leaky()), 3);
    assert_eq!(exit(&samples::repaired()), 4);
    assert_eq!(samples::repaired().exit(false).code(), 0);
    assert_eq!(exit(&samples::report(&[], Outcome::Unsupported)), 63);
    let fatal = (Problem::HeaderTruncated, samples::leak(0, 1));
    assert_eq!(exit(&samples::report(&[fatal], Outcome::Incomplete)), 2);
    assert_eq!(exit(&samples::report(&[fatal], Outcome::NotQcow2)), 63);
}

#[test]
fn summary_with_a_forged_outcome_is_no_verdict() {
    let mut report = samples::report(&[], Outcome::Complete);
    report.summary.outcome = 0xdead;
    assert_eq!(report.verdict(), Verdict::Incomplete);
    assert_eq!(document(&report)["check-errors"], 1);
}
