//! Whole disks through `instar-mount`, in both cages, against the real qemu: every flavour of image, and one image with
//! everything at once, read anywhere by many at a time.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a failing helper fails its test; skips are printed"
)]

mod support;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use support::image::{self, Flavour, TestImage};
use support::mount::Mount;
use support::program::cages;
use support::scene::Scene;
use support::tools::{self, must};
use support::{pattern, soak};

/// Readers at once.
const READERS: usize = 8;

/// Lets qemu compare a raw file with what it reads itself, holes and all.
fn assert_same(raw: &Path, format: &str, other: &Path, what: &str) {
    let output =
        tools::run(tools::qemu_img(["compare", "-U", "-f", "raw", "-F", format]).arg(raw).arg(other));
    assert!(output.status.success(), "{what}: {}{}", tools::stdout(&output), tools::stderr(&output));
}

fn assert_reads_like_qemu(image: &TestImage, cage: &str, what: &str) {
    let folder = image.path.parent().unwrap();
    let mut options = vec![format!("--sandbox={cage}"), "--quiet".to_owned()];
    options.push(format!("--allow-chain={}", folder.display()));
    options.extend(image.data_file().map(|file| format!("--data-file={}", file.display())));
    let mount = Mount::new(&image.path, &options);
    assert_same(&mount.raw(), "qcow2", &image.path, what);
    for name in image.snapshots.keys() {
        let raw = folder.join("snapshot.raw");
        let convert = ["convert", "-U", "-f", "qcow2", "-O", "raw", "-l"];
        must(tools::qemu_img(convert).arg(format!("snapshot.name={name}")).arg(&image.path).arg(&raw));
        assert_same(&mount.path(&format!("snapshots/{name}.raw")), "raw", &raw, &format!("{what}, {name}"));
    }
    assert_eq!(mount.json("health")["healthy"], true, "{what}");
}

#[test]
fn every_flavour_reads_like_qemu_in_both_cages() {
    need!(tools::fuse(), tools::qemu());
    let sizes = [512, 4096, 65_536, 2 << 20];
    // A cage has every flavour, with each cluster size in turn; a soak has all of both.
    let all = soak::asked().is_some();
    for (turn, cage) in cages().into_iter().enumerate() {
        for (at, flavour) in Flavour::ALL.into_iter().enumerate() {
            let folder = tempfile::tempdir().unwrap();
            for (index, cluster_bytes) in sizes.into_iter().enumerate() {
                let is_its_turn = all || index == (at + 2 * turn) % sizes.len();
                // Half a terabyte, all of it mapped, is read for an hour.
                let is_endless = flavour == Flavour::DataFileRaw && cluster_bytes > 65_536;
                let is_left_out = is_endless || flavour == Flavour::Luks || !flavour.allows(cluster_bytes);
                if is_left_out || !is_its_turn {
                    continue;
                }
                let image = image::make(folder.path(), &format!("{cluster_bytes}"), flavour, cluster_bytes);
                let what = format!("{flavour:?}, clusters of {cluster_bytes}, {cage}");
                assert_reads_like_qemu(&image, cage, &what);
            }
        }
    }
}

