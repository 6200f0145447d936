//! The disks of one image, the active one and its snapshots.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use instar_abi::finding::ACTIVE;

use super::Sources;
use super::below::Below;
use super::snapshots::Snapshot;
use crate::cli::cache::CacheMemory;
use crate::disk::{Backing, Disk, DiskFiles, OnDamage, Unpacker};
use crate::report::CheckReport;
use crate::sandbox::job::Job;

/// All disks of one image. They share the cage, the inflated clusters and what lies below.
#[derive(Debug)]
pub struct Disks {
    /// The active disk.
    pub active: Arc<Disk>,
    /// The snapshots that are served.
    pub snapshots: Vec<(Snapshot, Arc<Disk>)>,
    /// They lie over other disks.
    pub has_below: bool,
    /// How often each resident cage was started anew.
    pub restarts: Vec<Arc<AtomicU64>>,
    /// The inflated clusters of the image, and those of the members below it.
    pub unpackers: Vec<Arc<Unpacker>>,
}

impl Disks {
    /// The disks of a checked image, over the ones `below` it, with `memory` for what is kept of them. Half of it is
    /// the active disk's where there are snapshots.
    #[must_use]
    pub fn new(
        report: &CheckReport,
        job: &Job,
        sources: Sources,
        snapshots: Vec<Snapshot>,
        below: &Below,
        on_damage: OnDamage,
        memory: CacheMemory,
    ) -> Self {
        let summary = &report.summary;
        let files: DiskFiles = [Some(job.image.clone()), job.data_file.clone(), None, None];
        let restarts = below.restarts.iter().cloned().chain(sources.restarts).collect();
        let source = sources.all[0].clone();
        let cluster_bytes = report.cluster_bytes().unwrap_or(0);
        let unpacker = Arc::new(Unpacker::new(sources.all, cluster_bytes, memory.inflated_bytes));
        let unpackers = std::iter::once(unpacker.clone()).chain(below.unpackers.iter().cloned()).collect();
        let disk = |snapshot, size_bytes, cache_bytes| {
            let (files, source) = (files.clone(), source.clone());
            let disk = Disk::new(files, source, snapshot, size_bytes, summary.cluster_bits, cache_bytes);
            let disk = disk.with_unpacker(unpacker.clone()).made_of(report.unit_bytes(), !report.is_sound());
            Arc::new(disk.over(below.backing.clone()).on_damage(on_damage))
        };
        let share = memory.part(if snapshots.is_empty() { 1 } else { 2 });
        let share_bytes = share.part(snapshots.len()).extents_bytes;
        let with_disk = |snapshot: Snapshot| {
            let of_snapshot = disk(snapshot.index, snapshot.disk_bytes, share_bytes);
            (snapshot, of_snapshot)
        };
        Self {
            active: disk(ACTIVE, summary.virtual_size, share.extents_bytes),
            snapshots: snapshots.into_iter().map(with_disk).collect(),
            has_below: !matches!(below.backing, Backing::None),
            restarts,
            unpackers,
        }
    }
}
