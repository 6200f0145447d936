//! What `docs/semantics.md` promises, paragraph by paragraph.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a failing helper fails its test; skips are printed"
)]

mod support;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek as _};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use support::failing::FailingFile;
use support::mount::Mount;
use support::raw::{COPIED, Raw, field};
use support::scene::Scene;
use support::tools::{self, must};

const NO_OPTIONS: [&str; 0] = [];
const CLUSTER: u64 = 65_536;

/// 4 MiB: ones in clusters 0 to 3, zeros in 4, packed twos in 8, a snapshot of that, threes in 16 and 17.
fn scene() -> Scene {
    let scene = Scene::new("4M", "compat=1.1");
    scene.write(&["write -q -P 1 0 256k", "write -q -z 256k 64k", "write -q -c -P 2 512k 64k"]);
    scene.img(&["snapshot", "-c", "early"]);
    scene.resize("6M");
    scene.write(&["write -q -P 3 1M 128k"]);
    scene
}

/// The same with guest cluster 1 past the end of the file, and the payload of cluster 8 overwritten.
fn damaged_scene() -> Scene {
    let scene = scene();
    let raw = Raw::open(&scene.image);
    raw.set_number(raw.l2_entry(1), 8, 1 << 40 | COPIED);
    let payload = raw.number(raw.l2_entry(8), 8) & ((1 << 54) - 1);
    raw.write(payload, &[0xff; 16]);
    scene
}

fn read(path: &Path, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0xee; len];
    let got = File::open(path)?.read_at(&mut bytes, offset)?;
    bytes.truncate(got);
    Ok(bytes)
}

fn errno<T: std::fmt::Debug>(outcome: io::Result<T>) -> Option<i32> {
    outcome.unwrap_err().raw_os_error()
}

macro_rules! need_mounts {
    () => {
        need!(tools::fuse(), tools::qemu(), tools::program("fusermount3"));
    };
}

#[test]
fn sizes_are_those_of_the_disks() {
    need_mounts!();
    let scene = scene();
    let mount = scene.mount();
    assert_eq!(fs::metadata(mount.raw()).unwrap().len(), 6 << 20);
    assert_eq!(fs::metadata(mount.path("snapshots/early.raw")).unwrap().len(), 4 << 20);
}

#[test]
fn blocks_count_data_only() {
    need_mounts!();
    let scene = scene();
    let top = scene.path("top.qcow2");
    let create = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"];
    must(tools::qemu_img(create).arg(&scene.image).arg(&top));
    let mount = scene.mount();
    let blocks = |path: PathBuf| fs::metadata(path).unwrap().blocks();
    assert_eq!(blocks(mount.raw()), (4 + 1 + 2) * CLUSTER / 512);
    assert_eq!(blocks(mount.path("snapshots/early.raw")), (4 + 1) * CLUSTER / 512);
    let over = Mount::new(&top, [format!("--backing={}", scene.image.display())]);
    assert_eq!(blocks(over.raw()), (4 + 1 + 2) * CLUSTER / 512);
}

#[test]
fn seek_finds_data_and_holes_exactly() {
    need_mounts!();
    let scene = damaged_scene();
    let mount = scene.mount();
    let disk = File::open(mount.raw()).unwrap();
    let mut ends = Vec::new();
    let mut at = 0;
    while let Ok(data) = seek(&disk, SeekFrom::Data(at)) {
        at = seek(&disk, SeekFrom::Hole(data)).unwrap();
        ends.push((data / CLUSTER, at / CLUSTER));
    }
    assert_eq!(ends, [(0, 4), (8, 9), (16, 18)]);
    assert_eq!(seek(&disk, SeekFrom::Data(6 << 20)), Err(Errno::NXIO));
    assert_eq!(seek(&disk, SeekFrom::Hole(6 << 20)), Err(Errno::NXIO));
}

