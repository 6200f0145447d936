//! Damaged images as disks: what is certain to be no guest data is refused, and nothing that qemu reads right is lost.
#![allow(clippy::print_stderr, reason = "skips are printed")]

mod native;
mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use instar_abi::finding::ACTIVE;
use instar_abi::problem::Problem;
use instar_mount::disk::{Backing, Disk, ExtentSource, Stop};
use instar_mount::image::{Backend, ImageFile};
use instar_mount::sandbox::observer::Ignore;
use parking_lot::Mutex;
use support::damage::RECIPES;
use support::image::{self, Content, Flavour, Model, TestImage, sibling};
use support::raw::{COPIED, OFFSET, Raw, field};
use support::tools;

const CLUSTER: u64 = 65_536;

fn open(path: &Path) -> Arc<dyn Backend> {
    Arc::new(ImageFile::open_read_only(path).expect("the test has made it"))
}

/// A disk of an image, if its roots can be found.
fn disk_of(image: &Path, data_file: Option<&Path>, snapshot: u32) -> Option<Disk> {
    let mut files = native::files(open(image));
    files[1] = data_file.map(open);
    let facts = native::describe(files.clone(), &mut Ignore);
    let mut source = native::NativeSource::start(files.clone());
    source.map(snapshot, 0, 1, &mut Vec::new()).ok()?;
    let source: Box<dyn ExtentSource> = Box::new(source);
    let source = Arc::new(Mutex::new(source));
    Some(Disk::new(files, source, snapshot, facts.virtual_size, facts.cluster_bits, 1 << 20))
}

fn read(disk: &Disk, index: u64, len: u64) -> Result<Vec<u8>, Stop> {
    let mut bytes = vec![0xee; usize::try_from(len).expect("small")];
    let outcome = disk.read(index * len, &mut bytes);
    bytes.truncate(outcome.filled);
    outcome.stopped.map_or(Ok(bytes), Err)
}

/// How to make an image's metadata be claimed twice.
struct Conflict {
    name: &'static str,
    flavour: Flavour,
    apply: fn(&Raw),
}

const fn conflict(name: &'static str, flavour: Flavour, apply: fn(&Raw)) -> Conflict {
    Conflict { name, flavour, apply }
}

fn table_of(raw: &Raw, l1_index: u64) -> u64 {
    raw.number(raw.l1_entry(l1_index), 8) & OFFSET
}

fn block(raw: &Raw) -> u64 {
    raw.number(raw.refcount_table_entry(0), 8)
}

fn map_first_cluster_to(raw: &Raw, place: u64) {
    raw.set_number(raw.l2_entry(0), 8, place | COPIED);
}

fn snapshot_l1(raw: &Raw) -> u64 {
    raw.number(raw.snapshot_entry(0), 8)
}

/// Fails unless exactly the clusters of the model that `is_hit` says stop with this problem, and all others are right.
fn assert_hit(image: &TestImage, name: &str, problem: Problem, is_hit: impl Fn(u64) -> bool) {
    let disk = disk_of(&image.path, None, ACTIVE).expect("the image has its roots");
    for &index in image.model.keys() {
        match read(&disk, index, CLUSTER) {
            Err(Stop::Damaged(found)) => {
                assert!(is_hit(index) && found == problem, "{name}: {index}, {found:?}")
            }
            Ok(bytes) => {
                assert!(!is_hit(index), "{name}: guest cluster {index} is read");
                assert!(image.expected(&image.model, index) == Some(bytes), "{name}: guest cluster {index}");
            }
            Err(stop) => panic!("{name}: guest cluster {index}: {stop:?}"),
        }
    }
}

