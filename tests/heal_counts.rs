//! Mending reference counts, refcount structures and COPIED flags of real images, with the cage's code in this
//! process: qemu's check is clean afterwards, the guest reads what it read, a second run finds nothing to do.

#![allow(clippy::unwrap_used, reason = "a failing helper fails its test")]

mod native;
mod support;

use std::sync::Arc;

use instar_abi::choice::Decisions;
use instar_abi::cure::Cure;
use instar_abi::problem::{Problem, Tier};
use instar_mount::heal::{self, Ending, RepairObserver, RepairOptions, RepairReport};
use instar_mount::image::{Backend, ImageFile, ImageHandle, Mode};
use instar_mount::sandbox::observer::Observer;
use instar_qcow2::plan;
use native::{NativeHost, NativeInspector, files};
use support::image::{self, Flavour, TestImage};
use support::raw::{COPIED, Raw, field};
use support::tools;

/// A kind of damage.
type Damage = (&'static str, fn(&TestImage, &Raw));

/// Rounds that a repair took.
#[derive(Default)]
struct Rounds(u32);

impl Observer for Rounds {}

impl RepairObserver for Rounds {
    fn round_begins(&mut self, round: u32) {
        self.0 = round;
    }
}

fn repair(image: &TestImage) -> (RepairReport, u32) {
    let handle = ImageHandle::open(&image.path, Mode::Read).unwrap();
    let mut rounds = Rounds::default();
    let mut inspector = NativeInspector::default();
    let report =
        heal::repair(&handle, Tier::All, &RepairOptions::default(), &mut inspector, &mut rounds).unwrap();
    (report, rounds.0)
}

/// Damages, repairs, and holds the result against qemu, the model, a second run and undo. Returns the rounds.
fn assert_mended(flavour: Flavour, cluster_bytes: u64, (name, damage): Damage) -> u32 {
    let what = format!("{name}, {flavour:?}, {cluster_bytes}");
    let folder = tempfile::tempdir().unwrap();
    let image = image::make(folder.path(), "image", flavour, cluster_bytes);
    damage(&image, &Raw::open(&image.path));
    let before = std::fs::read(&image.path).unwrap();
    let (report, rounds) = repair(&image);
    let (found, left) = (&report.before.counts, &report.last().counts);
    assert_eq!(report.ending, Ending::Repaired, "{what}: {found:?}, left {left:?}");
    assert_eq!(image.qemu_check(), 0, "{what}: {found:?}");
    if flavour != Flavour::ExtendedL2 {
        image.assert_guest_intact();
    }
    let (again, _) = tools::ensure_untouched(&[&image.path], || repair(&image));
    assert_eq!(again.ending, Ending::Clean, "{what}: {:?}", again.before.counts);
    let handle = ImageHandle::open(&image.path, Mode::Read).unwrap();
    assert_eq!(heal::undo(&handle, None).unwrap(), Ending::Undone, "{what}");
    assert!(std::fs::read(&image.path).unwrap() == before, "{what}: undo gave other bytes");
    rounds
}

/// The largest count of the image's width that is worth trying.
fn high(raw: &Raw) -> u64 {
    (1_u64 << raw.refcount_bits.min(16)) - 1
}

fn cluster_of(raw: &Raw, guest_cluster: u64) -> u64 {
    raw.host_offset(guest_cluster) / raw.cluster_bytes
}

/// Wrong counts of data, an L2 table, the L1 table and the header, in both directions.
fn wrong_counts(_: &TestImage, raw: &Raw) {
    raw.set_refcount(0, 0);
    raw.set_refcount(raw.get(field::L1_OFFSET) / raw.cluster_bytes, 0);
    for guest_cluster in [4, 5, 7] {
        raw.set_refcount(cluster_of(raw, guest_cluster), 0);
    }
    for guest_cluster in [12, 13] {
        let cluster = cluster_of(raw, guest_cluster);
        raw.set_refcount(cluster, if raw.refcount(cluster) == high(raw) { 0 } else { high(raw) });
    }
}

/// The file's end has clusters that are leaked, beside counts that are too high.
fn leaks_and_high_counts(_: &TestImage, raw: &Raw) {
    raw.append_clusters(3, 1);
    if high(raw) > 1 {
        raw.set_refcount(cluster_of(raw, 5), high(raw));
    }
}

fn flags_cleared(_: &TestImage, raw: &Raw) {
    for entry in [raw.l2_entry(4), raw.l2_entry(5), raw.l2_entry(13), raw.l1_entry(0)] {
        raw.change(entry, |entry| entry & !COPIED);
    }
}

fn first_entry(raw: &Raw) -> u64 {
    raw.refcount_table_entry(0)
}

const COUNTS: &[Damage] = &[("wrong counts", wrong_counts), ("leaks and high counts", leaks_and_high_counts)];

const STRUCTURES: &[Damage] = &[
    ("entry empty", |_, raw| raw.set_number(first_entry(raw), 8, 0)),
    ("entry unaligned", |_, raw| raw.change(first_entry(raw), |entry| entry | 0x200)),
    ("entry past the end", |_, raw| {
        raw.set_number(first_entry(raw), 8, raw.len().next_multiple_of(raw.cluster_bytes));
    }),
    ("entry leads to the L1 table", |_, raw| {
        raw.set_number(first_entry(raw), 8, raw.get(field::L1_OFFSET));
    }),
    ("entry twice", |_, raw| {
        raw.set_number(raw.refcount_table_entry(7), 8, raw.number(first_entry(raw), 8));
    }),
    ("entry with reserved bits", |_, raw| raw.change(first_entry(raw), |entry| entry | 5)),
    ("table zeroed", |_, raw| {
        let len = usize::try_from(raw.cluster_bytes).unwrap();
        raw.write(first_entry(raw), &vec![0; len]);
    }),
    ("table past the end", |_, raw| {
        raw.set(field::REFCOUNT_TABLE_OFFSET, raw.len().next_multiple_of(raw.cluster_bytes));
    }),
    ("table at the L1 table", |_, raw| raw.set(field::REFCOUNT_TABLE_OFFSET, raw.get(field::L1_OFFSET))),
    ("table unaligned", |_, raw| {
        raw.set(field::REFCOUNT_TABLE_OFFSET, raw.get(field::REFCOUNT_TABLE_OFFSET) + 8);
    }),
    ("table without clusters", |_, raw| raw.set(field::REFCOUNT_TABLE_CLUSTERS, 0)),
    ("table too long", |_, raw| raw.set(field::REFCOUNT_TABLE_CLUSTERS, 1 << 30)),
];

#[test]
fn wrong_counts_are_mended_at_every_width_version_and_feature() {
    need!(tools::qemu());
    for flavour in Flavour::ALL.into_iter().filter(|flavour| !flavour.has_data_file()) {
        for damage in COUNTS {
            assert_mended(flavour, 65_536, *damage);
        }
    }
}

#[test]
fn wrong_counts_are_mended_at_every_cluster_size() {
    need!(tools::qemu());
    for cluster_bytes in [512, 4096, 2 << 20] {
        for flavour in [Flavour::V2, Flavour::Refcount1, Flavour::Refcount64] {
            assert_mended(flavour, cluster_bytes, COUNTS[0]);
        }
    }
}

#[test]
fn copied_flags_are_mended_in_every_version() {
    need!(tools::qemu());
    for flavour in [Flavour::Plain, Flavour::V2, Flavour::Rich, Flavour::ExtendedL2] {
        assert_mended(flavour, 65_536, ("flags cleared", flags_cleared));
    }
    let shared: Damage = ("flag set on a shared table", |_, raw| {
        raw.change(raw.l2_entry(13), |entry| entry | COPIED);
        raw.change(raw.l1_entry(2), |entry| entry | COPIED);
    });
    assert_mended(Flavour::Snapshots, 65_536, shared);
    assert_mended(Flavour::SnapshotsV2, 4096, shared);
}

#[test]
fn refcount_structures_are_made_anew_whatever_is_wrong_with_them() {
    need!(tools::qemu());
    for damage in STRUCTURES {
        assert_mended(Flavour::Plain, 65_536, *damage);
        assert_mended(Flavour::SnapshotsV2, 4096, *damage);
    }
}

#[test]
fn refcount_structures_are_made_anew_at_every_width_and_cluster_size() {
    need!(tools::qemu());
    let table = STRUCTURES.iter().find(|(name, _)| *name == "table past the end").unwrap();
    for flavour in [Flavour::Refcount1, Flavour::Refcount64, Flavour::Rich] {
        for cluster_bytes in [512, 65_536, 2 << 20] {
            // Small clusters with wide counts: the new blocks need blocks of their own.
            let rounds = assert_mended(flavour, cluster_bytes, *table);
            assert!(rounds <= 3, "{flavour:?}, {cluster_bytes}: {rounds} rounds");
        }
    }
}

/// Applies the writes of a plan, each of which lies within its scope.
struct Apply {
    image: Vec<u8>,
    scope: Vec<(u64, u64)>,
    cures: Vec<Cure>,
}

impl Observer for Apply {
    fn scope(&mut self, cure: Cure, ranges: &[(u64, u64)]) {
        self.cures.push(cure);
        self.scope = ranges.to_vec();
    }

    fn stage(&mut self, offset: u64, bytes: Vec<u8>) {
        let end = offset + bytes.len() as u64;
        assert!(self.scope.iter().any(|(at, len)| *at <= offset && end <= at + len), "{offset:#x}");
        let (start, end) = (usize::try_from(offset).unwrap(), usize::try_from(end).unwrap());
        self.image.resize(self.image.len().max(end), 0);
        self.image[start..end].copy_from_slice(&bytes);
    }
}

/// One round of planning, applied.
fn round(image: &TestImage, memory_bytes: usize) -> Apply {
    let backend = Arc::new(ImageFile::open_read_only(&image.path).unwrap()) as Arc<dyn Backend>;
    let bytes = std::fs::read(&image.path).unwrap();
    let mut apply = Apply { image: bytes, scope: Vec::new(), cures: Vec::new() };
    let options = plan::Options { tier: Tier::All, decisions: Decisions::default() };
    plan::run(&mut NativeHost::new(files(backend), &mut apply).with_memory(memory_bytes), &options);
    apply
}

#[test]
fn little_memory_proposes_the_same_bytes() {
    need!(tools::qemu());
    for (name, damage) in COUNTS.iter().chain(STRUCTURES).chain(&[("flags", flags_cleared as fn(&_, &_))]) {
        let folder = tempfile::tempdir().unwrap();
        let image = image::make(folder.path(), "image", Flavour::Plain, 512);
        damage(&image, &Raw::open(&image.path));
        // A file of many chunks, of which little memory holds one at a time.
        let raw = std::fs::File::options().write(true).open(&image.path).unwrap();
        let len = raw.metadata().unwrap().len();
        raw.set_len(len.max(48 << 20)).unwrap();
        let (whole, windows) = (round(&image, 256 << 20), round(&image, 64 << 10));
        assert!(!whole.cures.is_empty(), "{name}");
        assert!(whole.image == windows.image, "{name}");
    }
}

#[test]
fn guard_stands_round_everything_but_plain_frees() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let leaks: Damage = ("leaks", |_, raw| assert_ne!(raw.append_clusters(2, 1), 0));
    for (flavour, (_, damage), guarded) in
        [(Flavour::Plain, COUNTS[0], true), (Flavour::V2, COUNTS[0], false), (Flavour::Plain, leaks, false)]
    {
        let image = image::make(folder.path(), &format!("{flavour:?}-{guarded}"), flavour, 65_536);
        damage(&image, &Raw::open(&image.path));
        let cures = round(&image, 256 << 20).cures;
        assert_eq!(cures.first() == Some(&Cure::RaiseGuard), guarded, "{cures:?}");
        assert_eq!(cures.last() == Some(&Cure::LowerGuard), guarded, "{cures:?}");
        assert!(cures.len() > usize::from(guarded) * 2, "{cures:?}");
    }
}

