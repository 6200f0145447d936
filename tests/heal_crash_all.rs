//! Power cuts at every operation of `--repair=all` on real QCOW2 images, judged by bytes and by qemu.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a failing helper fails its test")]

mod native;
#[path = "simdisk/recovery.rs"]
mod recovery;
mod simdisk;
mod support;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use instar_abi::problem::Tier;
use instar_mount::heal::{Ending, HealError, RepairOptions, SideFile, repair_at, resume_at};
use instar_mount::sandbox::observer::Ignore;
use native::NativeInspector;
use recovery::Recovery;
use simdisk::{Machine, Op, sweep};
use support::damage::recipe;
use support::tools;

/// The incompatible features, and the corrupt bit in their last byte.
const FEATURES: Range<usize> = 72..80;
const CORRUPT: u8 = 2;
/// One state of so many is resumed and undone.
const SAMPLE: u64 = 11;
/// One state of so many is read by qemu.
const QEMU_SAMPLE: u64 = 61;

/// Kinds of damage, with each cure that changes the structure of a file among them.
const KINDS: &[&str] = &[
    "refcount-too-low",
    "refcount-contradicted",
    "l1-copied-wrong",
    "l2-entry-reserved",
    "refcount-block-missing",
    "refcount-block-shared",
    "refcount-table-entry-past-eof",
    "header-refcount-table-offset",
    "snapshot-extra-data",
    "bitmap-in-use",
    "extended-bitmap-without-offset",
    "header-dirty",
    "metadata-overlap",
];

fn repair(machine: &Machine) -> Result<Ending, HealError> {
    let options = RepairOptions::default();
    let report = repair_at(machine, Tier::All, &options, &mut NativeInspector::default(), &mut Ignore)?;
    Ok(report.ending)
}

fn resume(machine: &Machine) -> Result<Ending, HealError> {
    Ok(resume_at(machine, &mut NativeInspector::default(), &mut Ignore)?.ending)
}

fn is_guarded(image: &[u8]) -> bool {
    image[FEATURES.end - 1] & CORRUPT != 0
}

/// The same image but for its incompatible features.
fn is_alike(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len()
        && one[..FEATURES.start] == other[..FEATURES.start]
        && one[FEATURES.end..] == other[FEATURES.end..]
}

/// The disk as qemu reads it, `None` where it does not open the image.
fn disk(image: &[u8], folder: &Path) -> Option<PathBuf> {
    let (path, raw) = (folder.join("before.qcow2"), folder.join("before.raw"));
    std::fs::write(&path, image).unwrap();
    let convert = ["convert", "-f", "qcow2", "-O", "raw"];
    let output = tools::run(tools::qemu_img(convert).arg(&path).arg(&raw));
    output.status.success().then_some(raw)
}

/// Whether qemu reads the same bytes from an image.
fn is_read_as(raw: &Path, image: &[u8]) -> bool {
    let path = raw.with_file_name("state.qcow2");
    std::fs::write(&path, image).unwrap();
    let compare = ["compare", "-f", "qcow2", "-F", "raw"];
    tools::code(&tools::run(tools::qemu_img(compare).arg(&path).arg(raw))) == 0
}

fn sweep_kind(name: &str, folder: &Path) -> usize {
    let before = std::fs::read(&recipe(name).make(folder).path).unwrap();
    let whole = Machine::new(before.clone());
    assert_eq!(repair(&whole).unwrap_or_else(|e| panic!("{name}: {e:?}")), Ending::Repaired, "{name}");
    let after = whole.image();
    assert_guard_is_up(name, &whole.log(), &before);
    let read = disk(&before, folder);
    let raised = FEATURES.map(|at| {
        let is_last = at + 1 == FEATURES.end;
        (at, if is_last { before[at] | CORRUPT } else { before[at] })
    });
    let raised: BTreeMap<usize, u8> = raised.collect();
    let mut number = 0_u64;
    sweep(
        &Machine::new(before.clone()),
        |machine| drop(repair(machine)),
        |state, what| {
            let what = format!("{name}: {what}");
            let now = state.image();
            let is_whole = is_alike(&now, &before) || is_alike(&now, &after);
            assert!(is_whole || is_guarded(&now), "{what}: a mixture with its guard down");
            let is_under_way = state.has(SideFile::Journal);
            assert!(is_under_way || now == before || now == after, "{what}: in between, without a journal");
            number += 1;
            if let Some(raw) = read.as_ref().filter(|_| number.is_multiple_of(QEMU_SAMPLE)) {
                assert!(is_read_as(raw, &now), "{what}: the guest sees other bytes");
            }
            if number.is_multiple_of(SAMPLE) {
                let raised = raised.clone();
                Recovery { before: &before, after: &after, raised, repair: &repair, resume: &resume }
                    .assert_possible(state, &what);
            }
        },
    )
}

/// Each write of anything but the features comes while the disk itself holds the corrupt bit.
fn assert_guard_is_up(name: &str, log: &[Op], before: &[u8]) {
    let (mut disk, mut written) = (is_guarded(before), is_guarded(before));
    for op in log {
        match op {
            Op::Write { offset, bytes } if *offset == FEATURES.start => {
                written = bytes[FEATURES.len() - 1] & CORRUPT != 0;
            }
            Op::Write { offset, .. } => {
                assert!(disk && written, "{name}: {offset:#x} written with the guard down");
            }
            Op::Sync => disk = written,
            Op::SetLen(_) | Op::Removed(_) => {}
        }
    }
    assert!(!disk && !written, "{name}: still guarded in the end");
}

#[test]
fn power_cut_at_every_operation_of_every_cure_is_never_worse_and_always_recoverable() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    for name in KINDS {
        let began = std::time::Instant::now();
        let states = sweep_kind(name, folder.path());
        eprintln!("{name}: {states} states after a power cut, {:?}", began.elapsed());
        assert!(states > 100, "{name}: {states}");
    }
}
