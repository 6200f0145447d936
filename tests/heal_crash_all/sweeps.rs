//! The sweeps, and what must hold of every state that a power cut can leave.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use instar_abi::choice::{Decision, Decisions};
use instar_abi::cure::Cure;
use instar_abi::problem::{Severity, Tier};
use instar_mount::heal::{
    BoundPlan, Ending, HealError, RepairOptions, RepairReport, SideFile, repair_at, resume_at,
};
use instar_mount::sandbox::observer::Ignore;

use crate::native::NativeInspector;
use crate::need;
use crate::recovery::Recovery;
use crate::scenes::{self, Scene};
use crate::simdisk::{Machine, Op, sweep};
use crate::support::{reading, tools};

/// The incompatible features, and the corrupt bit in their last byte.
const FEATURES: Range<usize> = 72..80;
const CORRUPT: u8 = 2;
/// One state of so many is resumed and undone.
const SAMPLE: u64 = 11;
/// One state of so many is read by qemu.
const QEMU_SAMPLE: u64 = 61;

fn run(machine: &Machine, decisions: Decisions, preview: bool) -> Result<RepairReport, HealError> {
    let options = RepairOptions { decisions, preview, ..RepairOptions::default() };
    repair_at(machine, Tier::All, &options, &mut NativeInspector::default(), &mut Ignore)
}

