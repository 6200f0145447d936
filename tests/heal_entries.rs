//! Single entries, doubly used clusters, snapshot tables, bitmaps and header fields, mended in real images by the
//! tier `all`, with the cage's code in this process.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a failing helper fails its test")]

mod native;
mod support;

use std::path::PathBuf;
use std::sync::Arc;

use instar_abi::choice::{Decision, Decisions};
use instar_abi::problem::{Problem, Tier};
use instar_mount::heal::{self, Ending, RepairOptions, RepairReport};
use instar_mount::image::{Backend, ImageFile, ImageHandle, Mode};
use instar_mount::sandbox::observer::Ignore;
use native::NativeInspector;
use support::damage::recipe;
use support::image::{self, Content, Flavour, TestImage};
use support::mendable::{CASES, Case, far, share};
use support::raw::{COMPRESSED, COPIED, OFFSET, Raw, field};
use support::tools;

fn repair(image: &TestImage, decisions: &[Decision]) -> RepairReport {
    repair_at(Tier::All, image, decisions)
}

fn repair_at(tier: Tier, image: &TestImage, decisions: &[Decision]) -> RepairReport {
    let open = |path: PathBuf| Arc::new(ImageFile::open_read_only(&path).unwrap()) as Arc<dyn Backend>;
    let mut inspector = NativeInspector { data_file: image.data_file().map(open) };
    let decisions = decisions.iter().fold(Decisions::default(), |all, one| all.with(*one));
    let options = RepairOptions { decisions, ..RepairOptions::default() };
    let handle = ImageHandle::open(&image.path, Mode::Read).unwrap();
    heal::repair(&handle, tier, &options, &mut inspector, &mut Ignore)
        .unwrap_or_else(|error| panic!("{}: {error:?}", image.path.display()))
}

/// Repairs, and holds against qemu, the model, a second run and undo.
fn assert_mends(case: &Case, cluster_bytes: u64) {
    let what = format!("{}, {:?}, {cluster_bytes}", case.name, case.flavour);
    let folder = tempfile::tempdir().unwrap();
    let mut image = image::make(folder.path(), "image", case.flavour, cluster_bytes);
    let raw = Raw::open(&image.path);
    (case.apply)(&mut image, &raw);
    let before = std::fs::read(&image.path).unwrap();
    let report = repair(&image, case.decisions);
    assert_eq!(report.ending, Ending::Repaired, "{what}: {:?}", report.last().counts);
    assert_eq!(image.qemu_check(), 0, "{what}");
    if case.flavour != Flavour::ExtendedL2 {
        image.assert_guest_intact();
    }
    let again = tools::ensure_untouched(&[&image.path], || repair(&image, case.decisions));
    assert_eq!(again.ending, Ending::Clean, "{what}");
    let handle = ImageHandle::open(&image.path, Mode::Read).unwrap();
    assert_eq!(heal::undo(&handle, None).unwrap(), Ending::Undone, "{what}");
    assert!(std::fs::read(&image.path).unwrap() == before, "{what}: undo gave other bytes");
}

#[test]
fn damaged_entries_are_mended_and_the_guest_reads_as_before() {
    need!(tools::qemu());
    for case in CASES {
        assert_mends(case, 65_536);
    }
}

#[test]
fn damaged_entries_are_mended_at_every_cluster_size() {
    need!(tools::qemu());
    for case in CASES {
        for cluster_bytes in [512, 4096, 2 << 20] {
            if case.flavour.allows(cluster_bytes) && cluster_bytes >= case.cluster_bytes_min {
                assert_mends(case, cluster_bytes);
            }
        }
    }
}

#[test]
fn bitmap_that_has_lost_its_table_is_dirty_as_a_whole_and_the_other_one_stays() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = recipe("bitmap-table-offset").make(folder.path());
    let raw = Raw::open(&image.path);
    let other = raw.read(raw.bitmap_entry(1), 24);
    let held = tools::ensure_untouched(&[&image.path], || repair_at(Tier::Leaks, &image, &[]));
    assert_eq!(held.last().items(Problem::OrphanBitmap), 2, "{:?}", held.last().counts);
    assert_eq!(repair(&image, &[]).ending, Ending::Repaired);
    let (table, entries) = (raw.number(raw.bitmap_entry(0), 8), raw.number(raw.bitmap_entry(0) + 8, 4));
    assert!((0..entries).all(|index| raw.number(table + 8 * index, 8) == 1), "not all ones");
    assert_eq!(raw.read(raw.bitmap_entry(1), 24), other, "the other bitmap stays");
    let output = tools::must(tools::qemu_img(["info"]).arg(&image.path));
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(told.contains("bitmap-a") && told.contains("bitmap-b") && !told.contains("in-use"), "{told}");
}