#[test]
fn reads_end_at_the_end_of_the_disk() {
    need_mounts!();
    let scene = scene();
    let mount = scene.mount();
    assert_eq!(read(&mount.raw(), (6 << 20) - 10, 100).unwrap(), [0; 10]);
    assert!(read(&mount.raw(), 6 << 20, 100).unwrap().is_empty());
    assert_eq!(File::open(mount.raw()).unwrap().seek(io::SeekFrom::End(0)).unwrap(), 6 << 20);
}

#[test]
fn writes_are_refused_as_on_a_read_only_file_system() {
    need_mounts!();
    let scene = scene();
    let mount = scene.mount();
    let (raw, new) = (mount.raw(), mount.path("new"));
    let read_only = Some(libc::EROFS);
    assert_eq!(errno(OpenOptions::new().write(true).open(&raw)), read_only);
    assert_eq!(errno(OpenOptions::new().read(true).write(true).open(&raw)), read_only);
    assert_eq!(errno(OpenOptions::new().write(true).truncate(true).open(&raw)), read_only);
    assert_eq!(errno(File::create(&new)), read_only);
    assert_eq!(errno(fs::remove_file(&raw)), read_only);
    assert_eq!(errno(fs::rename(&raw, &new)), read_only);
    assert_eq!(errno(fs::hard_link(&raw, &new)), read_only);
    assert_eq!(errno(std::os::unix::fs::symlink("x", &new)), read_only);
    assert_eq!(errno(fs::create_dir(&new)), read_only);
    assert_eq!(errno(fs::set_permissions(&raw, fs::Permissions::from_mode(0o777))), read_only);
    let flags = rustix::fs::XattrFlags::empty();
    let set = rustix::fs::setxattr(&raw, "user.instar.verdict", b"consistent", flags);
    assert_eq!(set, Err(Errno::ROFS));
    assert_eq!(rustix::fs::removexattr(&raw, "user.instar.verdict"), Err(Errno::ROFS));
}

/// All paths of a mount with their inode numbers.
fn inodes(folder: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.append(&mut inodes(&path));
        }
        let inode = fs::metadata(&path).unwrap().ino();
        found.push((path, inode));
    }
    found.sort();
    found
}

#[test]
fn inode_numbers_are_stable() {
    need_mounts!();
    let scene = scene();
    let numbers =
        |mount: &Mount| -> Vec<u64> { inodes(mount.point()).into_iter().map(|(_, inode)| inode).collect() };
    let mount = scene.mount();
    let first = numbers(&mount);
    assert_eq!(numbers(&mount), first);
    assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), first.len(), "each path has its own");
    drop(mount);
    assert_eq!(numbers(&scene.mount()), first);
}

fn attribute(path: &Path, name: &str) -> rustix::io::Result<String> {
    let mut value = [0; 256];
    let len = rustix::fs::getxattr(path, name, &mut value)?;
    Ok(String::from_utf8(value[..len].to_vec()).unwrap())
}

#[test]
fn attributes_tell_of_the_check() {
    need_mounts!();
    for (scene, verdict, findings) in
        [(scene(), "consistent", ""), (damaged_scene(), "corruptions", "l2-entry-past-eof=1")]
    {
        let mount = scene.mount();
        for path in [mount.point().to_owned(), mount.raw(), mount.path("snapshots/early.raw")] {
            assert_eq!(attribute(&path, "user.instar.verdict").unwrap(), verdict);
            assert!(attribute(&path, "user.instar.findings").unwrap().contains(findings));
            let image = scene.image.canonicalize().unwrap();
            assert_eq!(attribute(&path, "user.instar.image").unwrap(), image.to_str().unwrap());
            let cage = attribute(&path, "user.instar.sandbox").unwrap();
            assert!(["kvm", "process"].contains(&cage.as_str()), "{cage}");
            assert_eq!(attribute(&path, "user.other"), Err(Errno::NODATA));
            let mut names = [0; 256];
            let len = rustix::fs::listxattr(&path, &mut names).unwrap();
            assert_eq!(names[..len].iter().filter(|byte| **byte == 0).count(), 4);
        }
        let mut small = [0; 3];
        assert_eq!(rustix::fs::getxattr(mount.raw(), "user.instar.verdict", &mut small), Err(Errno::RANGE));
    }
}