/// Goes on with an interrupted repair.
pub fn resume(machine: &Machine) -> Result<Ending, HealError> {
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

/// A scene, and what its repair makes of it.
pub struct Act {
    /// The scene.
    pub scene: Scene,
    after: Vec<u8>,
    plan: BoundPlan,
    /// What was found before, worse than leaks.
    corruptions: u64,
}

impl Act {
    /// Repairs it.
    pub fn of(scene: Scene) -> Self {
        let name = scene.name.as_str();
        let fail = |error| -> RepairReport { panic!("{name}: {error:?}") };
        let machine = Machine::new(scene.damaged.clone());
        let plan = run(&machine, scene.decisions, true).unwrap_or_else(fail).bound;
        let plan = plan.unwrap_or_else(|| panic!("{name}: no plan"));
        let report = run(&machine, scene.decisions, false).unwrap_or_else(fail);
        assert_eq!(report.ending, Ending::Repaired, "{name}: {:?}", report.last().counts);
        let corruptions = report.before.count(Severity::Corruption);
        let act = Self { after: machine.image(), plan, scene, corruptions };
        if act.has_guard() {
            act.assert_guard_is_up(&machine.log());
        }
        act
    }

    /// Repairs the scene on a machine.
    pub fn repair(&self, machine: &Machine) -> Result<Ending, HealError> {
        Ok(run(machine, self.scene.decisions, false)?.ending)
    }

    fn has_guard(&self) -> bool {
        self.plan.plan.guard().is_some()
    }

    /// Whether the user keeps fewer disks than can be read in part.
    fn gives_up_snapshots(&self) -> bool {
        [Decision::DropSnapshots, Decision::KeepReadableSnapshots]
            .iter()
            .any(|one| self.scene.decisions.has(*one))
    }

    /// Whether a header field is restored, without which nothing can be read.
    fn restores(&self) -> bool {
        self.plan.plan.steps().iter().any(|step| step.cure == Cure::RestoreHeader)
    }

    /// Each write of anything but the features comes while the disk itself holds the corrupt bit.
    fn assert_guard_is_up(&self, log: &[Op]) {
        let name = &self.scene.name;
        let (mut disk, mut written) = (is_guarded(&self.scene.damaged), is_guarded(&self.scene.damaged));
        for op in log {
            match op {
                Op::Write { offset, bytes } if *offset == FEATURES.start => {
                    written = bytes[FEATURES.len() - 1] & CORRUPT != 0;
                }
                Op::Write { offset, .. } => {
                    assert!(disk && written, "{name}: {offset:#x} written with the guard down");
                }
                Op::Sync => disk = written,
                Op::Punch { .. } => panic!("a repair gave storage back"),
                Op::SetLen(_) | Op::Removed(_) => {}
            }
        }
        assert!(!disk && !written, "{name}: still guarded in the end");
    }

    /// No state is worse than before: whoever opens the image reads no less, and a writer is kept out.
    pub fn assert_no_worse(&self, state: &Machine, what: &str) {
        let (now, before) = (state.image(), &self.scene.damaged);
        let is_whole = now == *before || now == self.after;
        let is_under_way = state.has(SideFile::Journal) || state.has(SideFile::Undoing);
        assert!(is_under_way || is_whole, "{what}: in between, without a record");
        if self.has_guard() {
            let is_whole = is_alike(&now, before) || is_alike(&now, &self.after);
            assert!(is_whole || is_guarded(&now), "{what}: a mixture with its guard down");
        }
        if self.restores() {
            // What is behind the field is seen as a whole or not at all.
            assert!(
                is_alike(&now, before) || is_alike(&now, &self.after),
                "{what}: a part of a header field"
            );
        } else if self.gives_up_snapshots() {
            let [old, new] = [before, &now].map(|bytes| reading::disks(bytes).swap_remove(0));
            assert_eq!(old.lost(&new), None, "{what}");
        } else if !is_whole {
            reading::compare(&self.scene.healthy, before, &now)
                .unwrap_or_else(|lost| panic!("{what}: {lost}"));
        }
    }

    /// Where no guard keeps writers out, nobody's check finds more than before either.
    fn assert_no_more_found(&self, state: &Machine, what: &str) {
        let copy = Machine::new(state.image());
        let found = run(&copy, self.scene.decisions, true).unwrap_or_else(|e| panic!("{what}: {e:?}")).before;
        let (now, before) = (found.count(Severity::Corruption), self.corruptions);
        assert!(now <= before, "{what}: {before} corruptions became {now}: {:?}", found.counts);
    }

    /// From a state there is a way forward and a way back.
    pub fn recovery(&self, state: &Machine, what: &str) {
        let before = &self.scene.damaged;
        let guard = FEATURES.filter(|_| self.has_guard());
        let raised = guard.map(|at| (at, before[at] | if at + 1 == FEATURES.end { CORRUPT } else { 0 }));
        Recovery {
            before,
            after: &self.after,
            raised: raised.collect::<BTreeMap<_, _>>(),
            repair: &|machine| self.repair(machine),
            resume: &resume,
        }
        .assert_possible(state, what);
    }

    fn sweep(&self, folder: &Path) -> usize {
        let (before, decisions) = (&self.scene.damaged, self.scene.decisions);
        // A decision may be that the guest reads something else.
        let read = (decisions == Decisions::default()).then(|| disk(before, folder)).flatten();
        let mut number = 0_u64;
        sweep(
            &Machine::new(before.clone()),
            |machine| drop(self.repair(machine)),
            |state, what| {
                let what = format!("{}, version {}: {what}", self.scene.name, self.scene.version);
                self.assert_no_worse(state, &what);
                number += 1;
                if let Some(raw) = read.as_ref().filter(|_| number.is_multiple_of(QEMU_SAMPLE)) {
                    assert!(is_read_as(raw, &state.image()), "{what}: the guest sees other bytes");
                }
                if number.is_multiple_of(SAMPLE) {
                    if !self.has_guard() {
                        self.assert_no_more_found(state, &what);
                    }
                    self.recovery(state, &what);
                }
            },
        )
    }
}

fn sweep_all(scenes: impl Iterator<Item = Scene>) {
    let folder = tempfile::tempdir().unwrap();
    for scene in scenes {
        let began = std::time::Instant::now();
        let act = Act::of(scene);
        let states = act.sweep(folder.path());
        eprintln!("{}: {states} states after a power cut, {:?}", act.scene.name, began.elapsed());
        assert!(states > 60, "{}: {states}", act.scene.name);
    }
}

#[test]
fn power_cut_at_every_operation_of_every_cure_is_never_worse_and_always_recoverable() {
    need!(tools::qemu());
    sweep_all(scenes::undecided());
}

#[test]
fn power_cut_at_every_operation_in_version_2_is_never_worse_and_always_recoverable() {
    need!(tools::qemu());
    sweep_all(scenes::version_2().inspect(|scene| assert_eq!(scene.version, 2, "{}", scene.name)));
}

#[test]
fn power_cut_at_every_operation_of_decided_cures_is_never_worse_and_always_recoverable() {
    need!(tools::qemu());
    sweep_all(scenes::decided());
}

#[test]
fn power_cut_at_every_operation_of_mended_entries_and_copies_is_never_worse_and_always_recoverable() {
    need!(tools::qemu());
    sweep_all(scenes::entries());
}

#[test]
fn cures_and_decisions_each_have_their_sweep() {
    need!(tools::qemu());
    let (mut cures, mut decisions) = (BTreeSet::new(), Decisions::default());
    let scenes =
        scenes::undecided().chain(scenes::version_2()).chain(scenes::decided()).chain(scenes::entries());
    for act in scenes.map(Act::of) {
        cures.extend(act.plan.plan.steps().iter().map(|step| step.cure));
        if act.has_guard() {
            cures.extend([Cure::RaiseGuard, Cure::LowerGuard]);
        }
        decisions.0 |= act.scene.decisions.0;
    }
    for cure in Cure::ALL {
        assert!(cures.contains(cure), "no power is cut during {}: it needs a scene", cure.id());
    }
    for decision in Decision::ALL {
        assert!(decisions.has(*decision), "no power is cut during {decision:?}: it needs a scene");
    }
}
