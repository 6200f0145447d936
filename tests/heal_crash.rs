//! Power cuts and storage errors at every operation of a repair, of finishing one, and of undoing one.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a failing helper fails its test")]

#[path = "simdisk/recovery.rs"]
mod recovery;
mod simdisk;
#[path = "simdisk/toy.rs"]
mod toy;

use std::collections::BTreeMap;
use std::io::ErrorKind;

use instar_abi::problem::Tier;
use instar_mount::heal::{Ending, HealError, RepairOptions, SideFile, repair_at, resume_at, undo_at};
use instar_mount::sandbox::observer::Ignore;
use recovery::{Recovery, again};
use simdisk::{Machine, Trouble, sweep};
use toy::{Mischief, Toy, leaky};

fn repair(machine: &Machine, mischief: Mischief) -> Result<Ending, HealError> {
    let report =
        repair_at(machine, Tier::Leaks, &RepairOptions::default(), &mut Toy::new(mischief), &mut Ignore)?;
    Ok(report.ending)
}

fn resume(machine: &Machine) -> Result<Ending, HealError> {
    Ok(resume_at(machine, &mut Toy::new(Mischief::None), &mut Ignore)?.ending)
}

/// What must hold in every state that an interrupted repair, resume or undo can leave.
fn assert_recoverable(state: &Machine, before: &[u8], after: &[u8], mischief: Mischief, what: &str) {
    let leaks = |bytes: &[u8]| bytes.iter().filter(|&&byte| byte == b'L').count();
    let now = state.image();
    assert!(leaks(&now) <= leaks(before) && !now.contains(&b'C'), "{what}: worse than before");
    let repair = |machine: &Machine| repair(machine, mischief);
    let raised = BTreeMap::new();
    Recovery { before, after, raised, repair: &repair, resume: &resume }.assert_possible(state, what);
}

fn healed(mischief: Mischief) -> Vec<u8> {
    let machine = Machine::new(leaky());
    assert_eq!(repair(&machine, mischief).unwrap(), Ending::Repaired);
    machine.image()
}

#[test]
fn power_cut_at_every_operation_of_a_repair_leaves_a_way_forward_and_back() {
    for mischief in [Mischief::None, Mischief::Grows] {
        let after = healed(mischief);
        let start = Machine::new(leaky());
        let states = sweep(
            &start,
            |machine| {
                // Ends in an error wherever the power goes before the last operation.
                drop(repair(machine, mischief));
            },
            |state, what| assert_recoverable(state, &leaky(), &after, mischief, what),
        );
        eprintln!("{mischief:?}: {states} states after a power cut");
        assert!(states > 300, "{states}");
    }
}

#[test]
fn power_cut_during_resume_and_undo_leaves_a_way_forward_and_back() {
    let mischief = Mischief::Grows;
    let after = healed(mischief);
    let mut inner = 0;
    let mut outer = 0_u64;
    sweep(
        &Machine::new(leaky()),
        |machine| drop(repair(machine, mischief)),
        |state, outside| {
            outer += 1;
            // A sample, for time's sake: the outer states are many and alike.
            if !(state.has(SideFile::Undo) || state.has(SideFile::Undoing))
                || !simdisk::mix(outer).is_multiple_of(5)
            {
                return;
            }
            let look = |state: &Machine, inside: &str| {
                assert_recoverable(state, &leaky(), &after, mischief, &format!("{outside}; then {inside}"));
            };
            if state.has(SideFile::Journal) {
                inner += sweep(state, |machine| drop(resume(machine)), look);
            }
            inner += sweep(
                state,
                |machine| drop(undo_at(machine)),
                |state, inside| {
                    let what = format!("{outside}; then undo, {inside}");
                    assert_recoverable(state, &leaky(), &after, mischief, &what);
                },
            );
        },
    );
    eprintln!("{inner} states after a second power cut");
    assert!(inner > 1000, "{inner}");
}

