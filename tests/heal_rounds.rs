//! The engine's rules for `--repair=all`, on toy images: rounds, guard, proof, decisions, plans made before.

#![allow(clippy::unwrap_used, reason = "a failing helper fails its test")]

#[path = "simdisk/guarded.rs"]
mod guarded;
mod simdisk;

use guarded::{GUARD, Guarded, Mischief, RAISED, damaged};
use instar_abi::choice::{Decision, Decisions};
use instar_abi::cure::Cure;
use instar_abi::problem::{Problem, Tier};
use instar_mount::heal::{
    BoundPlan, Doubt, Ending, HealError, Plan, PlanError, ROUNDS_MAX, RepairObserver, RepairOptions,
    RepairReport, SideFile, repair_at, repair_with_plan_at,
};
use instar_mount::sandbox::observer::{Ignore, Observer};
use simdisk::Machine;

fn run_with(
    machine: &Machine,
    inspector: &mut Guarded,
    options: &RepairOptions,
) -> Result<RepairReport, HealError> {
    repair_at(machine, Tier::All, options, inspector, &mut Ignore)
}

fn run(machine: &Machine, inspector: &mut Guarded) -> Result<RepairReport, HealError> {
    run_with(machine, inspector, &RepairOptions::default())
}

fn repair(machine: &Machine, mischief: Mischief) -> Result<RepairReport, HealError> {
    run(machine, &mut Guarded::new(mischief))
}

fn preview(machine: &Machine) -> RepairReport {
    let options = RepairOptions { preview: true, ..RepairOptions::default() };
    run_with(machine, &mut Guarded::new(Mischief::None), &options).unwrap()
}

fn assert_untouched(machine: &Machine, image: &[u8]) {
    assert_eq!(machine.operations(), 0, "something was written");
    assert!(machine.image() == image);
}

/// The image with `byte` at a place.
fn with(at: usize, byte: u8) -> Vec<u8> {
    let mut image = damaged();
    image[at] = byte;
    image
}

#[test]
fn damaged_image_is_mended_in_rounds_and_nothing_is_left() {
    struct Rounds(Vec<u32>);
    impl Observer for Rounds {}
    impl RepairObserver for Rounds {
        fn round_begins(&mut self, round: u32) {
            self.0.push(round);
        }
    }
    let machine = Machine::new(damaged());
    let mut rounds = Rounds(Vec::new());
    let mut inspector = Guarded::new(Mischief::None);
    let report =
        repair_at(&machine, Tier::All, &RepairOptions::default(), &mut inspector, &mut rounds).unwrap();
    assert_eq!(report.ending, Ending::Repaired);
    // Links; counts and leaks; the dirty bit; nothing more.
    assert_eq!(rounds.0, [0, 1, 2, 3]);
    let image = machine.image();
    assert!(!image.iter().any(|byte| b"LCXUD!".contains(byte)));
    assert_eq!(image.len(), 6144 + 3 * 512);
    assert_eq!(&image[GUARD..GUARD + 8], b"--------");
    machine.set_trouble(simdisk::Trouble::None);
    assert_eq!(repair(&machine, Mischief::None).unwrap().ending, Ending::Clean);
    assert_eq!(machine.operations(), 0);
}

#[test]
fn plan_of_all_rounds_has_fresh_clusters_first_and_a_guard_round_it() {
    let machine = Machine::new(damaged());
    let BoundPlan { plan, binding } = preview(&machine).bound.unwrap();
    let cures: Vec<Cure> = plan.steps().iter().map(|step| step.cure).collect();
    let fresh_then_in_place =
        [Cure::CopyShared, Cure::FixCounts, Cure::CopyShared, Cure::FixCounts, Cure::FreeLeaks];
    assert_eq!(cures, fresh_then_in_place);
    let guard = plan.guard().unwrap();
    assert_eq!((guard.offset(), guard.raised()), (72, &b"!D------"[..]));
    assert_eq!(guard.lowered(), b"--------");
    assert_eq!((binding.len_before, binding.len_after), (6000, 6144 + 3 * 512));
    assert_untouched(&machine, &damaged());
}