#[test]
fn statfs_tells_the_size_of_all_disks() {
    need_mounts!();
    let scene = scene();
    let mount = scene.mount();
    let told = rustix::fs::statvfs(mount.point()).unwrap();
    assert_eq!(told.f_blocks * told.f_frsize, (6 + 4) << 20);
    assert_eq!((told.f_bfree, told.f_bavail), (0, 0));
}

#[test]
fn damage_is_an_error_or_zeros() {
    need_mounts!();
    let scene = damaged_scene();
    // Cluster 3 shares the place of cluster 2: both are read as stored.
    let raw = Raw::open(&scene.image);
    raw.set_number(raw.l2_entry(3), 8, raw.number(raw.l2_entry(2), 8));
    let mount = scene.mount();
    let cluster = usize::try_from(CLUSTER).unwrap();
    for damaged in [1, 8] {
        assert_eq!(errno(read(&mount.raw(), damaged * CLUSTER, cluster)), Some(libc::EIO));
    }
    for (index, byte) in [(0, 1), (2, 1), (3, 1), (4, 0), (7, 0), (9, 0), (16, 3)] {
        assert_eq!(read(&mount.raw(), index * CLUSTER, cluster).unwrap(), vec![byte; cluster], "{index}");
    }
    drop(mount);
    let mount = Mount::new(&scene.image, ["--on-damage=zero"]);
    assert!(mount.said.contains("lost read as zeros"), "{}", mount.said);
    let whole = fs::read(mount.raw()).unwrap();
    assert_eq!(whole.len(), 6 << 20);
    assert!(
        whole[cluster..2 * cluster].iter().chain(&whole[8 * cluster..9 * cluster]).all(|byte| *byte == 0)
    );
    assert!(whole[..cluster].iter().chain(&whole[2 * cluster..4 * cluster]).all(|byte| *byte == 1));
}

/// Start, length and status of each block of a mapfile.
fn blocks(map: &str) -> Vec<(u64, u64, String)> {
    let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap();
    let lines = map.lines().filter(|line| !line.starts_with('#')).skip(1);
    let block = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        (number(words[0]), number(words[1]), words[2].to_owned())
    };
    lines.map(block).collect()
}

#[test]
fn damage_map_covers_the_disk() {
    need_mounts!();
    let scene = damaged_scene();
    let mount = scene.mount();
    let (good, bad) = ("+".to_owned(), "-".to_owned());
    let before = blocks(&mount.document("damage.map"));
    let size = 6 << 20;
    let expected = [
        (0, CLUSTER, good.clone()),
        (CLUSTER, CLUSTER, bad.clone()),
        (2 * CLUSTER, size - 2 * CLUSTER, good.clone()),
    ];
    assert_eq!(before, expected);
    assert!(read(&mount.raw(), 8 * CLUSTER, 512).is_err());
    let after = blocks(&mount.document("damage.map"));
    assert_eq!(after[3], (8 * CLUSTER, CLUSTER, bad));
    assert_eq!(after[4], (9 * CLUSTER, size - 9 * CLUSTER, good));
    assert_eq!(
        blocks(&mount.document("snapshots/early.map")).iter().map(|block| block.1).sum::<u64>(),
        4 << 20
    );
}