#[test]
fn bitmaps_with_one_table_are_both_dirty() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = recipe("bitmap-table-shared").make(folder.path());
    let raw = Raw::open(&image.path);
    assert_eq!(repair(&image, &[]).ending, Ending::Repaired);
    let bits = image.virtual_bytes / 65_536;
    let tables = [0, 1].map(|index| raw.number(raw.bitmap_entry(index), 8));
    assert_ne!(tables[0], tables[1]);
    for table in tables {
        let entry = raw.number(table, 8);
        let dirty = |entry: u64| -> u32 {
            raw.read(entry & OFFSET, 65_536).iter().map(|byte| byte.count_ones()).sum()
        };
        assert!(entry == 1 || u64::from(dirty(entry)) == bits, "{entry:#x}");
    }
}

#[test]
fn clusters_that_bitmaps_lost_are_kept_where_anything_else_is_lost_too() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = recipe("bitmap-table-offset").make(folder.path());
    let raw = Raw::open(&image.path);
    raw.change(raw.l2_entry(0), |entry| entry + 512);
    let table = raw.number(raw.bitmap_entry(0), 8);
    let report = tools::ensure_untouched(&[&image.path], || repair(&image, &[]));
    assert_eq!(report.ending, Ending::NeedsDecision);
    assert_eq!(report.last().items(Problem::OrphanBitmap), 0);
    assert_eq!(report.last().items(Problem::OrphanData), 3, "{:?}", report.last().counts);
    assert_eq!(raw.number(raw.bitmap_entry(0), 8), table);
}

#[test]
fn lost_table_beside_a_bitmap_that_lost_none_is_kept() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = image::make(folder.path(), "image", Flavour::Bitmaps, 65_536);
    let raw = Raw::open(&image.path);
    // A bitmap's data cluster, and an L2 table with what it maps.
    raw.set_number(raw.number(raw.bitmap_entry(0), 8), 8, far(&raw));
    raw.set_number(raw.l1_entry(0), 8, 0);
    let report = tools::ensure_untouched(&[&image.path], || repair(&image, &[]));
    assert_eq!(report.ending, Ending::NeedsDecision);
    assert_eq!(report.last().items(Problem::OrphanTable), 1, "{:?}", report.last().counts);
    assert!(report.last().items(Problem::OrphanData) > 0, "{:?}", report.last().counts);
}

#[test]
fn shared_cluster_is_copied_with_its_bytes() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let mut image = image::make(folder.path(), "image", Flavour::Plain, 65_536);
    let raw = Raw::open(&image.path);
    let host = raw.host_offset(0);
    share(&mut image, &raw, 0, 1);
    assert_eq!(repair(&image, &[]).ending, Ending::Repaired);
    assert_eq!(raw.host_offset(0), host, "the first one keeps the place");
    assert_ne!(raw.host_offset(1), host);
    assert_eq!(raw.read(raw.host_offset(1), 65_536), raw.read(host, 65_536));
    assert_ne!(raw.number(raw.l2_entry(1), 8) & COPIED, 0);
}

#[test]
fn unsaved_bitmap_is_dirty_up_to_the_end_of_the_disk() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = image::make(folder.path(), "image", Flavour::Bitmaps, 65_536);
    let raw = Raw::open(&image.path);
    raw.set_number(raw.bitmap_entry(0) + 12, 4, 1);
    let other = raw.number(raw.number(raw.bitmap_entry(1), 8), 8);
    assert_eq!(repair(&image, &[]).ending, Ending::Repaired);
    assert_eq!(raw.number(raw.bitmap_entry(0) + 12, 4), 0);
    let bits = image.virtual_bytes / 65_536;
    let entry = raw.number(raw.number(raw.bitmap_entry(0), 8), 8);
    if entry & OFFSET == 0 {
        assert_eq!(entry, 1, "all ones");
    } else {
        let bytes = raw.read(entry & OFFSET, 65_536);
        let dirty: u32 = bytes.iter().map(|byte| byte.count_ones()).sum();
        assert_eq!(u64::from(dirty), bits);
        assert!(bytes[..usize::try_from(bits / 8).unwrap()].iter().all(|byte| *byte == 0xff));
    }
    assert_eq!(raw.number(raw.number(raw.bitmap_entry(1), 8), 8), other, "the other bitmap stays");
}

