//! Resident cages: answers of bad will are refused, good ones arrive as they were given, and a cage at rest is
//! small and ends with its owner.
#![allow(
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a failing helper fails its test; skips are printed"
)]

mod sandbox_support;

use std::time::{Duration, Instant};

use instar_abi::boot::JobKind;
use instar_abi::call::{InflatedRange, Op};
use instar_abi::extent::{Extent, ExtentKind};
use instar_abi::finding::ACTIVE;
use instar_abi::layout::ARENA_BASE;
use instar_abi::problem::Problem;
use instar_abi::summary::{Outcome, Summary};
use instar_mount::disk::Payload;
use instar_mount::sandbox::error::SandboxError;
use instar_mount::sandbox::job::Job;
use instar_mount::sandbox::{Resident, SandboxChoice};
use sandbox_support::{ARENA_BYTES, cages, call, deed, evil_elf, evil_job};

const IMAGE_BYTES: u64 = 8 * 4096;

fn job(calls: &[Vec<u8>]) -> Job {
    let mut image = calls.concat();
    image.resize(usize::try_from(IMAGE_BYTES).unwrap(), 0);
    evil_job(JobKind::Map, [deed::RESIDENT, calls.len() as u64], image)
}

fn start(job: &Job, choice: SandboxChoice) -> Resident {
    Resident::start_elf(&evil_elf(), job, choice).unwrap()
}

fn data(guest_offset: u64, guest_len: u64) -> Extent {
    Extent {
        guest_offset,
        guest_len,
        host_offset: 4096,
        host_len: guest_len,
        kind: ExtentKind::Data as u32,
        file: 0,
        problem: 0,
        reserved: 0,
    }
}

fn hole(guest_offset: u64, guest_len: u64) -> Extent {
    Extent { host_offset: 0, host_len: 0, kind: ExtentKind::Hole as u32, ..data(guest_offset, guest_len) }
}

fn answer(extents: &[Extent]) -> Vec<u8> {
    call(Op::Extent, u32::try_from(extents.len()).unwrap(), extents)
}

#[test]
fn resident_answer_that_is_not_sound_is_a_fault() {
    let damaged =
        Extent { kind: ExtentKind::Damaged as u32, problem: Problem::ReadError as u32, ..hole(0, 8192) };
    let compressed = Extent { kind: ExtentKind::Compressed as u32, host_len: 100, ..data(0, 8192) };
    let whole = data(0, 8192);
    // Asked is 1000 .. 5096.
    let cases: &[(&str, &[Extent], Option<&str>)] = &[
        ("data", &[whole], None),
        ("three kinds", &[hole(0, 2000), data(2000, 96), hole(2096, 9000)], None),
        ("damaged", &[damaged], None),
        ("compressed", &[compressed], None),
        ("nothing", &[hole(1000, 1)], Some("ends at 0x3e9")),
        ("starts late", &[data(1001, 8192)], Some("does not continue")),
        ("ends early", &[data(0, 5095)], Some("ends at 0x13e7")),
        ("gap", &[data(0, 2000), data(2001, 8000)], Some("does not continue")),
        ("overlap", &[data(0, 2000), data(1999, 8000)], Some("does not continue")),
        ("backwards", &[data(0, 2000), data(0, 8000)], Some("does not continue")),
        ("all before", &[data(0, 1000)], Some("does not continue")),
        ("one more", &[whole, data(8192, 1)], Some("does not continue")),
        (
            "guest overflow",
            &[Extent { guest_len: u64::MAX, host_len: u64::MAX, ..data(1, 1) }],
            Some("not all in"),
        ),
        ("hole overflow", &[hole(1, u64::MAX)], Some("overflows")),
        ("no bytes", &[data(0, 0)], Some("length 0")),
        ("unknown kind", &[Extent { kind: 7, ..whole }], Some("unknown kind 7")),
        ("reserved word", &[Extent { reserved: 1, ..whole }], Some("reserved word 0x1")),
        ("lengths differ", &[Extent { host_len: 8191, ..whole }], Some("host bytes for")),
        ("past the file", &[Extent { host_offset: IMAGE_BYTES - 8191, ..whole }], Some("not all in file 0")),
        ("host overflow", &[Extent { host_offset: u64::MAX, ..whole }], Some("not all in file 0")),
        ("no such file", &[Extent { file: 1, ..whole }], Some("there is no file 1")),
        ("hole with a place", &[Extent { host_offset: 1, ..hole(0, 8192) }], Some("host range")),
        ("damage without a problem", &[Extent { problem: 0, ..damaged }], Some("problem 0 on kind Damaged")),
        ("unknown problem", &[Extent { problem: 9999, ..damaged }], Some("problem 9999")),
        ("problem without damage", &[Extent { problem: 1, ..whole }], Some("problem 1 on kind Data")),
        ("nothing to inflate", &[Extent { host_len: 0, ..compressed }], Some("is empty")),
        ("too much to inflate", &[Extent { guest_len: 4 << 20, ..compressed }], Some("compressed cluster")),
    ];
    for choice in cages() {
        for (name, extents, wanted) in cases {
            let mut resident = start(&job(&[answer(extents)]), choice);
            let mut got = Vec::new();
            let result = resident.map(ACTIVE, 1000, 4096, &mut got);
            match (wanted, &result) {
                (None, Ok(())) => assert_eq!(got, *extents, "{name}"),
                (Some(words), Err(SandboxError::Fault { what })) if what.contains(words) => {
                    assert!(got.is_empty());
                    let again = resident.map(ACTIVE, 1000, 4096, &mut got).unwrap_err();
                    assert!(matches!(again, SandboxError::Host { .. }), "{name}: {again:?}");
                }
                _ => panic!("{name} in {choice:?}: wanted {wanted:?}, got {result:?}"),
            }
        }
    }
}

