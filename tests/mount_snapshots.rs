//! Internal snapshots through `instar-mount`: each one a raw disk of its own size, whatever it is called.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a failing helper fails its test; skips are printed"
)]

mod support;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use support::program::cages;
use support::raw::Raw;
use support::tools::{self, must};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_instar-mount");

/// Two snapshots of different sizes, of which the second is compressed in part.
struct Scene {
    folder: TempDir,
    image: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("disk.qcow2");
        must(tools::qemu_img(["create", "-q", "-f", "qcow2"]).arg(&image).arg("4M"));
        let scene = Self { folder, image };
        scene.write(&["write -q -P 1 0 1M", "write -q -P 2 3M 64k"]);
        scene.img(&["snapshot", "-c", "first"]);
        must(tools::qemu_img(["resize", "-q"]).arg(&scene.image).arg("9M"));
        scene.write(&["write -q -P 3 512k 1M", "write -q -c -P 4 8M 64k"]);
        scene.img(&["snapshot", "-c", "other"]);
        scene.write(&["write -q -P 5 0 9M"]);
        fs::create_dir(scene.point()).unwrap();
        scene
    }

    fn point(&self) -> PathBuf {
        self.folder.path().join("mnt")
    }

    fn img(&self, arguments: &[&str]) {
        must(tools::qemu_img(arguments).arg(&self.image));
    }

    fn write(&self, commands: &[&str]) {
        must(tools::qemu_io("qcow2", commands.iter().copied()).arg(&self.image));
    }

    /// The first `len` bytes of a snapshot by qemu, which reads all of them in the size that the disk has now.
    fn expected(&self, snapshot: &str, len: usize) -> Vec<u8> {
        let raw = self.folder.path().join("expected");
        let convert = ["convert", "-f", "qcow2", "-l", snapshot, "-O", "raw"];
        must(tools::qemu_img(convert).arg(&self.image).arg(&raw));
        let mut bytes = fs::read(raw).unwrap();
        bytes.truncate(len);
        bytes
    }

    fn mount(&self, cage: &str) -> Mount {
        let (cage, point) = (format!("--sandbox={cage}"), self.point());
        must(Command::new(PROGRAM).args([&cage, "--quiet"]).arg(&self.image).arg(&point));
        Mount { point }
    }
}

/// Ends with its owner.
struct Mount {
    point: PathBuf,
}

impl Mount {
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.point.join("snapshots")).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.point.join("snapshots").join(name)).unwrap()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let ended = tools::run(Command::new("fusermount3").arg("-uz").arg(&self.point));
        assert!(std::thread::panicking() || ended.status.success());
    }
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
    let scene = Scene::new();
    for cage in cages() {
        let mount = scene.mount(cage);
        assert_eq!(mount.names(), ["first.raw", "other.raw"]);
        for (name, len) in [("first", 4 << 20), ("other", 9 << 20)] {
            let got = mount.read(&format!("{name}.raw"));
            assert_eq!(got.len(), len, "{name}");
            assert!(got == scene.expected(name, len), "{name} in {cage}: other bytes than qemu's");
        }
        let other = mount.point.join("snapshots/other.raw");
        let error = File::options().write(true).open(other).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        assert!(fs::read(mount.point.join("disk.raw")).unwrap() == vec![5; 9 << 20]);
    }
}

#[test]
fn snapshots_of_hostile_names_stay_in_their_folder() {
    need!(tools::fuse(), tools::qemu());
    let scene = Scene::new();
    let (first, other) = (scene.expected("first", 4 << 20), scene.expected("other", 9 << 20));
    for (names, served) in [
        ([b"../..", b"a\0b\nc"], ["%2E.%2F...raw", "a%00b%0Ac.raw"]),
        ([b"twice", b"twice"], ["twice.raw", "twice~1.raw"]),
    ] {
        rename(&scene.image, 0, names[0]);
        rename(&scene.image, 1, names[1]);
        let mount = scene.mount(cages()[0]);
        assert_eq!(mount.names(), served);
        assert!(mount.read(served[0]) == first && mount.read(served[1]) == other);
    }
}

#[test]
fn image_without_snapshots_has_no_folder_for_them() {
    need!(tools::fuse(), tools::qemu());
    let scene = Scene::new();
    scene.img(&["snapshot", "-d", "first"]);
    scene.img(&["snapshot", "-d", "other"]);
    let mount = scene.mount(cages()[0]);
    assert!(!mount.point.join("snapshots").exists());
}
