//! A served disk against `qemu-img convert`, through a real FUSE mount, with the cage's code in this process.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a failing helper fails its test; skips are printed"
)]

mod native;
mod support;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use instar_abi::finding::ACTIVE;
use instar_abi::summary::Summary;
use instar_mount::disk::{Disk, ExtentSource};
use instar_mount::fuse::{
    Admitted, Attached, Content, Keeper, MountPoint, ROOT, TransportChoice, Tree, Unmounter,
};
use instar_mount::image::{Backend, ImageFile};
use instar_mount::sandbox::observer::Ignore;
use parking_lot::Mutex;
use support::tools;
use tempfile::TempDir;

const CLUSTER: u64 = 65536;

/// A mount that ends when it is dropped.
struct Served {
    folder: TempDir,
    unmounter: Unmounter,
    serving: Option<std::thread::JoinHandle<()>>,
    disk: Arc<Disk>,
}

impl Served {
    fn directory(folder: TempDir, image: &Path) -> Self {
        let disk = disk_of(image, ACTIVE);
        let mut tree = Tree::new(Content::Directory);
        tree.add(ROOT, "image.raw", Content::Disk { disk: disk.clone(), allocated_bytes: Some(4096) });
        tree.add(ROOT, "report.json", Content::Document(Arc::new(b"{}".to_vec())));
        let point = folder.path().join("mnt");
        fs::create_dir(&point).unwrap();
        Self::mount(folder, disk, tree, &point)
    }

    fn file(folder: TempDir, image: &Path) -> Self {
        let disk = disk_of(image, ACTIVE);
        let tree = Tree::new(Content::Disk { disk: disk.clone(), allocated_bytes: Some(0) });
        let point = folder.path().join("mnt");
        fs::write(&point, b"").unwrap();
        Self::mount(folder, disk, tree, &point)
    }

    fn mount(folder: TempDir, disk: Arc<Disk>, tree: Tree, point: &Path) -> Self {
        let point = MountPoint::check(point, (0, 0)).unwrap();
        let keeper = Keeper::start(Path::new(env!("CARGO_BIN_EXE_instar-mount")), &point).unwrap();
        let mounted =
            Attached::new(tree, &point, "test", Admitted::Owner, TransportChoice::Auto, keeper).unwrap();
        let mounted = mounted.start().unwrap();
        let unmounter = mounted.unmounter();
        let serving = std::thread::spawn(move || mounted.wait().unwrap());
        Self { folder, unmounter, serving: Some(serving), disk }
    }

    fn raw(&self) -> PathBuf {
        self.folder.path().join("mnt/image.raw")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let unmounted = self.unmounter.unmount(true);
        let served = self.serving.take().map(std::thread::JoinHandle::join);
        if !std::thread::panicking() {
            unmounted.unwrap();
            served.unwrap().unwrap();
        }
    }
}

fn image_files(image: &Path) -> native::Files {
    let image: Arc<dyn Backend> = Arc::new(ImageFile::open_read_only(image).unwrap());
    native::files(image)
}

fn facts(image: &Path) -> Summary {
    native::describe(image_files(image), &mut Ignore)
}

fn disk_of(image: &Path, snapshot: u32) -> Arc<Disk> {
    let files = image_files(image);
    let facts = facts(image);
    let source: Box<dyn ExtentSource> = Box::new(native::NativeSource::start(files.clone()));
    let source = Arc::new(Mutex::new(source));
    Arc::new(Disk::new(files, source, snapshot, facts.virtual_size, facts.cluster_bits, 1 << 20))
}

fn qemu_img(arguments: &[&str]) {
    tools::must(&mut tools::qemu_img(arguments));
}

fn qemu_io(image: &Path, commands: &[&str]) {
    tools::must(tools::qemu_io("qcow2", commands.iter().copied()).arg(image));
}