#[test]
fn data_entry_that_leads_to_metadata_is_damaged_and_costs_its_cluster_only() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let conflicts = [
        conflict("l1", Flavour::Plain, |raw| map_first_cluster_to(raw, raw.get(field::L1_OFFSET))),
        conflict("rt", Flavour::Plain, |raw| {
            map_first_cluster_to(raw, raw.get(field::REFCOUNT_TABLE_OFFSET))
        }),
        conflict("rb", Flavour::Plain, |raw| map_first_cluster_to(raw, block(raw))),
        conflict("l2", Flavour::Plain, |raw| map_first_cluster_to(raw, table_of(raw, 1))),
        conflict("own-l2", Flavour::Plain, |raw| map_first_cluster_to(raw, table_of(raw, 0))),
        conflict("snapshots", Flavour::Snapshots, |raw| {
            map_first_cluster_to(raw, raw.get(field::SNAPSHOTS_OFFSET));
        }),
        conflict("snapshot-l1", Flavour::Snapshots, |raw| map_first_cluster_to(raw, snapshot_l1(raw))),
    ];
    for Conflict { name, flavour, apply } in conflicts {
        let image = image::make(folder.path(), name, flavour, CLUSTER);
        apply(&Raw::open(&image.path));
        assert_hit(&image, name, Problem::L2EntryOverlapsMetadata, |index| index == 0);
    }
}

#[test]
fn table_entry_that_leads_to_other_metadata_is_damaged_and_costs_its_range_only() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let to = |raw: &Raw, place: u64| raw.set_number(raw.l1_entry(1), 8, place | COPIED);
    for (name, place) in [
        ("l1", (|raw| raw.get(field::L1_OFFSET)) as fn(&Raw) -> u64),
        ("rt", |raw| raw.get(field::REFCOUNT_TABLE_OFFSET)),
        ("rb", block),
    ] {
        let image = image::make(folder.path(), name, Flavour::Plain, CLUSTER);
        let raw = Raw::open(&image.path);
        to(&raw, place(&raw));
        let entries = image.l2_entries;
        assert_hit(&image, name, Problem::L1EntryOverlap, |index| index / entries == 1);
    }
}

#[test]
fn table_entry_that_leads_to_guest_data_costs_its_range_and_not_the_data() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let image = image::make(folder.path(), "data", Flavour::Plain, CLUSTER);
    let raw = Raw::open(&image.path);
    raw.set_number(raw.l1_entry(1), 8, raw.host_offset(0) | COPIED);
    let entries = image.l2_entries;
    assert_hit(&image, "data", Problem::TableGarbage, |index| index / entries == 1);
}

#[test]
fn structures_that_are_none_take_nothing_from_the_guest() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let conflicts = [
        conflict("rt-is-l1", Flavour::Plain, |raw| {
            raw.set(field::REFCOUNT_TABLE_OFFSET, raw.get(field::L1_OFFSET));
        }),
        conflict("rt-is-l2", Flavour::Plain, |raw| raw.set(field::REFCOUNT_TABLE_OFFSET, table_of(raw, 0))),
        conflict("rt-is-data", Flavour::Plain, |raw| {
            raw.set(field::REFCOUNT_TABLE_OFFSET, raw.host_offset(0));
        }),
        conflict("rb-is-l2", Flavour::Plain, |raw| {
            raw.set_number(raw.refcount_table_entry(0), 8, table_of(raw, 0));
        }),
        conflict("rb-is-data", Flavour::Plain, |raw| {
            raw.set_number(raw.refcount_table_entry(0), 8, raw.host_offset(0));
        }),
        conflict("snapshots-are-data", Flavour::Snapshots, |raw| {
            raw.set(field::SNAPSHOTS_OFFSET, raw.host_offset(0));
        }),
        conflict("snapshot-l1-is-data", Flavour::Snapshots, |raw| {
            raw.set_number(raw.snapshot_entry(0), 8, raw.host_offset(0));
        }),
        conflict("snapshot-l1-is-l2", Flavour::Snapshots, |raw| {
            raw.set_number(raw.snapshot_entry(0), 8, table_of(raw, 0));
        }),
    ];
    for Conflict { name, flavour, apply } in conflicts {
        let image = image::make(folder.path(), name, flavour, CLUSTER);
        apply(&Raw::open(&image.path));
        assert_hit(&image, name, Problem::NotQcow2, |_| false);
    }
}

