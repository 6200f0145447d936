//! Damaged images, each of which keeps one cure or another busy, and what is decided about them.

use instar_abi::choice::{Decision, Decisions};

use crate::support::damage::recipe;
use crate::support::image::{self, Flavour, TestImage};
use crate::support::mendable;
use crate::support::raw::Raw;

/// Clusters are small, so that thousands of copies of an image are cheap.
const CLUSTER_BYTES: u64 = 4096;
/// The smallest ones of extended L2 entries.
const EXTENDED_CLUSTER_BYTES: u64 = 16_384;

/// An image to cut the power of.
pub struct Scene {
    /// What sets it apart.
    pub name: String,
    /// Before the damage.
    pub healthy: Vec<u8>,
    /// After it.
    pub damaged: Vec<u8>,
    /// What is decided.
    pub decisions: Decisions,
    /// 2 or 3.
    pub version: u8,
}

/// Recipes that the rest of the metadata determines, in version 3.
const KINDS: &[&str] = &[
    "refcount-leak-one",
    "refcount-too-low",
    "refcount-contradicted",
    "l1-copied-wrong",
    "l2-entry-reserved",
    "refcount-block-missing",
    "refcount-block-shared",
    "refcount-table-entry-past-eof",
    "header-refcount-table-offset",
    "snapshot-extra-data",
    "bitmap-in-use",
    "extended-bitmap-without-offset",
    "header-dirty",
    "header-corrupt",
    "metadata-overlap",
];

/// The same in version 2.
const KINDS_V2: &[(&str, Flavour)] = &[
    ("refcount-leak-v2", Flavour::V2),
    ("refcount-too-low", Flavour::SnapshotsV2),
    ("refcount-contradicted", Flavour::V2),
    ("refcount-too-low-shared", Flavour::SnapshotsV2),
    ("l1-copied-wrong", Flavour::SnapshotsV2),
    ("l2-copied-missing", Flavour::V2),
    ("l2-entry-reserved", Flavour::SnapshotsV2),
    ("refcount-block-missing", Flavour::SnapshotsV2),
    ("refcount-block-shared", Flavour::V2),
    ("refcount-table-entry-past-eof", Flavour::V2),
    ("header-refcount-table-offset", Flavour::SnapshotsV2),
    ("header-refcount-table-size", Flavour::V2),
    ("metadata-overlap", Flavour::V2),
    ("snapshot-entry-empty", Flavour::SnapshotsV2),
    ("compressed-copied", Flavour::V2),
];

/// Those that can be read stay.
const GIVES_UP_SNAPSHOTS: &[Decision] =
    &[Decision::KeepReadableSnapshots, Decision::FreeOrphanData, Decision::FreeOrphanTables];

/// Recipes that wait for a decision, and decisions that are enough.
const DECIDED: &[(&str, &[Decision])] = &[
    ("orphan-data", &[Decision::FreeOrphanData]),
    ("orphan-table", &[Decision::FreeOrphanTables]),
    ("l1-entry-past-eof", &[Decision::AttachOrphanTables]),
    ("l1-entry-unaligned", &[Decision::AttachOrphanTables]),
    (
        "l1-entry-unaligned",
        &[Decision::UnmapLostTables, Decision::FreeOrphanTables, Decision::FreeOrphanData],
    ),
    ("l2-entry-unaligned", &[Decision::UnmapLostData, Decision::FreeOrphanData]),
    ("l2-entry-overlaps-metadata", &[Decision::CopyOverlapping, Decision::FreeOrphanData]),
    ("l2-entry-overlaps-metadata", &[Decision::UnmapOverlapping, Decision::FreeOrphanData]),
    ("compressed-overlaps-metadata", &[Decision::UnmapOverlapping, Decision::FreeOrphanData]),
    ("bitmap-entry", &[Decision::DropBitmaps]),
    ("snapshot-table-truncated", GIVES_UP_SNAPSHOTS),
    ("header-snapshots-count", GIVES_UP_SNAPSHOTS),
    (
        "header-snapshots-offset",
        &[Decision::DropSnapshots, Decision::FreeOrphanData, Decision::FreeOrphanTables],
    ),
    ("header-snapshots-count", &[Decision::KeepReadableSnapshots]),
    ("header-magic", &[Decision::RestoreMagic]),
    ("header-version", &[Decision::RestoreVersion]),
    ("header-cluster-bits", &[Decision::RestoreClusterBits]),
    ("header-length", &[Decision::RestoreHeaderLength]),
    ("header-refcount-order", &[Decision::RestoreRefcountOrder]),
    ("header-crypt-method", &[Decision::RestoreCryptMethod]),
    ("header-l1-size", &[Decision::RestoreL1Size]),
    ("header-l1-offset", &[Decision::RestoreL1Offset]),
    ("header-virtual-size", &[Decision::RestoreVirtualSize]),
];

