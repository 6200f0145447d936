//! Backing chains through `instar-mount`, against `qemu-img convert`.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a failing helper fails its test; skips are printed"
)]

mod support;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use support::mount::Mount;
use support::program::cages;
use support::raw::{COPIED, Raw};
use support::tools::{self, must};
use tempfile::TempDir;

/// A folder of images.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// An image of `size` over a file of the given format, if any, with these writes.
    fn image(&self, name: &str, size: &str, below: Option<(&str, &str)>, writes: &[&str]) -> PathBuf {
        let path = self.at(name);
        let mut create = tools::qemu_img(["create", "-q", "-f", "qcow2"]);
        if let Some((file, format)) = below {
            create.arg("-b").arg(self.at(file)).args(["-F", format]);
        }
        must(create.arg(&path).arg(size));
        write(&path, "qcow2", writes);
        path
    }

    fn raw(&self, name: &str, bytes: u64, writes: &[&str]) -> PathBuf {
        let path = self.at(name);
        fs::File::create(&path).unwrap().set_len(bytes).unwrap();
        write(&path, "raw", writes);
        path
    }

    /// A mount of the chain that all lies in this folder.
    fn mount(&self, image: &Path, cage: &str) -> Mount {
        Mount::new(image, [&format!("--sandbox={cage}"), &self.allow()])
    }

    fn allow(&self) -> String {
        format!("--allow-chain={}", self.0.path().display())
    }
}

fn write(path: &Path, format: &str, writes: &[&str]) {
    if !writes.is_empty() {
        must(tools::qemu_io(format, writes.iter().copied()).arg(path));
    }
}

/// What qemu reads from the image.
fn expected(folder: &Folder, image: &Path, snapshot: Option<&str>) -> Vec<u8> {
    let raw = folder.at("expected");
    let mut convert = tools::qemu_img(["convert", "-f", "qcow2", "-O", "raw"]);
    if let Some(snapshot) = snapshot {
        convert.args(["-l", snapshot]);
    }
    must(convert.arg(image).arg(&raw));
    fs::read(raw).unwrap()
}

fn assert_reads_like_qemu(folder: &Folder, image: &Path) {
    let expected = expected(folder, image, None);
    for cage in cages() {
        let mount = folder.mount(image, cage);
        assert!(fs::read(mount.raw()).unwrap() == expected, "{} in {cage}", image.display());
    }
}

#[test]
fn chain_of_two_reads_like_qemu_whatever_the_base_is() {
    need!(tools::fuse(), tools::qemu());
    let folder = Folder::new();
    let writes = ["write -q -P 1 64k 256k", "write -q -z 1M 64k", "write -q -P 2 2M 3k"];
    folder.image("plain", "4M", None, &["write -q -P 8 0 3M", "write -q -P 9 3500k 100k"]);
    folder.image("packed", "4M", None, &["write -q -c -P 8 0 64k", "write -q -c -P 9 2M 64k"]);
    folder.raw("raw", 4 << 20, &["write -q -P 7 100k 900k", "write -q -P 6 2000k 200k"]);
    for (base, format) in [("plain", "qcow2"), ("packed", "qcow2"), ("raw", "raw")] {
        let top = folder.image(&format!("over-{base}.qcow2"), "4M", Some((base, format)), &writes);
        assert_reads_like_qemu(&folder, &top);
    }
}

#[test]
fn chain_of_three_with_members_of_all_lengths_reads_like_qemu() {
    need!(tools::fuse(), tools::qemu());
    let folder = Folder::new();
    folder.raw("short", 1_500_672, &["write -q -P 7 0 1465k"]);
    folder.raw("long", 9 << 20, &["write -q -P 6 0 9M"]);
    for (base, middle) in [("short", "6M"), ("short", "1M"), ("long", "6M"), ("long", "3M")] {
        let name = format!("middle-{base}-{middle}");
        folder.image(&name, middle, Some((base, "raw")), &["write -q -c -P 3 512k 64k", "write -q -z 0 64k"]);
        for size in ["2M", "8M"] {
            let top = format!("{name}-{size}.qcow2");
            let top = folder.image(&top, size, Some((&name, "qcow2")), &["write -q -P 1 1M 70k"]);
            assert_reads_like_qemu(&folder, &top);
        }
    }
}

#[test]
fn snapshots_of_an_overlay_show_the_base_too() {
    need!(tools::fuse(), tools::qemu());
    let folder = Folder::new();
    folder.image("base", "4M", None, &["write -q -P 8 0 4M"]);
    let top = folder.image("top.qcow2", "4M", Some(("base", "qcow2")), &["write -q -P 1 1M 64k"]);
    must(tools::qemu_img(["snapshot", "-c", "early"]).arg(&top));
    write(&top, "qcow2", &["write -q -P 2 1M 1M"]);
    let expected = expected(&folder, &top, Some("early"));
    let mount = folder.mount(&top, cages()[0]);
    assert!(fs::read(mount.path("snapshots/early.raw")).unwrap() == expected);
}

#[test]
fn subclusters_of_an_overlay_show_the_base_between_them() {
    need!(tools::fuse(), tools::qemu());
    let folder = Folder::new();
    folder.image("base", "1M", None, &["write -q -P 8 0 1M"]);
    let top = folder.at("top.qcow2");
    let create = ["create", "-q", "-f", "qcow2", "-o", "extended_l2=on", "-F", "qcow2", "-b"];
    must(tools::qemu_img(create).arg(folder.at("base")).arg(&top));
    write(&top, "qcow2", &["write -q -P 1 2k 2k", "write -q -z 8k 2k", "write -q -P 3 128k 64k"]);
    assert_reads_like_qemu(&folder, &top);
}

