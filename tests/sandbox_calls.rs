//! Calls of bad will: every forged field of every call is refused by name, in both cages, and every limit holds.
#![allow(
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a failing helper fails its test; skips are printed"
)]

mod sandbox_support;

use std::time::Duration;

use instar_abi::boot::JobKind;
use instar_abi::call::{
    CallHeader, DataRangesCall, Op, ProgressRecord, ReadRange, ScopeRange, SnapshotRecord, StageRange,
    TextHeader,
};
use instar_abi::cure::Cure;
use instar_abi::extent::{Extent, ExtentKind};
use instar_abi::finding::{ACTIVE, Finding, NONE, Owner};
use instar_abi::layout::{ARENA_BASE, BOOT, CALL, SMALL_BASE};
use instar_abi::region::Region;
use instar_abi::summary::{Outcome, Summary};
use instar_mount::sandbox::error::SandboxError;
use instar_mount::sandbox::observer::{Ignore, Observer};
use zerocopy::FromZeros as _;

use sandbox_support::{ARENA_BYTES, SURVIVED, cages, call, deed, evil_job, raw_call, run};

/// A name, the calls that an inmate makes one after the other, and what the error must say; `None` for calls that
/// are all right.
type Case = (&'static str, Vec<Vec<u8>>, Option<&'static str>);

/// Bytes of the image in here: room for eight calls.
const IMAGE_BYTES: u64 = 8 * 4096;

fn table(kind: JobKind, cases: &[Case]) {
    for choice in cages() {
        for (name, calls, wanted) in cases {
            let mut image = calls.concat();
            image.resize(usize::try_from(IMAGE_BYTES).unwrap(), 0);
            let job = evil_job(kind, [deed::FORGE, calls.len() as u64], image);
            let got = run(&job, choice, &mut Ignore);
            match (wanted, &got) {
                (None, Ok(result)) => assert_eq!(result.summary.passes, SURVIVED, "{name} in {choice:?}"),
                (Some(words), Err(SandboxError::Fault { what })) if what.contains(words) => {}
                _ => panic!("{name} in {choice:?}: wanted {wanted:?}, got {got:?}"),
            }
        }
    }
}

fn read(offset: u64, len: u64, dest: u64, file: u32) -> Vec<u8> {
    call(Op::Read, 1, &[ReadRange { offset, len, dest, file, error: 0 }])
}

#[test]
fn call_with_a_forged_header_is_refused() {
    let header = |op, count, reserved| raw_call(CallHeader { op, count, reserved }, &[]);
    table(
        JobKind::Check,
        &[
            ("no op", vec![header(0, 0, [0; 3])], Some("unknown op 0")),
            ("unknown op", vec![header(99, 0, [0; 3])], Some("unknown op 99")),
            ("largest op", vec![header(u32::MAX, 0, [0; 3])], Some("unknown op 4294967295")),
            ("reserved word", vec![header(10, 1, [0, 7, 0])], Some("reserved words")),
            ("no records", vec![header(1, 0, [0; 3])], Some("0 records")),
            ("too many records", vec![header(1, 8192, [0; 3])], Some("8192 records")),
            ("most records", vec![header(6, u32::MAX, [0; 3])], Some("4294967295 records")),
            ("two progress records", vec![header(10, 2, [0; 3])], Some("2 records, must be 1")),
            ("two summaries", vec![header(12, 2, [0; 3])], Some("2 records, must be 1")),
        ],
    );
}

#[test]
fn survey_of_bytes_that_are_not_there_is_refused() {
    let region = |offset, len, table, flags| call(Op::Region, 1, &[Region { offset, len, table, flags }]);
    let replace = |offset, src| call(Op::Replace, 1, &[StageRange { offset, len: 1, src }]);
    let hole = |guest_offset| {
        let kind = ExtentKind::Hole as u32;
        call(Op::Extent, 1, &[Extent { guest_offset, guest_len: 512, kind, ..Extent::new_zeroed() }])
    };
    let cases: &[Case] = &[
        ("all of it", vec![region(0, IMAGE_BYTES, 3, 4), replace(0, ARENA_BASE), hole(0), hole(512)], None),
        ("too long", vec![region(0, IMAGE_BYTES + 1, 3, 4)], Some("not all in file 0")),
        ("empty", vec![region(0, 0, 3, 4)], Some("is empty")),
        ("unknown table", vec![region(0, 1, 99, 4)], Some("table 99")),
        ("unknown flag", vec![region(0, 1, 3, 1 << 31)], Some("must be known")),
        ("replace past the end", vec![replace(IMAGE_BYTES, ARENA_BASE)], Some("not all in file 0")),
        ("replace from nowhere", vec![replace(0, ARENA_BASE - 1)], Some("not in the arena")),
        ("gap", vec![hole(0), hole(1024)], Some("does not continue")),
        ("write", vec![call(Op::Stage, 1, &[0_u64; 3])], Some("call Stage is not for a Survey job")),
    ];
    table(JobKind::Survey, cases);
    let foreign = [("region", vec![region(0, 1, 3, 4)], Some("call Region is not for a Check job"))];
    table(JobKind::Check, &foreign);
}