/// An image with data, zeros and holes in three L2 tables, and a last cluster that is not whole.
fn create(options: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, image.to_str().unwrap(), "67109376"]);
    qemu_io(
        &image,
        &[
            "write -q -P 1 0 300k",
            "write -q -P 2 1M 64k",
            "write -q -P 3 1234567 777",
            "write -q -P 4 33M 5M",
            "write -q -P 5 35M 100k",
            "write -q -P 6 67108864 512",
        ],
    );
    (folder, image)
}

fn convert(folder: &TempDir, image: &Path) -> Vec<u8> {
    let raw = folder.path().join("expected.raw");
    qemu_img(&["convert", "-f", "qcow2", "-O", "raw", image.to_str().unwrap(), raw.to_str().unwrap()]);
    fs::read(raw).unwrap()
}

/// Not `assert_eq`, which would print 64 MiB.
fn assert_same(got: &[u8], expected: &[u8], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}: length");
    let differs = got.iter().zip(expected).position(|(got, expected)| got != expected);
    assert_eq!(differs, None, "{what}: first differing byte");
}

#[test]
fn mount_of_each_flavour_reads_as_qemu_converts_it() {
    need!(tools::fuse(), tools::qemu());
    for options in [
        "compat=1.1",
        "compat=0.10",
        "cluster_size=512",
        "cluster_size=4096,refcount_bits=1",
        "cluster_size=2M",
        "preallocation=metadata",
        "extended_l2=on,cluster_size=128k",
        "lazy_refcounts=on",
    ] {
        let (folder, image) = create(options);
        if options != "compat=0.10" {
            qemu_io(&image, &["write -q -z 34M 1M", "write -q -z -u 64k 64k", "discard -q 36M 192k"]);
        }
        let expected = convert(&folder, &image);
        let served = Served::directory(folder, &image);
        assert_same(&fs::read(served.raw()).unwrap(), &expected, options);
        assert_eq!(served.disk.health().counts(), Default::default(), "{options}");
    }
}

#[test]
fn mount_of_a_snapshot_reads_as_qemu_converts_it() {
    need!(tools::fuse(), tools::qemu());
    let (folder, image) = create("compat=1.1");
    let path = image.to_str().unwrap();
    qemu_img(&["snapshot", "-c", "first", path]);
    qemu_io(&image, &["write -q -P 9 0 2M", "discard -q 33M 1M"]);
    qemu_img(&["snapshot", "-c", "second", path]);
    qemu_io(&image, &["write -q -P 10 0 2M"]);
    for (index, name) in [(0, "first"), (1, "second")] {
        let raw = folder.path().join("snapshot.raw");
        qemu_img(&["convert", "-f", "qcow2", "-l", name, "-O", "raw", path, raw.to_str().unwrap()]);
        let expected = fs::read(raw).unwrap();
        let mut got = vec![0xee; expected.len()];
        let outcome = disk_of(&image, index).read(0, &mut got);
        assert!(outcome.stopped.is_none(), "{:?}", outcome.stopped);
        assert_same(&got, &expected, name);
    }
}

#[test]
fn mount_on_a_file_is_the_disk_itself() {
    need!(tools::fuse(), tools::qemu());
    let (folder, image) = create("compat=1.1");
    let expected = convert(&folder, &image);
    let served = Served::file(folder, &image);
    let point = served.folder.path().join("mnt");
    assert_eq!(fs::metadata(&point).unwrap().len(), expected.len() as u64);
    assert_same(&fs::read(&point).unwrap(), &expected, "file mount");
}

