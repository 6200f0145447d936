//! Looks at leaked clusters before anybody frees them.
//!
//! An unreferenced cluster may be the only copy of a guest's data, because the pointer to it is what was lost.
//! Freed is only what shows no sign of that; kept back are
//!
//! * clusters that read like a lost table, and the leaked clusters that such a table points at;
//! * clusters that fit exactly into a gap of an L2 table: the entries round the gap map the host clusters round
//!   them, or the table has lost its beginning and they lie right behind it;
//! * clusters that hold data while an L2 table of the active disk is zeros from end to end;
//! * every cluster, where damage elsewhere may have hidden a user ([`Report::casts_doubt`]), or where memory does not
//!   hold all leaks at once.
//!
//! Where nothing but bitmaps can have lost anything, what shows no such sign is either theirs or would be free for the
//! taking without them: [`Problem::OrphanBitmap`]. No more clusters that read like tables are taken for bitmap tables than
//! the lost ones took.

use alloc::vec::Vec;
use core::ops::Range;

use instar_abi::boot::FILE_IMAGE;
use instar_abi::call::{DataRange, Phase};
use instar_abi::finding::NONE;
use instar_abi::problem::Problem;

use super::bitmaps::LostTables;
use super::compare::{Blocks, count_finding};
use super::leaks::ClusterSet;
use super::reader::{Bytes, Reader};
use super::report::Report;
use super::roots::{Disk, Image, Roots, words};
use super::walk::{TableRef, Visitor, walk};
use crate::host::Host;
use crate::ondisk::bitmaps::BitmapTableEntry;
use crate::ondisk::bytes::is_zero;
use crate::ondisk::l1::L1Entry;
use crate::ondisk::l2::{L2Entry, L2Format, Mapping};
use crate::ondisk::units::Position;

/// Bytes of a cluster that are looked at first.
const HEAD_BYTES: usize = 512;
/// Clusters that are named to the reader at once.
const PIECE_CLUSTERS: usize = 4096;
/// Bytes of the file whose holes are asked for at once; a multiple of every cluster size.
const STRETCH_BYTES: u64 = 1 << 30;

/// What became of the leaks of a window.
#[derive(Debug)]
pub struct Triage {
    /// Leaked clusters that are not to be freed.
    held: ClusterSet,
    /// Leaked clusters that read like a lost table, with the entries that lead to other leaked clusters.
    tables: Vec<(u64, u64)>,
    /// Everything is held.
    holds_all: bool,
    /// What is not held may be a bitmap's.
    lost_by_bitmaps: bool,
    /// Leaked clusters that read like a table that a bitmap has lost, with what their entries lead to.
    bitmap_tables: Vec<(u64, Vec<u64>)>,
}

/// What the passes before have learned.
#[derive(Debug, Clone, Copy)]
pub struct Evidence {
    /// L2 tables of the active disk that are zeros from end to end.
    pub has_empty_tables: bool,
    /// Number of the last pass.
    pub pass: u32,
    /// Memory that may be used.
    pub cap_bytes: usize,
}

impl Triage {
    /// Looks at all leaks.
    pub fn run<H: Host>(
        host: &mut H,
        reader: &mut Reader,
        report: &mut Report,
        image: &Image,
        roots: &Roots,
        leaks: &ClusterSet,
        evidence: Evidence,
    ) -> Self {
        let mut triage = Self {
            held: ClusterSet::new(evidence.cap_bytes),
            tables: Vec::new(),
            // A leak that there was no room for may be the table that leads to the others.
            holds_all: report.has_lost_more_than_bitmaps() || leaks.is_overfull(),
            lost_by_bitmaps: report.casts_doubt(),
            bitmap_tables: Vec::new(),
        };
        let candidates = triage.look_at_heads(host, reader, image, leaks, evidence);
        triage.look_at_tables(host, reader, image, (leaks, roots), &candidates, evidence);
        if !triage.holds_all && !leaks.is_empty() && !image.format.data_file {
            let mut gaps = Gaps { image, leaks, held: &mut triage.held, is_full: false };
            // Faults of the entries have been told by the first look.
            report.set_muted(true);
            walk(host, reader, report, image, roots, &mut gaps, (Phase::Triage, evidence.pass));
            report.set_muted(false);
            triage.holds_all |= gaps.is_full;
        }
        triage
    }

