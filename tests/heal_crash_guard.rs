//! Power cuts at every operation of a repair with a guard: the guard is up whenever the image is between two states.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a failing helper fails its test")]

#[path = "simdisk/guarded.rs"]
mod guarded;
#[path = "simdisk/recovery.rs"]
mod recovery;
mod simdisk;

use std::io::ErrorKind;
use std::ops::Range;

use guarded::{GUARD, Guarded, Mischief, RAISED, damaged};
use instar_abi::problem::Tier;
use instar_mount::heal::{Ending, HealError, RepairOptions, SideFile, repair_at, resume_at, undo_at};
use instar_mount::sandbox::observer::Ignore;
use recovery::{Recovery, again};
use simdisk::{Machine, Op, Trouble, sweep};

const GUARD_BYTES: Range<usize> = GUARD..GUARD + 8;

/// An image, as it is before and after its repair.
struct Scene {
    before: Vec<u8>,
    after: Vec<u8>,
    version: u32,
}

impl Scene {
    fn new(before: Vec<u8>, version: u32) -> Self {
        let machine = Machine::new(before.clone());
        let scene = Self { before, after: Vec::new(), version };
        assert_eq!(scene.repair(&machine).unwrap(), Ending::Repaired);
        Self { after: machine.image(), ..scene }
    }

    /// With the guard down before, already up, and for a version that has none.
    fn all() -> [Self; 3] {
        let mut corrupt = damaged();
        corrupt[GUARD] = RAISED;
        let mut unguarded = damaged();
        unguarded[GUARD + 1] = b'-';
        [Self::new(damaged(), 3), Self::new(corrupt, 3), Self::new(unguarded, 2)]
    }

    fn inspector(&self) -> Guarded {
        Guarded { version: self.version, ..Guarded::new(Mischief::None) }
    }

    fn repair(&self, machine: &Machine) -> Result<Ending, HealError> {
        let options = RepairOptions::default();
        Ok(repair_at(machine, Tier::All, &options, &mut self.inspector(), &mut Ignore)?.ending)
    }

    fn resume(&self, machine: &Machine) -> Result<Ending, HealError> {
        Ok(resume_at(machine, &mut self.inspector(), &mut Ignore)?.ending)
    }

    fn start(&self) -> Machine {
        Machine::new(self.before.clone())
    }

    /// Whether anything but the guard's first byte, which is all that raising changes, is as in `image`.
    fn is_body_of(now: &[u8], image: &[u8]) -> bool {
        let body = |bytes: &[u8]| [&bytes[..GUARD_BYTES.start], &bytes[GUARD_BYTES.end..]].concat();
        body(now) == body(image)
    }

    /// The guard keeps others out of a mixture, and is not left up when nothing is under way.
    fn assert_guarded(&self, state: &Machine, what: &str) {
        if self.version < 3 {
            return;
        }
        let now = state.image();
        let guard = &now[GUARD_BYTES];
        if guard[0] != RAISED {
            let (is_old, is_new) = (guard == &self.before[GUARD_BYTES], guard == &self.after[GUARD_BYTES]);
            let is_whole = is_old && Self::is_body_of(&now, &self.before)
                || is_new && Self::is_body_of(&now, &self.after);
            assert!(is_whole, "{what}: a mixture with its guard down");
        }
        let is_under_way = state.has(SideFile::Journal) || state.has(SideFile::Undoing);
        if !is_under_way {
            let is_whole = now == self.before || now == self.after;
            assert!(is_whole, "{what}: nothing is under way, but the image is in between");
        }
    }

    fn assert_safe(&self, state: &Machine, what: &str) {
        let bad = |bytes: &[u8]| bytes.iter().filter(|byte| b"XCU".contains(byte)).count();
        assert!(bad(&state.image()) <= bad(&self.before) + 3, "{what}: worse than before");
        self.assert_guarded(state, what);
        let raised = GUARD_BYTES.map(|at| (at, if at == GUARD { RAISED } else { self.before[at] })).collect();
        Recovery {
            before: &self.before,
            after: &self.after,
            raised,
            repair: &|machine| self.repair(machine),
            resume: &|machine| self.resume(machine),
        }
        .assert_possible(state, what);
    }
}

#[test]
fn power_cut_at_every_operation_leaves_no_mixture_with_its_guard_down() {
    for scene in Scene::all() {
        let repair = |machine: &Machine| drop(scene.repair(machine));
        let states = sweep(&scene.start(), repair, |state, what| scene.assert_safe(state, what));
        eprintln!("version {}: {states} states after a power cut", scene.version);
        assert!(states > 300, "{states}");
    }
}

#[test]
fn power_cut_while_undoing_a_finished_repair_leaves_no_mixture_with_its_guard_down() {
    for scene in Scene::all() {
        let repaired = scene.start();
        scene.repair(&repaired).unwrap();
        let undo = |machine: &Machine| drop(undo_at(machine));
        let states = sweep(&again(&repaired), undo, |state, what| scene.assert_safe(state, what));
        eprintln!("version {}: {states} states after a power cut", scene.version);
        assert!(states > 100, "{states}");
    }
}

#[test]
fn second_power_cut_while_resuming_or_going_back_leaves_no_mixture_with_its_guard_down() {
    let scene = Scene::new(damaged(), 3);
    let (mut outer, mut inner) = (0_u64, 0);
    sweep(
        &scene.start(),
        |machine| drop(scene.repair(machine)),
        |state, outside| {
            outer += 1;
            // A sample, for time's sake: the outer states are many and alike.
            if !state.has(SideFile::Undo) || !simdisk::mix(outer).is_multiple_of(23) {
                return;
            }
            let mut look = |state: &Machine, inside: &str| {
                scene.assert_safe(state, &format!("{outside}; then {inside}"))
            };
            if state.has(SideFile::Journal) {
                inner += sweep(state, |machine| drop(scene.resume(machine)), &mut look);
            }
            inner += sweep(state, |machine| drop(undo_at(machine)), &mut look);
        },
    );
    eprintln!("{inner} states after a second power cut");
    assert!(inner > 1000, "{inner}");
}

