//! Payloads of bad will: whatever an inmate does with its processor and its memory ends in its own error, in both
//! cages, within its deadline, and the host goes on.
#![allow(
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a failing helper fails its test; skips are printed"
)]

mod sandbox_support;

use std::time::{Duration, Instant};

use instar_abi::boot::JobKind;
use instar_abi::finding::Finding;
use instar_abi::problem::Problem;
use instar_mount::sandbox::error::SandboxError;
use instar_mount::sandbox::observer::{Ignore, Observer};
use instar_mount::sandbox::{JobResult, SandboxChoice};
use sandbox_support::{SURVIVED, cages, deed, evil_job, run};

/// How a deed must end.
#[derive(Debug, Clone, Copy)]
enum End {
    /// With a `Fault`.
    Fault,
    /// With the payload still there.
    Survives,
    /// One or the other, by the kind of processor.
    FaultOrSurvives,
    /// With a `Fault`, or at the deadline, by the kind of processor.
    FaultOrTimeout,
    /// With a `Failed` that has these words and this verdict on memory.
    Failed(&'static str, bool),
}

fn check(name: &str, choice: SandboxChoice, end: End, got: &Result<JobResult, SandboxError>) {
    let right = match (end, got) {
        (End::Fault | End::FaultOrSurvives, Err(SandboxError::Fault { .. })) => true,
        (End::FaultOrTimeout, Err(SandboxError::Fault { .. } | SandboxError::Timeout { .. })) => true,
        (End::Survives | End::FaultOrSurvives, Ok(result)) => result.summary.passes == SURVIVED,
        (End::Failed(words, memory), Err(SandboxError::Failed { message, out_of_memory })) => {
            message.contains(words) && *out_of_memory == memory && !message.contains(char::is_control)
        }
        _ => false,
    };
    assert!(right, "{name} in {choice:?}: expected {end:?}, got {got:?}");
}

/// The same process can still do a good job.
fn host_is_up(choice: SandboxChoice) {
    let result =
        run(&evil_job(JobKind::Check, [deed::GOOD, 0], vec![3; 10_000]), choice, &mut Ignore).unwrap();
    assert_eq!((result.summary.passes, result.summary.virtual_size), (SURVIVED, 30_000));
}

fn table(deeds: &[(&str, [u64; 2], End)]) {
    for choice in cages() {
        for &(name, params, end) in deeds {
            let started = Instant::now();
            let mut job = evil_job(JobKind::Check, params, vec![0; 4096]);
            job.limits.silence = Duration::from_secs(2);
            let got = run(&job, choice, &mut Ignore);
            eprintln!("{choice:?}: {name}: {:?} {:?}", got.as_ref().map(|_| "survived"), started.elapsed());
            check(name, choice, end, &got);
        }
        host_is_up(choice);
    }
}

#[test]
fn inmate_touching_memory_that_it_may_not_faults() {
    table(&[
        ("read null", [deed::READ, 0], End::Fault),
        ("read the guard below the stack", [deed::READ, 6], End::Fault),
        ("read the task state", [deed::READ, 5], End::Fault),
        ("read the page tables", [deed::READ, 0x1000_0000], End::Fault),
        ("read behind the arena", [deed::READ, 0x8000_0000 + sandbox_support::ARENA_BYTES], End::Fault),
        ("read a kernel address", [deed::READ, 0xffff_8000_0000_0000], End::Fault),
        ("read the vsyscall page", [deed::READ, 0xffff_ffff_ff60_0000], End::Fault),
        ("read the boot page", [deed::READ, 2], End::Survives),
        ("write null", [deed::WRITE, 0], End::Fault),
        ("write text", [deed::WRITE, 1], End::Fault),
        ("write constants", [deed::WRITE, 7], End::Fault),
        ("write the boot page", [deed::WRITE, 2], End::Fault),
        ("write the task state", [deed::WRITE, 5], End::Fault),
        ("write the arena", [deed::WRITE, 3], End::Survives),
        ("jump to null", [deed::JUMP, 0], End::Fault),
        ("jump into the arena", [deed::JUMP, 3], End::Fault),
        ("jump into the call area", [deed::JUMP, 4], End::Fault),
        ("jump into constants", [deed::JUMP, 7], End::Fault),
        ("jump into the boot page", [deed::JUMP, 2], End::Fault),
        ("run off the stack", [deed::RECURSE, 0], End::Fault),
    ]);
}

#[test]
fn inmate_with_privileged_instructions_faults_or_learns_nothing() {
    table(&[
        ("hlt", [deed::PRIVILEGED, 0], End::Fault),
        ("cli, then spin", [deed::PRIVILEGED, 1], End::FaultOrTimeout),
        ("in from another port", [deed::PRIVILEGED, 2], End::Fault),
        ("out to another port", [deed::PRIVILEGED, 3], End::Fault),
        ("rdmsr", [deed::PRIVILEGED, 4], End::Fault),
        ("int 0x80", [deed::PRIVILEGED, 5], End::Fault),
        ("int3", [deed::PRIVILEGED, 6], End::Fault),
        ("syscall", [deed::PRIVILEGED, 7], End::Fault),
        ("mov to cr3", [deed::PRIVILEGED, 8], End::Fault),
        ("lgdt", [deed::PRIVILEGED, 9], End::Fault),
        ("popf with the interrupt flag, then cli", [deed::PRIVILEGED, 10], End::FaultOrSurvives),
        ("ud2", [deed::PRIVILEGED, 11], End::Fault),
        ("rdtsc", [deed::PRIVILEGED, 12], End::FaultOrSurvives),
        ("sysenter", [deed::PRIVILEGED, 13], End::Fault),
        ("vmcall", [deed::PRIVILEGED, 14], End::FaultOrSurvives),
        ("vmmcall", [deed::PRIVILEGED, 15], End::FaultOrSurvives),
        ("single step", [deed::PRIVILEGED, 16], End::Fault),
        ("load a kernel segment", [deed::PRIVILEGED, 17], End::Fault),
        ("cpuid", [deed::PRIVILEGED, 18], End::Survives),
        ("rep outsb to the doorbell", [deed::PRIVILEGED, 19], End::Fault),
        ("four bytes to the doorbell", [deed::PRIVILEGED, 20], End::Fault),
        ("divide by zero", [deed::PRIVILEGED, 21], End::Fault),
    ]);
}

#[test]
fn inmate_that_gives_up_is_told_in_its_own_words() {
    table(&[
        ("panic", [deed::PANIC, 0], End::Failed("a panic of bad will at src/evil.rs:", false)),
        ("allocate too much", [deed::OUT_OF_MEMORY, 0], End::Failed("memory allocation of", true)),
        ("try to allocate too much", [deed::OUT_OF_MEMORY, 1], End::Survives),
    ]);
}

#[test]
fn inmate_that_spins_is_ended_at_its_deadline() {
    for choice in cages() {
        let mut job = evil_job(JobKind::Check, [deed::SPIN, 0], vec![0; 4096]);
        job.limits.silence = Duration::from_millis(300);
        let started = Instant::now();
        let error = run(&job, choice, &mut Ignore).unwrap_err();
        let took = started.elapsed();
        assert!(matches!(error, SandboxError::Timeout { what: "progress", .. }), "{choice:?}: {error:?}");
        assert!(took >= Duration::from_millis(300) && took < Duration::from_secs(3), "{choice:?}: {took:?}");

        job.limits.silence = Duration::from_secs(60);
        job.limits.total = Duration::from_millis(300);
        let error = run(&job, choice, &mut Ignore).unwrap_err();
        assert!(matches!(error, SandboxError::Timeout { what: "result", .. }), "{choice:?}: {error:?}");
        host_is_up(choice);
    }
}

#[test]
fn heap_reuses_what_was_freed_and_zeroes_what_it_must() {
    for choice in cages() {
        let result =
            run(&evil_job(JobKind::Check, [deed::HEAP, 0], vec![0; 16]), choice, &mut Ignore).unwrap();
        assert_eq!(result.summary.passes, SURVIVED);
        // 64 rounds allocate about 400 MB in all.
        assert!(result.summary.virtual_size < sandbox_support::ARENA_BYTES, "{:?}", result.summary);
    }
}

/// Keeps what it is told.
#[derive(Debug, Default)]
struct Findings(Vec<(Problem, u64, u64)>);

impl Observer for Findings {
    fn finding(&mut self, problem: Problem, finding: &Finding) {
        self.0.push((problem, finding.host_offset, finding.stored));
    }
}

#[test]
fn good_job_reads_the_same_bytes_and_reports_the_same_findings_in_both_cages() {
    let image: Vec<u8> =
        (0..3_000_001u64).map(|at| if at % 100_003 == 5 { (at % 251) as u8 + 1 } else { 0 }).collect();
    let expected: Vec<_> = (0..)
        .zip(&image)
        .filter(|(_, byte)| **byte != 0)
        .map(|(at, &byte)| (Problem::ReadError, at, u64::from(byte)))
        .collect();
    let sum: u64 = image.iter().map(|&byte| u64::from(byte)).sum();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, &image).unwrap();
    let plain = instar_mount::image::ImageFile::open_read_only(file.path()).unwrap();
    let bounced = evil_job(JobKind::Check, [deed::GOOD, 0], image);
    let mut direct = bounced.clone();
    direct.image = std::sync::Arc::new(plain);
    for choice in cages() {
        for job in [&bounced, &direct] {
            let mut findings = Findings::default();
            let result = run(job, choice, &mut findings).unwrap();
            assert_eq!(result.summary.virtual_size, sum);
            assert_eq!(findings.0, expected);
            assert_eq!(result.stats.bytes_read, 3_000_001);
            // One read, one batch of findings, one end.
            assert_eq!(result.stats.exits, 3);
        }
    }
}

#[test]
fn read_error_of_the_image_is_an_answer_for_its_own_range_only() {
    for choice in cages() {
        let mut job = evil_job(JobKind::Check, [deed::GOOD, 0], Vec::new());
        let image = sandbox_support::Bytes { bytes: vec![1; 10 * 4096], bad: 4096 * 3 + 7..4096 * 4 + 1 };
        job.image = std::sync::Arc::new(image);
        let result = run(&job, choice, &mut Ignore).unwrap();
        assert_eq!(result.summary.allocated_clusters, 2);
        assert_eq!(result.summary.virtual_size, 8 * 4096);
    }
}