#[test]
fn chain_without_leave_is_refused_and_named_files_are_served() {
    need!(tools::fuse(), tools::qemu());
    let folder = Folder::new();
    folder.raw("base", 1 << 20, &["write -q -P 7 0 1M"]);
    let top = folder.image("top.qcow2", "1M", Some(("base", "raw")), &[]);
    let refused = Mount::try_new(&top, ["--quiet"]).unwrap_err();
    assert_eq!(tools::code(&refused), 1);
    let said = tools::stderr(&refused);
    assert!(said.contains("--backing PATH") && said.contains("--allow-chain FOLDER"), "{said}");
    let mount = Mount::new(&top, [format!("--backing={}", folder.at("base").display())]);
    assert_eq!(fs::read(mount.raw()).unwrap(), vec![7; 1 << 20]);
}

#[test]
fn format_that_is_not_stated_is_never_probed() {
    need!(tools::fuse(), tools::qemu());
    let folder = Folder::new();
    folder.image("base", "1M", None, &["write -q -P 7 0 1M"]);
    // The base's bytes are those of an image: only the user's word says what they are here.
    let top = folder.image("top.qcow2", "1M", Some(("base", "qcow2")), &[]);
    must(tools::qemu_img(["rebase", "-q", "-u", "-f", "qcow2", "-b", ""]).arg(&top));
    let raw = Raw::open(&top);
    let name = folder.at("base");
    let name = name.as_os_str().as_encoded_bytes();
    raw.write(0x1000, name);
    raw.set(support::raw::field::BACKING_OFFSET, 0x1000);
    raw.set(support::raw::field::BACKING_SIZE, name.len() as u64);
    let refused = Mount::try_new(&top, [folder.allow()]).unwrap_err();
    let said = tools::stderr(&refused);
    assert!(said.contains("never guessed") && said.contains("--backing-format"), "{said}");
    let mount = Mount::new(&top, [&folder.allow(), "--backing-format=qcow2"]);
    assert_eq!(fs::read(mount.raw()).unwrap(), vec![7; 1 << 20]);
    drop(mount);
    let mount = Mount::new(&top, [&folder.allow(), "--backing-format=raw"]);
    let base = fs::read(folder.at("base")).unwrap();
    assert_eq!(fs::read(mount.raw()).unwrap()[..base.len().min(1 << 20)], base[..base.len().min(1 << 20)]);
}

#[test]
fn members_are_locked_as_long_as_the_mount_lives() {
    need!(tools::fuse(), tools::qemu());
    let folder = Folder::new();
    folder.raw("base", 1 << 20, &[]);
    folder.image("middle", "1M", Some(("base", "raw")), &[]);
    let top = folder.image("top.qcow2", "1M", Some(("middle", "qcow2")), &[]);
    let mount = folder.mount(&top, cages()[0]);
    for (name, format) in [("base", "raw"), ("middle", "qcow2"), ("top.qcow2", "qcow2")] {
        let output = tools::run(tools::qemu_io(format, ["write 0 512"]).arg(folder.at(name)));
        assert_ne!(tools::code(&output), 0, "{name} can be written under the mount");
    }
    drop(mount);
}

#[test]
fn damage_in_a_backing_file_costs_its_own_range_only() {
    need!(tools::fuse(), tools::qemu());
    let folder = Folder::new();
    let base = folder.image("base", "1M", None, &["write -q -P 8 0 1M"]);
    let top = folder.image("top.qcow2", "1M", Some(("base", "qcow2")), &["write -q -P 1 0 64k"]);
    let raw = Raw::open(&base);
    // The overlay hides the first damaged cluster.
    raw.set_number(raw.l2_entry(0), 8, 1 << 40 | COPIED);
    raw.set_number(raw.l2_entry(3), 8, 1 << 40 | COPIED);
    let mount = folder.mount(&top, cages()[0]);
    assert!(mount.said.contains("warning") && mount.said.contains("base"), "{}", mount.said);
    let disk = fs::File::open(mount.raw()).unwrap();
    let read = |cluster: u64| {
        let mut bytes = vec![0; 65_536];
        disk.read_exact_at(&mut bytes, cluster * 65_536).map(|()| bytes)
    };
    assert_eq!(read(0).unwrap(), [1; 65_536]);
    assert_eq!(read(3).unwrap_err().raw_os_error(), Some(libc::EIO));
    assert_eq!(read(4).unwrap(), [8; 65_536]);
}

#[test]
fn chain_that_bites_its_tail_is_refused() {
    need!(tools::fuse(), tools::qemu());
    let folder = Folder::new();
    let top = folder.image("top.qcow2", "1M", None, &[]);
    let middle = folder.at("middle.qcow2");
    let rebase = ["rebase", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b"];
    must(tools::qemu_img(rebase).arg(&middle).arg(&top));
    fs::copy(&top, &middle).unwrap();
    must(tools::qemu_img(rebase).arg(&top).arg(&middle));
    let refused = Mount::try_new(&top, [folder.allow()]).unwrap_err();
    let said = tools::stderr(&refused);
    assert!(said.contains("the chain has no end"), "{said}");
}