#[test]
fn read_out_of_file_or_arena_is_refused() {
    let end = ARENA_BASE + ARENA_BYTES;
    table(
        JobKind::Check,
        &[
            ("whole image", vec![read(0, IMAGE_BYTES, ARENA_BASE + 4096, 0)], None),
            ("last byte of arena", vec![read(0, 1, end - 1, 0)], None),
            ("behind the end", vec![read(IMAGE_BYTES, 1, ARENA_BASE, 0)], Some("not all in file 0")),
            ("over the end", vec![read(1, IMAGE_BYTES, ARENA_BASE, 0)], Some("not all in file 0")),
            ("no bytes", vec![read(0, 0, ARENA_BASE, 0)], Some("empty")),
            ("sum overflows", vec![read(u64::MAX, 2, ARENA_BASE, 0)], Some("not all in file 0")),
            ("all bytes", vec![read(0, u64::MAX, ARENA_BASE, 0)], Some("not all in file 0")),
            ("no such file", vec![read(0, 1, ARENA_BASE, 1)], Some("there is no file 1")),
            ("wild file", vec![read(0, 1, ARENA_BASE, u32::MAX)], Some("there is no file 4294967295")),
            ("below the arena", vec![read(0, 2, ARENA_BASE - 1, 0)], Some("not in the arena")),
            ("over the arena's end", vec![read(0, 2, end - 1, 0)], Some("not in the arena")),
            ("to null", vec![read(0, 1, 0, 0)], Some("not in the arena")),
            ("into text", vec![read(0, 1, SMALL_BASE, 0)], Some("not in the arena")),
            ("into the boot page", vec![read(0, 1, BOOT, 0)], Some("not in the arena")),
            ("into the call area", vec![read(0, 1, CALL, 0)], Some("not in the arena")),
            ("destination overflows", vec![read(0, 2, u64::MAX, 0)], Some("not in the arena")),
            (
                "bad range behind a good one",
                vec![call(
                    Op::Read,
                    2,
                    &[
                        ReadRange { offset: 0, len: 1, dest: ARENA_BASE, file: 0, error: 0 },
                        ReadRange { offset: 0, len: 1, dest: end, file: 0, error: 0 },
                    ],
                )],
                Some("not in the arena"),
            ),
            (
                "ranges that overlap in the arena",
                vec![call(
                    Op::Read,
                    2,
                    &[
                        ReadRange { offset: 0, len: 9, dest: end - 16, file: 0, error: 0 },
                        ReadRange { offset: 5, len: 9, dest: end - 12, file: 0, error: 77 },
                    ],
                )],
                None,
            ),
        ],
    );
}

#[test]
fn snapshot_record_out_of_form_or_turn_is_refused() {
    let record = SnapshotRecord { index: 1, reserved: 0, disk_bytes: u64::MAX };
    let forged = SnapshotRecord { reserved: 4, ..record };
    table(
        JobKind::Describe,
        &[
            ("any size", vec![call(Op::Snapshot, 1, &[record])], None),
            ("reserved word", vec![call(Op::Snapshot, 1, &[forged])], Some("reserved word 0x4")),
            ("two records", vec![call(Op::Snapshot, 2, &[record, record])], Some("must be 1")),
        ],
    );
    let out_of_turn = vec![call(Op::Snapshot, 1, &[record])];
    table(JobKind::Check, &[("by a check", out_of_turn, Some("call Snapshot is not for"))]);
}

