//! `instar-mount`: check, heal if asked to, serve.
//!
//! Invariant: a mount comes about only for an image that was checked in a cage first, and is served from what a
//! resident cage names. Damage does not keep an image from being mounted, because a recovery needs what can still
//! be read; what would make wrong bytes look right does: an image of an unknown kind, one whose roots cannot be
//! found, and one that has a backing file which is not there.

mod background;
mod below;
mod disks;
mod error;
mod serve;
mod snapshots;

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use instar_abi::boot::JobKind;

pub use background::SERVER_OPTION;
use below::Below;
use disks::Disks;
pub use error::MountError;
use serve::Ending;
use snapshots::Snapshot;

use super::check::examine;
use super::inspect::Inspector;
use super::options::MountOptions;
use super::repair::Request;
use super::{log, say};
use crate::disk::{Disk, HealthCounts};
use crate::error::Error;
use crate::exit::Exit;
use crate::fuse::{Content, Document, MountPoint, Mounted, ROOT, Tree};
use crate::image::{ImageHandle, Mode};
use crate::report::{self, CheckReport, HumanOptions, Verdict, Watch};
use crate::sandbox::Resident;
use crate::sandbox::error::SandboxError;
use crate::sandbox::job::Job;

/// Memory for the extents of one disk.
const EXTENT_CACHE_BYTES: usize = 8 << 20;
/// Memory for inflated clusters, of all disks of one image together.
const UNPACKED_BYTES: usize = 24 << 20;
/// The folder of the snapshots' disks.
const SNAPSHOTS_FOLDER: &str = "snapshots";
/// Ending of a served disk's name.
const RAW_ENDING: &str = "raw";

/// The program.
///
/// # Errors
/// Why there is no mount, or why it ended badly.
pub fn run(options: &MountOptions) -> Result<Exit, Error> {
    if !options.foreground && !options.background_server {
        return Ok(background::call_server().map_err(MountError::Background)?);
    }
    if options.background_server {
        background::take_name().map_err(MountError::Background)?;
    }
    log::start(&options.log)?;
    let request = Request::of(&options.repair)?;
    let ending = Ending::catch().map_err(MountError::Signals)?;
    let image = Arc::new(ImageHandle::open(&options.image, Mode::Read)?);
    let point = MountPoint::check(&options.mountpoint, image.file().identity()).map_err(MountError::Point)?;
    let inspector = Inspector::new(&image, &options.cage, Watch::people(options.quiet))?;
    let examined = examine(&image, &inspector, &request, &options.state)?;
    let mut job = inspector.job(JobKind::Map);
    if let Some(overlay) = &examined.preview {
        job.image = overlay.clone();
    }
    let source = match start(&examined.report, &job, &inspector)? {
        Ok(source) => source,
        Err(exit) => return Ok(exit),
    };
    let below = Below::open(options, &image, &examined.report)?;
    let snapshots = match &point {
        MountPoint::File(_) => Vec::new(),
        MountPoint::Directory(_) => snapshots::find(&examined.report, &inspector)?,
    };
    let disks = Disks::new(&examined.report, &job, source, snapshots, below.disk.as_ref());
    let tree = tree(&point, &image, &examined.report, disks)?;
    let mounted = Mounted::new(tree, &point, &file_name(image.path()).to_string_lossy())
        .map_err(MountError::Session)?;
    if !options.quiet {
        say::to_person(&report::line(&examined.report, &served_path(&point, image.path())));
    }
    if options.background_server
        && let Err(error) = background::answer()
    {
        mounted.unmounter().unmount(true).map_err(MountError::Session)?;
        return Err(MountError::Background(error).into());
    }
    ending.serve(mounted).map_err(MountError::Session)?;
    Ok(Exit::Consistent)
}

