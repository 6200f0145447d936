//! `--repair=all` on every kind of damage that a file can show, with the cage's code in this process.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a failing helper fails its test")]

mod native;
mod support;

use std::path::PathBuf;
use std::sync::Arc;

use instar_abi::choice::{Decision, Decisions};
use instar_abi::problem::{Severity, Tier};
use instar_mount::heal::{self, CageInspector, Ending, HealError, RepairOptions, RepairReport};
use instar_mount::image::{Backend, ImageFile, ImageHandle, Mode};
use instar_mount::sandbox::SandboxChoice;
use instar_mount::sandbox::limits::Limits;
use instar_mount::sandbox::observer::Ignore;
use native::NativeInspector;
use support::damage::{RECIPES, Recipe, recipe};
use support::image::{self, Flavour, TestImage};
use support::tools;

fn repair(image: &TestImage) -> Result<RepairReport, HealError> {
    repair_deciding(image, Decisions::default())
}

fn repair_deciding(image: &TestImage, decisions: Decisions) -> Result<RepairReport, HealError> {
    let open = |path: PathBuf| Arc::new(ImageFile::open_read_only(&path).unwrap()) as Arc<dyn Backend>;
    let mut inspector = NativeInspector { data_file: image.data_file().map(open) };
    let handle = ImageHandle::open(&image.path, Mode::Read).unwrap();
    let options = RepairOptions { decisions, ..RepairOptions::default() };
    heal::repair(&handle, Tier::All, &options, &mut inspector, &mut Ignore)
}

/// Repairs, repairs again, and goes back. Says what is wrong with that.
fn try_recipe(recipe: &Recipe) -> Result<Ending, String> {
    let folder = tempfile::tempdir().unwrap();
    let image = recipe.make(folder.path());
    let before = std::fs::read(&image.path).unwrap();
    let report = repair(&image).map_err(|error| format!("{error}: {error:?}"))?;
    let (old, new) = (&report.before, report.last());
    for severity in [Severity::Corruption, Severity::Fatal] {
        if new.count(severity) > old.count(severity) {
            return Err(format!("{:?} became {:?}", old.counts, new.counts));
        }
    }
    let left = format!("{:?}, {:?} became {:?}", report.ending, old.counts, new.counts);
    if report.ending == Ending::Repaired && image.qemu_check() != 0 {
        return Err(format!("{left}, but qemu-img check gives {}", image.qemu_check()));
    }
    let healed = std::fs::read(&image.path).unwrap();
    if report.undo_file.is_none() {
        return if healed == before { Ok(report.ending) } else { Err(format!("{left}: written")) };
    }
    let again = repair(&image).map_err(|error| format!("{left}; second run: {error:?}"))?;
    if again.undo_file.is_some() || std::fs::read(&image.path).unwrap() != healed {
        return Err(format!("{left}; the second run finds something to do: {:?}", again.last().counts));
    }
    let handle = ImageHandle::open(&image.path, Mode::Read).unwrap();
    let undone = heal::undo(&handle, None).map_err(|error| format!("{left}; undo: {error:?}"))?;
    if undone != Ending::Undone || std::fs::read(&image.path).unwrap() != before {
        return Err(format!("{left}; undo gave other bytes"));
    }
    Ok(report.ending)
}

#[test]
fn any_damage_is_never_made_worse_a_second_run_finds_nothing_and_undo_gives_back_every_byte() {
    need!(tools::qemu());
    let mut wrong = Vec::new();
    for recipe in RECIPES {
        match try_recipe(recipe) {
            Ok(ending) => eprintln!("{}: {}", recipe.name, ending.id()),
            Err(error) => wrong.push(format!("{}: {error}", recipe.name)),
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), RECIPES.len(), wrong.join("\n"));
}

#[test]
fn healthy_image_is_not_touched() {
    need!(tools::qemu());
    for flavour in Flavour::ALL {
        let folder = tempfile::tempdir().unwrap();
        let image = image::make(folder.path(), "image", flavour, 65_536);
        let report = tools::ensure_untouched(&[&image.path], || repair(&image).unwrap());
        assert_eq!(report.ending, Ending::Clean, "{flavour:?}: {:?}", report.before.counts);
    }
}

#[test]
fn what_is_decided_about_is_mended_and_undo_gives_it_back() {
    need!(tools::qemu());
    for (name, decision) in
        [("orphan-data", Decision::FreeOrphanData), ("orphan-table", Decision::FreeOrphanTables)]
    {
        let folder = tempfile::tempdir().unwrap();
        let image = recipe(name).make(folder.path());
        let before = std::fs::read(&image.path).unwrap();
        let open = tools::ensure_untouched(&[&image.path], || repair(&image).unwrap());
        assert_eq!(open.ending, Ending::NeedsDecision, "{name}: {:?}", open.before.counts);
        let decisions = Decisions::default().with(decision);
        let report = repair_deciding(&image, decisions).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        assert_eq!(report.ending, Ending::Repaired, "{name}: {:?}", report.last().counts);
        assert_eq!(image.qemu_check(), 0, "{name}");
        let handle = ImageHandle::open(&image.path, Mode::Read).unwrap();
        assert_eq!(heal::undo(&handle, None).unwrap(), Ending::Undone);
        assert!(std::fs::read(&image.path).unwrap() == before, "{name}: undo gave other bytes");
    }
}

#[test]
fn both_cages_and_this_process_plan_and_land_the_same_bytes() {
    need!(tools::qemu());
    for name in ["refcount-block-missing", "snapshot-extra-data", "l2-entry-reserved"] {
        let folder = tempfile::tempdir().unwrap();
        let image = recipe(name).make(folder.path());
        let landed = |choice: Option<SandboxChoice>| {
            let report = match choice {
                None => repair(&image),
                Some(choice) => {
                    let mut inspector = CageInspector::new(choice, Limits::default());
                    let handle = ImageHandle::open(&image.path, Mode::Read).unwrap();
                    let options = RepairOptions::default();
                    heal::repair(&handle, Tier::All, &options, &mut inspector, &mut Ignore)
                }
            };
            let report = report.unwrap_or_else(|e| panic!("{name}, {choice:?}: {e:?}"));
            assert_eq!(report.ending, Ending::Repaired, "{name}, {choice:?}");
            assert_eq!(image.qemu_check(), 0, "{name}, {choice:?}");
            let bytes = std::fs::read(&image.path).unwrap();
            let handle = ImageHandle::open(&image.path, Mode::Read).unwrap();
            assert_eq!(heal::undo(&handle, None).unwrap(), Ending::Undone);
            (report.plan.unwrap(), bytes)
        };
        let native = landed(None);
        assert!(landed(Some(SandboxChoice::Process)) == native, "{name}: the process cage differs");
        need!(tools::kvm());
        assert!(landed(Some(SandboxChoice::Kvm)) == native, "{name}: the KVM cage differs");
    }
}