#[test]
fn data_ranges_out_of_file_are_refused() {
    let ask = |offset, len, file, reserved| {
        vec![call(Op::DataRanges, 1, &[DataRangesCall { offset, len, file, reserved }])]
    };
    table(
        JobKind::Check,
        &[
            ("whole image", ask(0, IMAGE_BYTES, 0, 0), None),
            ("over the end", ask(1, IMAGE_BYTES, 0, 0), Some("not all in file 0")),
            ("overflow", ask(u64::MAX, u64::MAX, 0, 0), Some("not all in file 0")),
            ("no such file", ask(0, 1, 3, 0), Some("there is no file 3")),
            ("reserved word", ask(0, 1, 0, 9), Some("reserved word 0x9")),
        ],
    );
}

fn finding() -> Finding {
    Finding {
        problem: 1,
        table: 1,
        snapshot: ACTIVE,
        witnesses: 0,
        host_offset: 0,
        host_len: 4,
        index: NONE,
        count: 1,
        guest_offset: NONE,
        guest_len: 0,
        stored: 0,
        expected: NONE,
    }
}

#[test]
fn report_with_a_forged_field_is_refused() {
    let find = |finding| vec![call(Op::Finding, 1, &[finding])];
    let owner =
        |finding, table| Owner { finding, table, snapshot: ACTIVE, entry_offset: 0, guest_offset: NONE };
    let own = |owner| vec![call(Op::Owner, 1, &[owner])];
    let text = |kind, len, reserved| vec![call(Op::Text, 1, &[TextHeader { kind, index: 0, len, reserved }])];
    let fail = |kind, len| vec![call(Op::Fail, 1, &[TextHeader { kind, index: 0, len, reserved: 0 }])];
    let progress =
        |phase| vec![call(Op::Progress, 1, &[ProgressRecord { phase, pass: 0, done: 9, total: 1 }])];
    table(
        JobKind::Check,
        &[
            ("a finding and its owner", [find(finding()), own(owner(0, 3))].concat(), None),
            (
                "unknown problem",
                find(Finding { problem: 0xffff, ..finding() }),
                Some("unknown problem 65535"),
            ),
            ("unknown table", find(Finding { table: 15, ..finding() }), Some("unknown table 15")),
            ("no items", find(Finding { count: 0, ..finding() }), Some("count 0")),
            ("witnesses", find(Finding { witnesses: 1, ..finding() }), Some("witnesses 1")),
            (
                "host range",
                find(Finding { host_offset: NONE - 1, host_len: 2, ..finding() }),
                Some("overflows"),
            ),
            (
                "guest range",
                find(Finding { guest_offset: 1, guest_len: NONE, ..finding() }),
                Some("overflows"),
            ),
            ("index range", find(Finding { index: 2, count: NONE, ..finding() }), Some("overflows")),
            ("owner of nothing", own(owner(0, 3)), Some("owner of finding 0, reported were 0")),
            ("owner's table", [find(finding()), own(owner(0, 99))].concat(), Some("unknown table 99")),
            ("text", text(4, 100, 0), None),
            ("unknown text", text(8, 1, 0), Some("unknown kind 8")),
            ("long text", text(4, 65_537, 0), Some("text of 65537 bytes")),
            ("endless text", text(4, u32::MAX, 0), Some("text of 4294967295 bytes")),
            ("text's reserved word", text(4, 1, 5), Some("reserved word 0x5")),
            ("unknown failure", fail(9, 1), Some("unknown kind 9")),
            ("long failure", fail(1, 1 << 20), Some("text of 1048576 bytes")),
            ("unknown phase", progress(0), Some("unknown phase 0")),
            ("odd progress", progress(1), None),
        ],
    );
}

#[test]
fn summary_with_a_forged_field_is_refused() {
    let good = Summary { outcome: Outcome::Complete as u32, passes: SURVIVED, ..Summary::default() };
    let done = |summary| vec![call(Op::Done, 1, &[summary])];
    table(
        JobKind::Check,
        &[
            ("an early end", done(good), None),
            (
                "two ends: the first one counts",
                [done(good), done(Summary { passes: 1, ..good })].concat(),
                None,
            ),
            ("no outcome", done(Summary { outcome: 0, ..good }), Some("unknown outcome 0")),
            ("unknown outcome", done(Summary { outcome: 5, ..good }), Some("unknown outcome 5")),
            ("huge clusters", done(Summary { cluster_bits: 64, ..good }), Some("cluster_bits 64")),
            ("wide refcounts", done(Summary { refcount_bits: 65, ..good }), Some("refcount_bits 65")),
            ("unknown feature", done(Summary { unsupported: 9999, ..good }), Some("unknown problem 9999")),
        ],
    );
}

