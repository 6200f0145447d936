//! Freeing leaks in real images on a real file system, with the cage's code in this process.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a failing helper fails its test")]

mod native;
mod support;

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use instar_abi::problem::{Problem, Severity, Tier};
use instar_mount::heal::{
    self, CageInspector, Ending, HealError, Inspector, RepairObserver, RepairOptions, RepairReport, SideFile,
    Stage,
};
use instar_mount::image::{Backend, ImageFile, ImageHandle, Mode};
use instar_mount::sandbox::SandboxChoice;
use instar_mount::sandbox::limits::Limits;
use instar_mount::sandbox::observer::{Ignore, Observer};
use native::NativeInspector;
use support::damage::{RECIPES, recipe};
use support::image::{self, Flavour, TestImage};
use support::raw::Raw;
use support::tools;

fn repair_with(
    path: &Path,
    inspector: &mut dyn Inspector,
    observer: &mut dyn RepairObserver,
) -> Result<RepairReport, HealError> {
    let image = ImageHandle::open(path, Mode::Read).unwrap();
    heal::repair(&image, Tier::Leaks, &RepairOptions::default(), inspector, observer)
}

fn repair(image: &TestImage) -> Result<RepairReport, HealError> {
    let open = |path: PathBuf| Arc::new(ImageFile::open_read_only(&path).unwrap()) as Arc<dyn Backend>;
    let mut inspector = NativeInspector { data_file: image.data_file().map(open) };
    repair_with(&image.path, &mut inspector, &mut Ignore)
}

fn undo(path: &Path) -> Result<Ending, HealError> {
    heal::undo(&ImageHandle::open(path, Mode::Read).unwrap(), None)
}

fn side(path: &Path, file: SideFile) -> PathBuf {
    let mut name = path.file_name().unwrap().to_owned();
    name.push(file.suffix());
    path.with_file_name(name)
}

/// Leaks at the end of the file and between clusters in use.
fn leak(image: &TestImage, counts: u64) {
    let raw = Raw::open(&image.path);
    raw.append_clusters(5, 1);
    let last = raw.append_clusters(3, counts);
    // The file ends with the last leak but one: its own end is not aligned.
    raw.set_len((last + 2) * raw.cluster_bytes + 100);
}

/// Repairs, and holds against qemu, the model, undo and a second run.
fn assert_heals(image: &TestImage, what: &str) {
    let before = std::fs::read(&image.path).unwrap();
    assert_eq!(image.qemu_check(), 3, "{what}: not leaky to begin with");
    let report = repair(image).unwrap_or_else(|e| panic!("{what}: {e:?}"));
    assert_eq!(
        report.ending,
        Ending::Repaired,
        "{what}: {:?} {:?}",
        report.before.counts,
        report.last().counts
    );
    assert_eq!(image.qemu_check(), 0, "{what}");
    if image.flavour != Flavour::ExtendedL2 {
        image.assert_guest_intact();
    }
    let healed = std::fs::read(&image.path).unwrap();
    assert!(healed.len() == before.len(), "{what}: another length");
    assert_eq!(report.undo_file.as_deref(), Some(side(&image.path, SideFile::Undo).as_path()));
    let mode = std::fs::metadata(side(&image.path, SideFile::Undo)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "{what}");
    assert!(!side(&image.path, SideFile::Journal).exists(), "{what}");
    let again = tools::ensure_untouched(&[&image.path], || repair(image).unwrap());
    assert_eq!(again.ending, Ending::Clean, "{what}");
    assert_eq!(undo(&image.path).unwrap_or_else(|e| panic!("{what}: {e:?}")), Ending::Undone);
    assert!(std::fs::read(&image.path).unwrap() == before, "{what}: undo gave other bytes");
    assert!(!side(&image.path, SideFile::Undo).exists(), "{what}");
    assert_eq!(repair(image).unwrap().ending, Ending::Repaired, "{what}");
    assert!(std::fs::read(&image.path).unwrap() == healed, "{what}: not deterministic");
}

#[test]
fn leaks_are_freed_at_every_width_version_and_feature() {
    need!(tools::qemu());
    for flavour in Flavour::ALL {
        let counts = match flavour {
            Flavour::Refcount1 => 1,
            Flavour::Refcount2 => 3,
            Flavour::Refcount64 => u64::MAX,
            _ => 2,
        };
        let folder = tempfile::tempdir().unwrap();
        let image = image::make(folder.path(), "image", flavour, 65_536);
        leak(&image, counts);
        assert_heals(&image, &format!("{flavour:?}"));
    }
}

#[test]
fn leaks_are_freed_at_every_cluster_size() {
    need!(tools::qemu());
    for cluster_bytes in [512, 4096, 16_384, 262_144] {
        for flavour in [Flavour::Plain, Flavour::V2, Flavour::Refcount1, Flavour::Refcount64] {
            let folder = tempfile::tempdir().unwrap();
            let image = image::make(folder.path(), "image", flavour, cluster_bytes);
            leak(&image, 1);
            assert_heals(&image, &format!("{flavour:?}, {cluster_bytes}"));
        }
    }
}