/// An overlay with subclusters, packed clusters, zeros, two snapshots of different sizes and a bitmap, over a packed
/// QCOW2 base that is longer than the first snapshot, over a short raw file.
fn everything() -> Scene {
    let scene = Scene::new("5M", "extended_l2=on,compression_type=zstd");
    let (raw, base) = (scene.path("base.raw"), scene.path("base.qcow2"));
    fs::write(&raw, pattern::bytes(1, 0, 2_500_096, true)).unwrap();
    must(tools::qemu_img(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).arg(&raw).arg(&base).arg("6M"));
    let below =
        ["write -q -c -P 3 0 64k", "write -q -P 4 3M 900k", "write -q -z 1M 70k", "write -q -c -P 5 5M 64k"];
    must(tools::qemu_io("qcow2", below).arg(&base));
    must(tools::qemu_img(["rebase", "-q", "-u", "-F", "qcow2", "-b"]).arg(&base).arg(&scene.image));
    scene.write(&[
        "write -q -P 6 2k 3k",
        "write -q -c -P 7 128k 64k",
        "write -q -z 260k 2k",
        "write -q -P 8 4M 600k",
    ]);
    scene.img(&["snapshot", "-c", "small"]);
    scene.resize("9M");
    scene.write(&[
        "write -q -c -P 9 8M 64k",
        "write -q -P 10 130k 1k",
        "discard -q 4M 64k",
        "write -q -P 11 6100k 200k",
    ]);
    scene.img(&["snapshot", "-c", "large"]);
    must(tools::qemu_img(["bitmap", "--add"]).arg(&scene.image).arg("changes"));
    scene.write(&["write -q -P 12 1M 333k", "write -q -z -u 3M 128k", "write -q -P 13 8190k 5k"]);
    scene
}

/// A disk that is mounted, with the bytes that it has by qemu's account.
struct Expected {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Expected {
    fn assert_read(&self, offset: usize, len: usize, is_direct: bool) {
        let flags = if is_direct { libc::O_DIRECT } else { 0 };
        let file = OpenOptions::new().read(true).custom_flags(flags).open(&self.path).unwrap();
        let mut got = vec![0xee; len];
        let mut filled = 0;
        while filled < len {
            match file.read_at(&mut got[filled..], (offset + filled) as u64).unwrap() {
                0 => break,
                bytes => filled += bytes,
            }
        }
        let expected = &self.bytes[offset.min(self.bytes.len())..(offset + len).min(self.bytes.len())];
        assert!(got[..filled] == *expected, "{} at {offset:#x}+{len:#x}", self.path.display());
    }
}

/// The disks of a mount of [`everything`].
fn disks(scene: &Scene, mount: &Mount) -> Vec<Expected> {
    let disk = |path: PathBuf, snapshot| {
        let mut bytes = scene.expected(snapshot);
        bytes.truncate(usize::try_from(File::open(&path).unwrap().metadata().unwrap().len()).unwrap());
        Expected { path, bytes }
    };
    vec![
        disk(mount.raw(), None),
        disk(mount.path("snapshots/small.raw"), Some("small")),
        disk(mount.path("snapshots/large.raw"), Some("large")),
    ]
}

#[test]
fn image_with_everything_is_read_anywhere_by_many_at_once() {
    need!(tools::fuse(), tools::qemu());
    let scene = everything();
    for cage in cages() {
        let allow = format!("--allow-chain={}", scene.folder().display());
        let mount = Mount::new(&scene.image, [format!("--sandbox={cage}"), "--quiet".to_owned(), allow]);
        let disks = disks(&scene, &mount);
        let sizes: Vec<usize> = disks.iter().map(|disk| disk.bytes.len()).collect();
        assert_eq!(sizes, [9 << 20, 5 << 20, 9 << 20]);
        let read = (0..disks.len(), any::<prop::sample::Index>(), 1..400_000_usize, any::<bool>());
        let reads = prop::collection::vec(read, READERS..READERS * 8);
        let outcome = TestRunner::new(soak::config(24)).run(&reads, |reads| {
            std::thread::scope(|scope| {
                for part in reads.chunks(reads.len().div_ceil(READERS)) {
                    let disks = &disks;
                    scope.spawn(move || {
                        for (disk, offset, len, is_direct) in part {
                            let disk = &disks[*disk];
                            disk.assert_read(offset.index(disk.bytes.len()), *len, *is_direct);
                        }
                    });
                }
            });
            Ok(())
        });
        assert!(outcome.is_ok(), "{cage}: {outcome:?}");
        for disk in &disks {
            assert!(fs::read(&disk.path).unwrap() == disk.bytes, "{} in {cage}", disk.path.display());
        }
        assert_eq!(mount.json("health")["healthy"], true);
    }
}