    fn hold(&mut self, cluster: u64) {
        self.holds_all |= !self.held.insert(cluster);
    }

    /// Reads the first sector of every leaked cluster that is not a hole; returns those that may be tables.
    fn look_at_heads<H: Host>(
        &mut self,
        host: &mut H,
        reader: &mut Reader,
        image: &Image,
        leaks: &ClusterSet,
        evidence: Evidence,
    ) -> Vec<u64> {
        let mut candidates = Vec::new();
        let most = (evidence.cap_bytes / 16).max(1024);
        let mut holes = DataClusters::new(image, leaks);
        loop {
            let piece = holes.next_piece(host);
            let mut rest = piece.as_slice();
            if rest.is_empty() {
                return candidates;
            }
            while let Some(first) = rest.first() {
                host.progress(Phase::Triage, evidence.pass, *first, image.bounds.clusters());
                let cluster = image.header.cluster;
                let places = rest.iter().map(|index| (cluster.offset(*index), HEAD_BYTES));
                let taken = reader.batch(host, places, |position, bytes| {
                    let (Some(index), Bytes::Read(bytes)) = (rest.get(position), bytes) else { return };
                    if evidence.has_empty_tables && !is_zero(bytes) {
                        self.holds_all |= !self.held.insert(*index);
                    }
                    if is_plausible(image, bytes) {
                        if candidates.len() < most {
                            candidates.push(*index);
                        } else {
                            self.holds_all = true;
                        }
                    }
                });
                rest = rest.get(taken.max(1)..).unwrap_or(&[]);
            }
        }
    }

    fn look_at_tables<H: Host>(
        &mut self,
        host: &mut H,
        reader: &mut Reader,
        image: &Image,
        (leaks, roots): (&ClusterSet, &Roots),
        candidates: &[u64],
        evidence: Evidence,
    ) {
        let cluster = image.header.cluster;
        let mut rest = candidates;
        while let Some(first) = rest.first() {
            host.progress(Phase::Triage, evidence.pass, *first, image.bounds.clusters());
            let places = rest.iter().map(|index| (cluster.offset(*index), cluster.usize()));
            let taken = reader.batch(host, places, |position, bytes| {
                let (Some(index), Bytes::Read(bytes)) = (rest.get(position), bytes) else { return };
                if is_plausible(image, bytes) {
                    self.table(image, leaks, &roots.lost_bitmap_tables, *index, bytes);
                }
            });
            rest = rest.get(taken.max(1)..).unwrap_or(&[]);
        }
    }

    /// Finds the leaked clusters that a candidate points at, and holds them with it.
    fn table(&mut self, image: &Image, leaks: &ClusterSet, lost: &LostTables, index: u64, bytes: &[u8]) {
        let mut found = Vec::new();
        for_each_target(image, bytes, |target| {
            if target != index && leaks.contains(target) {
                found.push(target);
            }
        });
        if found.is_empty() {
            return;
        }
        if !self.lost_by_bitmaps || !is_bitmap_table(bytes, lost.entries_max) {
            return self.hold_table(index, &found);
        }
        self.bitmap_tables.push((index, found));
        if self.bitmap_tables.len() as u64 > lost.clusters {
            // It is not known which of them were the bitmaps'.
            self.lost_by_bitmaps = false;
            for (index, found) in core::mem::take(&mut self.bitmap_tables) {
                self.hold_table(index, &found);
            }
            self.holds_all = true;
        }
    }

    fn hold_table(&mut self, index: u64, found: &[u64]) {
        self.hold(index);
        found.iter().for_each(|target| self.hold(*target));
        self.tables.push((index, found.len() as u64));
    }

