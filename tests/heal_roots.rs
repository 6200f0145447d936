//! Header fields that the rest of the file determines: restored by decision, and only then.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a failing helper fails its test")]

mod native;
mod support;

use std::sync::Arc;

use instar_abi::choice::{Decision, Decisions};
use instar_abi::finding::Finding;
use instar_abi::problem::{Problem, Tier};
use instar_mount::heal::{self, Ending, HealError, Inspector as _, RepairOptions, RepairReport};
use instar_mount::image::{Backend, ImageFile, ImageHandle, Mode};
use instar_mount::sandbox::observer::{Ignore, Observer};
use native::NativeInspector;
use support::image::{self, Flavour, TestImage};
use support::raw::{Field, Raw, field};
use support::tools;

/// The incompatible feature bit of extended L2 entries.
const EXTENDED_L2: u64 = 1 << 4;

/// One header field, what becomes of it, and the decision that takes that back.
struct Damage {
    field: Field,
    /// The value from before and the bytes of a cluster give the value after.
    change: fn(u64, u64) -> u64,
    decision: Decision,
}

const fn damage(field: Field, decision: Decision, change: fn(u64, u64) -> u64) -> Damage {
    Damage { field, change, decision }
}

const DAMAGES: &[Damage] = &[
    damage(field::MAGIC, Decision::RestoreMagic, |_, _| 0),
    damage(field::MAGIC, Decision::RestoreMagic, |magic, _| magic ^ 0x100),
    damage(field::VERSION, Decision::RestoreVersion, |_, _| 1),
    damage(field::VERSION, Decision::RestoreVersion, |_, _| 0xffff_ffff),
    damage(field::VERSION, Decision::RestoreVersion, |version, _| 5 - version),
    damage(field::CLUSTER_BITS, Decision::RestoreClusterBits, |_, _| 0),
    damage(field::CLUSTER_BITS, Decision::RestoreClusterBits, |bits, _| bits + 1),
    damage(field::CLUSTER_BITS, Decision::RestoreClusterBits, |bits, _| (bits - 1).max(8)),
    damage(field::L1_SIZE, Decision::RestoreL1Size, |_, _| 0),
    damage(field::L1_SIZE, Decision::RestoreL1Size, |_, _| 1),
    damage(field::L1_SIZE, Decision::RestoreL1Size, |_, cluster| cluster / 8 + 5),
    damage(field::L1_SIZE, Decision::RestoreL1Size, |_, _| 0xffff_ffff),
    damage(field::L1_OFFSET, Decision::RestoreL1Offset, |_, _| 0),
    damage(field::L1_OFFSET, Decision::RestoreL1Offset, |at, _| at + 8),
    damage(field::L1_OFFSET, Decision::RestoreL1Offset, |_, _| 1 << 40),
    damage(field::L1_OFFSET, Decision::RestoreL1Offset, |at, cluster| at + cluster),
    damage(field::SIZE, Decision::RestoreVirtualSize, |_, _| 1 << 62),
    damage(field::SIZE, Decision::RestoreVirtualSize, |size, _| size / 3),
    damage(field::REFCOUNT_ORDER, Decision::RestoreRefcountOrder, |_, _| 7),
    damage(field::CRYPT_METHOD, Decision::RestoreCryptMethod, |_, _| 9),
    damage(field::HEADER_LENGTH, Decision::RestoreHeaderLength, |_, _| 96),
];

/// Keeps what has witnesses.
#[derive(Debug, Default)]
struct Evidence(Vec<(Problem, Finding)>);

impl Observer for Evidence {
    fn finding(&mut self, problem: Problem, finding: &Finding) {
        if finding.witnesses > 0 {
            self.0.push((problem, *finding));
        }
    }
}

/// Keeps what the incompatible features are said to have been.
#[derive(Debug, Default)]
struct Told(Vec<u64>);

impl Observer for Told {
    fn finding(&mut self, problem: Problem, finding: &Finding) {
        if problem == Problem::HeaderExtendedL2Flag {
            self.0.push(finding.expected);
        }
    }
}

fn inspector(image: &TestImage) -> NativeInspector {
    let open = |path| Arc::new(ImageFile::open_read_only(path).unwrap()) as Arc<dyn Backend>;
    NativeInspector { data_file: image.data_file().as_deref().map(open) }
}

fn evidence(image: &TestImage) -> Vec<(Problem, Finding)> {
    let backend = Arc::new(ImageFile::open_read_only(&image.path).unwrap());
    let mut evidence = Evidence::default();
    inspector(image).check(backend, &mut evidence).unwrap();
    evidence.0
}

fn repair(image: &TestImage, decisions: &[Decision]) -> Result<RepairReport, HealError> {
    let handle = ImageHandle::open(&image.path, Mode::Read).unwrap();
    let decisions = decisions.iter().fold(Decisions::default(), |all, decision| all.with(*decision));
    let options = RepairOptions { decisions, ..RepairOptions::default() };
    heal::repair(&handle, Tier::All, &options, &mut inspector(image), &mut Ignore)
}