const PAYLOADS: [Payload; 2] = [Payload { offset: 4096, len: 100 }, Payload { offset: 4196, len: 100 }];

fn inflated(ranges: &[InflatedRange]) -> Vec<u8> {
    call(Op::Inflated, u32::try_from(ranges.len()).unwrap(), ranges)
}

#[test]
fn resident_clusters_that_are_not_sound_are_a_fault() {
    let good = InflatedRange { src: ARENA_BASE, len: 4096, problem: 0, reserved: 0 };
    let bad = InflatedRange { src: 0, len: 0, problem: Problem::CompressedDamaged as u32, reserved: 0 };
    let end = ARENA_BASE + ARENA_BYTES;
    let cases: [(&str, &[InflatedRange], Option<&str>); 15] = [
        ("two clusters", &[good, good], None),
        ("one damaged", &[bad, good], None),
        ("last bytes of the arena", &[good, InflatedRange { src: end - 4096, ..good }], None),
        ("one too few", &[good], Some("1 clusters, asked were 2")),
        ("one too many", &[good, good, good], Some("cluster 2, asked were 2")),
        ("too short", &[good, InflatedRange { len: 4095, ..good }], Some("0xfff bytes, asked were 0x1000")),
        ("too long", &[InflatedRange { len: 1 << 20, ..good }, good], Some("asked were 0x1000")),
        ("endless", &[InflatedRange { len: u64::MAX, ..good }, good], Some("asked were 0x1000")),
        ("below the arena", &[InflatedRange { src: ARENA_BASE - 1, ..good }, good], Some("not in the arena")),
        ("behind the arena", &[InflatedRange { src: end - 4095, ..good }, good], Some("not in the arena")),
        ("at null", &[InflatedRange { src: 0, ..good }, good], Some("not in the arena")),
        ("past the last address", &[InflatedRange { src: u64::MAX, ..good }, good], Some("not in the arena")),
        ("reserved word", &[InflatedRange { reserved: 3, ..good }, good], Some("reserved word 0x3")),
        ("unknown problem", &[InflatedRange { problem: 9999, ..bad }, good], Some("problem 9999")),
        ("problem with bytes", &[InflatedRange { problem: 1, ..good }, good], Some("problem 1 with")),
    ];
    for choice in cages() {
        for (name, ranges, wanted) in cases {
            let mut resident = start(&job(&[inflated(ranges)]), choice);
            let result = resident.inflate(&PAYLOADS, 4096);
            match (wanted, &result) {
                (None, Ok(clusters)) => {
                    let lens: Vec<_> =
                        clusters.iter().map(|one| one.as_ref().map_or(0, |b| b.len())).collect();
                    let expected: Vec<_> = ranges.iter().map(|r| usize::try_from(r.len).unwrap()).collect();
                    assert_eq!(lens, expected, "{name}");
                }
                (Some(words), Err(SandboxError::Fault { what })) if what.contains(words) => {}
                _ => panic!("{name} in {choice:?}: wanted {wanted:?}, got {result:?}"),
            }
        }
    }
}