#[test]
fn mount_is_read_only_and_tells_its_attributes() {
    need!(tools::fuse(), tools::qemu());
    let (folder, image) = create("compat=1.1");
    let served = Served::directory(folder, &image);
    let metadata = fs::metadata(served.raw()).unwrap();
    assert_eq!((metadata.len(), metadata.blocks(), metadata.mode()), (67_109_376, 8, 0o100_400));
    let error = File::options().write(true).open(served.raw()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    let error = fs::write(served.raw().with_file_name("new"), b"x").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    let mut names: Vec<_> = fs::read_dir(served.folder.path().join("mnt"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["image.raw", "report.json"]);
    assert_eq!(fs::read(served.raw().with_file_name("report.json")).unwrap(), b"{}");
}

#[test]
fn mount_tells_holes_from_data() {
    need!(tools::fuse(), tools::qemu());
    let (folder, image) = create("compat=1.1");
    let served = Served::directory(folder, &image);
    let file = File::open(served.raw()).unwrap();
    let seek = |from, data| {
        use rustix::fs::{SeekFrom, seek};
        seek(&file, if data { SeekFrom::Data(from) } else { SeekFrom::Hole(from) })
    };
    assert_eq!(seek(0, false), Ok(5 * CLUSTER));
    assert_eq!(seek(6 * CLUSTER, true), Ok(16 * CLUSTER));
    assert_eq!(seek(40 << 20, true), Ok(64 << 20));
    assert_eq!(seek(64 << 20, false), Ok(67_109_376), "the end of the disk is a hole");
    assert_eq!(seek(67_109_376, true), Err(rustix::io::Errno::NXIO));
}

/// Makes the L2 entry of `cluster` in the image's first L2 table point past the end of the file.
fn damage(image: &Path, cluster: u64, entry: u64) {
    let file = File::options().read(true).write(true).open(image).unwrap();
    let word = |at| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes)
    };
    let l2 = word(word(40)) & 0x00ff_ffff_ffff_fe00;
    file.write_all_at(&entry.to_be_bytes(), l2 + cluster * 8).unwrap();
}

#[test]
fn buffered_read_of_damage_is_eio_and_its_neighbours_are_read() {
    need!(tools::fuse(), tools::qemu());
    let (folder, image) = create("compat=1.1");
    let expected = convert(&folder, &image);
    damage(&image, 2, 1 << 40);
    let served = Served::directory(folder, &image);
    let file = File::open(served.raw()).unwrap();
    let mut bytes = vec![0; expected.len()];
    // Readahead runs into the damage from before it and starts behind it.
    for (at, page) in bytes.chunks_mut(4096).enumerate() {
        let offset = at as u64 * 4096;
        let read = file.read_exact_at(page, offset);
        if offset / CLUSTER == 2 {
            assert_eq!(read.unwrap_err().raw_os_error(), Some(libc::EIO), "{offset:#x}");
        } else {
            read.unwrap_or_else(|error| panic!("{offset:#x}: {error}"));
        }
    }
    assert_same(&bytes[..2 * 65536], &expected[..2 * 65536], "before");
    assert_same(&bytes[3 * 65536..], &expected[3 * 65536..], "behind");
    assert_eq!(fs::metadata(served.raw()).unwrap().len(), expected.len() as u64, "the size stands");
    assert!(served.disk.health().counts().damaged_reads > 0);
}

#[test]
fn large_read_into_damage_returns_what_lies_before_it() {
    need!(tools::fuse(), tools::qemu());
    let (folder, image) = create("compat=1.1");
    let expected = convert(&folder, &image);
    damage(&image, 2, 1 << 40);
    let served = Served::directory(folder, &image);
    for flags in [0, libc::O_DIRECT] {
        let file = File::options().read(true).custom_flags(flags).open(served.raw()).unwrap();
        let mut bytes = vec![0; 1 << 20];
        // O_DIRECT asks for no alignment here: FUSE copies.
        assert_eq!(file.read_at(&mut bytes, 0).unwrap(), 2 * 65536, "flags {flags:#x}");
        assert_same(&bytes[..2 * 65536], &expected[..2 * 65536], "before");
        assert_eq!(file.read_at(&mut bytes, 2 * CLUSTER).unwrap_err().raw_os_error(), Some(libc::EIO));
        assert_eq!(file.read_at(&mut bytes, 3 * CLUSTER).unwrap(), bytes.len());
        assert_same(&bytes, &expected[3 * 65536..][..1 << 20], "behind");
    }
    assert_eq!(fs::metadata(served.raw()).unwrap().len(), expected.len() as u64, "the size stands");
}

