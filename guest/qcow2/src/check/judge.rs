//! The second look, at damaged images only: with every count known, each user of a cluster that is used as two
//! things is named, and every COPIED flag of the active disk is judged.

use alloc::collections::BTreeSet;
use core::ops::Range;

use instar_abi::finding::{ACTIVE, Finding, NONE, Owner, Table};
use instar_abi::problem::Problem;

use super::bitmaps;
use super::compare::{block_offset, table_entry_offset};
use super::counts::{Chunk, Counts, Usage, flags};
use super::leaks::ClusterSet;
use super::reader::{Bytes, Reader};
use super::report::Report;
use super::roots::{Disk, Image, Region, Roots};
use super::tally::entry_finding;
use super::walk::{TableRef, Visitor};
use crate::host::Host;
use crate::ondisk::Fault;
use crate::ondisk::l1::L1Entry;
use crate::ondisk::l2::{L2Entry, Mapping};
use crate::ondisk::units::Position;

/// Whether any cluster of the window calls for a second look.
#[must_use]
pub fn has_suspects(counts: &Counts) -> bool {
    counts.used_chunks().any(|(clusters, chunk)| match chunk {
        Chunk::Wide(wide) => clusters.enumerate().any(|(slot, _)| {
            let usage = wide.usage(slot);
            usage.is_overlap() || usage.is_copied_wrong()
        }),
        Chunk::Empty | Chunk::Narrow(_) => false,
    })
}

/// What is known of clusters' users. Nobody asks of a cluster that is not used, or not known, more than that.
pub trait Usages {
    /// Count and flags of a cluster.
    fn usage(&self, cluster: u64) -> Usage;

    /// The first cluster of a range that is used as what only one can use it as.
    fn first_overlap(&self, clusters: Range<u64>) -> Option<(u64, Usage)>;

    /// Whether the cluster's stored count is wrong: that COPIED is clear there follows from it.
    fn is_mismatched(&self, cluster: u64) -> bool;
}

/// The counts of one window, and its clusters in use whose stored count is wrong.
#[derive(Debug)]
pub struct Window<'a>(pub &'a Counts, pub &'a ClusterSet);

impl Usages for Window<'_> {
    fn usage(&self, cluster: u64) -> Usage {
        self.0.usage(cluster)
    }

    fn first_overlap(&self, clusters: Range<u64>) -> Option<(u64, Usage)> {
        self.0.first_overlap(clusters)
    }

    fn is_mismatched(&self, cluster: u64) -> bool {
        self.1.contains(cluster)
    }
}

/// Judges entries by the usage of their clusters.
pub struct Judge<'a> {
    /// The image.
    pub image: &'a Image,
    /// What is known of its clusters.
    pub usages: &'a dyn Usages,
    /// Places in [`Roots::regions`] of those that were told of: one that lies in several windows is told of once.
    pub told: &'a mut BTreeSet<usize>,
    /// Takes the indices of refcount blocks that are something else too.
    pub shared_blocks: &'a mut ClusterSet,
}