#[test]
fn resident_that_mixes_extents_and_clusters_up_is_a_fault() {
    let cluster = InflatedRange { src: ARENA_BASE, len: 4096, problem: 0, reserved: 0 };
    for choice in cages() {
        let error = start(&job(&[inflated(&[cluster])]), choice).map(ACTIVE, 0, 1, &mut Vec::new());
        let error = error.unwrap_err().to_string();
        assert!(error.contains("clusters without a request"), "{error}");
        let error = start(&job(&[answer(&[data(0, 4096)])]), choice).inflate(&PAYLOADS, 4096);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("extents without a request"), "{error}");
    }
}

#[test]
fn resident_is_not_asked_to_inflate_more_than_it_may() {
    for choice in cages() {
        let mut resident = start(&job(&[answer(&[data(0, 4096)])]), choice);
        for (payloads, cluster_bytes) in [(0, 4096), (65, 512), (2, 2 << 20), (1, 4 << 20), (1, 0)] {
            let error = resident.inflate(&vec![PAYLOADS[0]; payloads], cluster_bytes).unwrap_err();
            assert!(matches!(error, SandboxError::Host { .. }), "{error:?}");
        }
    }
}

#[test]
fn resident_that_calls_out_of_turn_is_a_fault() {
    let done = call(Op::Done, 1, &[Summary { outcome: Outcome::Complete as u32, ..Summary::default() }]);
    for choice in cages() {
        for (calls, words) in [
            (vec![done.clone()], "call Done is not for"),
            (vec![call::<u64>(Op::Finding, 1, &[1])], "call Finding is not for"),
            (vec![call::<u64>(Op::Stage, 1, &[1])], "call Stage is not for"),
            (vec![call::<u64>(Op::Next, 2, &[])], "must be 1"),
            (vec![call::<u64>(Op::Next, 1, &[ARENA_BASE, ARENA_BYTES + 1])], "is not in the arena"),
            (vec![call::<u64>(Op::Next, 0, &[])], "the answer ends at"),
        ] {
            let error = start(&job(&calls), choice).map(ACTIVE, 0, 1, &mut Vec::new()).unwrap_err();
            assert!(matches!(&error, SandboxError::Fault { what } if what.contains(words)), "{error:?}");
        }
    }
}

#[test]
fn resident_request_of_no_bytes_or_past_the_last_address_is_refused_and_harms_nothing() {
    for choice in cages() {
        let mut resident = start(&job(&[answer(&[data(0, 4096)])]), choice);
        for (offset, len) in [(0, 0), (u64::MAX, 2)] {
            let error = resident.map(ACTIVE, offset, len, &mut Vec::new()).unwrap_err();
            assert!(matches!(error, SandboxError::Host { .. }), "{error:?}");
        }
        resident.map(ACTIVE, 0, 4096, &mut Vec::new()).unwrap();
    }
}

#[test]
fn resident_limits_are_counted_anew_for_each_request() {
    for choice in cages() {
        let mut job = job(&[answer(&[data(0, 4096)])]);
        job.limits.calls = 4;
        job.limits.total = Duration::from_millis(500);
        let mut resident = start(&job, choice);
        std::thread::sleep(Duration::from_millis(600));
        for _ in 0..20 {
            resident.map(ACTIVE, 0, 4096, &mut Vec::new()).unwrap();
        }
        let started = Instant::now();
        drop(resident);
        assert!(started.elapsed() < Duration::from_secs(2));
    }
}

#[test]
fn resident_moves_between_threads() {
    for choice in cages() {
        let mut resident = start(&job(&[answer(&[data(0, 4096)])]), choice);
        resident.map(ACTIVE, 0, 4096, &mut Vec::new()).unwrap();
        let moved =
            std::thread::spawn(move || resident.map(ACTIVE, 0, 4096, &mut Vec::new()).map(|()| resident));
        moved.join().unwrap().unwrap();
    }
}
