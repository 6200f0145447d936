//! Giving free clusters back on a simulated machine: power cuts, storage that fails, cages that lie, and records that are
//! in the way. Judged by a second opinion on what every disk of the image reads as.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a failing helper fails its test")]

mod native;
mod simdisk;
mod support;

use std::io;
use std::sync::Arc;

use instar_abi::choice::Decisions;
use instar_abi::finding::Table;
use instar_abi::problem::Tier;
use instar_abi::region::{FREE, Region};
use instar_mount::heal::{
    DiscardReport, Ending, Folder as _, HealError, Inspector, Mistrust, Ran, SideFile, Surveyor, discard_at,
    drop_undo_at,
};
use instar_mount::image::Backend;
use instar_mount::sandbox::error::SandboxError;
use instar_mount::sandbox::observer::{Ignore, Observer};
use native::NativeInspector;
use simdisk::{Machine, Op, Trouble, sweep};
use support::builder::{Shape, Step};
use support::reference::{self, Facts, Head};

const CLUSTER: usize = 512;

/// An image with snapshots, compressed clusters and a bitmap, its clusters scattered with gaps of junk between them.
fn scattered() -> Vec<u8> {
    let shape = Shape {
        version: 3,
        cluster_bits: 9,
        refcount_order: 4,
        extended_l2: false,
        zstd: false,
        lazy: false,
        dirty: false,
        tables: 2,
        short_sectors: 3,
        spare_l1: 0,
        header_more: 0,
        backing: false,
        data_file: None,
        luks_bytes: 0,
        strange_extensions: false,
        bitmaps: vec![(9, vec![2, 1])],
        steps: vec![
            Step::Write { at: 0, count: 9 },
            Step::Snapshot,
            Step::Write { at: 5, count: 9 },
            Step::Compress { at: 20, bytes: 700 },
            Step::Snapshot,
            Step::Discard { at: 8, count: 3 },
        ],
        seed: 5,
        gaps: 60,
        gap_max: 3,
    };
    let mut bytes = shape.build().bytes;
    bytes.extend([0; CLUSTER * 2 + 100]);
    let users = reference::users(&bytes).unwrap();
    for (cluster, part) in bytes.chunks_mut(CLUSTER).enumerate() {
        if !users.contains_key(&(cluster as u64)) {
            part.fill(0xee);
        }
    }
    bytes
}

fn facts(machine: &Machine) -> Facts {
    reference::examine(&machine.image()).unwrap()
}

fn discard(machine: &Machine) -> Result<DiscardReport, HealError> {
    discard_at(machine, false, &mut NativeInspector::default(), &mut Ignore)
}

fn punches(machine: &Machine) -> Vec<(usize, usize)> {
    let log = machine.log();
    log.iter()
        .filter_map(|op| if let Op::Punch { offset, len } = op { Some((*offset, *len)) } else { None })
        .collect()
}

/// Junk bytes that are left.
fn junk(machine: &Machine) -> usize {
    let (image, users) = (machine.image(), reference::users(&machine.image()).unwrap());
    let clusters = image.chunks(CLUSTER).enumerate();
    let free = clusters.filter(|(cluster, _)| !users.contains_key(&(*cluster as u64)));
    free.map(|(_, part)| part.iter().filter(|byte| **byte == 0xee).count()).sum()
}

#[test]
fn discard_zeroes_every_whole_free_cluster_and_syncs_once() {
    let machine = Machine::new(scattered());
    let before = (facts(&machine), machine.image().len());
    assert!(junk(&machine) > 4 * CLUSTER);
    let report = discard(&machine).unwrap();
    assert_eq!(report.ending, Ending::Discarded);
    assert_eq!((facts(&machine), machine.image().len()), before);
    // The last part is less than a cluster.
    assert_eq!(junk(&machine), 100);
    let ranges = punches(&machine);
    assert!(ranges.len() > 3, "{ranges:?}");
    assert_eq!(ranges.len(), report.listed.ranges().len());
    assert_eq!(machine.log().len(), ranges.len() + 1);
    assert_eq!(machine.log().last(), Some(&Op::Sync));
}

#[test]
fn preview_proves_the_same_ranges_and_writes_nothing() {
    let machine = Machine::new(scattered());
    let previewed = discard_at(&machine, true, &mut NativeInspector::default(), &mut Ignore).unwrap();
    assert_eq!((previewed.ending, machine.operations()), (Ending::DiscardPreviewed, 0));
    assert_eq!(discard(&machine).unwrap().listed.ranges(), previewed.listed.ranges());
}

