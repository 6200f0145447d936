//! Storage that fails: every operation and every read in turn, of a repair, of going on, and of going back.

use std::io::ErrorKind;

use instar_mount::heal::{Ending, HealError, SideFile, undo_at};

use crate::need;
use crate::recovery::again;
use crate::scenes::{self, Scene};
use crate::simdisk::{Machine, Trouble, crash_states};
use crate::support::tools;
use crate::sweeps::{Act, resume};

type Work<'a> = &'a dyn Fn(&Machine) -> Result<Ending, HealError>;

/// A power cut that leaves the journal and a part of what is to be written.
fn interrupted(act: &Act) -> Machine {
    for at in 1.. {
        let machine = Machine::new(act.scene.damaged.clone());
        machine.set_trouble(Trouble::PowerCut(at));
        act.repair(&machine).expect_err("the power is cut");
        if machine.writes_to_image() == 2 {
            let machine = again(&machine);
            assert!(machine.has(SideFile::Journal));
            return machine;
        }
    }
    unreachable!("a repair writes its image twice")
}

/// Each operation fails once, for want of space and otherwise: it is told, nothing is asked of the image any more, and
/// the way forward and the way back are open, after a power cut on top of it too.
fn fail_each_operation(act: &Act, start: &Machine, what: &str, work: Work<'_>) -> u64 {
    let whole = again(start);
    work(&whole).unwrap_or_else(|error| panic!("{what}: {error:?}"));
    for at in 1..=whole.operations() {
        for kind in [ErrorKind::Other, ErrorKind::StorageFull] {
            let what = format!("{}: {what}, operation {at} fails with {kind}", act.scene.name);
            let machine = again(start);
            machine.set_trouble(Trouble::Fails(at, kind));
            work(&machine).expect_err(&what);
            if machine.writes_to_image() > 0 {
                assert_eq!(machine.operations(), at, "{what}: went on");
            }
            for state in crash_states(&machine) {
                act.assert_no_worse(&state, &what);
            }
            machine.set_trouble(Trouble::None);
            act.recovery(&again(&machine), &what);
        }
    }
    whole.operations()
}

fn fail_reads(act: &Act, start: &Machine, what: &str, work: Work<'_>) -> u64 {
    let whole = again(start);
    whole.set_trouble(Trouble::None);
    work(&whole).unwrap_or_else(|error| panic!("{what}: {error:?}"));
    let mut refused = 0;
    for at in 1..=whole.reads() {
        let what = format!("{}: {what}, read {at} fails", act.scene.name);
        let machine = again(start);
        machine.set_trouble(Trouble::ReadFails(at));
        refused += u64::from(work(&machine).is_err());
        machine.set_trouble(Trouble::None);
        let after = again(&machine);
        act.assert_no_worse(&after, &what);
        act.recovery(&after, &what);
    }
    eprintln!("{what}: {refused} of {} failing reads end it", whole.reads());
    refused
}

fn each_act(scenes: impl Iterator<Item = Scene>, look: impl Fn(&Act)) {
    for scene in scenes {
        let began = std::time::Instant::now();
        let act = Act::of(scene);
        look(&act);
        eprintln!("{}: {:?}", act.scene.name, began.elapsed());
    }
}

#[test]
fn storage_error_at_every_operation_is_told_never_worse_and_recoverable() {
    need!(tools::qemu());
    each_act(scenes::failing(), |act| {
        let start = Machine::new(act.scene.damaged.clone());
        let operations = fail_each_operation(act, &start, "repair", &|machine| act.repair(machine));
        assert!(operations > 10, "{operations}");
    });
}

#[test]
fn storage_error_at_every_operation_of_resume_and_undo_is_told_never_worse_and_recoverable() {
    need!(tools::qemu());
    each_act(scenes::failing(), |act| {
        let start = interrupted(act);
        assert!(fail_each_operation(act, &start, "resume", &resume) > 3);
        assert!(fail_each_operation(act, &start, "undo", &|machine| undo_at(machine)) > 3);
    });
}

#[test]
fn read_error_at_any_time_is_told_never_worse_and_recoverable() {
    need!(tools::qemu());
    each_act(scenes::failing(), |act| {
        let start = Machine::new(act.scene.damaged.clone());
        assert!(fail_reads(act, &start, "repair", &|machine| act.repair(machine)) > 3);
        let start = interrupted(act);
        fail_reads(act, &start, "resume", &resume);
        assert!(fail_reads(act, &start, "undo", &|machine| undo_at(machine)) > 0);
    });
}
