//! What people read.

use instar_abi::problem::PROBLEMS;
use instar_abi::summary::Outcome;

use super::super::samples;
use super::*;

fn told(report: &CheckReport, options: HumanOptions) -> String {
    let mut out = Vec::new();
    write_check(report, options, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn leaks_are_told_with_cure_price_and_next_command() {
    assert_eq!(
        told(&samples::leaky(), HumanOptions::default()),
        "\
disk.qcow2: 12 leaks, nothing worse
  qcow2 version 3, 1 GiB disk, 64 KiB clusters, 100 of 16384 in use

        12 x refcount-leak (leak)
             cluster 77: refcount stored 1, counted 0 (and 11 more like it behind it)
             The cluster is held although nothing uses it: space is lost, nothing else.

  --repair=leaks  can cure 12 items, frees 768 KiB, costs nothing
  --repair=all    can cure 12 items, frees 768 KiB, costs nothing
  next: instar check --repair=leaks disk.qcow2
  checked in a kvm cage: 0.00 s, 0 bytes read, 0 exits, at most 0 bytes of memory
"
    );
}

#[test]
fn corruptions_come_before_leaks_and_guest_bytes_are_merged() {
    let text = told(&samples::corrupt(), HumanOptions::default());
    assert!(text.starts_with("disk.qcow2: 2 corruptions and 12 leaks\n"), "{text}");
    assert!(text.find("l2-entry-past-eof") < text.find("refcount-leak"), "{text}");
    assert!(text.contains("guest bytes touched by corruptions: 128 KiB"), "{text}");
}

#[test]
fn all_lists_findings_with_owners_and_no_raw_control_character() {
    let text = told(&samples::corrupt(), HumanOptions { all: true, quiet: false });
    assert!(
        text.contains("used as guest data of the snapshot 0 \"evil\\u{1b}[2J\\n\", guest byte 0x40000"),
        "{text}"
    );
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
}

#[test]
fn every_problem_at_once_fits_a_screen() {
    let findings: Vec<_> = PROBLEMS.iter().map(|row| (row.problem, samples::past_eof(1))).collect();
    let text = told(&samples::report(&findings, Outcome::Incomplete), HumanOptions::default());
    assert!(text.lines().count() <= 45, "{} lines:\n{text}", text.lines().count());
    assert!(text.contains("more problems: --all lists them"), "{text}");
}

#[test]
fn quiet_says_nothing() {
    let quiet = HumanOptions { all: false, quiet: true };
    assert_eq!(told(&samples::report(&[], Outcome::Complete), quiet), "");
    assert!(told(&samples::leaky(), quiet).is_empty());
}

#[test]
fn repair_outcomes_are_told() {
    let text = told(&samples::repaired(), HumanOptions::default());
    assert!(text.contains("repair (leaks): repaired, and proven"), "{text}");
    assert!(text.contains("undo file: disk.qcow2.undo"), "{text}");
}
