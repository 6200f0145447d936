//! Compressed clusters through `instar-mount`, in both cages: the bytes that qemu reads, around damage too, and no
//! more memory for a bomb than for a cluster.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a failing helper fails its test; skips are printed"
)]

mod support;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use instar_abi::boot::JobKind;
use instar_mount::disk::Payload;
use instar_mount::image::ImageFile;
use instar_mount::sandbox::job::Job;
use instar_mount::sandbox::{Resident, SandboxChoice};
use support::program::cages;
use support::tools::{self, must};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_instar-mount");
/// Bytes of the disk; the last cluster is not whole.
const DISK_BYTES: usize = (6 << 20) + 512;

/// A raw disk that packs to about half, with a hole and a part that does not pack, and its compressed image.
struct Packed {
    folder: TempDir,
    image: PathBuf,
    expected: Vec<u8>,
    cluster_bytes: usize,
}

impl Packed {
    fn new(compression: &str, cluster_bytes: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut random = Random(7);
        let mut expected: Vec<u8> = (0..DISK_BYTES).map(|_| random.next().to_le_bytes()[3] & 0x0f).collect();
        expected[1 << 20..2 << 20].fill(0);
        expected[3 << 20..4 << 20].fill_with(|| random.next().to_le_bytes()[5]);
        let (raw, image) = (folder.path().join("raw"), folder.path().join("disk.qcow2"));
        fs::write(&raw, &expected).unwrap();
        let options = format!("compression_type={compression},cluster_size={cluster_bytes}");
        let convert = ["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", &options];
        must(tools::qemu_img(convert).arg(&raw).arg(&image));
        fs::create_dir(folder.path().join("mnt")).unwrap();
        Self { folder, image, expected, cluster_bytes }
    }

    fn mount(&self, cage: &str) -> Mount {
        let point = self.folder.path().join("mnt");
        let cage = format!("--sandbox={cage}");
        must(Command::new(PROGRAM).arg(cage).arg("--quiet").arg(&self.image).arg(&point));
        Mount { point }
    }

    /// File offset and length of the payload of guest cluster `index`, by the image's tables.
    fn payload(&self, index: usize) -> (u64, u64) {
        let file = File::open(&self.image).unwrap();
        let word = |at: u64| {
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes, at).unwrap();
            u64::from_be_bytes(bytes)
        };
        let l2 = word(word(40)) & 0x00ff_ffff_ffff_fe00;
        let entry = word(l2 + index as u64 * 8);
        assert_ne!(entry & 1 << 62, 0, "cluster {index} is not compressed");
        let shift = 62 - (self.cluster_bytes.trailing_zeros() - 8);
        let (offset, sectors) = (entry & ((1 << shift) - 1), (entry & !(3 << 62)) >> shift);
        (offset, (sectors + 1) * 512 - offset % 512)
    }

    fn overwrite(&self, index: usize, bytes: &[u8]) {
        let (offset, len) = self.payload(index);
        assert!(bytes.len() as u64 + 512 <= len, "the next payload would be hit");
        File::options().write(true).open(&self.image).unwrap().write_all_at(bytes, offset).unwrap();
    }

    /// Reads every cluster but `bad` and compares; reads of `bad` must fail with EIO.
    fn assert_all_but(&self, mount: &Mount, bad: usize, what: &str) {
        let file = File::open(mount.raw()).unwrap();
        for (index, expected) in self.expected.chunks(self.cluster_bytes).enumerate() {
            let mut got = vec![0xee; expected.len()];
            match file.read_exact_at(&mut got, (index * self.cluster_bytes) as u64) {
                Ok(()) => assert!(index != bad && got == expected, "{what}: cluster {index}"),
                Err(error) => {
                    assert_eq!((index, error.raw_os_error()), (bad, Some(libc::EIO)), "{what}");
                }
            }
        }
        let health = fs::read_to_string(mount.point.join(".instar/health")).unwrap();
        assert!(!health.contains("\"damaged-reads\": 0"), "{what}: {health}");
        assert!(health.contains("\"source-errors\": 0"), "{what}: {health}");
    }
}

/// Ends with its owner.
struct Mount {
    point: PathBuf,
}

impl Mount {
    fn raw(&self) -> PathBuf {
        self.point.join("disk.raw")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let ended = tools::run(Command::new("fusermount3").arg("-uz").arg(&self.point));
        assert!(std::thread::panicking() || ended.status.success());
    }
}

/// xorshift64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

fn assert_same(got: &[u8], expected: &[u8], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}: length");
    let differs = got.iter().zip(expected).position(|(got, expected)| got != expected);
    assert_eq!(differs, None, "{what}: first differing byte");
}

#[test]
fn compressed_image_reads_as_qemu_converts_it() {
    need!(tools::fuse(), tools::qemu());
    for (compression, cluster_bytes) in
        [("zlib", 512), ("zlib", 65_536), ("zlib", 2 << 20), ("zstd", 4096), ("zstd", 65_536)]
    {
        let packed = Packed::new(compression, cluster_bytes);
        let again = packed.folder.path().join("converted");
        must(tools::qemu_img(["convert", "-f", "qcow2", "-O", "raw"]).arg(&packed.image).arg(&again));
        for cage in cages() {
            let what = format!("{compression}, clusters of {cluster_bytes}, {cage}");
            let mount = packed.mount(cage);
            assert_same(&fs::read(mount.raw()).unwrap(), &fs::read(&again).unwrap(), &what);
        }
    }
}