#[test]
fn healthy_image_is_not_touched() {
    need!(tools::qemu());
    for flavour in Flavour::ALL {
        let folder = tempfile::tempdir().unwrap();
        let image = image::make(folder.path(), "image", flavour, 65_536);
        let files = std::fs::read_dir(folder.path()).unwrap().count();
        let report = tools::ensure_untouched(&[&image.path], || repair(&image).unwrap());
        assert_eq!(report.ending, Ending::Clean, "{flavour:?}: {:?}", report.before.counts);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), files, "{flavour:?}");
    }
}

#[test]
fn any_damage_leaks_tier_never_makes_it_worse_and_undo_gives_back_every_byte() {
    need!(tools::qemu());
    for recipe in RECIPES {
        let folder = tempfile::tempdir().unwrap();
        let image = recipe.make(folder.path());
        let before = std::fs::read(&image.path).unwrap();
        let report = match repair(&image) {
            Ok(report) => report,
            Err(error) => panic!("{}: {error:?}", recipe.name),
        };
        let (old, new) = (&report.before, report.last());
        for severity in [Severity::Corruption, Severity::Fatal] {
            assert!(new.count(severity) <= old.count(severity), "{}", recipe.name);
        }
        assert_eq!(new.curable(Tier::Leaks), 0, "{}: {:?}", recipe.name, new.counts);
        if report.undo_file.is_some() {
            assert_eq!(undo(&image.path).unwrap(), Ending::Undone, "{}", recipe.name);
        }
        assert!(std::fs::read(&image.path).unwrap() == before, "{}", recipe.name);
    }
}

#[test]
fn orphans_are_told_and_not_freed() {
    need!(tools::qemu());
    for name in ["orphan-table", "orphan-data"] {
        let folder = tempfile::tempdir().unwrap();
        let image = recipe(name).make(folder.path());
        let report = tools::ensure_untouched(&[&image.path], || repair(&image).unwrap());
        assert_eq!(report.ending, Ending::NothingToCure, "{name}: {:?}", report.before.counts);
    }
}

#[test]
fn counts_past_the_end_are_kept_while_something_may_have_been_cut_off() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = image::make(folder.path(), "cut", Flavour::Plain, 65_536);
    let raw = Raw::open(&image.path);
    raw.set_len(raw.len() - 2 * raw.cluster_bytes);
    let report = tools::ensure_untouched(&[&image.path], || repair(&image).unwrap());
    assert_eq!(report.ending, Ending::NothingToCure, "{:?}", report.before.counts);
    assert!(report.before.counts.contains_key(&Problem::RefcountPastEof), "{:?}", report.before.counts);
    let image = recipe("refcount-past-eof").make(folder.path());
    assert_eq!(repair(&image).unwrap().ending, Ending::Repaired);
}

/// Does something when a stage begins.
struct At<F: FnMut() + Send>(Stage, F);

impl<F: FnMut() + Send> Observer for At<F> {}

impl<F: FnMut() + Send> RepairObserver for At<F> {
    fn stage_begins(&mut self, stage: Stage) {
        if stage == self.0 {
            (self.1)();
        }
    }
}

fn leaky(folder: &Path) -> TestImage {
    let image = image::make(folder, "image", Flavour::Plain, 65_536);
    leak(&image, 1);
    image
}

#[test]
fn image_changed_between_check_and_landing_is_refused() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = leaky(folder.path());
    for stage in [Stage::Plan, Stage::Prove, Stage::Land] {
        let raw = Raw::open(&image.path);
        let at = raw.host_offset(0);
        // Guest data, which no check looks at.
        let byte = raw.read(at, 1)[0];
        let meddle = || raw.write(at, &[byte ^ 1]);
        let error =
            repair_with(&image.path, &mut NativeInspector::default(), &mut At(stage, meddle)).unwrap_err();
        assert_eq!(error.ending(), Ending::ImageChanged, "{stage:?}: {error:?}");
        assert!(
            !side(&image.path, SideFile::Undo).exists() && !side(&image.path, SideFile::Journal).exists()
        );
        assert_eq!(image.qemu_check(), 3);
    }
}

#[test]
fn file_that_shrinks_during_the_repair_is_refused_and_not_written() {
    need!(tools::qemu());
    for stage in [Stage::Plan, Stage::Prove, Stage::Land] {
        let folder = tempfile::tempdir().unwrap();
        let image = leaky(folder.path());
        let mut shrunk = Vec::new();
        let shrink = || {
            let raw = Raw::open(&image.path);
            raw.set_len(raw.len() / 2);
            shrunk = std::fs::read(&image.path).unwrap();
        };
        let result = repair_with(&image.path, &mut NativeInspector::default(), &mut At(stage, shrink));
        let ending = result.map_or_else(|error| error.ending(), |report| report.ending);
        assert!(
            !matches!(ending, Ending::Repaired | Ending::RepairedPartly | Ending::Clean),
            "{stage:?}: {ending:?}"
        );
        assert!(std::fs::read(&image.path).unwrap() == shrunk, "{stage:?}");
    }
}