#[test]
fn plan_that_breaks_a_rule_of_the_guard_is_dropped() {
    let guarded = |mischief| {
        let machine = Machine::new(damaged());
        let error = repair(&machine, mischief).unwrap_err();
        assert_untouched(&machine, &damaged());
        match error {
            HealError::BadPlan(error) => error,
            other => panic!("{mischief:?}: {other:?}"),
        }
    };
    assert_eq!(guarded(Mischief::Unguarded), PlanError::GuardMissing);
    assert_eq!(guarded(Mischief::WritesGuard), PlanError::GuardWritten { offset: 77, len: 1 });
    assert_eq!(guarded(Mischief::MovesGuard), PlanError::GuardShape { offset: 80, len: 8 });
    assert_eq!(guarded(Mischief::LowersEarly), PlanError::GuardMisplaced);
    assert_eq!(guarded(Mischief::NeverEnds), PlanError::Endless { limit: ROUNDS_MAX });
}

#[test]
fn plan_that_is_too_large_is_told_as_that_and_nothing_is_written() {
    let machine = Machine::new(damaged());
    let error = repair(&machine, Mischief::Sprawls).unwrap_err();
    assert_eq!(error.ending(), Ending::TooLarge, "{error:?}");
    assert_untouched(&machine, &damaged());
}

#[test]
fn leaks_alone_are_freed_without_a_guard_and_the_leaks_tier_may_not_have_one() {
    let mut image = vec![b'x'; 2000];
    image[GUARD..GUARD + 8].fill(b'-');
    image[700] = b'L';
    let machine = Machine::new(image.clone());
    let report = preview(&machine);
    assert!(report.bound.unwrap().plan.guard().is_none());
    let mut inspector = Guarded::new(Mischief::GuardsNothing);
    let options = RepairOptions::default();
    let error = repair_at(&machine, Tier::Leaks, &options, &mut inspector, &mut Ignore).unwrap_err();
    let expected = PlanError::NotInTier { cure: Cure::RaiseGuard };
    assert!(matches!(&error, HealError::BadPlan(error) if *error == expected), "{error:?}");
    assert_untouched(&machine, &image);
}

#[test]
fn image_of_version_2_is_mended_without_a_guard_and_may_not_have_one() {
    let mut image = damaged();
    image[GUARD + 1] = b'-';
    let machine = Machine::new(image.clone());
    let mut inspector = Guarded { version: 2, ..Guarded::new(Mischief::None) };
    assert_eq!(run(&machine, &mut inspector).unwrap().ending, Ending::Repaired);
    // A plan with a guard, adopted for an image that has none.
    let BoundPlan { plan, binding } = preview(&Machine::new(image.clone())).bound.unwrap();
    let machine = Machine::new(image.clone());
    let mut inspector = Guarded { version: 2, ..Guarded::new(Mischief::None) };
    let error =
        repair_with_plan_at(&machine, BoundPlan { plan, binding }, false, &mut inspector, &mut Ignore)
            .unwrap_err();
    assert!(matches!(error, HealError::BadPlan(PlanError::GuardForNothing)), "{error:?}");
    assert_untouched(&machine, &image);
}

#[test]
fn proof_refuses_what_is_new_what_is_gone_and_what_is_not_better() {
    let spread = Doubt::New { problem: Problem::L2EntryShared, host_offset: 10 };
    let freed = Doubt::Gone { problem: Problem::OrphanData, host_offset: 1500 };
    // One in each of two rounds.
    let lost = Doubt::DataLost { before: 3, after: 1, allowed: 0 };
    for (mischief, expected) in [
        (Mischief::Spreads, spread),
        (Mischief::FreesOrphans, freed),
        (Mischief::LosesData, lost),
        (Mischief::Blinds, Doubt::NotComplete),
    ] {
        let image = with(1500, b'O');
        let machine = Machine::new(image.clone());
        match repair(&machine, mischief) {
            Err(HealError::Quarantined(doubt)) => assert_eq!(doubt, expected, "{mischief:?}"),
            other => panic!("{mischief:?}: {other:?}"),
        }
        assert_untouched(&machine, &image);
    }
}