#[test]
fn tables_and_clusters_with_two_users_stay_readable_as_stored() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let image = image::make(folder.path(), "shared", Flavour::Plain, CLUSTER);
    let raw = Raw::open(&image.path);
    raw.set_number(raw.l2_entry(1), 8, raw.number(raw.l2_entry(0), 8));
    raw.set_number(raw.l1_entry(1), 8, raw.number(raw.l1_entry(0), 8));
    let disk = disk_of(&image.path, None, ACTIVE).expect("the image has its roots");
    let first = image.expected(&image.model, 0).expect("data");
    for index in [0, 1, image.l2_entries, image.l2_entries + 1] {
        assert!(read(&disk, index, CLUSTER).expect("it is read") == first, "guest cluster {index}");
    }
}

/// The disk as qemu reads it, zeros where it cannot; `None` where it does not open the image.
fn by_qemu(image: &TestImage, snapshot: Option<&str>) -> Option<File> {
    let out = sibling(&image.path, "salvaged");
    let mut convert = Command::new("timeout");
    convert.args(["20", "qemu-img", "convert", "--salvage", "-q", "-O", "raw"]);
    if let Some(name) = snapshot {
        convert.arg("-l").arg(format!("snapshot.name={name}"));
    }
    let output = tools::run(convert.args(image.qemu_arguments()).arg(&out));
    output.status.success().then(|| File::open(&out).expect("qemu-img has just written it"))
}

/// Clusters of data that qemu reads right; fails where the disk does not. Zeros say nothing: they are what qemu puts in
/// the place of what it cannot read, too.
fn assert_no_worse(image: &TestImage, model: &Model, disk: &Disk, qemu: &File, what: &str) -> u64 {
    let mut right = 0;
    for (&index, _) in model.iter().filter(|(_, content)| matches!(content, Content::Data { .. })) {
        let expected = image.expected(model, index).expect("the index is the model's");
        let mut by_qemu = vec![0; expected.len()];
        let is_read = qemu.read_exact_at(&mut by_qemu, index * image.cluster_bytes).is_ok();
        if is_read && by_qemu == expected {
            right += 1;
            match read(disk, index, image.cluster_bytes) {
                Ok(ours) => {
                    assert!(ours == expected, "{what}: guest cluster {index} reads as something else")
                }
                Err(stop) => panic!("{what}: guest cluster {index}: {stop:?}"),
            }
        }
    }
    right
}

#[test]
fn what_qemu_reads_right_from_a_damaged_image_is_right() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (mut compared, mut right) = (0, 0);
    for recipe in RECIPES.iter().filter(|recipe| recipe.flavour != Flavour::Luks) {
        let image = recipe.make(folder.path());
        let data_file = image.data_file().filter(|path| path.exists());
        let below = sibling(&image.path, "base.qcow2");
        let layers = [(None, &image.model)].into_iter();
        let layers = layers.chain(image.snapshots.iter().map(|(name, model)| (Some(name.as_str()), model)));
        for (index, (name, model)) in (0..).zip(layers) {
            let snapshot = u32::checked_sub(index, 1).unwrap_or(ACTIVE);
            let Some(disk) = disk_of(&image.path, data_file.as_deref(), snapshot) else { continue };
            let below = below.exists().then(|| disk_of(&below, None, ACTIVE).expect("a healthy base"));
            let disk = disk.over(below.map_or(Backing::None, |disk| Backing::Disk(Arc::new(disk))));
            let Some(qemu) = by_qemu(&image, name) else { continue };
            compared += 1;
            right += assert_no_worse(&image, model, &disk, &qemu, recipe.name);
        }
    }
    assert!(compared > RECIPES.len() / 2 && right > 1000, "{compared} disks, {right} clusters");
}