impl Judge<'_> {
    fn usage(&self, offset: u64) -> Usage {
        self.usages.usage(self.image.header.cluster.index(offset))
    }

    /// Whether COPIED should be set on the entry that maps to this cluster, and is not, by no fault of the
    /// stored count.
    fn is_copied_missing(&self, offset: u64, usage: Usage) -> bool {
        usage.count == 1 && !self.usages.is_mismatched(self.image.header.cluster.index(offset))
    }

    /// An owner of a cluster, by the entry that makes it one. The finding's number is filled in by the report.
    fn own(&self, report: &mut Report, offset: u64, table: Table, snapshot: u32, entry: u64, guest: u64) {
        let (cluster, table) = (self.image.header.cluster.index(offset), table as u32);
        let owner = Owner { finding: 0, table, snapshot, entry_offset: entry, guest_offset: guest };
        report.owner(cluster, owner);
    }

    /// Judges what is neither L1 nor L2: regions, refcount blocks, bitmap data.
    pub fn roots<H: Host>(&mut self, host: &mut H, reader: &mut Reader, report: &mut Report, roots: &Roots) {
        for (place, region) in roots.regions.iter().enumerate() {
            self.region(report, place, region);
        }
        for (index, raw) in (0..).zip(&roots.refcount_table) {
            let Some(offset) = block_offset(self.image, *raw) else { continue };
            let at = table_entry_offset(self.image, index);
            if self.usage(offset).is_overlap() {
                let finding = Fault {
                    problem: Problem::RefcountBlockShared,
                    table: Table::RefcountTable,
                    host_offset: at,
                    host_len: 8,
                    index,
                    stored: offset,
                    expected: NONE,
                };
                report.fault(&finding);
                self.shared_blocks.insert(index);
            }
            self.own(report, offset, Table::RefcountBlock, ACTIVE, at, NONE);
        }
        for bitmap in &roots.bitmaps {
            bitmaps::for_each_entry(host, reader, report, bitmap, |index, at, entry, report| {
                let bitmaps::Data::At(offset) = bitmaps::data(self.image, roots, entry) else { return };
                if self.usage(offset).is_overlap() {
                    let problem = Problem::BitmapOverlap;
                    report.put(problem, bitmaps::entry_finding(problem, bitmap.index, index, at, offset));
                }
                self.own(report, offset, Table::BitmapData, bitmap.index, at, NONE);
            });
        }
    }

    fn region(&mut self, report: &mut Report, place: usize, region: &Region) {
        let cluster = self.image.header.cluster;
        let present = self.image.bounds.present(region.offset, region.len);
        let clusters = cluster.index(region.offset)..cluster.index(region.offset) + cluster.count(present);
        let (table, pointer) = (region.table as u32, region.pointer);
        let snapshot = region.snapshot;
        let owner = Owner { finding: 0, table, snapshot, entry_offset: pointer, guest_offset: NONE };
        report.owner_of_run(&clusters, owner);
        // A region for which another one stands is shared from its first cluster on.
        let looked_at = if region.weight == 0 { clusters.start..clusters.start + 1 } else { clusters };
        if let Some((index, usage)) = self.usages.first_overlap(looked_at)
            && self.told.insert(place)
        {
            let problem = region_problem(region);
            report.put(problem, self.region_finding(problem, region, index, usage));
        }
    }

    fn region_finding(&self, problem: Problem, region: &Region, cluster: u64, usage: Usage) -> Finding {
        let place = self.image.header.cluster.offset(cluster);
        let is_plain = problem == Problem::MetadataOverlap;
        let mut finding = Fault {
            problem,
            table: region.table,
            host_offset: region.offset,
            host_len: region.len,
            index: if is_plain { cluster } else { u64::from(region.snapshot) },
            stored: if is_plain { usage.count } else { place },
            expected: if is_plain { 1 } else { NONE },
        }
        .finding();
        finding.snapshot = region.snapshot;
        finding
    }

    /// What is wrong with an L2 entry, given how its cluster is used.
    fn entry(&self, report: &mut Report, table: &TableRef, index: usize, entry: L2Entry, usage: Usage) {
        let cluster_host = entry.host_field();
        let mut tell = |problem, stored, expected| {
            let finding = entry_finding(self.image, table, index, problem, stored, expected);
            report.put(problem, finding);
        };
        let is_active = table.active > 0;
        if usage.flags & (flags::META | flags::L2) != 0 {
            tell(Problem::L2EntryOverlapsMetadata, cluster_host, usage.count);
        } else if usage.flags & flags::COMPRESSED != 0 || (usage.flags & flags::CROSS != 0 && is_active) {
            tell(Problem::L2EntryShared, cluster_host, usage.count);
        }
        if !is_active {
            return;
        }
        if entry.is_copied() && usage.count > 1 {
            tell(Problem::L2CopiedWrong, entry.raw, usage.count);
        } else if !entry.is_copied() && self.is_copied_missing(cluster_host, usage) {
            tell(Problem::L2CopiedMissing, entry.raw, usage.count);
        }
    }

    fn compressed(
        &self,
        report: &mut Report,
        table: &TableRef,
        index: usize,
        host: u64,
        len: u64,
        guest: u64,
    ) {
        let cluster = self.image.header.cluster;
        let last = cluster.index(host.saturating_add(len - 1)).min(self.image.bounds.clusters());
        let mut seen = 0;
        for touched in cluster.index(host)..=last {
            seen |= self.usages.usage(touched).flags;
            let at = table.offset + (index * self.image.format.entry_bytes()) as u64;
            self.own(report, cluster.offset(touched), Table::CompressedData, table.snapshot, at, guest);
        }
        let problem = if seen & (flags::META | flags::L2) != 0 {
            Problem::CompressedOverlapsMetadata
        } else if seen & flags::DATA != 0 {
            Problem::L2EntryShared
        } else {
            return;
        };
        report.put(problem, entry_finding(self.image, table, index, problem, host, NONE));
    }
}