#[test]
fn header_marks_go_once_nothing_speaks_for_them() {
    need!(tools::qemu());
    let marked: &[Damage] = &[
        ("corrupt", |_, raw| raw.set(field::INCOMPATIBLE, 2)),
        ("corrupt, dirty and wrong counts", |image, raw| {
            raw.set(field::INCOMPATIBLE, 3);
            wrong_counts(image, raw);
        }),
    ];
    for damage in marked {
        assert_mended(Flavour::Lazy, 65_536, *damage);
    }
}

#[test]
fn counts_stay_where_setting_them_would_hide_what_was_lost() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = image::make(folder.path(), "image", Flavour::Plain, 65_536);
    let raw = Raw::open(&image.path);
    // The entry of one guest cluster is gone, and another's count is too low: who used the leaked one?
    raw.set_number(raw.l2_entry(5), 8, 0);
    raw.set_refcount(cluster_of(&raw, 12), 0);
    let cures = tools::ensure_untouched(&[&image.path], || round(&image, 256 << 20)).cures;
    assert!(cures.is_empty(), "{cures:?}");
}

/// A table without an entry for what comes behind the file is left behind, and nothing of it is taken for data, whatever
/// else is wrong.
#[test]
fn full_refcount_table_is_left_behind_without_a_trace() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let image = image::make(folder.path(), "image", Flavour::Plain, 512);
    let raw = Raw::open(&image.path);
    let reach = 64 * 256 * 512;
    assert!(raw.len() < reach && raw.get(field::REFCOUNT_TABLE_CLUSTERS) == 1);
    let move_to = |guest_cluster: u64, place: u64| {
        let entry = raw.l2_entry(guest_cluster);
        let old = raw.host_offset(guest_cluster);
        let bytes = raw.read(old, 512);
        raw.set_refcount(old / 512, 0);
        raw.write(old, &[0; 512]);
        raw.set_number(entry, 8, place | COPIED);
        bytes
    };
    raw.set_len(reach + (64 << 10));
    let bytes = move_to(5, reach + 4096);
    raw.write(reach + 4096, &bytes);
    move_to(12, raw.get(field::L1_OFFSET));
    let table = raw.get(field::REFCOUNT_TABLE_OFFSET);
    let (report, _) = repair(&image);
    let left: Vec<_> = report.last().counts.keys().copied().collect();
    let undecided = vec![Problem::L2EntryOverlapsMetadata, Problem::MetadataOverlap];
    assert_eq!((report.ending, left), (Ending::RepairedPartly, undecided));
    assert_ne!(raw.get(field::REFCOUNT_TABLE_OFFSET), table);
    assert_eq!(raw.refcount(table / 512), 0);
}

/// Hundreds of wrong flags in one table are no reason to take it for something else.
#[test]
fn scattered_flags_of_a_large_table_are_set_right() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.qcow2");
    tools::must(
        tools::qemu_img(["create", "-q", "-f", "qcow2", "-o", "cluster_size=4096"]).arg(&path).arg("2M"),
    );
    tools::must(std::process::Command::new("qemu-io").args(["-c", "write -q -P 7 0 2M"]).arg(&path));
    let raw = Raw::open(&path);
    for guest_cluster in (0..512).step_by(3) {
        raw.change(raw.l2_entry(guest_cluster), |entry| entry & !COPIED);
    }
    let handle = ImageHandle::open(&path, Mode::Read).unwrap();
    let mut inspector = NativeInspector::default();
    let report =
        heal::repair(&handle, Tier::All, &RepairOptions::default(), &mut inspector, &mut Rounds::default())
            .unwrap();
    assert_eq!(report.before.counts.keys().collect::<Vec<_>>(), [&Problem::L2CopiedMissing]);
    assert_eq!(report.ending, Ending::Repaired);
    tools::must(tools::qemu_img(["check", "-q"]).arg(&path));
}
