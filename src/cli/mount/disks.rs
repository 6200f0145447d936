//! The disks of one image, the active one and its snapshots.

use std::sync::Arc;

use instar_abi::finding::ACTIVE;
use parking_lot::Mutex;

use super::snapshots::Snapshot;
use super::{EXTENT_CACHE_BYTES, UNPACKED_BYTES};
use crate::disk::{Disk, DiskFiles, SharedSource, Unpacker};
use crate::report::CheckReport;
use crate::sandbox::Resident;
use crate::sandbox::job::Job;

/// All disks of one image. They share the cage, the inflated clusters and what lies below.
#[derive(Debug)]
pub struct Disks {
    /// The active disk.
    pub active: Arc<Disk>,
    /// The snapshots that are served.
    pub snapshots: Vec<(Snapshot, Arc<Disk>)>,
}

impl Disks {
    /// The disks of a checked image, over the disk `below` it.
    #[must_use]
    pub fn new(
        report: &CheckReport,
        job: &Job,
        source: Resident,
        snapshots: Vec<Snapshot>,
        below: Option<&Arc<Disk>>,
    ) -> Self {
        let summary = &report.summary;
        let files: DiskFiles = [Some(job.image.clone()), job.data_file.clone(), None, None];
        let source: SharedSource = Arc::new(Mutex::new(Box::new(source)));
        let cluster_bytes = report.cluster_bytes().unwrap_or(0);
        let unpacker = Arc::new(Unpacker::new(vec![source.clone()], cluster_bytes, UNPACKED_BYTES));
        let disk = |snapshot, size_bytes, cache_bytes| {
            let (files, source) = (files.clone(), source.clone());
            let disk = Disk::new(files, source, snapshot, size_bytes, summary.cluster_bits, cache_bytes);
            Arc::new(disk.with_unpacker(unpacker.clone()).over(below.cloned()))
        };
        let share_bytes = EXTENT_CACHE_BYTES / snapshots.len().max(1);
        let with_disk = |snapshot: Snapshot| {
            let of_snapshot = disk(snapshot.index, snapshot.disk_bytes, share_bytes);
            (snapshot, of_snapshot)
        };
        Self {
            active: disk(ACTIVE, summary.virtual_size, EXTENT_CACHE_BYTES),
            snapshots: snapshots.into_iter().map(with_disk).collect(),
        }
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Disk>> {
        let snapshots = self.snapshots.iter().map(|(_, disk)| disk);
        std::iter::once(&self.active).chain(snapshots).cloned().collect()
    }
}