#[test]
fn damage_of_each_kind_is_eio() {
    need!(tools::fuse(), tools::qemu());
    for entry in [1 << 40, 0x5_0200, (3 << 16) | (1 << 63)] {
        let (folder, image) = create("compat=1.1");
        damage(&image, 2, entry);
        let served = Served::directory(folder, &image);
        let file = File::open(served.raw()).unwrap();
        let read = file.read_exact_at(&mut [0; 512], 2 * CLUSTER);
        assert_eq!(read.unwrap_err().raw_os_error(), Some(libc::EIO), "{entry:#x}");
        file.read_exact_at(&mut [0; 512], 3 * CLUSTER).unwrap();
    }
}

#[test]
fn image_that_shrinks_under_the_mount_gives_eio() {
    need!(tools::fuse(), tools::qemu());
    let (folder, image) = create("compat=1.1");
    let expected = convert(&folder, &image);
    let served = Served::directory(folder, &image);
    let file = File::open(served.raw()).unwrap();
    file.read_exact_at(&mut [0; 512], 0).unwrap();
    File::options().write(true).open(&image).unwrap().set_len(6 * CLUSTER).unwrap();
    let error = file.read_exact_at(&mut [0; 512], 36 << 20).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    assert!(served.disk.health().counts().io_errors > 0);
    let mut bytes = [0; 4096];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_same(&bytes, &expected[..4096], "what is left");
}

#[test]
fn concurrent_readers_all_read_the_same() {
    need!(tools::fuse(), tools::qemu());
    let (folder, image) = create("cluster_size=4096");
    let expected = convert(&folder, &image);
    let served = Served::directory(folder, &image);
    std::thread::scope(|scope| {
        for reader in 0..8_usize {
            let (path, expected) = (served.raw(), &expected);
            scope.spawn(move || {
                let flags = if reader % 2 == 0 { libc::O_DIRECT } else { 0 };
                let file = File::options().read(true).custom_flags(flags).open(path).unwrap();
                let mut bytes = vec![0; 128 * 1024];
                for turn in 0..64 {
                    let offset = (reader * 7919 + turn * 104_729) * 512 % (expected.len() - bytes.len());
                    file.read_exact_at(&mut bytes, offset as u64).unwrap();
                    assert_same(&bytes, &expected[offset..][..bytes.len()], "concurrent");
                }
            });
        }
    });
}

#[test]
fn file_system_in_the_disk_is_read_through_a_loop_mount() {
    need!(tools::fuse(), tools::qemu());
    need!(tools::root(), tools::program("mkfs.ext4"));
    let folder = tempfile::tempdir().unwrap();
    let content = folder.path().join("content");
    fs::create_dir(&content).unwrap();
    for number in 0..40_u8 {
        let bytes: Vec<u8> = (0..u32::from(number) * 3001).map(|at| number ^ at.to_le_bytes()[0]).collect();
        fs::write(content.join(format!("file{number}")), bytes).unwrap();
    }
    let (raw, image) = (folder.path().join("fs.raw"), folder.path().join("fs.qcow2"));
    tools::must(Command::new("truncate").args(["-s", "64M"]).arg(&raw));
    tools::must(Command::new("mkfs.ext4").args(["-q", "-F", "-d"]).arg(&content).arg(&raw));
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", raw.to_str().unwrap(), image.to_str().unwrap()]);
    let served = Served::directory(folder, &image);
    let point = served.folder.path().join("ext4");
    fs::create_dir(&point).unwrap();
    let mounted =
        Command::new("mount").args(["-o", "loop,ro"]).arg(served.raw()).arg(&point).output().unwrap();
    if !mounted.status.success() {
        eprintln!("skipped: no loop mount here: {}", String::from_utf8_lossy(&mounted.stderr));
        return;
    }
    let same = Command::new("diff").arg("-r").arg("-x").arg("lost+found").args([&content, &point]).output();
    tools::must(Command::new("umount").arg(&point));
    let same = same.unwrap();
    assert!(same.status.success(), "{}", String::from_utf8_lossy(&same.stdout));
}