#[test]
fn power_cut_at_every_operation_leaves_every_disk_as_it_was() {
    let start = Machine::new(scattered());
    let (before, len) = (facts(&start), start.image().len());
    let mut looked = 0;
    let states = sweep(
        &start,
        |machine| drop(discard(machine)),
        |state, what| {
            assert_eq!((facts(state), state.image().len()), (before.clone(), len), "{what}");
            looked += 1;
            if looked % 10 == 0 {
                assert_eq!(discard(state).unwrap().ending, Ending::Discarded, "{what}");
                assert_eq!((facts(state), junk(state)), (before.clone(), 100), "{what}");
            }
        },
    );
    assert!(states > 50, "{states}");
    eprintln!("{states} states");
}

#[test]
fn storage_that_fails_at_any_operation_ends_it_there_and_is_told_with_the_place() {
    let whole = Machine::new(scattered());
    let before = facts(&whole);
    discard(&whole).unwrap();
    let (all, operations) = (punches(&whole), whole.operations());
    assert_eq!(operations, all.len() as u64 + 1);
    for at in 1..=operations {
        let machine = Machine::new(scattered());
        machine.set_trouble(Trouble::Fails(at, io::ErrorKind::Other));
        let error = discard(&machine).unwrap_err();
        let expected = all.get(usize::try_from(at).unwrap() - 1).map_or(0, |range| range.0 as u64);
        match error {
            HealError::DiscardInterrupted { offset, .. } => assert_eq!(offset, expected, "operation {at}"),
            other => panic!("operation {at}: {other:?}"),
        }
        assert_eq!(machine.operations(), at, "something was asked of the storage after its first error");
        assert_eq!(facts(&machine), before, "operation {at}");
        machine.set_trouble(Trouble::None);
        assert_eq!(discard(&machine).unwrap().ending, Ending::Discarded, "operation {at}");
    }
}

#[test]
fn storage_that_cannot_punch_is_told_by_name_and_nothing_is_written() {
    let (start, machine) = (scattered(), Machine::new(scattered()));
    machine.set_trouble(Trouble::Fails(1, io::ErrorKind::Unsupported));
    let error = discard(&machine).unwrap_err();
    assert_eq!(error.ending(), Ending::CannotDiscard);
    assert!(error.to_string().contains("cannot give back"), "{error}");
    // The simulated storage does half of what fails.
    assert_eq!(facts(&machine), reference::examine(&start).unwrap());
    let later = Machine::new(start);
    later.set_trouble(Trouble::Fails(2, io::ErrorKind::Unsupported));
    assert_eq!(discard(&later).unwrap_err().ending(), Ending::DiscardInterrupted);
}

#[test]
fn record_of_a_repair_is_in_the_way_by_its_path() {
    for (file, ending) in [
        (SideFile::Undo, Ending::UndoKept),
        (SideFile::Journal, Ending::JournalFound),
        (SideFile::Undoing, Ending::UndoInterrupted),
    ] {
        let machine = Machine::new(scattered());
        machine.create(file).unwrap();
        let operations = machine.operations();
        let report = discard(&machine).unwrap();
        assert_eq!((report.ending, report.record), (ending, Some(machine.path_of(file))));
        assert_eq!((machine.operations(), machine.image()), (operations, scattered()));
        // What is needed to finish something is not dropped.
        let dropped = drop_undo_at(&machine).map_err(|error| error.ending());
        let expected = if file == SideFile::Undo { Ok(Ending::UndoDropped) } else { Err(ending) };
        assert_eq!((dropped, machine.has(file)), (expected, file != SideFile::Undo));
    }
    let machine = Machine::new(scattered());
    assert_eq!(drop_undo_at(&machine).unwrap_err().ending(), Ending::NoUndo);
}

#[test]
fn leaks_and_damage_keep_an_image_from_being_discarded() {
    let image = scattered();
    let head = Head::of(&image);
    let block = usize::try_from(reference::Bytes::number(&image, head.refcount_table, 8)).unwrap();
    let users = reference::users(&image).unwrap();
    let free = (0..).find(|cluster| !users.contains_key(cluster)).unwrap();
    let used = (1..).find(|cluster| users.contains_key(cluster)).unwrap();
    for cluster in [free, used] {
        let machine = Machine::new(image.clone());
        machine.meddle(|bytes| bytes[block + usize::try_from(cluster).unwrap() * 2 + 1] ^= 1);
        let before = machine.image();
        let report = discard(&machine).unwrap();
        assert_eq!((report.ending, machine.operations()), (Ending::NotConsistent, 0));
        assert_eq!(machine.image(), before);
        assert!(report.last.total() > 0);
    }
}