#[test]
fn entry_that_leads_nowhere_is_left_while_its_cluster_may_be_there() {
    need!(tools::qemu());
    for name in ["l2-entry-past-eof", "l2-entry-unaligned", "l1-entry-past-eof", "file-truncated"] {
        let folder = tempfile::tempdir().unwrap();
        let image = recipe(name).make(folder.path());
        let report = tools::ensure_untouched(&[&image.path], || repair(&image, &[]));
        assert!(
            matches!(report.ending, Ending::NeedsDecision | Ending::Withheld),
            "{name}: {:?}",
            report.ending
        );
    }
}

#[test]
fn entry_that_leads_nowhere_is_emptied_where_the_user_says_so() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let mut image = recipe("l2-entry-unaligned").make(folder.path());
    let raw = Raw::open(&image.path);
    let report = repair(&image, &[Decision::UnmapLostData, Decision::FreeOrphanData]);
    assert_eq!(report.ending, Ending::Repaired);
    assert_eq!(raw.number(raw.l2_entry(0), 8), 1, "a zero cluster");
    image.model.insert(0, Content::Zero);
    image.assert_guest_intact();
}

#[test]
fn wiped_snapshot_entry_is_kept_while_its_clusters_may_be_wanted() {
    need!(tools::qemu());
    for (name, wipe) in [("the last", 1), ("every", 0)] {
        let folder = tempfile::tempdir().unwrap();
        let image = image::make(folder.path(), "image", Flavour::Snapshots, 65_536);
        let raw = Raw::open(&image.path);
        let at = raw.snapshot_entry(wipe);
        raw.write(at, &vec![0; usize::try_from(raw.snapshot_entry(2) - at).unwrap()]);
        let report = repair(&image, &[]);
        assert_eq!(raw.get(field::SNAPSHOTS), 2, "{name}: {:?}", report.ending);
        assert_eq!(report.last().items(Problem::SnapshotEntryEmpty), 2 - wipe, "{name}");
        let gives_up = [Decision::FreeOrphanData, Decision::FreeOrphanTables];
        let report = tools::ensure_untouched(&[&image.path], || repair(&image, &gives_up[..1]));
        assert_eq!(report.ending, Ending::NeedsDecision, "{name}: the tables are not given up");
        let report = repair(&image, &gives_up);
        assert_eq!(report.ending, Ending::Repaired, "{name}: {:?}", report.last().counts);
        assert_eq!((raw.get(field::SNAPSHOTS), image.qemu_check()), (wipe, 0), "{name}");
        image.assert_guest_intact();
    }
}

#[test]
fn snapshots_whose_table_is_lost_are_dropped_only_with_all_that_they_led_to() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = recipe("header-snapshots-offset").make(folder.path());
    let raw = Raw::open(&image.path);
    let drop = Decision::DropSnapshots;
    for decisions in [&[][..], &[drop]] {
        let report = repair(&image, decisions);
        assert_eq!(raw.get(field::SNAPSHOTS), 2, "{decisions:?}");
        assert!(report.last().items(Problem::OrphanTable) > 0, "{decisions:?}");
    }
    let report = repair(&image, &[drop, Decision::FreeOrphanData, Decision::FreeOrphanTables]);
    assert_eq!(report.ending, Ending::Repaired, "{:?}", report.last().counts);
    assert_eq!((raw.get(field::SNAPSHOTS), raw.get(field::SNAPSHOTS_OFFSET)), (0, 0));
    assert_eq!(image.qemu_check(), 0);
    image.assert_guest_intact();
}