#[test]
fn call_of_another_kind_of_job_is_refused() {
    let plain = |op: Op| vec![call::<u64>(op, 0, &[])];
    let cases = |ops: &[Op]| -> Vec<Case> {
        ops.iter().map(|&op| ("foreign op", plain(op), Some("is not for a"))).collect()
    };
    table(JobKind::Check, &cases(&[Op::Scope, Op::Stage, Op::Barrier, Op::Extent, Op::Next]));
    table(JobKind::Describe, &cases(&[Op::Scope, Op::Stage, Op::Barrier, Op::Extent, Op::Next]));
    table(JobKind::Plan, &cases(&[Op::Extent, Op::Next]));
}

const CURE: u32 = Cure::FreeLeaks as u32;

fn scope(ranges: &[(u64, u64, u32, u32)]) -> Vec<u8> {
    let ranges: Vec<_> = ranges
        .iter()
        .map(|&(offset, len, cure, reserved)| ScopeRange { offset, len, cure, reserved })
        .collect();
    call(Op::Scope, u32::try_from(ranges.len()).unwrap(), &ranges)
}

fn stage(offset: u64, len: u64, src: u64) -> Vec<u8> {
    call(Op::Stage, 1, &[StageRange { offset, len, src }])
}

#[test]
fn stage_out_of_scope_or_arena_is_refused() {
    let open = || scope(&[(4096, 4096, CURE, 0), (8192, 4096, CURE, 0), (1 << 40, 1, CURE, 0)]);
    let end = ARENA_BASE + ARENA_BYTES;
    table(
        JobKind::Plan,
        &[
            ("within", vec![open(), stage(4096, 4096, ARENA_BASE)], None),
            ("over two ranges that touch", vec![open(), stage(5000, 4096, ARENA_BASE)], None),
            ("past the file's end, as named", vec![open(), stage(1 << 40, 1, ARENA_BASE)], None),
            ("scope in two calls", vec![open(), scope(&[(0, 9, CURE, 0)]), stage(0, 9, ARENA_BASE)], None),
            ("no step", vec![stage(0, 1, ARENA_BASE)], Some("not in the step's scope")),
            ("before", vec![open(), stage(4095, 1, ARENA_BASE)], Some("not in the step's scope")),
            ("over the end", vec![open(), stage(12_000, 4096, ARENA_BASE)], Some("not in the step's scope")),
            ("overflow", vec![open(), stage(1 << 40, u64::MAX, ARENA_BASE)], Some("not in the step's scope")),
            ("no bytes", vec![open(), stage(4096, 0, ARENA_BASE)], Some("empty")),
            ("source below", vec![open(), stage(4096, 1, ARENA_BASE - 1)], Some("not in the arena")),
            ("source over the end", vec![open(), stage(4096, 2, end - 1)], Some("not in the arena")),
            ("source in text", vec![open(), stage(4096, 1, SMALL_BASE)], Some("not in the arena")),
            (
                "scope of an earlier step",
                vec![
                    open(),
                    stage(4096, 1, ARENA_BASE),
                    scope(&[(0, 9, CURE, 0)]),
                    stage(4096, 1, ARENA_BASE),
                ],
                Some("not in the step's scope"),
            ),
            ("unknown cure", vec![scope(&[(0, 1, 999, 0)])], Some("cure 999")),
            ("two cures", vec![scope(&[(0, 1, CURE, 0), (0, 1, 0, 0)])], Some("must be one known cure")),
            ("scope's reserved word", vec![scope(&[(0, 1, CURE, 3)])], Some("reserved word 0x3")),
            ("empty scope range", vec![scope(&[(5, 0, CURE, 0)])], Some("is empty or overflows")),
            ("scope overflow", vec![scope(&[(u64::MAX, 2, CURE, 0)])], Some("is empty or overflows")),
            ("barrier with records", vec![call::<u64>(Op::Barrier, 1, &[])], Some("must be none")),
        ],
    );
}

/// Scope, offset of the last write, its bytes.
type Step = (Vec<(u64, u64)>, u64, Vec<u8>);

/// Keeps what a plan says.
#[derive(Debug, Default, PartialEq)]
struct Steps(Vec<Step>);