/// What a cage does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lie {
    /// Tells a range besides.
    Adds(u64, u64),
    /// Tells a finding in the list.
    Finds,
    /// The image is written by somebody else during the last look.
    Meddles,
    /// The list is of an image with other features.
    Features,
    /// The survey could not look at everything.
    SurveyIncomplete,
}

/// Cages one of which lies.
struct Liar<'a> {
    machine: &'a Machine,
    lie: Lie,
    honest: NativeInspector,
}

/// Passes on what is told, the lie in its place in the order.
struct Telling<'a> {
    to: &'a mut dyn Observer,
    lie: Option<Region>,
}

impl Observer for Telling<'_> {
    fn region(&mut self, table: Table, region: &Region) {
        if let Some(lie) = self.lie.take_if(|lie| lie.offset <= region.offset) {
            self.to.region(Table::File, &lie);
            if lie.offset + lie.len >= region.offset {
                return;
            }
        }
        self.to.region(table, region);
    }
}

impl Inspector for Liar<'_> {
    fn check(&mut self, image: Arc<dyn Backend>, observer: &mut dyn Observer) -> Result<Ran, SandboxError> {
        self.honest.check(image, observer)
    }

    fn plan(
        &mut self,
        image: Arc<dyn Backend>,
        tier: Tier,
        decisions: Decisions,
        observer: &mut dyn Observer,
    ) -> Result<Ran, SandboxError> {
        self.honest.plan(image, tier, decisions, observer)
    }
}

impl Surveyor for Liar<'_> {
    fn free(&mut self, image: Arc<dyn Backend>, observer: &mut dyn Observer) -> Result<Ran, SandboxError> {
        let lie = match self.lie {
            Lie::Adds(offset, len) => Some(Region { offset, len, table: Table::File as u32, flags: FREE }),
            _ => None,
        };
        let mut telling = Telling { to: observer, lie };
        let mut ran = self.honest.free(image, &mut telling)?;
        if let Some(lie) = telling.lie {
            observer.region(Table::File, &lie);
        }
        if self.lie == Lie::Finds {
            let finding = zerocopy::FromZeros::new_zeroed();
            observer.finding(instar_abi::problem::Problem::RefcountLeak, &finding);
        }
        if self.lie == Lie::Features {
            ran.summary.features ^= 1;
        }
        Ok(ran)
    }

    fn survey(&mut self, image: Arc<dyn Backend>, observer: &mut dyn Observer) -> Result<Ran, SandboxError> {
        let mut ran = self.honest.survey(image, observer)?;
        if self.lie == Lie::Meddles {
            self.machine.meddle(|bytes| bytes[40] ^= 1);
        }
        if self.lie == Lie::SurveyIncomplete {
            ran.summary.outcome = instar_abi::summary::Outcome::Incomplete as u32;
        }
        Ok(ran)
    }
}

fn told_by_liar(lie: Lie) -> (HealError, Machine) {
    let machine = Machine::new(scattered());
    let mut liar = Liar { machine: &machine, lie, honest: NativeInspector::default() };
    let error = discard_at(&machine, false, &mut liar, &mut Ignore).unwrap_err();
    assert_eq!(machine.operations(), 0, "{lie:?}");
    (error, machine)
}

#[test]
fn every_single_cluster_in_use_that_is_told_as_free_is_found_out() {
    let (users, mut used) = (reference::users(&scattered()).unwrap(), 0);
    for cluster in users.keys() {
        let (error, machine) = told_by_liar(Lie::Adds(cluster * CLUSTER as u64, CLUSTER as u64));
        assert_eq!(error.ending(), Ending::DiscardUnproven, "cluster {cluster}: {error}");
        assert_eq!(machine.image(), scattered(), "cluster {cluster}");
        // Others are found out by what a check makes of the zeros, or by their place in the list.
        used += u64::from(matches!(error, HealError::Unproven(Mistrust::Used { .. })));
    }
    assert!(used >= 8, "{used} of {}", users.len());
}

#[test]
fn lists_and_proofs_that_do_not_fit_together_are_refused() {
    let len = scattered().len() as u64;
    for lie in [
        Lie::Adds(0, 512),
        Lie::Adds(100, 512),
        Lie::Adds(len / 512 * 512, 512),
        Lie::Finds,
        Lie::Features,
        Lie::SurveyIncomplete,
    ] {
        let (error, _) = told_by_liar(lie);
        assert!(matches!(error, HealError::Unproven(_)), "{lie:?}: {error:?}");
    }
    let (error, _) = told_by_liar(Lie::Features);
    assert!(matches!(error, HealError::Unproven(Mistrust::Fact { name: "feature bits", .. })), "{error:?}");
    let (error, _) = told_by_liar(Lie::Meddles);
    assert_eq!(error.ending(), Ending::ImageChanged, "{error}");
}
