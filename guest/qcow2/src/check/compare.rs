//! Stored reference counts against true ones.
//!
//! Refcount blocks are read once, in large batches. Where counts are 16 bits wide and a chunk is narrow, a
//! block's bytes are compared a whole word of states at a time.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::ops::Range;

use instar_abi::call::Phase;
use instar_abi::finding::{ACTIVE, Finding, NONE, Table};
use instar_abi::problem::Problem;

use super::counts::{CHUNK_BITS, CHUNK_CLUSTERS, Chunk, Counts, Usage, flags};
use super::leaks::ClusterSet;
use super::reader::{Bytes, Reader};
use super::report::Report;
use super::roots::{Image, Roots, read_error};
use crate::host::Host;
use crate::ondisk::Fault;
use crate::ondisk::bytes::is_zero;
use crate::ondisk::refcount::RefcountTableEntry;
use crate::ondisk::units::Position;

/// Flags of clusters whose one user takes them for its own alone.
const OWN_ALONE: u8 = flags::ACTIVE_COPIED | flags::META;
/// Refcount blocks that are named at once.
const PIECE_BLOCKS: usize = 4096;
/// Blocks without any count after which holes are asked for. Few images have one; those that have thousands are
/// made to be slow.
const ZERO_BLOCKS_MIN: usize = 64;

/// The block that a refcount table entry points to, if it may be followed.
#[must_use]
pub fn block_offset(image: &Image, entry: u64) -> Option<u64> {
    let offset = RefcountTableEntry(entry).block_offset();
    (offset != 0 && image.bounds.position(offset) == Position::Inside).then_some(offset)
}

/// Byte offset in the file of a refcount table entry.
#[must_use]
pub fn table_entry_offset(image: &Image, index: u64) -> u64 {
    image.header.refcount_table_offset.saturating_add(index * 8)
}

/// Tells what is wrong with refcount table entries by themselves.
pub fn check_table(report: &mut Report, image: &Image, roots: &Roots) {
    for (index, raw) in (0..).zip(&roots.refcount_table) {
        let entry = RefcountTableEntry(*raw);
        let offset = entry.block_offset();
        let mut tell = |problem, stored, expected| {
            report.fault(&Fault {
                problem,
                table: Table::RefcountTable,
                host_offset: table_entry_offset(image, index),
                host_len: 8,
                index,
                stored,
                expected,
            });
        };
        if entry.reserved() != 0 {
            tell(Problem::RefcountTableEntryReserved, *raw, offset);
        }
        match image.bounds.position(offset) {
            _ if offset == 0 => {}
            Position::Inside => {}
            Position::Unaligned => tell(Problem::RefcountTableEntryUnaligned, offset, NONE),
            Position::PastEof => tell(Problem::RefcountTableEntryPastEof, offset, image.bounds.len),
        }
    }
}

/// The refcount blocks of a range of clusters.
#[derive(Debug)]
pub struct Blocks<'a> {
    /// The image.
    pub image: &'a Image,
    /// Its refcount table.
    pub roots: &'a Roots,
    /// The clusters whose counts are asked for.
    pub clusters: Range<u64>,
    /// What progress is told as.
    pub phase: (Phase, u32),
}

