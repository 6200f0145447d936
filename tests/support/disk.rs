//! A disk as guests have them: a boot sector, a partition table, a file system with a file in it.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::tools;

/// What is in `hello.txt` of the file system.
pub const HELLO: &str = "Saved from inside.\n";
/// What the boot sector writes to the serial port before it ends the machine.
pub const SERIAL_GREETING: &str = "booted\n";

const PARTITION_OFFSET: u64 = 1 << 20;
const PARTITION_BYTES: u64 = 16 << 20;
/// Where a BIOS loads the boot sector.
const BOOT_ADDRESS: u16 = 0x7c00;
/// Writes the string behind it to the first serial port, and 16 to port 0xf4, which ends a machine that has qemu's
/// `isa-debug-exit` there.
const BOOT_CODE: [u8; 28] = [
    0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0xbe, 0, 0, 0xba, 0xf8, 0x03, 0xac, 0x84, 0xc0, 0x74, 0x03, 0xee, 0xeb,
    0xf8, 0xba, 0xf4, 0x00, 0xb0, 0x10, 0xee, 0xf4, 0xeb, 0xfd,
];
/// Where the address of the string stands in it.
const BOOT_STRING_AT: usize = 6;

/// The disk, raw and in an image.
#[derive(Debug)]
pub struct Partitioned {
    folder: TempDir,
    /// Its bytes.
    pub raw: PathBuf,
    /// The image.
    pub image: PathBuf,
}

impl Partitioned {
    /// Whether the machine can make one.
    pub fn possible() -> Result<(), String> {
        tools::sbin_program("mkfs.ext4")?;
        tools::sbin_program("sfdisk")
    }

    /// Makes one.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (raw, image) = (folder.path().join("disk.raw"), folder.path().join("disk.qcow2"));
        make_raw(folder.path(), &raw);
        tools::must(tools::qemu_img(["convert", "-f", "raw", "-O", "qcow2"]).arg(&raw).arg(&image));
        Self { folder, raw, image }
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Fails if anything still holds the image.
    pub fn assert_free(&self) {
        tools::must(tools::qemu_io("qcow2", ["write -q 39M 64k"]).arg(&self.image));
    }
}

fn make_raw(folder: &Path, raw: &Path) {
    let (files, part) = (folder.join("files"), folder.join("part.raw"));
    fs::create_dir(&files).expect("a new folder");
    fs::write(files.join("hello.txt"), HELLO).expect("a new file");
    let make = "PATH=$PATH:/usr/sbin:/sbin; mkfs.ext4 -q -d \"$1\" \"$2\" \"$3\" && truncate -s 40M \"$4\" && \
                echo \"start=$5, size=$6, type=83\" | sfdisk -q \"$4\"";
    let mut command = Command::new("sh");
    command
        .args(["-c", make, "sh"])
        .args([&files, &part])
        .arg(format!("{}k", PARTITION_BYTES >> 10))
        .arg(raw);
    command.arg((PARTITION_OFFSET / 512).to_string()).arg((PARTITION_BYTES / 512).to_string());
    tools::must(&mut command);
    let disk = fs::File::options().write(true).open(raw).expect("the disk");
    let bytes = fs::read(&part).expect("the file system");
    disk.write_all_at(&bytes, PARTITION_OFFSET).expect("room for the file system");
    let mut boot = BOOT_CODE.to_vec();
    let string = BOOT_ADDRESS + u16::try_from(BOOT_CODE.len()).expect("a short program");
    boot[BOOT_STRING_AT..BOOT_STRING_AT + 2].copy_from_slice(&string.to_le_bytes());
    boot.extend_from_slice(SERIAL_GREETING.as_bytes());
    boot.push(0);
    disk.write_all_at(&boot, 0).expect("room for the boot sector");
}