#[test]
fn what_is_withheld_is_no_failure_and_names_what_to_decide() {
    let withheld = |image: Vec<u8>| {
        let machine = Machine::new(image.clone());
        let report = repair(&machine, Mischief::Withholds).unwrap();
        assert_untouched(&machine, &image);
        report.ending
    };
    assert_eq!(withheld(damaged()), Ending::Withheld);
    assert_eq!(withheld(with(1500, b'O')), Ending::NeedsDecision);
    // Nothing is curable at all, and one thing is to be decided.
    let mut image = vec![b'x'; 2000];
    image[GUARD..GUARD + 8].fill(b'-');
    image[1500] = b'O';
    assert_eq!(withheld(image), Ending::NeedsDecision);
}

#[test]
fn decided_orphans_are_freed_and_undecided_ones_left() {
    let image = with(1500, b'O');
    let machine = Machine::new(image.clone());
    let report = repair(&machine, Mischief::None).unwrap();
    assert_eq!(report.ending, Ending::RepairedPartly);
    assert_eq!(report.last().counts.len(), 1);
    assert_eq!(machine.image()[1500], b'O');
    let machine = Machine::new(image);
    let decisions = Decisions::default().with(Decision::FreeOrphanData);
    let options = RepairOptions { decisions, ..RepairOptions::default() };
    let report = run_with(&machine, &mut Guarded::new(Mischief::None), &options).unwrap();
    assert_eq!(report.ending, Ending::Repaired);
    assert_eq!(machine.image()[1500], b'.');
}

#[test]
fn corrupt_image_is_mended_and_its_guard_lowered_in_the_end() {
    let mut image = damaged();
    image[GUARD] = RAISED;
    let machine = Machine::new(image);
    assert_eq!(repair(&machine, Mischief::None).unwrap().ending, Ending::Repaired);
    assert_eq!(&machine.image()[GUARD..GUARD + 8], b"--------");
}

#[test]
fn live_image_that_does_not_pass_is_put_back_byte_for_byte() {
    let machine = Machine::new(damaged());
    let mut inspector = Guarded { lies_at: 3, ..Guarded::new(Mischief::None) };
    let error = run(&machine, &mut inspector).unwrap_err();
    assert!(matches!(error, HealError::RolledBack(Doubt::New { .. })), "{error:?}");
    assert!(machine.writes_to_image() > 0);
    assert!(machine.image() == damaged());
    assert!(!machine.has(SideFile::Journal) && !machine.has(SideFile::Undo));
}

#[test]
fn plan_made_before_does_the_same_and_is_refused_for_any_other_image() {
    let bound = preview(&Machine::new(damaged())).bound.unwrap();
    let adopt = |machine: &Machine, bound: &BoundPlan| {
        let mut inspector = Guarded::new(Mischief::None);
        let report = repair_with_plan_at(machine, bound.clone(), false, &mut inspector, &mut Ignore);
        assert_eq!(inspector.plans, 0, "planned anew");
        report
    };
    let direct = Machine::new(damaged());
    repair(&direct, Mischief::None).unwrap();
    let machine = Machine::new(damaged());
    assert_eq!(adopt(&machine, &bound).unwrap().ending, Ending::Repaired);
    assert!(machine.image() == direct.image());
    let shorter = damaged()[..5990].to_vec();
    for image in [with(5, b'y'), with(100, b'x'), with(GUARD + 1, b'-'), shorter] {
        let machine = Machine::new(image.clone());
        let error = adopt(&machine, &bound).unwrap_err();
        assert_eq!(error.ending(), Ending::PlanForeign, "{error:?}");
        assert_untouched(&machine, &image);
    }
    // A plan that writes something else to the image that it names.
    let mut steps = bound.plan.steps().to_vec();
    steps.pop();
    let guard = bound.plan.guard();
    let plan = Plan::from_parts(Tier::All, Decisions::default(), guard, steps).unwrap();
    let error = adopt(&Machine::new(damaged()), &BoundPlan { plan, ..bound }).unwrap_err();
    assert_eq!(error.ending(), Ending::PlanForeign, "{error:?}");
}

#[test]
fn same_image_gives_the_same_plan_and_parts_give_it_back() {
    let plan = || preview(&Machine::new(damaged())).bound.unwrap().plan;
    assert_eq!(plan(), plan());
    let again = plan();
    let rebuilt =
        Plan::from_parts(again.tier(), again.decisions(), again.guard(), again.steps().to_vec()).unwrap();
    assert_eq!(rebuilt, again);
}