/// Damages one field, has it told of, leaves it, restores it, and goes back. Says what is wrong with that.
fn try_damage(image: &TestImage, damage: &Damage) -> Result<(), String> {
    let raw = Raw::open(&image.path);
    let healthy = std::fs::read(&image.path).unwrap();
    let before = raw.get(damage.field);
    raw.set(damage.field, (damage.change)(before, image.cluster_bytes));
    let damaged = std::fs::read(&image.path).unwrap();
    let told = match evidence(image).as_slice() {
        [(problem, finding)] if *problem == damage.decision.problem() => *finding,
        other => return Err(format!("evidence {other:x?}")),
    };
    let is_place = (told.host_offset, told.host_len) == damage.field;
    if !is_place || told.expected != before {
        return Err(format!("told {told:x?} of {before:#x}"));
    }
    let open = repair(image, &[]).map_err(|error| format!("undecided: {error:?}"))?;
    if open.ending == Ending::Repaired || std::fs::read(&image.path).unwrap() != damaged {
        return Err(format!("undecided: {:?}, or written", open.ending));
    }
    let report = repair(image, &[damage.decision]).map_err(|error| format!("decided: {error:?}"))?;
    if report.ending != Ending::Repaired {
        return Err(format!("{:?}, left {:?}", report.ending, report.last().counts));
    }
    let mended = std::fs::read(&image.path).unwrap();
    if mended != healthy {
        return Err("the image is not as it was".to_owned());
    }
    if image.qemu_check() != 0 {
        return Err(format!("qemu-img check gives {}", image.qemu_check()));
    }
    let again = repair(image, &[damage.decision]).map_err(|error| format!("second run: {error:?}"))?;
    if again.ending != Ending::Clean {
        return Err(format!("second run: {:?}", again.ending));
    }
    let handle = ImageHandle::open(&image.path, Mode::Read).unwrap();
    let undone = heal::undo(&handle, None).map_err(|error| format!("undo: {error:?}"))?;
    if undone != Ending::Undone || std::fs::read(&image.path).unwrap() != damaged {
        return Err("undo gave other bytes".to_owned());
    }
    std::fs::write(&image.path, healthy).unwrap();
    Ok(())
}

fn is_possible(damage: &Damage, flavour: Flavour) -> bool {
    let is_v2 = matches!(flavour, Flavour::V2 | Flavour::SnapshotsV2);
    // Without an encryption header it is not known whether the guest's data is encrypted.
    let is_sealed = flavour == Flavour::Luks;
    match damage.field {
        field::REFCOUNT_ORDER | field::HEADER_LENGTH => !is_v2,
        field::CRYPT_METHOD => is_sealed,
        _ => true,
    }
}

#[test]
fn damaged_header_field_is_told_with_evidence_and_restored_by_decision_only() {
    need!(tools::qemu());
    let mut wrong = Vec::new();
    for (flavour, cluster_bytes) in [
        (Flavour::Plain, 65_536),
        (Flavour::Plain, 512),
        (Flavour::V2, 4096),
        (Flavour::Snapshots, 4096),
        (Flavour::SnapshotsV2, 65_536),
        (Flavour::Refcount1, 4096),
        (Flavour::Luks, 4096),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let image = image::make(folder.path(), "image", flavour, cluster_bytes);
        let healthy = std::fs::read(&image.path).unwrap();
        for (at, damage) in DAMAGES.iter().enumerate().filter(|(_, damage)| is_possible(damage, flavour)) {
            if let Err(error) = try_damage(&image, damage) {
                wrong.push(format!("{flavour:?}, {cluster_bytes}, damage {at}: {error}"));
                std::fs::write(&image.path, &healthy).unwrap();
            }
        }
        image.assert_guest_intact();
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn healthy_image_of_any_flavour_has_no_evidence_against_it() {
    need!(tools::qemu());
    for flavour in Flavour::ALL {
        let folder = tempfile::tempdir().unwrap();
        let image = image::make(folder.path(), "image", flavour, 65_536);
        assert_eq!(evidence(&image), [], "{flavour:?}");
    }
}

#[test]
fn extended_l2_bit_that_the_tables_contradict_is_told_and_nothing_is_mended_by_it() {
    need!(tools::qemu());
    for flavour in [Flavour::ExtendedL2, Flavour::Plain, Flavour::Snapshots] {
        let folder = tempfile::tempdir().unwrap();
        let image = image::make(folder.path(), "image", flavour, 65_536);
        let raw = Raw::open(&image.path);
        let before = raw.get(field::INCOMPATIBLE);
        raw.set(field::INCOMPATIBLE, before ^ EXTENDED_L2);
        let backend = Arc::new(ImageFile::open_read_only(&image.path).unwrap());
        let mut told = Told::default();
        inspector(&image).check(backend, &mut told).unwrap();
        assert_eq!(told.0, [before], "{flavour:?}");
        for decisions in [&[][..], Decision::ALL] {
            let report = tools::ensure_untouched(&[&image.path], || repair(&image, decisions).unwrap());
            assert_ne!(report.ending, Ending::Repaired, "{flavour:?}");
        }
    }
}

#[test]
fn header_that_is_lost_as_a_whole_is_not_guessed() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = image::make(folder.path(), "image", Flavour::Plain, 65_536);
    let raw = Raw::open(&image.path);
    raw.write(0, &[0; 72]);
    assert_eq!(evidence(&image), []);
    let all: Vec<Decision> = Decision::ALL.iter().copied().filter(|decision| decision.restores()).collect();
    let report = tools::ensure_untouched(&[&image.path], || repair(&image, &all).unwrap());
    assert_eq!(report.ending, Ending::NotAnImage);
}

#[test]
fn disk_without_data_has_no_evidence_for_an_l1_table() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = image::make(folder.path(), "image", Flavour::Plain, 65_536);
    tools::must(tools::qemu_img(["create", "-q", "-f", "qcow2"]).arg(&image.path).arg("1G"));
    Raw::open(&image.path).set(field::L1_OFFSET, 1 << 40);
    assert_eq!(evidence(&image), []);
    let report =
        tools::ensure_untouched(&[&image.path], || repair(&image, &[Decision::RestoreL1Offset]).unwrap());
    assert_eq!(report.ending, Ending::IncompleteWalk);
}