impl Blocks<'_> {
    /// Reads the blocks and hands each to `take` with the number of its first cluster; blocks that `want` has
    /// no use for are not read. It is told whether the block is known to be a hole, which is not read either.
    pub fn for_each<H: Host>(
        &self,
        host: &mut H,
        reader: &mut Reader,
        report: &mut Report,
        want: impl Fn(&Range<u64>, bool) -> bool,
        mut take: impl FnMut(&mut H, &mut Report, u64, &[u8]),
    ) {
        let table = &self.roots.refcount_table;
        let per_block = self.image.header.refcount_width.per_block(self.image.header.cluster);
        let first = instar_abi::to_usize(self.clusters.start / per_block);
        let end = instar_abi::to_usize(self.clusters.end.div_ceil(per_block)).min(table.len());
        let mut blocks = (first..end).filter_map(|index| {
            let base = index as u64 * per_block;
            let offset = table.get(index).and_then(|entry| block_offset(self.image, *entry))?;
            want(&(base..base + per_block), false).then_some((base, offset))
        });
        let cluster_bytes = self.image.header.cluster.usize();
        let (mut zero_blocks, mut zeros) = (0, Vec::new());
        loop {
            let piece: Vec<(u64, u64)> = blocks.by_ref().take(PIECE_BLOCKS).collect();
            let mut rest = piece.as_slice();
            if rest.is_empty() {
                return;
            }
            while let Some((base, offset)) = rest.first() {
                let asks = zero_blocks >= ZERO_BLOCKS_MIN;
                let taken = if asks && reader.is_hole(host, *offset, cluster_bytes) {
                    if want(&(*base..*base + per_block), true) {
                        zeros.resize(cluster_bytes, 0);
                        take(host, report, *base, &zeros);
                    }
                    1
                } else {
                    host.progress(self.phase.0, self.phase.1, base / per_block, end as u64);
                    let read = rest
                        .iter()
                        .skip(1)
                        .take_while(|(_, offset)| !(asks && reader.is_hole(host, *offset, cluster_bytes)));
                    let read = 1 + read.count();
                    self.batch(host, reader, report, &rest[..read], &mut |host, report, base, bytes| {
                        zero_blocks += usize::from(is_zero(bytes));
                        take(host, report, base, bytes);
                    })
                };
                report.flush_some(host);
                rest = rest.get(taken.max(1)..).unwrap_or(&[]);
            }
        }
    }

    /// Reads some of the blocks; says how many.
    fn batch<H: Host>(
        &self,
        host: &mut H,
        reader: &mut Reader,
        report: &mut Report,
        blocks: &[(u64, u64)],
        take: &mut impl FnMut(&mut H, &mut Report, u64, &[u8]),
    ) -> usize {
        let cluster_bytes = self.image.header.cluster.usize();
        let places = blocks.iter().map(|(_, offset)| (*offset, cluster_bytes));
        reader.batch_in_turn(host, places, |host, position, bytes| {
            let Some((base, offset)) = blocks.get(position) else { return };
            match bytes {
                Bytes::Read(bytes) if bytes.len() == cluster_bytes => take(host, report, *base, bytes),
                Bytes::Read(bytes) => {
                    // The file ends within the block: the rest reads as zeros.
                    let mut whole = bytes.to_vec();
                    whole.resize(cluster_bytes, 0);
                    take(host, report, *base, &whole);
                }
                // A block that lies in several windows is told of in the first of them.
                Bytes::Failed(_) if *base < self.clusters.start => {}
                Bytes::Failed(errno) => {
                    let len = cluster_bytes as u64;
                    report.fault(&read_error(Table::RefcountBlock, *offset, len, errno));
                }
            }
        })
    }
}

/// Decides which blocks are worth reading.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// True counts.
    pub counts: &'a Counts,
    /// The refcount table.
    pub roots: &'a Roots,
}

impl Wanted<'_> {
    /// Whether the block of these clusters has anything to tell. One that an earlier entry of the table points to
    /// as well is a fault by itself; of clusters that nothing uses it tells nothing, and neither does a hole.
    pub fn wants(&self, clusters: &Range<u64>, is_hole: bool) -> bool {
        let per_block = clusters.end - clusters.start;
        let index = clusters.start / per_block;
        if !is_hole && !self.roots.is_block_repeated(index) {
            return true;
        }
        let mut chunks = (clusters.start..clusters.end).step_by(1 << CHUNK_BITS);
        chunks.any(|cluster| !matches!(self.counts.chunk_of(cluster), None | Some(Chunk::Empty)))
    }
}

/// Compares the counts of a window.
#[derive(Debug)]
pub struct Comparison<'a> {
    /// The image.
    pub image: &'a Image,
    /// True counts.
    pub counts: &'a Counts,
    /// The clusters to compare: the window, and what is past it up to the next one.
    pub clusters: Range<u64>,
    /// Takes the clusters in use whose stored count is not the true one.
    pub mismatched: &'a mut ClusterSet,
    /// Clusters past the end of the file that entries point at.
    pub lost: &'a BTreeSet<u64>,
    /// The last of them that is counted as in use: the file was longer once.
    pub last_lost: Option<u64>,
    /// Takes the leaks.
    pub leaks: &'a mut ClusterSet,
    /// What is missing among the clusters so far.
    pub missing: &'a mut Missing,
    /// Takes the leaks that only a block tells of which is wrong about the clusters in use.
    pub hearsay: &'a mut ClusterSet,
    /// Clusters of the part under way that are in use and miscounted, and that are leaked.
    pub part: Part,
}

/// What was found in the part of a block that one chunk is for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Part {
    wrong: u64,
    leaked: u64,
}

/// Refcount blocks that are missing, told of in the order of the clusters, in between what other blocks tell.
#[derive(Debug, Default)]
pub struct Missing {
    /// Clusters below this one were looked at.
    from: u64,
    /// The block under way, and its clusters in use so far: windows need not end where blocks do.
    block: u64,
    used: u64,
}