    /// Tells of every leak by what triage made of it, unless it `is_hearsay`, and calls `each` with it.
    #[expect(clippy::too_many_arguments, reason = "the state of one pass, borrowed apart")]
    pub fn tell<H: Host>(
        &self,
        host: &mut H,
        reader: &mut Reader,
        report: &mut Report,
        image: &Image,
        roots: &Roots,
        leaks: &ClusterSet,
        pass: u32,
        is_hearsay: impl Fn(u64) -> bool,
        mut each: impl FnMut(Problem, u64),
    ) {
        let end = leaks.last().map_or(0, |last| last + 1);
        let per_block = image.header.refcount_width.per_block(image.header.cluster);
        let mut tables = self.tables.clone();
        tables.sort_unstable();
        let want = |range: &Range<u64>, is_hole: bool| !is_hole && leaks.first_in(range.clone()).is_some();
        let blocks = Blocks { image, roots, clusters: 0..end, phase: (Phase::Triage, pass) };
        blocks.for_each(host, reader, report, want, |host, report, base, bytes| {
            let mut at = base;
            while let Some(run) = leaks.run_from(at).filter(|run| run.start < base + per_block) {
                let clusters = run.start..run.end.min(base + per_block);
                for cluster in clusters.filter(|cluster| !is_hearsay(*cluster)) {
                    let slot = instar_abi::to_usize(cluster - base);
                    let stored = image.header.refcount_width.get(bytes, slot).unwrap_or(0);
                    let (problem, expected) = self.verdict(&tables, cluster);
                    each(problem, cluster);
                    let finding = count_finding(image, problem, cluster, stored, expected);
                    report.put(problem, finding);
                }
                report.flush_some(host);
                at = run.end;
            }
        });
    }

    /// Problem and expected value for one leaked cluster.
    fn verdict(&self, tables: &[(u64, u64)], cluster: u64) -> (Problem, u64) {
        if let Ok(found) = tables.binary_search_by_key(&cluster, |(index, _)| *index) {
            return (Problem::OrphanTable, tables.get(found).map_or(NONE, |(_, targets)| *targets));
        }
        if self.holds_all || self.held.contains(cluster) {
            (Problem::OrphanData, 0)
        } else if self.lost_by_bitmaps {
            (Problem::OrphanBitmap, 0)
        } else {
            (Problem::RefcountLeak, 0)
        }
    }
}

/// Hands out the leaked clusters that are not holes of the file. Holes are asked for by large stretches of the
/// file, not by leaks: there may be millions of them, each between two clusters in use.
struct DataClusters<'a> {
    image: &'a Image,
    leaks: &'a ClusterSet,
    /// Leaks from here on are still to be looked for.
    from: u64,
    run: Range<u64>,
    /// What is known not to be a hole, the last range first.
    data: Vec<DataRange>,
    /// Clusters up to here are known to be data or holes.
    known: u64,
}

impl<'a> DataClusters<'a> {
    fn new(image: &'a Image, leaks: &'a ClusterSet) -> Self {
        Self { image, leaks, from: 0, run: 0..0, data: Vec::new(), known: 0 }
    }

    /// Learns of the clusters from this one on.
    fn ask<H: Host>(&mut self, host: &mut H, first: u64) {
        let cluster = self.image.header.cluster;
        let offset = cluster.offset(first);
        let len = self.image.bounds.present(offset, STRETCH_BYTES);
        self.data.clear();
        if len > 0 {
            host.data_ranges(FILE_IMAGE, offset, len, &mut self.data);
        }
        self.known = cluster.index(offset.saturating_add(STRETCH_BYTES));
        self.data.reverse();
    }

    fn next_piece<H: Host>(&mut self, host: &mut H) -> Vec<u64> {
        let cluster = self.image.header.cluster;
        let mut piece = Vec::new();
        while piece.len() < PIECE_CLUSTERS {
            if self.run.is_empty() {
                let Some(run) = self.leaks.run_from(self.from) else { break };
                self.from = run.end;
                self.run = run;
            }
            if self.run.start >= self.known {
                self.ask(host, self.run.start);
            }
            let Some(range) = self.data.last() else {
                self.run.start = self.known.min(self.run.end);
                continue;
            };
            if cluster.count(range.offset.saturating_add(range.len)) <= self.run.start {
                self.data.pop();
                continue;
            }
            let first = cluster.index(range.offset).max(self.run.start);
            if first < self.run.end {
                piece.push(first);
            }
            self.run.start = (first + 1).min(self.run.end);
        }
        piece
    }
}

/// Whether bytes may be the start of a table of cluster pointers: each entry is empty or points to a cluster
/// of the file.
fn is_plausible(image: &Image, bytes: &[u8]) -> bool {
    let mut is_good = true;
    let len = bytes.len() / image.format.entry_bytes();
    let mut index = 0;
    while is_good && index < len {
        is_good = target(image, &image.format, bytes, index).is_ok();
        index += 1;
    }
    // The lost table may have been an L1 table, whose entries are never extended.
    is_good
        || image.format.extended && {
            let plain = L2Format { extended: false, ..image.format };
            (0..bytes.len() / 8).all(|index| target(image, &plain, bytes, index).is_ok())
        }
}