#[test]
fn storage_error_at_every_operation_leaves_no_mixture_with_its_guard_down() {
    let scene = Scene::new(damaged(), 3);
    let whole = scene.start();
    scene.repair(&whole).unwrap();
    for at in 1..=whole.operations() {
        let machine = scene.start();
        machine.set_trouble(Trouble::Fails(at, ErrorKind::Other));
        let what = format!("operation {at} fails");
        scene.repair(&machine).expect_err(&what);
        if machine.writes_to_image() > 0 {
            assert_eq!(machine.operations(), at, "went on after operation {at} had failed");
        }
        machine.set_trouble(Trouble::None);
        scene.assert_safe(&again(&machine), &what);
    }
}

/// Holds what was done to the image, in order, against the guard: each write of anything else comes while the guard
/// is up on the disk itself, and the guard comes down only when all of it is there.
fn assert_order(log: &[Op], start: &[u8]) -> usize {
    let (mut disk, mut written) = (start.to_vec(), start.to_vec());
    let mut body_writes = 0;
    for (number, op) in log.iter().enumerate() {
        match op {
            Op::Write { offset, bytes } => {
                let range = *offset..offset + bytes.len();
                let is_guard = range.start < GUARD_BYTES.end && GUARD_BYTES.start < range.end;
                if is_guard {
                    assert_eq!(range, GUARD_BYTES, "operation {number}: guard written with something else");
                    let is_body_durable = Scene::is_body_of(&disk, &written);
                    assert!(is_body_durable, "operation {number}: guard written before the rest is durable");
                } else {
                    assert_eq!(disk[GUARD], RAISED, "operation {number}: written with the guard down");
                    body_writes += 1;
                }
                if written.len() < range.end {
                    written.resize(range.end, 0);
                }
                written[range].copy_from_slice(bytes);
            }
            Op::Punch { .. } => panic!("operation {number}: a repair gave storage back"),
            Op::SetLen(len) => {
                assert_eq!(disk[GUARD], RAISED, "operation {number}: resized with the guard down");
                written.resize(*len, 0);
            }
            Op::Sync => disk.clone_from(&written),
            Op::Removed(SideFile::Journal | SideFile::Undoing) => {
                assert!(disk == written, "operation {number}: record removed before the image is durable");
            }
            Op::Removed(_) => {}
        }
    }
    assert!(disk == written, "not durable in the end");
    body_writes
}

#[test]
fn guard_is_up_on_disk_at_each_write_of_a_landing_a_resume_and_an_undo() {
    let scene = Scene::new(damaged(), 3);
    let machine = scene.start();
    scene.repair(&machine).unwrap();
    assert!(assert_order(&machine.log(), &scene.before) > 10);
    let back = again(&machine);
    undo_at(&back).unwrap();
    assert!(assert_order(&back.log(), &scene.after) > 10);
    // Just before the journal would have gone: the guard is down already, and goes up again.
    let interrupted = scene.start();
    interrupted.set_trouble(Trouble::PowerCut(machine.operations() - 1));
    scene.repair(&interrupted).unwrap_err();
    let interrupted = again(&interrupted);
    assert!(interrupted.has(SideFile::Journal) && interrupted.image() == scene.after);
    scene.resume(&interrupted).unwrap();
    assert!(assert_order(&interrupted.log(), &scene.after) > 10);
    assert!(interrupted.image() == scene.after);
}

#[test]
fn guard_that_holds_a_foreign_value_stops_resume_and_undo() {
    let scene = Scene::new(damaged(), 3);
    let whole = scene.start();
    scene.repair(&whole).unwrap();
    let interrupted = scene.start();
    interrupted.set_trouble(Trouble::PowerCut(whole.operations() - 4));
    scene.repair(&interrupted).unwrap_err();
    let interrupted = again(&interrupted);
    assert_eq!(interrupted.image()[GUARD], RAISED);
    interrupted.meddle(|image| image[GUARD + 4] = b'?');
    let used = interrupted.image();
    assert_eq!(scene.resume(&interrupted).unwrap_err().ending(), Ending::JournalForeign);
    let error = undo_at(&interrupted).unwrap_err();
    assert!(matches!(error, HealError::UsedSince { offset: 72, .. }), "{error:?}");
    assert!(interrupted.image() == used);
}

#[test]
fn any_flipped_byte_of_a_guarded_record_is_noticed() {
    let scene = Scene::new(damaged(), 3);
    let whole = scene.start();
    scene.repair(&whole).unwrap();
    let sound = scene.start();
    sound.set_trouble(Trouble::PowerCut(whole.operations() - 4));
    scene.repair(&sound).unwrap_err();
    let sound = again(&sound);
    for (file, ending) in [(SideFile::Journal, Ending::JournalDamaged), (SideFile::Undo, Ending::UndoDamaged)]
    {
        let mut len = 0;
        sound.meddle_with(file, |bytes| len = bytes.len());
        // The heads, and the guards right behind them, whole; a sample of the rest.
        for at in (0..300).chain((300..len).step_by(17)) {
            let machine = again(&sound);
            machine.meddle_with(file, |bytes| bytes[at] ^= 0x10);
            let before = machine.image();
            let error = scene.resume(&machine).unwrap_err();
            assert_eq!(error.ending(), ending, "byte {at}: {error:?}");
            assert!(machine.image() == before);
        }
    }
    assert_eq!(scene.resume(&again(&sound)).unwrap(), Ending::Resumed);
}
