//! Internal snapshots through `instar-mount`: each one a raw disk of its own size, whatever it is called.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a failing helper fails its test; skips are printed"
)]

mod support;

use std::fs::{self, File};
use std::path::Path;

use support::mount::Mount;
use support::program::cages;
use support::raw::{Raw, field};
use support::scene::Scene;
use support::tools;

/// Two snapshots of different sizes, of which the second is compressed in part.
fn scene() -> Scene {
    let scene = Scene::new("4M", "compat=1.1");
    scene.write(&["write -q -P 1 0 1M", "write -q -P 2 3M 64k"]);
    scene.img(&["snapshot", "-c", "first"]);
    scene.resize("9M");
    scene.write(&["write -q -P 3 512k 1M", "write -q -c -P 4 8M 64k"]);
    scene.img(&["snapshot", "-c", "other"]);
    scene.write(&["write -q -P 5 0 9M"]);
    scene
}

/// The first `len` bytes of a snapshot by qemu, which reads all of them in the size that the disk has now.
fn expected(scene: &Scene, snapshot: &str, len: usize) -> Vec<u8> {
    let mut bytes = scene.expected(Some(snapshot));
    bytes.truncate(len);
    bytes
}

fn names(mount: &Mount) -> Vec<String> {
    let entries = fs::read_dir(mount.path("snapshots")).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn read(mount: &Mount, name: &str) -> Vec<u8> {
    fs::read(mount.path("snapshots").join(name)).unwrap()
}

/// Overwrites the name of a snapshot with one of the same length.
fn rename(image: &Path, index: u64, name: &[u8; 5]) {
    let raw = Raw::open(image);
    let entry = raw.snapshot_entry(index);
    let id_bytes = raw.number(entry + 12, 2);
    assert_eq!(raw.number(entry + 14, 2), name.len() as u64);
    raw.write(entry + 40 + raw.number(entry + 36, 4) + id_bytes, name);
}

#[test]
fn snapshots_are_disks_of_their_own_size() {
    need!(tools::fuse(), tools::qemu());
    let scene = scene();
    for cage in cages() {
        let mount = scene.mount_in(cage);
        assert_eq!(names(&mount), ["first.raw", "other.raw"]);
        for (name, len) in [("first", 4 << 20), ("other", 9 << 20)] {
            let got = read(&mount, &format!("{name}.raw"));
            assert_eq!(got.len(), len, "{name}");
            assert!(got == expected(&scene, name, len), "{name} in {cage}: other bytes than qemu's");
        }
        let other = mount.path("snapshots/other.raw");
        let error = File::options().write(true).open(other).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        assert!(fs::read(mount.raw()).unwrap() == vec![5; 9 << 20]);
    }
}

#[test]
fn snapshots_of_hostile_names_stay_in_their_folder() {
    need!(tools::fuse(), tools::qemu());
    let scene = scene();
    let (first, other) = (expected(&scene, "first", 4 << 20), expected(&scene, "other", 9 << 20));
    for (given, served) in [
        ([b"../..", b"a\0b\nc"], ["%2E.%2F...raw", "a%00b%0Ac.raw"]),
        ([b"twice", b"twice"], ["twice.raw", "twice~1.raw"]),
    ] {
        rename(&scene.image, 0, given[0]);
        rename(&scene.image, 1, given[1]);
        let mount = scene.mount();
        assert_eq!(names(&mount), served);
        assert!(read(&mount, served[0]) == first && read(&mount, served[1]) == other);
    }
}

#[test]
fn image_without_snapshots_has_no_folder_for_them() {
    need!(tools::fuse(), tools::qemu());
    let scene = scene();
    scene.img(&["snapshot", "-d", "first"]);
    scene.img(&["snapshot", "-d", "other"]);
    let mount = scene.mount();
    assert!(!mount.path("snapshots").exists());
}

#[test]
fn snapshots_that_are_there_are_served_whatever_the_count_says() {
    need!(tools::fuse(), tools::qemu());
    let scene = scene();
    let raw = Raw::open(&scene.image);
    let (first, other) = (expected(&scene, "first", 4 << 20), expected(&scene, "other", 9 << 20));
    for count in [3, 70_000] {
        raw.set(field::SNAPSHOTS, count);
        let mount = scene.mount();
        assert_eq!(names(&mount), ["first.raw", "other.raw"], "{count}");
        assert!(read(&mount, "first.raw") == first && read(&mount, "other.raw") == other);
    }
}

#[test]
fn snapshot_whose_lengths_cannot_be_meant_is_served_without_its_name() {
    need!(tools::fuse(), tools::qemu());
    let scene = scene();
    let raw = Raw::open(&scene.image);
    let other = expected(&scene, "other", 9 << 20);
    raw.set_number(raw.snapshot_entry(1) + 36, 4, 0x10000);
    let mount = scene.mount();
    assert_eq!(names(&mount), ["first.raw", "~1.raw"]);
    assert!(read(&mount, "~1.raw") == other);
    assert!(fs::read(mount.raw()).unwrap() == vec![5; 9 << 20]);
}