#[test]
fn image_that_qemu_has_open_is_not_repaired_and_qemu_keeps_out_of_a_repair() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = leaky(folder.path());
    let mut refused = Vec::new();
    let try_qemu = || {
        let output = tools::run(Command::new("qemu-io").args(["-f", "qcow2", "-c", "quit"]).arg(&image.path));
        refused.push(tools::stderr(&output).contains("lock"));
    };
    repair_with(&image.path, &mut NativeInspector::default(), &mut At(Stage::Land, try_qemu)).unwrap();
    assert_eq!(refused, [true]);
    let handle = ImageHandle::open(&image.path, Mode::Read).unwrap();
    let other = ImageHandle::open(&image.path, Mode::Read).unwrap();
    let error = heal::repair(
        &handle,
        Tier::Leaks,
        &RepairOptions::default(),
        &mut NativeInspector::default(),
        &mut Ignore,
    )
    .unwrap_err();
    assert_eq!(error.ending(), Ending::InUse);
    drop(other);
    assert_eq!(handle.mode(), Mode::Read);
}

#[test]
fn preview_needs_no_write_permission_and_writes_nothing() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = leaky(folder.path());
    let options = RepairOptions { preview: true, ..RepairOptions::default() };
    let handle = ImageHandle::open(&image.path, Mode::Read).unwrap();
    let report = tools::ensure_untouched(&[&image.path], || {
        heal::repair(&handle, Tier::Leaks, &options, &mut NativeInspector::default(), &mut Ignore).unwrap()
    });
    assert_eq!(report.ending, Ending::Previewed);
    assert!(report.last().total() > 0 && report.after.unwrap().total() == 0);
    assert!(!side(&image.path, SideFile::Undo).exists());
}

#[test]
fn records_stand_in_a_folder_of_the_users_choice_and_beside_what_a_link_leads_to() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = leaky(folder.path());
    let elsewhere = tempfile::tempdir().unwrap();
    let link = elsewhere.path().join("link.qcow2");
    symlink(&image.path, &link).unwrap();
    assert_eq!(
        repair_with(&link, &mut NativeInspector::default(), &mut Ignore).unwrap().ending,
        Ending::Repaired
    );
    assert!(side(&image.path, SideFile::Undo).exists() && !side(&link, SideFile::Undo).exists());
    assert_eq!(undo(&image.path).unwrap(), Ending::Undone);
    let side_folder = Some(elsewhere.path().to_path_buf());
    let options = RepairOptions { side_folder, ..RepairOptions::default() };
    let handle = ImageHandle::open(&image.path, Mode::Read).unwrap();
    heal::repair(&handle, Tier::Leaks, &options, &mut NativeInspector::default(), &mut Ignore).unwrap();
    assert!(!side(&image.path, SideFile::Undo).exists());
    assert_eq!(heal::undo(&handle, Some(elsewhere.path())).unwrap(), Ending::Undone);
}

#[test]
fn planted_links_are_never_followed() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = leaky(folder.path());
    let victim = folder.path().join("victim");
    std::fs::write(&victim, b"precious").unwrap();
    for file in [SideFile::UndoPart, SideFile::JournalPart, SideFile::Undo] {
        symlink(&victim, side(&image.path, file)).unwrap();
    }
    assert_eq!(repair(&image).unwrap().ending, Ending::Repaired);
    assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
    symlink(&victim, side(&image.path, SideFile::Journal)).unwrap();
    let error = repair(&image).unwrap_err();
    assert_eq!(error.ending(), Ending::JournalDamaged);
}

#[test]
fn record_that_others_may_write_is_not_trusted() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = leaky(folder.path());
    repair(&image).unwrap();
    let record = side(&image.path, SideFile::Undo);
    std::fs::set_permissions(&record, std::fs::Permissions::from_mode(0o622)).unwrap();
    let error = tools::ensure_untouched(&[&image.path], || undo(&image.path).unwrap_err());
    assert_eq!(error.ending(), Ending::UndoDamaged);
    std::fs::set_permissions(&record, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(undo(&image.path).unwrap(), Ending::Undone);
}

#[test]
fn whole_walk_in_both_cages_gives_the_same_bytes() {
    need!(tools::qemu());
    let mut results = Vec::new();
    for choice in [SandboxChoice::Process, SandboxChoice::Kvm] {
        if choice == SandboxChoice::Kvm {
            need!(tools::kvm());
        }
        let folder = tempfile::tempdir().unwrap();
        let image = leaky(folder.path());
        let mut inspector = CageInspector::new(choice, Limits::default());
        let report = repair_with(&image.path, &mut inspector, &mut Ignore).unwrap();
        assert_eq!(report.ending, Ending::Repaired);
        assert_eq!(image.qemu_check(), 0);
        image.assert_guest_intact();
        results.push((report.plan, std::fs::read(&image.path).unwrap()));
    }
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
}