impl Observer for Steps {
    fn scope(&mut self, _cure: Cure, ranges: &[(u64, u64)]) {
        self.0.push((ranges.to_vec(), 0, Vec::new()));
    }

    fn stage(&mut self, offset: u64, bytes: Vec<u8>) {
        let step = self.0.last_mut().unwrap();
        (step.1, step.2) = (offset, bytes);
    }
}

#[test]
fn plan_reaches_the_observer_as_it_was_staged() {
    let calls = [
        read(0, 32, ARENA_BASE + (4 << 20), 0),
        scope(&[(4096, 100, CURE, 0)]),
        scope(&[(0, 50, CURE, 0)]),
        stage(4100, 32, ARENA_BASE + (4 << 20)),
    ];
    let expected = vec![(vec![(4096, 100), (0, 50)], 4100, calls[0][..32].to_vec())];
    for choice in cages() {
        let mut steps = Steps::default();
        run(&evil_job(JobKind::Plan, [deed::FORGE, 4], calls.concat()), choice, &mut steps).unwrap();
        assert_eq!(steps.0, expected);
    }
}

#[test]
fn flood_of_calls_ends_at_its_limit() {
    let long_text = call(Op::Text, 1, &[TextHeader { kind: 4, index: 0, len: 60_000, reserved: 0 }]);
    let floods = [
        ("calls", JobKind::Plan, scope(&[(0, 4096, CURE, 0)])),
        (
            "calls",
            JobKind::Check,
            call(Op::Progress, 1, &[ProgressRecord { phase: 1, pass: 0, done: 0, total: 0 }]),
        ),
        ("findings", JobKind::Check, call(Op::Finding, 20, &[finding(); 20])),
        ("bytes read", JobKind::Check, read(0, 4096, ARENA_BASE, 0)),
        ("bytes of text", JobKind::Check, long_text),
    ];
    for choice in cages() {
        for (what, kind, call) in &floods {
            let mut job = evil_job(*kind, [deed::FLOOD, 0], call.clone());
            job.limits.calls = 200;
            job.limits.findings = 1000;
            job.limits.findings_kept = 10;
            job.limits.bytes_read = 100 << 10;
            job.limits.text_bytes = 1 << 20;
            let mut kept = Kept(0);
            let error = run(&job, choice, &mut kept).unwrap_err();
            let right = matches!(&error, SandboxError::Limit { what: hit, .. } if hit == what);
            assert!(right, "{what} in {choice:?}: {error:?}");
            assert!(kept.0 <= 10);
        }
    }
}

/// Counts findings.
struct Kept(u64);

impl Observer for Kept {
    fn finding(&mut self, _problem: instar_abi::problem::Problem, _finding: &Finding) {
        self.0 += 1;
    }
}

#[test]
fn plan_that_stages_too_much_or_names_too_many_owners_ends_at_its_limit() {
    let owner = Owner { finding: 0, table: 1, snapshot: 0, entry_offset: 0, guest_offset: 0 };
    let cases = [
        (
            "bytes staged",
            vec![scope(&[(0, 4096, CURE, 0)]), stage(0, 4096, ARENA_BASE), stage(0, 1, ARENA_BASE)],
        ),
        ("owners", vec![call(Op::Finding, 1, &[finding()]), call(Op::Owner, 4, &[owner; 4])]),
    ];
    for choice in cages() {
        for (what, calls) in &cases {
            let mut job = evil_job(JobKind::Plan, [deed::FORGE, calls.len() as u64], calls.concat());
            job.limits.bytes_staged = 4096;
            job.limits.owners = 3;
            let error = run(&job, choice, &mut Ignore).unwrap_err();
            let right = matches!(&error, SandboxError::Limit { what: hit, .. } if hit == what);
            assert!(right, "{what} in {choice:?}: {error:?}");
        }
    }
}

#[test]
fn flood_of_calls_without_a_limit_ends_at_the_deadline() {
    for choice in cages() {
        let progress = ProgressRecord { phase: 1, pass: 0, done: 0, total: 0 };
        let mut job = evil_job(JobKind::Check, [deed::FLOOD, 0], call(Op::Progress, 1, &[progress]));
        job.limits.total = Duration::from_millis(300);
        let error = run(&job, choice, &mut Ignore).unwrap_err();
        assert!(matches!(error, SandboxError::Timeout { what: "result", .. }), "{choice:?}: {error:?}");
    }
}