#[test]
fn storage_error_at_every_operation_is_told_and_leaves_a_way_forward_and_back() {
    let after = healed(Mischief::Grows);
    for kind in [ErrorKind::Other, ErrorKind::StorageFull] {
        let whole = Machine::new(leaky());
        repair(&whole, Mischief::Grows).unwrap();
        for at in 1..=whole.operations() {
            let machine = Machine::new(leaky());
            machine.set_trouble(Trouble::Fails(at, kind));
            let what = format!("operation {at} fails with {kind}");
            let error = repair(&machine, Mischief::Grows).expect_err(&what);
            let ending = error.ending();
            if machine.writes_to_image() == 0 {
                assert!(machine.image() == leaky(), "{what}");
                assert!(
                    matches!(ending, Ending::StorageFailed | Ending::NoSpace | Ending::LandingInterrupted),
                    "{what}: {error:?}"
                );
                assert_eq!(ending == Ending::NoSpace, kind == ErrorKind::StorageFull, "{what}: {error:?}");
            } else {
                assert_eq!(ending, Ending::LandingInterrupted, "{what}: {error:?}");
                assert!(machine.has(SideFile::Journal) || machine.image() == after, "{what}");
            }
            machine.set_trouble(Trouble::None);
            assert_recoverable(&again(&machine), &leaky(), &after, Mischief::Grows, &what);
        }
    }
}

#[test]
fn first_failed_write_is_the_last_one_asked_for() {
    let whole = Machine::new(leaky());
    repair(&whole, Mischief::Grows).unwrap();
    for at in 1..=whole.operations() {
        let machine = Machine::new(leaky());
        machine.set_trouble(Trouble::Fails(at, ErrorKind::Other));
        repair(&machine, Mischief::Grows).unwrap_err();
        if machine.writes_to_image() > 0 {
            assert_eq!(machine.operations(), at, "went on after operation {at} had failed");
        }
    }
}

#[test]
fn read_error_at_any_time_ends_the_repair_without_a_worse_image() {
    let whole = Machine::new(leaky());
    whole.set_trouble(Trouble::None);
    repair(&whole, Mischief::None).unwrap();
    let after = whole.image();
    for at in 1..=whole.reads() {
        let machine = Machine::new(leaky());
        machine.set_trouble(Trouble::ReadFails(at));
        let what = format!("read {at} fails");
        repair(&machine, Mischief::None).expect_err(&what);
        machine.set_trouble(Trouble::None);
        assert_recoverable(&again(&machine), &leaky(), &after, Mischief::None, &what);
    }
}

#[test]
fn too_little_free_space_is_told_before_anything_is_written() {
    let machine = Machine::new(leaky());
    machine.set_free_bytes(1000);
    let error = repair(&machine, Mischief::None).unwrap_err();
    assert_eq!(error.ending(), Ending::NoSpace);
    assert_eq!(machine.operations(), 0);
}

#[test]
fn storage_error_at_every_operation_of_an_undo_is_told_and_undo_finishes_it() {
    let repaired = Machine::new(leaky());
    repair(&repaired, Mischief::Grows).unwrap();
    let whole = again(&repaired);
    undo_at(&whole).unwrap();
    for at in 1..=whole.operations() {
        let machine = again(&repaired);
        machine.set_trouble(Trouble::Fails(at, ErrorKind::Other));
        let error = undo_at(&machine).unwrap_err();
        assert_eq!(error.ending(), Ending::UndoInterrupted, "operation {at}: {error:?}");
        machine.set_trouble(Trouble::None);
        let machine = again(&machine);
        match undo_at(&machine) {
            Ok(ending) => assert_eq!(ending, Ending::Undone),
            // The very last operation had done its work before it failed.
            Err(error) => assert_eq!((at, error.ending()), (whole.operations(), Ending::NoUndo)),
        }
        assert!(machine.image() == leaky(), "operation {at}");
    }
}