fn all_of(decisions: &[Decision]) -> Decisions {
    decisions.iter().fold(Decisions::default(), |all, one| all.with(*one))
}

fn scene(
    name: String,
    (flavour, cluster_bytes): (Flavour, u64),
    decisions: &[Decision],
    damage: impl FnOnce(&mut TestImage),
) -> Scene {
    let folder = tempfile::tempdir().unwrap();
    let mut image = image::make(folder.path(), "scene", flavour, cluster_bytes);
    let healthy = std::fs::read(&image.path).unwrap();
    damage(&mut image);
    let damaged = std::fs::read(&image.path).unwrap();
    Scene { name, version: healthy[7], healthy, damaged, decisions: all_of(decisions) }
}

fn cluster_bytes(flavour: Flavour) -> u64 {
    if flavour.allows(CLUSTER_BYTES) { CLUSTER_BYTES } else { EXTENDED_CLUSTER_BYTES }
}

fn of_recipe(name: &str, flavour: Option<Flavour>, decisions: &[Decision]) -> Scene {
    let recipe = recipe(name);
    let flavour = flavour.unwrap_or(recipe.flavour);
    let names: Vec<_> =
        decisions.iter().map(|one| format!("{}={}", one.problem().row().id, one.id())).collect();
    let title = format!("{name} {}", names.join(" "));
    scene(title, (flavour, cluster_bytes(flavour)), decisions, |image| recipe.damage(image))
}

/// What is determined, in version 3.
pub fn undecided() -> impl Iterator<Item = Scene> {
    KINDS.iter().map(|name| of_recipe(name, None, &[]))
}

/// What is determined, in version 2.
pub fn version_2() -> impl Iterator<Item = Scene> {
    KINDS_V2.iter().map(|(name, flavour)| of_recipe(name, Some(*flavour), &[]))
}

/// What is decided.
pub fn decided() -> impl Iterator<Item = Scene> {
    DECIDED.iter().map(|(name, decisions)| of_recipe(name, None, decisions))
}

/// Entries, copies of doubly used clusters, snapshots, bitmaps and header fields.
pub fn entries() -> impl Iterator<Item = Scene> {
    mendable::CASES.iter().map(|case| {
        let make = (case.flavour, cluster_bytes(case.flavour).max(case.cluster_bytes_min));
        scene(case.name.to_owned(), make, case.decisions, |image| {
            let raw = Raw::open(&image.path);
            (case.apply)(image, &raw);
        })
    })
}

/// A sample with each version, a decision, and copies: for what is tried on every single operation and read.
pub fn failing() -> impl Iterator<Item = Scene> {
    let names = ["shared-across-tables", "snapshot-count-and-extra"];
    let recipes = [
        of_recipe("refcount-block-missing", None, &[]),
        of_recipe("header-refcount-table-offset", Some(Flavour::SnapshotsV2), &[]),
        of_recipe("l2-entry-overlaps-metadata", None, &[Decision::CopyOverlapping, Decision::FreeOrphanData]),
    ];
    recipes.into_iter().chain(entries().filter(move |scene| names.contains(&scene.name.as_str())))
}