/// Starts the resident cage. An image that cannot be served is told about, and its exit is the inner result.
fn start(report: &CheckReport, job: &Job, inspector: &Inspector) -> Result<Result<Resident, Exit>, Error> {
    if matches!(report.verdict(), Verdict::NotQcow2 | Verdict::Unsupported) {
        return refuse(report).map(Err);
    }
    match Resident::start(job, inspector.choice()) {
        Ok(source) => Ok(Ok(source)),
        Err(SandboxError::NotMappable { .. }) if report.verdict() != Verdict::Consistent => {
            refuse(report).map(Err)
        }
        Err(source) => Err(Error::Sandbox { image: report.image.clone(), source }),
    }
}

/// Says what was found in an image that cannot be mounted.
fn refuse(report: &CheckReport) -> Result<Exit, Error> {
    let mut text = Vec::new();
    report::write_check(report, HumanOptions::default(), &mut text).map_err(Error::Output)?;
    say::to_person(String::from_utf8_lossy(&text).trim_end());
    Ok(report.exit(false))
}

/// The names under the mount point.
fn tree(point: &MountPoint, image: &ImageHandle, report: &CheckReport, disks: Disks) -> Result<Tree, Error> {
    let disk = disks.active.clone();
    let allocated = report.summary.allocated_clusters.saturating_mul(report.cluster_bytes().unwrap_or(0));
    let content = Content::Disk { disk: disk.clone(), allocated_bytes: allocated };
    let mut tree = match point {
        MountPoint::File(_) => Tree::new(content),
        MountPoint::Directory(_) => {
            let report = serde_json::to_vec_pretty(&report::check_json(report)).map_err(Error::Json)?;
            let mut tree = Tree::new(Content::Directory);
            tree.add(ROOT, raw_name(image.path()), content);
            let folder = tree.add(ROOT, ".instar", Content::Directory);
            tree.add(folder, "report.json", Content::Document(Arc::new(report)));
            tree.add(folder, "health", Content::Document(Arc::new(HealthDocument(disks.all()))));
            add_snapshots(&mut tree, disks.snapshots);
            tree
        }
    };
    if let Ok(metadata) = std::fs::metadata(image.path()) {
        tree.file_mode = FILE_MODE | u16::try_from(metadata.mode() & 0o044).unwrap_or(0);
        let seconds = u64::try_from(metadata.mtime()).unwrap_or(0);
        tree.modified = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    }
    tree.uid = rustix::process::geteuid().as_raw();
    tree.gid = rustix::process::getegid().as_raw();
    Ok(tree)
}

/// `snapshots/<name>.raw`, where there are any.
fn add_snapshots(tree: &mut Tree, snapshots: Vec<(Snapshot, Arc<Disk>)>) {
    if snapshots.is_empty() {
        return;
    }
    let folder = tree.add(ROOT, SNAPSHOTS_FOLDER, Content::Directory);
    for (snapshot, disk) in snapshots {
        // How much of a snapshot is allocated is not counted; none at all would be taken for all zeros by some.
        let allocated_bytes = disk.size_bytes();
        tree.add(folder, snapshot.file_name, Content::Disk { disk, allocated_bytes });
    }
}

/// Readable for the user who mounted; for others if the image is.
const FILE_MODE: u16 = 0o400;

/// `.instar/health`.
#[derive(Debug)]
struct HealthDocument(Vec<Arc<Disk>>);

impl Document for HealthDocument {
    fn render(&self) -> Vec<u8> {
        let counts: HealthCounts = self.0.iter().map(|disk| disk.health().counts()).sum();
        let mut text = serde_json::to_vec_pretty(&counts).unwrap_or_else(|error| {
            tracing::error!(%error, "the counters cannot be put into JSON");
            Vec::new()
        });
        text.push(b'\n');
        text
    }
}

fn file_name(image: &Path) -> OsString {
    image.file_name().map_or_else(|| "disk".into(), ToOwned::to_owned)
}

/// The name of the served disk: the image's, with another ending.
fn raw_name(image: &Path) -> OsString {
    PathBuf::from(file_name(image)).with_extension(RAW_ENDING).into_os_string()
}

fn served_path(point: &MountPoint, image: &Path) -> PathBuf {
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