const fn region_problem(region: &Region) -> Problem {
    match region.table {
        Table::L1 if region.snapshot != ACTIVE => Problem::SnapshotL1Shared,
        Table::SnapshotTable => Problem::SnapshotTableOverlap,
        Table::BitmapDirectory | Table::BitmapTable => Problem::BitmapOverlap,
        Table::CryptoHeader => Problem::CryptoHeaderOverlap,
        _ => Problem::MetadataOverlap,
    }
}

impl Visitor for Judge<'_> {
    fn l1_entry(
        &mut self,
        report: &mut Report,
        disk: &Disk,
        index: u64,
        at: u64,
        entry: L1Entry,
        sweep: u32,
    ) {
        let offset = entry.l2_offset();
        if sweep > 0 || offset == 0 || self.image.bounds.position(offset) != Position::Inside {
            return;
        }
        let usage = self.usage(offset);
        let reach = self.image.format.table_reach_bytes();
        let guest = index.saturating_mul(reach);
        self.own(report, offset, Table::L2, disk.snapshot, at, guest);
        let is_active = disk.snapshot == ACTIVE;
        let (problem, stored) = if usage.is_overlap() {
            (Problem::L1EntryOverlap, offset)
        } else if is_active && entry.is_copied() && usage.count > 1 {
            (Problem::L1CopiedWrong, entry.0)
        } else if is_active && !entry.is_copied() && self.is_copied_missing(offset, usage) {
            (Problem::L1CopiedMissing, entry.0)
        } else {
            return;
        };
        let fault = Fault {
            problem,
            table: Table::L1,
            host_offset: at,
            host_len: 8,
            index,
            stored,
            expected: usage.count,
        };
        let finding =
            Finding { snapshot: disk.snapshot, guest_offset: guest, guest_len: reach, ..fault.finding() };
        report.put(problem, finding);
    }

    /// The first look has told of it.
    fn l1_unreadable(&mut self, _: &mut Report, _: &Disk, _: u64, _: u64, _: u32) {}

    fn table(&mut self, report: &mut Report, table: &TableRef, bytes: Bytes<'_>) {
        let Bytes::Read(bytes) = bytes else { return };
        let format = &self.image.format;
        let guest = u64::from(table.l1_index).saturating_mul(format.table_reach_bytes());
        for index in 0..bytes.len() / format.entry_bytes() {
            let entry = format.entry(bytes, index);
            if entry.raw == 0 || format.data_file {
                continue;
            }
            let cluster = self.image.header.cluster;
            let place = guest.saturating_add(cluster.offset(index as u64));
            if let (Mapping::Compressed { host, len }, _) = entry.decode(format) {
                self.compressed(report, table, index, host, len, place);
                continue;
            }
            let host = entry.host_field();
            if host == 0 || self.image.bounds.position(host) != Position::Inside {
                continue;
            }
            let usage = self.usage(host);
            if usage.is_overlap() || usage.is_copied_wrong() {
                self.entry(report, table, index, entry, usage);
            }
            if report.wants_owners() {
                let at = table.offset + (index * format.entry_bytes()) as u64;
                self.own(report, host, Table::Data, table.snapshot, at, place);
            }
        }
    }
}
