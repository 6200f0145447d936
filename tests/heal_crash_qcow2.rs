//! Power cuts at every operation of freeing leaks in real QCOW2 images, judged by our check and by qemu's.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a failing helper fails its test")]

mod native;
mod simdisk;
mod support;

use std::path::Path;
use std::process::Command;

use instar_abi::problem::{Problem, Severity, Tier};
use instar_mount::heal::{
    Ending, HealError, Inspection, RepairOptions, RepairReport, SideFile, repair_at, resume_at, undo_at,
};
use instar_mount::sandbox::observer::Ignore;
use native::NativeInspector;
use simdisk::{Machine, Survivors, Trouble, sweep};
use support::image::{self, Flavour};
use support::raw::Raw;
use support::tools;

fn repair(machine: &Machine) -> Result<RepairReport, HealError> {
    repair_at(machine, Tier::Leaks, &RepairOptions::default(), &mut NativeInspector::default(), &mut Ignore)
}

/// What a check finds, without writing.
fn inspect(machine: &Machine) -> Inspection {
    let copy = Machine::new(machine.image());
    let options = RepairOptions { preview: true, ..RepairOptions::default() };
    match repair_at(&copy, Tier::Leaks, &options, &mut NativeInspector::default(), &mut Ignore) {
        Ok(report) => report.before,
        Err(error) => panic!("{error:?}"),
    }
}

/// An image with small clusters and leaks in many places of several refcount blocks.
fn leaky(flavour: Flavour) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let image = image::make(folder.path(), "leaky", flavour, 512);
    let raw = Raw::open(&image.path);
    for _ in 0..3 {
        raw.append_clusters(6, 1);
        // A used cluster between the leaks: the guest writes.
        let write = format!("write -q -P 9 {} 512", 40 * 512);
        tools::must(Command::new("qemu-io").args(["-f", "qcow2", "-c", &write]).arg(&image.path));
    }
    std::fs::read(&image.path).unwrap()
}

fn qemu_check(bytes: &[u8], folder: &Path) -> i32 {
    let path = folder.join("state.qcow2");
    std::fs::write(&path, bytes).unwrap();
    tools::code(&tools::run(tools::qemu_img(["check", "-f", "qcow2"]).arg(&path)))
}

#[test]
fn power_cut_at_every_operation_of_freeing_leaks_is_never_worse_and_always_recoverable() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    for flavour in [Flavour::Plain, Flavour::SnapshotsV2, Flavour::Refcount2] {
        let before = leaky(flavour);
        let whole = Machine::new(before.clone());
        let found = inspect(&whole);
        assert!(found.counts[&Problem::RefcountLeak] >= 10, "{:?}", found.counts);
        assert_eq!(repair(&whole).unwrap().ending, Ending::Repaired);
        let after = whole.image();
        assert_eq!(qemu_check(&after, folder.path()), 0, "{flavour:?}");
        let mut number = 0_u64;
        let states = sweep(
            &Machine::new(before.clone()),
            |machine| drop(repair(machine)),
            |state, what| {
                let what = format!("{flavour:?}: {what}");
                number += 1;
                let now = inspect(state);
                assert_eq!(now.count(Severity::Corruption), 0, "{what}: {:?}", now.counts);
                assert!(now.total() <= found.total(), "{what}: {:?}", now.counts);
                if number.is_multiple_of(40) {
                    assert!([0, 3].contains(&qemu_check(&state.image(), folder.path())), "{what}");
                }
                let again = || state.after_power_cut(Survivors::Everything, usize::MAX);
                let forward = again();
                if forward.has(SideFile::Journal) {
                    let report = resume_at(&forward, &mut NativeInspector::default(), &mut Ignore);
                    assert_eq!(report.unwrap_or_else(|e| panic!("{what}: {e:?}")).ending, Ending::Resumed);
                } else {
                    repair(&forward).unwrap_or_else(|e| panic!("{what}: {e:?}"));
                }
                assert!(forward.image() == after, "{what}: resumed to something else");
                let back = again();
                if back.has(SideFile::Undo) {
                    assert_eq!(undo_at(&back).unwrap_or_else(|e| panic!("{what}: {e:?}")), Ending::Undone);
                }
                assert!(back.image() == before, "{what}: undone to something else");
            },
        );
        eprintln!("{flavour:?}: {states} states after a power cut");
        assert!(states > 100, "{states}");
    }
}

/// A machine that lost its power when an image with one leak had been written, but the journal was there still.
fn interrupted_with_one_leak(folder: &Path) -> Machine {
    let image = image::make(folder, "one", Flavour::Plain, 65_536);
    Raw::open(&image.path).append_clusters(1, 1);
    let before = std::fs::read(&image.path).unwrap();
    let whole = Machine::new(before.clone());
    repair(&whole).unwrap();
    let machine = Machine::new(before);
    machine.set_trouble(Trouble::PowerCut(whole.operations() - 1));
    repair(&machine).unwrap_err();
    let machine = machine.after_power_cut(Survivors::Everything, usize::MAX);
    assert!(machine.has(SideFile::Journal) && machine.image() == whole.image());
    machine
}

#[test]
fn freed_cluster_taken_by_a_guest_after_the_interruption_is_not_freed_again() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let machine = interrupted_with_one_leak(folder.path());
    // A guest gets the freed cluster: every byte that the journal writes is as before the repair again.
    let path = folder.path().join("used.qcow2");
    std::fs::write(&path, machine.image()).unwrap();
    let write = format!("write -q -P 8 {} 65536", 40 * 65_536);
    tools::must(Command::new("qemu-io").args(["-f", "qcow2", "-c", &write]).arg(&path));
    let used = std::fs::read(&path).unwrap();
    let raw = Raw::open(&path);
    assert_eq!(raw.host_offset(40) + 65_536, machine.image().len() as u64, "not the freed cluster");
    machine.meddle(|image| image.clone_from(&used));
    let error = resume_at(&machine, &mut NativeInspector::default(), &mut Ignore).unwrap_err();
    assert_eq!(error.ending(), Ending::Quarantined, "{error:?}");
    assert!(machine.image() == used);
}
