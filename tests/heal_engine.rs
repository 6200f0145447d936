//! The engine's rules, on toy images: what is refused, quarantined, rolled back, and left alone.

#![allow(clippy::unwrap_used, reason = "a failing helper fails its test")]

mod simdisk;
#[path = "simdisk/toy.rs"]
mod toy;

use instar_abi::problem::{Problem, Tier};
use instar_abi::summary::Outcome;
use instar_mount::heal::{
    Doubt, Ending, HealError, RepairOptions, RepairReport, SideFile, repair_at, resume_at, undo_at,
};
use instar_mount::image::Backend;
use instar_mount::sandbox::observer::Ignore;
use simdisk::{Machine, Survivors, Trouble};
use toy::{Mischief, Toy, leaky};

fn run(machine: &Machine, toy: &mut Toy) -> Result<RepairReport, HealError> {
    repair_at(machine, Tier::Leaks, &RepairOptions::default(), toy, &mut Ignore)
}

fn preview(machine: &Machine, mischief: Mischief) -> Result<RepairReport, HealError> {
    let options = RepairOptions { preview: true, ..RepairOptions::default() };
    repair_at(machine, Tier::Leaks, &options, &mut Toy::new(mischief), &mut Ignore)
}

fn repair(machine: &Machine, mischief: Mischief) -> Result<RepairReport, HealError> {
    run(machine, &mut Toy::new(mischief))
}

fn assert_untouched(machine: &Machine) {
    assert_eq!(machine.operations(), 0, "something was written");
    assert!(machine.image() == leaky());
}

/// A machine that lost its power in the middle of writing the image.
fn interrupted() -> Machine {
    let whole = Machine::new(leaky());
    repair(&whole, Mischief::None).unwrap();
    for at in 1..=whole.operations() {
        let machine = Machine::new(leaky());
        machine.set_trouble(Trouble::PowerCut(at));
        repair(&machine, Mischief::None).unwrap_err();
        if machine.writes_to_image() == 3 {
            return machine.after_power_cut(Survivors::Everything, usize::MAX);
        }
    }
    panic!("the image was never written");
}

#[test]
fn leaky_image_is_repaired_attested_and_clean_the_second_time() {
    let machine = Machine::new(leaky());
    let report = repair(&machine, Mischief::None).unwrap();
    assert_eq!(report.ending, Ending::Repaired);
    let leaks = leaky().iter().filter(|&&byte| byte == b'L').count() as u64;
    assert_eq!(report.before.counts[&Problem::RefcountLeak], leaks);
    let attested = report.attested.unwrap();
    assert_eq!((attested.cured, attested.plan_digest), (leaks, report.plan.unwrap().digest));
    assert!(machine.has(SideFile::Undo) && !machine.has(SideFile::Journal));
    machine.set_trouble(Trouble::None);
    assert_eq!(repair(&machine, Mischief::None).unwrap().ending, Ending::Clean);
    assert_eq!(machine.operations(), 0);
}

#[test]
fn other_findings_are_left_and_told() {
    let mut image = leaky();
    image[1500] = b'C';
    let machine = Machine::new(image);
    let report = repair(&machine, Mischief::None).unwrap();
    assert_eq!(report.ending, Ending::RepairedPartly);
    assert_eq!(report.last().total(), 1);
    assert_eq!(machine.image()[1500], b'C');
}

#[test]
fn nothing_curable_incomplete_or_unknown_is_left_alone() {
    let machine = Machine::new(b"xxCxx".to_vec());
    assert_eq!(repair(&machine, Mischief::None).unwrap().ending, Ending::NothingToCure);
    assert_eq!(machine.operations(), 0);
    for (outcome, ending) in [
        (Outcome::Incomplete, Ending::IncompleteWalk),
        (Outcome::Unsupported, Ending::Unsupported),
        (Outcome::NotQcow2, Ending::NotAnImage),
    ] {
        let machine = Machine::new(leaky());
        let mut toy = Toy { outcome, ..Toy::new(Mischief::None) };
        assert_eq!(run(&machine, &mut toy).unwrap().ending, ending);
        assert_untouched(&machine);
    }
}

#[test]
fn preview_shows_the_repaired_copy_and_writes_nothing() {
    let machine = Machine::new(leaky());
    let report = preview(&machine, Mischief::None).unwrap();
    assert_eq!(report.ending, Ending::Previewed);
    let copy = report.preview.unwrap();
    let mut bytes = vec![0; usize::try_from(copy.len()).unwrap()];
    copy.read_at(&mut bytes, 0).unwrap();
    assert!(!bytes.contains(&b'L'));
    assert_untouched(&machine);
}

#[test]
fn plan_that_does_not_pass_its_proof_is_quarantined_and_nothing_is_written() {
    for (mischief, expected) in [
        (Mischief::ForgetsOne, Doubt::StillThere { problem: Problem::RefcountLeak, count: 1 }),
        (Mischief::Corrupts, Doubt::New { problem: Problem::RefcountTooLow, host_offset: 1 }),
        (Mischief::Nothing, Doubt::NotBetter),
    ] {
        let machine = Machine::new(leaky());
        match repair(&machine, mischief) {
            Err(HealError::Quarantined(doubt)) => assert_eq!(doubt, expected),
            other => panic!("{mischief:?}: {other:?}"),
        }
        assert_untouched(&machine);
    }
}

#[test]
fn plan_that_breaks_a_rule_is_dropped() {
    for mischief in [Mischief::LeavesScope, Mischief::WritesTwice] {
        let machine = Machine::new(leaky());
        let error = repair(&machine, mischief).unwrap_err();
        assert_eq!(error.ending(), Ending::BadPlan, "{error:?}");
        assert_untouched(&machine);
    }
}