impl Comparison<'_> {
    /// Compares one refcount block, whose first count is that of cluster `base`.
    pub fn block<H: Host>(
        &mut self,
        host: &mut H,
        report: &mut Report,
        roots: &Roots,
        base: u64,
        bytes: &[u8],
    ) {
        self.missing_below(host, report, roots, base);
        let width = self.image.header.refcount_width;
        let per_block = width.per_block(self.image.header.cluster);
        let end = (base + per_block).min(self.clusters.end);
        let mut at = base.max(self.clusters.start);
        while at < end {
            let stop = (at / CHUNK_CLUSTERS + 1).saturating_mul(CHUNK_CLUSTERS).min(end);
            let chunk = self.counts.chunk_of(at).unwrap_or(&Chunk::Empty);
            self.part = Part::default();
            match chunk {
                Chunk::Empty if is_zero_range(bytes, width.bits(), at - base..stop - base) => {}
                Chunk::Narrow(words) if width.bits() == 16 && at.is_multiple_of(32) => {
                    self.narrow(report, words.as_slice(), base, bytes, at..stop);
                }
                _ => self.one_by_one(report, chunk, base, bytes, at..stop),
            }
            self.note_hearsay(roots.is_block_repeated(base / per_block), chunk, at..stop);
            // A block of garbage is a finding for each count.
            report.flush_some(host);
            at = stop;
        }
    }

    /// Notes the leaks of a part of a block that is wrong about more than one in eight of the clusters in use, or has
    /// nothing to be right about and is another entry's block too.
    fn note_hearsay(&mut self, is_repeated: bool, chunk: &Chunk, clusters: Range<u64>) {
        if self.part.leaked == 0 || self.part.wrong == 0 && !is_repeated {
            return;
        }
        let slots = clusters.clone().map(|cluster| instar_abi::to_usize(cluster % CHUNK_CLUSTERS));
        let used = slots.filter(|slot| chunk.usage(*slot).count > 0).count() as u64;
        if self.part.wrong * 8 <= used && !(used == 0 && is_repeated) {
            return;
        }
        let mut from = clusters.start;
        while let Some(leaked) = self.leaks.first_in(from..clusters.end) {
            self.hearsay.insert(leaked);
            from = leaked + 1;
        }
    }

    /// Thirty-two clusters at a time: all states used and all counts one, or none and zero.
    fn narrow(&mut self, report: &mut Report, words: &[u64], base: u64, bytes: &[u8], clusters: Range<u64>) {
        const ONES: u64 = 0x0001_0001_0001_0001;
        const LOW: u64 = 0x5555_5555_5555_5555;
        let mut at = clusters.start;
        while at < clusters.end {
            let stop = (at + 32).min(clusters.end);
            let slot = instar_abi::to_usize((at % CHUNK_CLUSTERS) / 32);
            let state = words.get(slot).copied().unwrap_or(0);
            let used = (state | state >> 1) & LOW;
            let place = instar_abi::to_usize(at - base) * 2;
            let counts = bytes.get(place..place + 64).map_or(&[][..], |run| run.as_chunks::<8>().0);
            let is_same = counts.len() == 8
                && match used {
                    LOW => counts.iter().all(|word| u64::from_be_bytes(*word) == ONES),
                    0 => counts.iter().all(|word| u64::from_be_bytes(*word) == 0),
                    _ => false,
                };
            if !is_same {
                let chunk = self.counts.chunk_of(at).unwrap_or(&Chunk::Empty);
                self.one_by_one(report, chunk, base, bytes, at..stop);
            }
            at = stop;
        }
    }

    fn one_by_one(
        &mut self,
        report: &mut Report,
        chunk: &Chunk,
        base: u64,
        bytes: &[u8],
        clusters: Range<u64>,
    ) {
        let width = self.image.header.refcount_width;
        for cluster in clusters {
            let stored = width.get(bytes, instar_abi::to_usize(cluster - base)).unwrap_or(0);
            let usage = chunk.usage(instar_abi::to_usize(cluster % CHUNK_CLUSTERS));
            if stored != usage.count {
                self.differs(report, cluster, stored, usage);
            }
        }
    }

    fn differs(&mut self, report: &mut Report, cluster: u64, stored: u64, usage: Usage) {
        if usage.count > 0 {
            self.part.wrong += 1;
            // Where there is no room left, a COPIED flag is told of that merely follows the wrong count.
            self.mismatched.insert(cluster);
        }
        let max = self.image.header.refcount_width.max();
        let problem = if cluster >= self.image.bounds.clusters() {
            if self.lost.contains(&cluster) {
                self.last_lost = self.last_lost.max(Some(cluster));
            }
            Problem::RefcountPastEof
        } else if usage.count == 0 {
            // A leak that there is no room for is told at once, as one that nothing is proven of.
            if self.leaks.insert(cluster) {
                self.part.leaked += 1;
                return;
            }
            Problem::OrphanData
        } else if stored > usage.count && usage.count == 1 && usage.flags & OWN_ALONE != 0 {
            Problem::RefcountContradicted
        } else if stored > usage.count {
            Problem::RefcountTooHigh
        } else if usage.count > max {
            Problem::RefcountOverflow
        } else {
            Problem::RefcountTooLow
        };
        report.put(problem, count_finding(self.image, problem, cluster, stored, usage.count));
    }

    /// Tells of clusters with more users than a count can hold, where no stored count says so.
    fn uncountable(&self, report: &mut Report, chunk: &Chunk, clusters: Range<u64>) {
        if !matches!(chunk, Chunk::Wide(_)) {
            return;
        }
        let max = self.image.header.refcount_width.max();
        for cluster in clusters {
            let counted = chunk.usage(instar_abi::to_usize(cluster % CHUNK_CLUSTERS)).count;
            if counted > max {
                let problem = Problem::RefcountOverflow;
                report.put(problem, count_finding(self.image, problem, cluster, 0, counted));
            }
        }
    }

    /// All that can be told where there is no refcount table.
    pub fn without_table<H: Host>(&self, host: &mut H, report: &mut Report) {
        for (clusters, chunk) in self.counts.used_chunks() {
            self.uncountable(report, chunk, clusters);
            report.flush_some(host);
        }
    }

    /// Tells of clusters in use below this one for which there is no refcount block.
    pub fn missing_below<H: Host>(&mut self, host: &mut H, report: &mut Report, roots: &Roots, end: u64) {
        let per_block = self.image.header.refcount_width.per_block(self.image.header.cluster);
        let last = end.min(self.counts.end());
        let end = end.min(self.counts.counted_end());
        let mut at = self.missing.from.max(self.counts.first());
        while at < end {
            let stop = (at | (CHUNK_CLUSTERS - 1)).saturating_add(1).min(end);
            let Some(chunk @ (Chunk::Narrow(_) | Chunk::Wide(_))) = self.counts.chunk_of(at) else {
                at = stop;
                continue;
            };
            let index = at / per_block;
            let stop = (index + 1).saturating_mul(per_block).min(stop);
            let entry = roots.refcount_table.get(instar_abi::to_usize(index)).copied().unwrap_or(0);
            if block_offset(self.image, entry).is_none() {
                let slots = at..stop;
                let is_used =
                    |cluster: &u64| chunk.usage(instar_abi::to_usize(cluster % CHUNK_CLUSTERS)).count > 0;
                self.missing.note(report, self.image, index, slots.filter(is_used).count() as u64);
                self.uncountable(report, chunk, at..stop);
                report.flush_some(host);
            }
            at = stop;
        }
        self.missing.from = self.missing.from.max(last);
    }
}