#[test]
fn health_counts_what_went_wrong() {
    need_mounts!();
    let scene = damaged_scene();
    let mount = scene.mount();
    let before = mount.json("health");
    assert_eq!((before["healthy"].as_bool(), before["damaged-reads"].as_u64()), (Some(true), Some(0)));
    assert!(read(&mount.raw(), CLUSTER, 512).is_err());
    let after = mount.json("health");
    let counted = after["damaged-reads"].as_u64().unwrap();
    assert!(after["healthy"] == false && counted > 0, "{after}");
    assert_eq!(after["disks"][0]["name"], "disk.raw");
    assert_eq!(after["disks"][0]["damaged-reads"], counted);
    assert_eq!(after["disks"][1]["damaged-reads"], 0);
    let metrics = mount.document("metrics");
    assert!(metrics.contains("# TYPE instar_damaged_reads_total counter"), "{metrics}");
    let line = format!("instar_damaged_reads_total{{disk=\"disk.raw\"}} {counted}");
    assert!(metrics.lines().any(|found| found == line), "{metrics}");
}

/// The guest's clusters of an image with clusters of 512 bytes, all ones, that can be read.
fn readable(mount: &Mount, clusters: std::ops::Range<u64>) -> Vec<u64> {
    let is_read = |at: &u64| match read(&mount.raw(), at * 512, 512) {
        Ok(bytes) => {
            assert_eq!(bytes, [1; 512], "{at}");
            true
        }
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(libc::EIO), "{at}");
            false
        }
    };
    clusters.filter(is_read).collect()
}

#[test]
fn damage_smaller_than_a_page_costs_nothing_else() {
    need_mounts!();
    let scene = Scene::new("1M", "cluster_size=512");
    scene.write(&["write -q -P 1 0 512k"]);
    let raw = Raw::open(&scene.image);
    for damaged in [3, 12, 13] {
        raw.set_number(raw.l2_entry(damaged), 8, 1 << 40 | COPIED);
    }
    let mount = scene.mount();
    assert_eq!(
        readable(&mount, 0..24),
        [0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23]
    );
    // A read across the damage gives what is before it.
    assert_eq!(read(&mount.raw(), 0, 16 << 10).unwrap(), [1; 3 * 512]);
    assert_eq!(mapped_from(&mount.raw(), 64 << 10)[..4096], [1; 4096]);
}

