//! An image in a folder of its own, written to by the real tools, and mounted.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::mount::Mount;
use super::tools::{self, must};

/// See the module's documentation.
#[derive(Debug)]
pub struct Scene {
    folder: TempDir,
    /// The image.
    pub image: PathBuf,
}

impl Scene {
    /// An empty image of this size, with options of qemu-img's `create -o`. Needs [`tools::qemu`].
    pub fn new(size: &str, options: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let image = folder.path().join("disk.qcow2");
        let create = ["create", "-q", "-f", "qcow2", "-o", options];
        must(tools::qemu_img(create).arg(&image).arg(size));
        Self { folder, image }
    }

    /// A path beside the image.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The folder of the image.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Commands of qemu-io.
    pub fn write(&self, commands: &[&str]) {
        must(tools::qemu_io("qcow2", commands.iter().copied()).arg(&self.image));
    }

    /// A command of qemu-img whose last argument is the image.
    pub fn img(&self, arguments: &[&str]) {
        must(tools::qemu_img(arguments).arg(&self.image));
    }

    /// Gives the disk another size.
    pub fn resize(&self, size: &str) {
        must(tools::qemu_img(["resize", "-q"]).arg(&self.image).arg(size));
    }

    /// What qemu reads: from the active disk, or from a snapshot, which it gives the size that the disk has now.
    pub fn expected(&self, snapshot: Option<&str>) -> Vec<u8> {
        let raw = self.path("expected.raw");
        let mut convert = tools::qemu_img(["convert", "-U", "-f", "qcow2", "-O", "raw"]);
        if let Some(snapshot) = snapshot {
            convert.args(["-l", snapshot]);
        }
        must(convert.arg(&self.image).arg(&raw));
        fs::read(raw).expect("qemu-img has just written it")
    }

    /// The mounted image.
    pub fn mount(&self) -> Mount {
        Mount::new(&self.image, ["--quiet"])
    }

    /// The image, mounted in this cage.
    pub fn mount_in(&self, cage: &str) -> Mount {
        Mount::new(&self.image, ["--quiet", &format!("--sandbox={cage}")])
    }
}