#[test]
fn snapshots_that_can_be_read_are_kept_and_the_others_dropped_only_with_all_that_they_led_to() {
    need!(tools::qemu());
    type Damage = fn(&Raw);
    let cases: [(&str, u64, Damage); 4] = [
        ("extra data", 1, |raw| raw.set_number(raw.snapshot_entry(1) + 36, 4, 0x1_0000)),
        ("garbage", 0, |raw| raw.write(raw.get(field::SNAPSHOTS_OFFSET), &[0xa5; 120])),
        ("guest data", 0, |raw| raw.set(field::SNAPSHOTS_OFFSET, raw.host_offset(2))),
        ("too many", 2, |raw| raw.set(field::SNAPSHOTS, 70_000)),
    ];
    for ((name, kept, damage), cluster_bytes) in
        cases.into_iter().flat_map(|case| [512, 4096, 65_536].map(|bytes| (case, bytes)))
    {
        let what = format!("{name}, {cluster_bytes}");
        let folder = tempfile::tempdir().unwrap();
        let image = image::make(folder.path(), "image", Flavour::Snapshots, cluster_bytes);
        let raw = Raw::open(&image.path);
        damage(&raw);
        let counted = raw.get(field::SNAPSHOTS);
        let open = repair(&image, &[]);
        assert_eq!(raw.get(field::SNAPSHOTS), counted, "{what}: {:?}", open.last().counts);
        assert_eq!(open.last().items(Problem::SnapshotTableTruncated), 1, "{what}");
        let keep = Decision::KeepReadableSnapshots;
        if kept < 2 {
            repair(&image, &[keep]);
            assert_eq!(raw.get(field::SNAPSHOTS), counted, "{what}: what it led to is not given up");
        }
        let report = repair(&image, &[keep, Decision::FreeOrphanData, Decision::FreeOrphanTables]);
        assert_eq!(report.ending, Ending::Repaired, "{what}: {:?}", report.last().counts);
        assert_eq!((raw.get(field::SNAPSHOTS), image.qemu_check()), (kept, 0), "{what}");
        image.assert_guest_intact();
        ["s1", "s2"]
            .iter()
            .take(usize::try_from(kept).unwrap())
            .for_each(|s| image.assert_snapshot_intact(s));
        let again = tools::ensure_untouched(&[&image.path], || repair(&image, &[]));
        assert_eq!(again.ending, Ending::Clean, "{what}");
    }
}

#[test]
fn shared_cluster_of_an_encrypted_image_stays_where_it_is() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let mut image = image::make(folder.path(), "image", Flavour::Luks, 65_536);
    let raw = Raw::open(&image.path);
    share(&mut image, &raw, 0, 1);
    let (first, host) = (raw.l2_entry(0), raw.host_offset(0));
    let report = repair(&image, &[]);
    assert_ne!(report.ending, Ending::Repaired);
    assert_eq!(raw.number(raw.l2_entry(1), 8) & OFFSET, host);
    assert_eq!(raw.number(first, 8) & OFFSET, host);
    assert!(report.last().counts.contains_key(&Problem::L2EntryShared));
}

#[test]
fn lost_table_is_attached_where_the_user_says_so_and_one_slot_fits() {
    need!(tools::qemu());
    for name in ["l1-entry-past-eof", "l1-entry-unaligned", "orphan-table"] {
        let folder = tempfile::tempdir().unwrap();
        let image = recipe(name).make(folder.path());
        assert_eq!(repair(&image, &[Decision::AttachOrphanTables]).ending, Ending::Repaired, "{name}");
        assert_eq!(image.qemu_check(), 0, "{name}");
        image.assert_guest_intact();
    }
}

#[test]
fn entry_that_leads_to_metadata_gets_a_copy_where_the_user_says_so() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let mut image = recipe("l2-entry-overlaps-metadata").make(folder.path());
    let raw = Raw::open(&image.path);
    let (table, host) = (raw.get(field::L1_OFFSET), raw.host_offset(0));
    assert_eq!(host, table);
    let before = raw.read(host, 65_536);
    let report = repair(&image, &[Decision::CopyOverlapping, Decision::FreeOrphanData]);
    assert_eq!(report.ending, Ending::Repaired);
    assert_eq!(image.qemu_check(), 0);
    assert_ne!(raw.host_offset(0), table);
    assert!(raw.read(raw.host_offset(0), 65_536) == before, "the guest reads other bytes");
    image.model.remove(&0);
    image.assert_guest_intact();
}

#[test]
fn compressed_entry_that_leads_to_metadata_is_emptied_where_the_user_says_so() {
    need!(tools::qemu());
    for lead in [|raw: &Raw| raw.get(field::L1_OFFSET), |raw: &Raw| raw.number(raw.l1_entry(0), 8) & OFFSET] {
        let folder = tempfile::tempdir().unwrap();
        let mut image = image::make(folder.path(), "image", Flavour::Plain, 65_536);
        let raw = Raw::open(&image.path);
        raw.set_number(raw.l2_entry(20), 8, COMPRESSED | lead(&raw));
        let entry = raw.number(raw.l2_entry(20), 8);
        let report = repair(&image, &[]);
        assert_eq!(raw.number(raw.l2_entry(20), 8), entry, "{:?}", report.ending);
        let report = repair(&image, &[Decision::UnmapOverlapping]);
        assert_eq!(report.ending, Ending::Repaired, "{:?}", report.last().counts);
        assert_eq!(image.qemu_check(), 0);
        image.model.insert(20, Content::Zero);
        image.assert_guest_intact();
    }
}