#[test]
fn what_is_left_out_is_damaged() {
    need_mounts!();
    let scene = Scene::new("4M", "compat=1.1");
    let top = scene.path("top.qcow2");
    scene.write(&["write -q -P 1 0 4M"]);
    must(tools::qemu_img(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"]).arg(&scene.image).arg(&top));
    must(tools::qemu_io("qcow2", ["write -q -P 2 64k 64k", "write -q -z 128k 64k"]).arg(&top));
    fs::remove_file(&scene.image).unwrap();
    let cluster = usize::try_from(CLUSTER).unwrap();
    let mount = Mount::new(&top, ["--backing=none"]);
    assert!(mount.said.contains("its backing file is left out"), "{}", mount.said);
    assert_eq!(errno(read(&mount.raw(), 0, cluster)), Some(libc::EIO));
    assert_eq!(read(&mount.raw(), CLUSTER, cluster).unwrap(), vec![2; cluster]);
    assert_eq!(read(&mount.raw(), 2 * CLUSTER, cluster).unwrap(), vec![0; cluster]);
    let map = blocks(&mount.document("damage.map"));
    let statuses: Vec<(u64, &str)> = map.iter().map(|block| (block.0 / CLUSTER, block.2.as_str())).collect();
    assert_eq!(statuses, [(0, "-"), (1, "+"), (3, "-")]);
    drop(mount);
    let mount = Mount::new(&top, ["--backing=none", "--on-damage=zero"]);
    assert_eq!(read(&mount.raw(), 0, cluster).unwrap(), vec![0; cluster]);
    assert!(mount.json("health")["damaged-reads"].as_u64().unwrap() > 0);
}

#[test]
fn snapshots_are_served_without_the_active_disk() {
    need_mounts!();
    let scene = scene();
    Raw::open(&scene.image).set(field::L1_OFFSET, 1 << 40);
    let mount = scene.mount();
    assert_eq!(errno(read(&mount.raw(), 0, 512)), Some(libc::EIO));
    assert_eq!(read(&mount.path("snapshots/early.raw"), 8 * CLUSTER, 512).unwrap(), [2; 512]);
    assert_eq!(blocks(&mount.document("damage.map")), [(0, 6 << 20, "-".to_owned())]);
}

#[test]
fn header_that_contradicts_itself_is_not_served() {
    need_mounts!();
    for (size, number, value) in [("1536M", field::CLUSTER_BITS, 15), ("1536M", field::INCOMPATIBLE, 16)] {
        let scene = Scene::new(size, "compat=1.1");
        scene.write(&["write -q -P 1 0 1M"]);
        Raw::open(&scene.image).set(number, value);
        let refused = Mount::try_new(&scene.image, NO_OPTIONS).unwrap_err();
        assert_eq!(tools::code(&refused), 2);
        assert!(tools::stderr(&refused).contains("l1_size stored 3"), "{}", tools::stderr(&refused));
    }
    let scene = Scene::new("16M", "extended_l2=on");
    scene.write(&["write -q -P 1 0 1M", "write -q -P 2 2M 2k", "write -q -z 3M 4k", "write -q -P 3 4M 30k"]);
    Raw::open(&scene.image).set(field::INCOMPATIBLE, 0);
    let refused = Mount::try_new(&scene.image, NO_OPTIONS).unwrap_err();
    assert_eq!(tools::code(&refused), 2);
    assert!(tools::stderr(&refused).contains("header-extended-l2-flag"), "{}", tools::stderr(&refused));
}

#[test]
fn image_that_is_replaced_is_served_as_it_was() {
    need_mounts!();
    let scene = scene();
    let other = Scene::new("1M", "compat=1.1");
    let mount = scene.mount();
    fs::copy(&other.image, scene.path("other")).unwrap();
    fs::rename(scene.path("other"), &scene.image).unwrap();
    assert_eq!(read(&mount.raw(), 16 * CLUSTER, 512).unwrap(), [3; 512]);
    assert_eq!(read(&mount.path("snapshots/early.raw"), 8 * CLUSTER, 512).unwrap(), [2; 512]);
    assert_eq!(mount.json("health")["healthy"], true);
    drop(mount);
    assert_eq!(fs::metadata(scene.mount().raw()).unwrap().len(), 1 << 20);
}

#[test]
fn storage_that_fails_gives_errors_and_is_told_of() {
    need_mounts!();
    need!(tools::root());
    let scene = scene();
    let raw = Raw::open(&scene.image);
    let storage = FailingFile::copy_of(&scene.image);
    let mount = Mount::new(&storage.path(), NO_OPTIONS);
    assert_eq!(read(&mount.raw(), 0, 512).unwrap(), [1; 512]);
    let place = raw.host_offset(2);
    storage.fail(place..place + CLUSTER);
    assert_eq!(errno(read(&mount.raw(), 2 * CLUSTER, 512)), Some(libc::EIO));
    assert_eq!(read(&mount.raw(), 3 * CLUSTER, 512).unwrap(), [1; 512]);
    // Compressed clusters are read by the cage.
    let payload = raw.number(raw.l2_entry(8), 8) & ((1 << 54) - 1);
    storage.fail(payload..payload + 512);
    assert_eq!(errno(read(&mount.raw(), 8 * CLUSTER, 512)), Some(libc::EIO));
    assert_eq!(read(&mount.raw(), 16 * CLUSTER, 512).unwrap(), [3; 512]);
    let health = mount.json("health");
    assert!(health["io-errors"].as_u64().unwrap() >= 2 && health["source-errors"] == 0, "{health}");
    let map = blocks(&mount.document("damage.map"));
    let bad: Vec<u64> = map.iter().filter(|block| block.2 == "-").map(|block| block.0 / CLUSTER).collect();
    assert_eq!(bad, [2, 8]);
    storage.fail(0..0);
    assert_eq!(read(&mount.raw(), 2 * CLUSTER, 512).unwrap(), [1; 512], "storage that is back is used");
    assert_eq!(read(&mount.raw(), 8 * CLUSTER, 512).unwrap(), [2; 512]);
}

#[test]
fn image_that_shrinks_gives_errors_and_not_a_crash() {
    need_mounts!();
    let scene = scene();
    let mount = scene.mount();
    assert_eq!(read(&mount.raw(), 0, 512).unwrap(), [1; 512]);
    OpenOptions::new().write(true).open(&scene.image).unwrap().set_len(CLUSTER).unwrap();
    for offset in [16 * CLUSTER, 8 * CLUSTER, 2 * CLUSTER] {
        assert_eq!(errno(read(&mount.raw(), offset, 512)), Some(libc::EIO), "{offset:#x}");
    }
    // The map of the snapshot was never read, and is gone too.
    assert_eq!(errno(read(&mount.path("snapshots/early.raw"), 0, 512)), Some(libc::EIO));
    let health = mount.json("health");
    assert!(health["healthy"] == false && health["io-errors"].as_u64().unwrap() > 0, "{health}");
    assert_eq!(fs::metadata(mount.raw()).unwrap().len(), 6 << 20);
}

#[test]
fn mapped_and_direct_reads_see_the_same() {
    need_mounts!();
    let scene = scene();
    let mount = scene.mount();
    let plain = fs::read(mount.raw()).unwrap();
    // dd reads in blocks of 1 MiB past the page cache; cmp and grep map what they compare.
    let direct = tools::run(Command::new("dd").arg(format!("if={}", mount.raw().display())).args([
        "iflag=direct",
        "bs=1M",
        "status=none",
    ]));
    assert!(direct.status.success() && direct.stdout == plain, "{}", tools::stderr(&direct));
    let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(mount.raw()).unwrap();
    drop(file);
    assert_eq!(mapped(&mount.raw()), plain);
}

fn mapped(path: &Path) -> Vec<u8> {
    mapped_from(path, 0)
}

/// The file's bytes from `offset` on through a mapping, which python makes: this test program has no unsafe code.
fn mapped_from(path: &Path, offset: u64) -> Vec<u8> {
    let program = "import mmap,sys; f=open(sys.argv[1],'rb'); o=int(sys.argv[2]); \
                   sys.stdout.buffer.write(mmap.mmap(f.fileno(),0,prot=mmap.PROT_READ,offset=o)[:])";
    let offset = offset.to_string();
    let arguments = [OsStr::new("-c"), OsStr::new(program), path.as_os_str(), OsStr::new(&offset)];
    must(Command::new("python3").args(arguments)).stdout
}

/// Processes that are confined as cages are, and whose parent serves `point`.
fn cages_of(point: &Path) -> Vec<Pid> {
    let point = point.as_os_str().as_encoded_bytes();
    let serves = |pid: &str| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.windows(point.len()).any(|part| part == point)
    };
    let is_cage = |pid: &String| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.map(|value| value.trim().to_owned()).unwrap_or_default()
        };
        field("Seccomp:") == "2" && serves(&field("PPid:"))
    };
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().into_string().ok()).filter(is_cage);
    pids.filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
}