#[test]
fn compressed_image_is_read_anywhere_by_many_at_once() {
    need!(tools::fuse(), tools::qemu());
    for compression in ["zlib", "zstd"] {
        let packed = Packed::new(compression, 65_536);
        let mount = packed.mount(cages()[0]);
        std::thread::scope(|scope| {
            for reader in 1..=8 {
                let (packed, mount) = (&packed, &mount);
                scope.spawn(move || read_anywhere(packed, mount, reader));
            }
        });
    }
}

fn read_anywhere(packed: &Packed, mount: &Mount, seed: u64) {
    let flags = if seed.is_multiple_of(2) { libc::O_DIRECT } else { 0 };
    let file = File::options().read(true).custom_flags(flags).open(mount.raw()).unwrap();
    let mut random = Random(seed);
    for _ in 0..100 {
        let len = usize::try_from(random.next() % 300_000).unwrap() + 1;
        let offset = usize::try_from(random.next() % (DISK_BYTES - len) as u64).unwrap();
        let mut got = vec![0xee; len];
        file.read_exact_at(&mut got, offset as u64).unwrap();
        assert_same(&got, &packed.expected[offset..offset + len], "anywhere");
    }
}

#[test]
fn part_of_a_cluster_that_is_read_leaves_all_of_it_in_the_page_cache() {
    need!(tools::fuse(), tools::qemu(), tools::program("fincore"));
    let packed = Packed::new("zlib", 65_536);
    let mount = packed.mount(cages()[0]);
    let file = File::open(mount.raw()).unwrap();
    // No readahead: what comes into the page cache besides the page that is read was put there by the server.
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
    let at = 5 * 65_536;
    file.read_exact_at(&mut [0; 4096], at as u64 + 8192).unwrap();
    let cached = || {
        let told = must(Command::new("fincore").args(["-b", "-n", "-o", "PAGES"]).arg(mount.raw()));
        tools::stdout(&told).trim().parse::<u64>().unwrap()
    };
    let began = Instant::now();
    while cached() < 16 && began.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(cached(), 16, "pages of one cluster");
    let mut got = vec![0xee; 65_536];
    file.read_exact_at(&mut got, at as u64).unwrap();
    assert_same(&got, &packed.expected[at..at + 65_536], "from the page cache");
}

#[test]
fn damaged_payload_costs_its_cluster_only() {
    need!(tools::fuse(), tools::qemu());
    for compression in ["zlib", "zstd"] {
        let packed = Packed::new(compression, 65_536);
        packed.overwrite(5, &[0xff; 64]);
        for cage in cages() {
            packed.assert_all_but(&packed.mount(cage), 5, &format!("{compression}, {cage}"));
        }
    }
}

#[test]
fn bomb_is_damage_and_costs_no_memory() {
    need!(tools::fuse(), tools::qemu());
    let packed = Packed::new("zstd", 65_536);
    // A frame of blocks that each are one byte 128 Ki times (RFC 8878, 3.1.1.2): 512 MiB in 16 KiB.
    let mut bomb = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x70];
    for block in 1..=4096_u32 {
        let header = u32::from(block == 4096) | 1 << 1 | (128 << 10) << 3;
        bomb.extend_from_slice(&header.to_le_bytes()[..3]);
        bomb.push(0x5a);
    }
    packed.overwrite(5, &bomb);
    for cage in cages() {
        let mount = packed.mount(cage);
        packed.assert_all_but(&mount, 5, cage);
        let most = peak_kib(&mount.point);
        assert!(most < 128 << 10, "{cage}: the server took {most} KiB");
    }
}

/// Most memory that the process that serves `point` ever had.
fn peak_kib(point: &Path) -> u64 {
    let point = point.as_os_str().as_encoded_bytes();
    let serves = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let has = |word: &[u8]| line.windows(word.len()).any(|part| part == word);
        has(b"--background-server") && has(point)
    };
    let pids =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let pid = { pids }.find(serves).expect("a process serves the mount");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn payloads_that_come_with_their_requests_cost_one_call_and_long_ones_two() {
    need!(tools::qemu());
    let (small, large) = (Packed::new("zstd", 65_536), Packed::new("zlib", 2 << 20));
    for cage in cages() {
        let choice = if cage == "kvm" { SandboxChoice::Kvm } else { SandboxChoice::Process };
        for (packed, calls) in [(&small, 1), (&large, 2)] {
            let file = Arc::new(ImageFile::open_read_only(&packed.image).unwrap());
            let mut resident = Resident::start(&Job::new(JobKind::Map, file), choice).unwrap();
            let (offset, len) = packed.payload(0);
            let payload = Payload { offset, len: u32::try_from(len).unwrap() };
            let cluster = packed.cluster_bytes;
            resident.inflate(&[payload], cluster as u64).unwrap();
            let before = resident.stats().exits;
            let clusters = resident.inflate(&[payload], cluster as u64).unwrap();
            assert_same(clusters[0].as_ref().unwrap(), &packed.expected[..cluster], cage);
            assert_eq!(resident.stats().exits - before, calls, "{cage}, clusters of {cluster}");
        }
    }
}
