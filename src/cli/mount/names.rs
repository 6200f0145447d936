//! The names under the mount point, and what the files there say of the image.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use super::disks::Disks;
use super::documents::{DamageMap, Health, Known, Metrics, Named, Watched};
use super::{RAW_ENDING, SNAPSHOTS_FOLDER};
use crate::disk::Disk;
use crate::error::Error;
use crate::fuse::{Content, MountPoint, ROOT, Transport, Tree};
use crate::image::ImageHandle;
use crate::report::{self, CheckReport};

/// Readable for the user who mounted; for others if the image is.
const FILE_MODE: u16 = 0o400;
/// Longest value of an attribute that names findings.
const FINDINGS_BYTES_MAX: usize = 4096;

/// What a mount shows.
#[derive(Debug)]
pub struct Shown<'a> {
    /// The image.
    pub image: &'a ImageHandle,
    /// What its check came to.
    pub report: &'a CheckReport,
    /// Its disks.
    pub disks: Disks,
    /// True if every image below it is without corruptions too.
    pub is_clean_below: bool,
}

impl Shown<'_> {
    /// The names under a mount point.
    ///
    /// # Errors
    /// [`Error::Json`].
    pub fn tree(self, point: &MountPoint) -> Result<Tree, Error> {
        let content = Content::Disk {
            disk: self.disks.active.clone(),
            // The check has counted that of the image itself.
            allocated_bytes: (!self.disks.has_below).then(|| allocated(self.report)),
        };
        let known = Known::new(self.image.path(), self.report);
        let attributes = attributes(self.report, &known);
        let metadata = std::fs::metadata(self.image.path());
        let mut tree = match point {
            MountPoint::File(_) => Tree::new(content),
            MountPoint::Directory(_) => self.folder(content, known)?,
        };
        tree.attributes = attributes;
        if let Ok(metadata) = metadata {
            tree.file_mode = FILE_MODE | u16::try_from(metadata.mode() & 0o044).unwrap_or(0);
            let seconds = u64::try_from(metadata.mtime()).unwrap_or(0);
            tree.modified = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        }
        tree.uid = rustix::process::geteuid().as_raw();
        tree.gid = rustix::process::getegid().as_raw();
        Ok(tree)
    }

    fn folder(self, active: Content, known: Known) -> Result<Tree, Error> {
        let json = serde_json::to_vec_pretty(&report::check_json(self.report)).map_err(Error::Json)?;
        let name = raw_name(self.image.path());
        let is_clean = self.is_clean_below && self.report.is_sound();
        let map = |disk: &Arc<Disk>| Content::Document(Arc::new(DamageMap::new(disk.clone(), is_clean)));
        let mut tree = Tree::new(Content::Directory);
        let transport = tree.transport.clone();
        let watched = watched(&self.disks, known, name.to_string_lossy().into_owned(), transport);
        tree.add(ROOT, name, active);
        let folder = tree.add(ROOT, ".instar", Content::Directory);
        tree.add(folder, "report.json", Content::Document(Arc::new(json)));
        tree.add(folder, "health", Content::Document(Arc::new(Health(watched.clone()))));
        tree.add(folder, "metrics", Content::Document(Arc::new(Metrics(watched))));
        tree.add(folder, "damage.map", map(&self.disks.active));
        if self.disks.snapshots.is_empty() {
            return Ok(tree);
        }
        let maps = tree.add(folder, SNAPSHOTS_FOLDER, Content::Directory);
        let disks = tree.add(ROOT, SNAPSHOTS_FOLDER, Content::Directory);
        for (snapshot, disk) in self.disks.snapshots {
            let name = Path::new(&snapshot.file_name).with_extension("map");
            tree.add(maps, name.into_os_string(), map(&disk));
            tree.add(disks, snapshot.file_name, Content::Disk { disk, allocated_bytes: None });
        }
        Ok(tree)
    }
}

fn allocated(report: &CheckReport) -> u64 {
    report.summary.allocated_clusters.saturating_mul(report.cluster_bytes().unwrap_or(0))
}

fn watched(disks: &Disks, known: Known, active: String, transport: Arc<OnceLock<Transport>>) -> Watched {
    let snapshots = disks.snapshots.iter().map(|(snapshot, disk)| Named {
        name: format!("{SNAPSHOTS_FOLDER}/{}", snapshot.file_name),
        disk: disk.clone(),
    });
    let active = Named { name: active, disk: disks.active.clone() };
    Watched {
        known,
        disks: std::iter::once(active).chain(snapshots).collect(),
        restarts: disks.restarts.clone(),
        unpackers: disks.unpackers.clone(),
        transport,
    }
}

/// What every file says of the image in its extended attributes.
fn attributes(report: &CheckReport, known: &Known) -> Vec<(OsString, Vec<u8>)> {
    let verdict = report::verdict_name(report.verdict());
    [
        ("user.instar.image", known.image.clone()),
        ("user.instar.verdict", verdict.to_owned()),
        ("user.instar.findings", findings(report)),
        ("user.instar.sandbox", report.sandbox.cage.name().to_owned()),
    ]
    .map(|(name, value)| (name.into(), value.into_bytes()))
    .into()
}

/// `problem=count`, separated by commas, in the order of the problem table.
fn findings(report: &CheckReport) -> String {
    let mut text = String::new();
    for row in report.tally.rows() {
        let comma = if text.is_empty() { "" } else { "," };
        let part = format!("{comma}{}={}", row.problem.row().id, row.items);
        if text.len() + part.len() > FINDINGS_BYTES_MAX {
            break;
        }
        write!(text, "{part}").unwrap_or_default();
    }
    text
}

/// The image's own name.
#[must_use]
pub fn file_name(image: &Path) -> OsString {
    image.file_name().map_or_else(|| "disk".into(), ToOwned::to_owned)
}

/// The name of the served disk: the image's, with another ending.
fn raw_name(image: &Path) -> OsString {
    PathBuf::from(file_name(image)).with_extension(RAW_ENDING).into_os_string()
}

/// Where the disk of `image` appears.
#[must_use]
pub fn served_path(point: &MountPoint, image: &Path) -> PathBuf {
    match point {
        MountPoint::File(path) => path.clone(),
        MountPoint::Directory(path) => path.join(raw_name(image)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn served_name_is_the_images_with_another_ending() {
        for (image, name) in [
            ("/a/img.qcow2", "img.raw"),
            ("/a/img", "img.raw"),
            ("/a/v1.2.qcow2", "v1.2.raw"),
            ("/a/.qcow2", ".qcow2.raw"),
        ] {
            assert_eq!(raw_name(Path::new(image)), name);
        }
    }
}