#[test]
fn live_image_that_does_not_pass_is_put_back_byte_for_byte() {
    for mischief in [Mischief::None, Mischief::Grows] {
        let machine = Machine::new(leaky());
        let mut toy = Toy { lies_at: 3, ..Toy::new(mischief) };
        let error = run(&machine, &mut toy).unwrap_err();
        assert!(matches!(error, HealError::RolledBack(Doubt::New { .. })), "{error:?}");
        assert!(machine.writes_to_image() > 0);
        assert!(machine.image() == leaky());
        assert!(!machine.has(SideFile::Journal) && !machine.has(SideFile::Undo));
    }
}

#[test]
fn journal_left_behind_preview_is_refused_and_repair_finishes_it() {
    let machine = interrupted();
    let refused = preview(&machine, Mischief::None);
    assert_eq!(refused.unwrap_err().ending(), Ending::JournalFound);
    let report = repair(&machine, Mischief::None).unwrap();
    assert!(report.resumed);
    assert_eq!(report.ending, Ending::Clean);
    assert!(!machine.image().contains(&b'L'));
}

#[test]
fn image_used_since_the_interruption_is_not_resumed() {
    let journal = |machine: &Machine| {
        resume_at(machine, &mut Toy::new(Mischief::None), &mut Ignore).unwrap_err().ending()
    };
    // A sector that the repair writes holds something else now.
    let machine = interrupted();
    machine.meddle(|image| image[2100] = b'u');
    assert_eq!(journal(&machine), Ending::JournalForeign);
    // The image has grown.
    let machine = interrupted();
    machine.meddle(|image| image.push(b'u'));
    assert_eq!(journal(&machine), Ending::JournalForeign);
    // Its first bytes have changed.
    let machine = interrupted();
    machine.meddle(|image| image[50] = b'u');
    assert_eq!(journal(&machine), Ending::JournalForeign);
    // All the same bytes: nothing has happened.
    let machine = interrupted();
    machine.meddle(|_| {});
    assert!(resume_at(&machine, &mut Toy::new(Mischief::None), &mut Ignore).is_ok());
}

#[test]
fn replay_that_would_make_the_image_worse_is_not_done() {
    // The check of the image as it will be finds something new: the freed places are in use by now.
    let machine = interrupted();
    let now = machine.image();
    let mut toy = Toy { lies_at: 2, ..Toy::new(Mischief::None) };
    let error = resume_at(&machine, &mut toy, &mut Ignore).unwrap_err();
    assert!(matches!(error, HealError::Quarantined(Doubt::New { .. })), "{error:?}");
    assert!(machine.image() == now && machine.has(SideFile::Journal) && machine.has(SideFile::Undo));
}

#[test]
fn undo_after_the_image_was_used_is_refused() {
    let machine = Machine::new(leaky());
    repair(&machine, Mischief::None).unwrap();
    machine.meddle(|image| image[2100] = b'u');
    let used = machine.image();
    let error = undo_at(&machine).unwrap_err();
    assert!(matches!(error, HealError::UsedSince { offset: 2048, .. }), "{error:?}");
    assert!(machine.image() == used && machine.has(SideFile::Undo));
}

#[test]
fn undo_without_a_repair_is_refused() {
    let machine = Machine::new(leaky());
    assert_eq!(undo_at(&machine).unwrap_err().ending(), Ending::NoUndo);
}

#[test]
fn any_flipped_byte_of_a_record_is_noticed() {
    let sound = interrupted();
    for (file, ending) in [(SideFile::Journal, Ending::JournalDamaged), (SideFile::Undo, Ending::UndoDamaged)]
    {
        let mut len = 0;
        sound.meddle_with(file, |bytes| len = bytes.len());
        for at in (0..len).step_by(7).chain(len - 3..len) {
            let machine = sound.after_power_cut(Survivors::Everything, usize::MAX);
            machine.meddle_with(file, |bytes| bytes[at] ^= 0x10);
            let before = machine.image();
            let error = resume_at(&machine, &mut Toy::new(Mischief::None), &mut Ignore).unwrap_err();
            assert_eq!(error.ending(), ending, "byte {at}: {error:?}");
            assert!(machine.image() == before);
        }
    }
}

#[test]
fn record_cut_at_any_length_is_noticed() {
    let sound = interrupted();
    for file in [SideFile::Journal, SideFile::Undo] {
        let mut len = 0;
        sound.meddle_with(file, |bytes| len = bytes.len());
        for cut in (0..len).step_by(13) {
            let machine = sound.after_power_cut(Survivors::Everything, usize::MAX);
            machine.meddle_with(file, |bytes| bytes.truncate(cut));
            assert!(resume_at(&machine, &mut Toy::new(Mischief::None), &mut Ignore).is_err(), "{cut}");
        }
    }
}

#[test]
fn journal_without_its_undo_file_is_not_replayed() {
    let machine = interrupted();
    machine.forget(SideFile::Undo);
    let error = resume_at(&machine, &mut Toy::new(Mischief::None), &mut Ignore).unwrap_err();
    assert_eq!(error.ending(), Ending::NoUndo);
}

#[test]
fn same_image_gives_the_same_plan() {
    let digest = || {
        let machine = Machine::new(leaky());
        let report = preview(&machine, Mischief::Grows).unwrap();
        report.plan.unwrap().digest
    };
    assert_eq!(digest(), digest());
}