/// Whether bytes may be a cluster of a bitmap table with so many entries: nothing is behind them, and no entry has
/// a flag that is none of theirs.
fn is_bitmap_table(bytes: &[u8], entries_max: u64) -> bool {
    (0..).zip(words(bytes)).all(|(index, raw): (u64, u64)| {
        if index < entries_max { BitmapTableEntry(raw).reserved() == 0 } else { raw == 0 }
    })
}

/// Calls `each` with every cluster that a table's entries point at.
fn for_each_target(image: &Image, bytes: &[u8], mut each: impl FnMut(u64)) {
    for index in 0..bytes.len() / image.format.entry_bytes() {
        if let Ok(Some(cluster)) = target(image, &image.format, bytes, index) {
            each(cluster);
        }
    }
}

/// The cluster that an entry points at, if any; an error if this is no entry.
fn target(image: &Image, format: &L2Format, bytes: &[u8], index: usize) -> Result<Option<u64>, ()> {
    let entry = format.entry(bytes, index);
    let (mapping, faults) = entry.decode(format);
    if !faults.is_empty() {
        return Err(());
    }
    let offset = match mapping {
        Mapping::Hole | Mapping::Zero { host: None } | Mapping::Subclusters { host: None, .. } => {
            return Ok(None);
        }
        Mapping::Data { host }
        | Mapping::Zero { host: Some(host) }
        | Mapping::Subclusters { host: Some(host), .. }
        | Mapping::Compressed { host, .. } => host,
        Mapping::Damaged(_) => return Err(()),
    };
    if offset < image.bounds.len { Ok(Some(image.header.cluster.index(offset))) } else { Err(()) }
}

/// Finds leaked clusters that fit into the gaps of L2 tables.
struct Gaps<'a> {
    image: &'a Image,
    leaks: &'a ClusterSet,
    held: &'a mut ClusterSet,
    is_full: bool,
}

impl Gaps<'_> {
    /// Holds the leaked clusters of a range.
    fn hold(&mut self, clusters: Range<u64>) {
        let mut at = clusters.start;
        while let Some(leaked) = self.leaks.first_in(at..clusters.end) {
            self.is_full |= !self.held.insert(leaked);
            at = leaked + 1;
        }
    }

    /// The host cluster of a plain entry that may stand beside a gap.
    fn neighbour(&self, entry: L2Entry) -> Option<u64> {
        let host = entry.host_field();
        let is_good =
            !entry.is_compressed() && host != 0 && self.image.bounds.position(host) == Position::Inside;
        is_good.then(|| self.image.header.cluster.index(host))
    }
}

impl Visitor for Gaps<'_> {
    fn l1_entry(&mut self, _: &mut Report, _: &Disk, _: u64, _: u64, _: L1Entry, _: u32) {}

    fn l1_unreadable(&mut self, _: &mut Report, _: &Disk, _: u64, _: u64, _: u32) {}

    /// A gap is a run of unallocated entries. It fits `n` clusters where both of its neighbours are known and
    /// lie `n + 1` clusters apart; at the start of a table, whose first sector is the one that a torn write
    /// loses, the neighbour behind the gap is enough, and so is the table itself, behind which its first
    /// clusters are usually allocated.
    fn table(&mut self, _: &mut Report, table: &TableRef, bytes: Bytes<'_>) {
        let Bytes::Read(bytes) = bytes else { return };
        let format = self.image.format;
        let own = self.image.header.cluster.index(table.offset);
        let (mut before, mut gap) = (None, 0_u64);
        for index in 0..bytes.len() / format.entry_bytes() {
            let entry = format.entry(bytes, index);
            if entry.raw == 0 {
                gap += 1;
                continue;
            }
            let behind = self.neighbour(entry);
            if index as u64 == gap && self.leaks.contains(own + 1) {
                self.hold(own + 1..own.saturating_add(gap + 1));
            }
            if let (true, Some(behind)) = (gap > 0, behind) {
                let first = behind.saturating_sub(gap);
                let is_start = index as u64 == gap;
                if is_start || before.is_some_and(|before: u64| before + 1 == first) {
                    self.hold(first..behind);
                }
            }
            (before, gap) = (behind, 0);
        }
    }
}
