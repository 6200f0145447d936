//! The product's own payload in both cages, on images made by qemu-img.
#![allow(
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a failing helper fails its test; skips are printed"
)]

mod sandbox_support;
mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use instar_abi::boot::JobKind;
use instar_abi::call::SnapshotRecord;
use instar_abi::extent::ExtentKind;
use instar_abi::finding::ACTIVE;
use instar_mount::image::ImageFile;
use instar_mount::sandbox::error::SandboxError;
use instar_mount::sandbox::job::Job;
use instar_mount::sandbox::observer::{Ignore, Observer};
use instar_mount::sandbox::{self, Resident};
use sandbox_support::cages;
use support::tools;

/// A 64 MiB image with 64 KiB of data at 1 MiB.
fn image(dir: &Path) -> Arc<ImageFile> {
    let path = dir.join("disk.qcow2");
    tools::make_disk(&path, ["write -P 7 1M 64k"]);
    Arc::new(ImageFile::open_read_only(&path).unwrap())
}

#[test]
fn describe_of_a_healthy_image_tells_its_size_in_both_cages() {
    need!(tools::qemu());
    let dir = tempfile::tempdir().unwrap();
    let job = Job::new(JobKind::Describe, image(dir.path()));
    for choice in cages() {
        let started = Instant::now();
        let result = sandbox::run(&job, choice, &mut Ignore).unwrap();
        assert_eq!(result.summary.virtual_size, 64 << 20);
        assert_eq!(result.summary.cluster_bits, 16);
        assert!(result.summary.arena_bytes_peak > 0);
        eprintln!("{choice:?}: {:?}, {:?}", started.elapsed(), result.stats);
    }
}

/// Which snapshots were told of.
#[derive(Default)]
struct Told(Vec<u32>);

impl Observer for Told {
    fn snapshot(&mut self, record: &SnapshotRecord) {
        self.0.push(record.index);
    }
}

#[test]
fn describe_tells_of_no_more_snapshots_than_it_was_asked_for_and_counts_all() {
    need!(tools::qemu());
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    for name in ["one", "two", "three"] {
        tools::must(tools::qemu_img(["snapshot", "-c", name]).arg(image.path()));
    }
    let mut job = Job::new(JobKind::Describe, Arc::new(image.reopen_read_only().unwrap()));
    for choice in cages() {
        for (listed_max, expected) in [(0, 3), (1, 1), (2, 2), (9, 3), (u64::MAX, 3)] {
            job.params[0] = listed_max;
            let mut told = Told::default();
            let result = sandbox::run(&job, choice, &mut told).unwrap();
            assert_eq!((told.0.len(), result.summary.snapshots), (expected, 3));
        }
    }
}

#[test]
fn resident_map_names_written_and_unwritten_ranges_in_both_cages() {
    need!(tools::qemu());
    let dir = tempfile::tempdir().unwrap();
    let job = Job::new(JobKind::Map, image(dir.path()));
    for choice in cages() {
        let mut resident = Resident::start(&job, choice).unwrap();
        let mut extents = Vec::new();
        resident.map(ACTIVE, 0, 2 << 20, &mut extents).unwrap();
        let kinds: Vec<_> =
            extents.iter().map(|e| (ExtentKind::from_u32(e.kind).unwrap(), e.guest_len)).collect();
        assert_eq!(kinds[..2], [(ExtentKind::Hole, 1 << 20), (ExtentKind::Data, 64 << 10)]);
        extents.clear();
        let started = Instant::now();
        resident.map(ACTIVE, 1 << 20, 1, &mut extents).unwrap();
        eprintln!("{choice:?}: a request takes {:?}", started.elapsed());
        assert_eq!(extents[0].kind, ExtentKind::Data as u32);
    }
}

#[test]
fn resident_map_of_no_qcow2_says_which_problem_keeps_it_from_serving() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("raw");
    std::fs::write(&path, [0x55; 65536]).unwrap();
    let job = Job::new(JobKind::Map, Arc::new(ImageFile::open_read_only(&path).unwrap()));
    for choice in cages() {
        let error = Resident::start(&job, choice).unwrap_err();
        assert!(matches!(&error, SandboxError::NotMappable { reason } if reason == "not-qcow2"), "{error}");
    }
}
