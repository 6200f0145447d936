//! What `qemu-img` reads from an image, and what its own repair makes of a copy.

use std::path::Path;
use std::process::{Command, Output};

use crate::support::image::{Content, Model, TestImage};
use crate::support::tools;

/// Bytes of a cluster that are compared.
const COMPARED_BYTES: usize = 65_536;
/// Bytes of a disk that is read as a whole.
const DISK_BYTES_MAX: u64 = 1 << 34;
/// Seconds after which a tool is stopped.
const PATIENCE: &str = "300";
/// What it ends with then.
const STOPPED: i32 = 124;

/// What the clusters of one disk hold that were written with data.
pub struct Expected {
    /// Its snapshot; `None` is the active disk.
    snapshot: Option<String>,
    /// Offset in the disk, and the first bytes there.
    clusters: Vec<(u64, Vec<u8>)>,
}

/// What each disk of an image is to read as, the active one first. Nothing for disks of terabytes, which take
/// `qemu-img` minutes to read.
pub fn expected(image: &TestImage) -> Vec<Expected> {
    if image.virtual_bytes > DISK_BYTES_MAX {
        return Vec::new();
    }
    let of = |snapshot: Option<&String>, model: &Model| {
        let data = model.iter().filter(|(_, content)| matches!(content, Content::Data { .. }));
        let clusters = data.map(|(&index, _)| {
            let mut bytes = image.expected(model, index).expect("the index is the model's");
            bytes.truncate(COMPARED_BYTES);
            (index * image.cluster_bytes, bytes)
        });
        Expected { snapshot: snapshot.cloned(), clusters: clusters.collect() }
    };
    let snapshots = image.snapshots.iter().map(|(name, model)| of(Some(name), model));
    std::iter::once(of(None, &image.model)).chain(snapshots).collect()
}

fn qemu_img(arguments: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command.args([PATIENCE, "qemu-img"]).args(arguments);
    command
}

fn run(command: &mut Command) -> Output {
    let output = tools::run(command);
    assert_ne!(output.status.code(), Some(STOPPED), "{command:?} does not come to an end");
    output
}

/// How many clusters of each disk read right; none where the disk cannot be opened.
pub fn right(expected: &[Expected], arguments: &[String], folder: &Path) -> Vec<usize> {
    let raw = folder.join("rival.raw");
    let of = |disk: &Expected| {
        let mut command = qemu_img(&["convert", "--salvage", "-O", "raw"]);
        if let Some(name) = &disk.snapshot {
            command.args(["-l", &format!("snapshot.name={name}")]);
        }
        let converted = run(command.args(arguments).arg(&raw));
        if !converted.status.success() {
            return 0;
        }
        let file = std::fs::File::open(&raw).unwrap();
        let is_right = |(offset, bytes): &&(u64, Vec<u8>)| {
            let mut got = vec![0; bytes.len()];
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut got, *offset).is_ok() && got == *bytes
        };
        disk.clusters.iter().filter(is_right).count()
    };
    expected.iter().map(of).collect()
}

/// Exit code of `qemu-img check`.
pub fn check(arguments: &[String]) -> i32 {
    tools::code(&run(qemu_img(&["check"]).args(arguments)))
}

/// Runs `qemu-img check -r all`, whatever comes of it.
pub fn repair(arguments: &[String]) {
    tools::code(&run(qemu_img(&["check", "-r", "all"]).args(arguments)));
}