impl Missing {
    fn note(&mut self, report: &mut Report, image: &Image, block: u64, used: u64) {
        if self.block != block {
            self.tell(report, image);
            self.block = block;
        }
        self.used += used;
    }

    /// Tells of the block under way, behind which no other follows.
    pub fn tell(&mut self, report: &mut Report, image: &Image) {
        let (index, used) = (self.block, core::mem::take(&mut self.used));
        if used == 0 {
            return;
        }
        let finding = Finding {
            problem: Problem::RefcountBlockMissing as u32,
            table: Table::RefcountTable as u32,
            snapshot: ACTIVE,
            witnesses: 0,
            host_offset: table_entry_offset(image, index),
            host_len: 8,
            index,
            count: used,
            guest_offset: NONE,
            guest_len: 0,
            stored: 0,
            expected: NONE,
        };
        report.put(Problem::RefcountBlockMissing, finding);
    }
}

/// A finding about the reference count of one cluster.
#[must_use]
pub fn count_finding(image: &Image, problem: Problem, cluster: u64, stored: u64, counted: u64) -> Finding {
    Finding {
        problem: problem as u32,
        table: Table::RefcountBlock as u32,
        snapshot: ACTIVE,
        witnesses: 0,
        host_offset: image.header.cluster.offset(cluster),
        host_len: image.header.cluster.bytes(),
        index: cluster,
        count: 1,
        guest_offset: NONE,
        guest_len: 0,
        stored,
        expected: counted,
    }
}

/// Whether these counts of a block are all zero, told from whole bytes only.
fn is_zero_range(bytes: &[u8], width_bits: u32, counts: Range<u64>) -> bool {
    let bit = |count: u64| count * u64::from(width_bits);
    let (start, end) = (bit(counts.start), bit(counts.end));
    start.is_multiple_of(8)
        && end.is_multiple_of(8)
        && bytes.get(instar_abi::to_usize(start / 8)..instar_abi::to_usize(end / 8)).is_some_and(is_zero)
}