#[test]
fn cage_that_dies_is_started_anew() {
    need_mounts!();
    let scene = scene();
    let mount = Mount::new(&scene.image, ["--sandbox=process"]);
    let cages = cages_of(mount.point());
    assert_eq!(cages.len(), 1, "{cages:?}");
    kill_process(cages[0], Signal::KILL).unwrap();
    assert_eq!(read(&mount.raw(), 8 * CLUSTER, 512).unwrap(), [2; 512]);
    let health = mount.json("health");
    assert_eq!((health["cage-restarts"].as_u64(), health["source-errors"].as_u64()), (Some(1), Some(0)));
    assert!(mount.document("metrics").contains("\ninstar_cage_restarts_total 1\n"));
}

/// Bytes from a pattern that no two clusters share.
fn pattern(bytes: u64) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[2] & 0x1f
    };
    (0..bytes).map(|_| next()).collect()
}

/// An image of this disk in the smallest clusters, of which no two neighbours lie side by side in the file.
fn in_pieces(disk: &[u8], folder: &Path) -> PathBuf {
    const SMALL: usize = 512;
    let [full, odd, image, top] =
        ["full.raw", "odd.raw", "pieces.qcow2", "top.qcow2"].map(|n| folder.join(n));
    fs::write(&full, disk).unwrap();
    let mut half = disk.to_vec();
    half.chunks_mut(SMALL).step_by(2).for_each(|cluster| cluster.fill(0));
    fs::write(&odd, half).unwrap();
    let convert = ["convert", "-S", "512", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=512"];
    must(tools::qemu_img(convert).arg(&odd).arg(&image));
    must(tools::qemu_img(convert).arg("-B").arg(&image).args(["-F", "qcow2"]).arg(&full).arg(&top));
    must(tools::qemu_img(["commit", "-q", "-f", "qcow2"]).arg(&top));
    image
}

/// Reads all of a disk past the page cache, in parts that do not end with clusters.
fn read_direct(path: &Path, expected: &[u8]) {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
    let mut bytes = vec![0; 96 << 10];
    for (index, part) in expected.chunks(bytes.len()).enumerate() {
        file.read_exact_at(&mut bytes[..part.len()], (index * (96 << 10)) as u64).unwrap();
        assert!(bytes[..part.len()] == *part, "part {index}");
    }
}

#[test]
fn caches_stay_within_their_size() {
    need_mounts!();
    let folder = tempfile::tempdir().unwrap();
    let disk = pattern(32 << 20);
    let pieces = in_pieces(&disk, folder.path());
    let packed = folder.path().join("packed.qcow2");
    let convert = ["convert", "-c", "-f", "raw", "-O", "qcow2"];
    must(tools::qemu_img(convert).arg(folder.path().join("full.raw")).arg(&packed));
    // A part of extents, or a batch of clusters, comes on top of what is kept.
    for (image, most, part) in [(&pieces, 1_u64 << 20, 200_u64 << 10), (&packed, 3 << 20, 1 << 20)] {
        let figures = |size: &str| {
            let mount = Mount::new(image, ["--quiet", size]);
            read_direct(&mount.raw(), &disk);
            read_direct(&mount.raw(), &disk);
            let health = mount.json("health");
            assert_eq!(health["healthy"], true, "{health}");
            let cache = if image == &pieces { &health["disks"][0]["extents"] } else { &health["inflated"] };
            ["bytes", "added", "dropped"].map(|figure| cache[figure].as_u64().unwrap())
        };
        let [bytes, added, dropped] = figures("--cache-size=4M");
        assert!(bytes <= most + part && dropped > 0 && added > dropped, "{bytes} {added} {dropped}");
        let [bytes, once, dropped] = figures("--cache-size=64M");
        assert!(bytes > most + part && dropped == 0 && once < added, "{bytes} {once} {dropped}");
    }
}

#[test]
fn idle_mount_gives_inflated_clusters_back() {
    need_mounts!();
    let scene = scene();
    let mount = scene.mount();
    let kept = || mount.json("health")["inflated"]["bytes"].as_u64().unwrap();
    assert_eq!(read(&mount.raw(), 8 * CLUSTER, 512).unwrap(), [2; 512]);
    assert!(kept() >= CLUSTER);
    let began = Instant::now();
    while kept() > 0 {
        assert!(began.elapsed() < Duration::from_secs(60), "{} bytes are kept", kept());
        std::thread::sleep(Duration::from_secs(1));
    }
}

#[test]
fn every_paragraph_has_a_test_of_its_name() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = fs::read_to_string(folder.join("docs/semantics.md")).unwrap();
    let tests = fs::read_to_string(folder.join("tests/semantics.rs")).unwrap();
    let titles: Vec<&str> = document.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    assert!(titles.len() > 10);
    for title in titles {
        assert!(tests.contains(&format!("#[test]\nfn {title}()")), "no test called {title}");
    }
}
