//! The new refcount blocks and the new table, one after the other from the cluster-aligned end of the file on.
//!
//! Blocks are made in the order of the clusters that they are for, window after window, and proposed as they are
//! full. The block of the file's end waits for the last: it and those behind it hold the counts of the new
//! clusters themselves, so that how many there are has to be known first.
//!
//! Invariant: with everything in place, each cluster in use has its count, the new ones included, and clusters that
//! nothing uses have none in a new block.

use alloc::vec::Vec;

use instar_abi::cure::Cure;

use super::super::diff::Edits;
use super::kept::Kept;
use crate::check::recount::Window;
use crate::check::roots::Image;
use crate::host::Host;

/// A table to be written.
#[derive(Debug)]
pub struct NewTable {
    /// Its first cluster.
    pub cluster: u64,
    /// Its clusters.
    pub clusters: u64,
}

/// What was made.
#[derive(Debug)]
pub struct Made {
    /// For each block of the table as it is to be, its byte offset; 0 where there is none.
    pub blocks: Vec<u64>,
    /// The new table.
    pub table: Option<NewTable>,
    /// Counts of blocks that stay which are to change: cluster and count, in order.
    pub counts: Vec<(u64, u64)>,
}

/// New structures on their way.
#[derive(Debug)]
pub struct Fresh<'a> {
    image: &'a Image,
    kept: &'a Kept,
    per_block: u64,
    /// The first cluster behind the file.
    end: u64,
    /// The block under way: its index and bytes.
    open: Option<(u64, Vec<u8>)>,
    /// Indices of the blocks made, in the order of their clusters.
    made: Vec<u64>,
    counts: Vec<(u64, u64)>,
    edits: Edits,
}

impl<'a> Fresh<'a> {
    /// Nothing made so far.
    #[must_use]
    pub fn new(image: &'a Image, kept: &'a Kept) -> Self {
        let per_block = image.header.refcount_width.per_block(image.header.cluster);
        let end = image.bounds.clusters();
        let (open, edits) = (None, Edits::default());
        Self { image, kept, per_block, end, open, made: Vec::new(), counts: Vec::new(), edits }
    }

    /// Index of the block of the file's end.
    const fn tail(&self) -> u64 {
        self.end / self.per_block
    }

    /// Takes the counts of a window.
    pub fn window<H: Host>(&mut self, host: &mut H, window: &Window<'_>) {
        for (clusters, chunk) in window.counts.used_chunks() {
            let mut at = clusters.start;
            while at < clusters.end {
                let index = at / self.per_block;
                let stop = ((index + 1) * self.per_block).min(clusters.end);
                if self.kept.block(index) == 0 {
                    for cluster in at..stop {
                        let count = chunk.usage(instar_abi::to_usize(cluster - clusters.start)).count;
                        if count > 0 {
                            self.put(host, cluster, count);
                        }
                    }
                }
                at = stop;
            }
        }
        let from = self.kept.dropped.partition_point(|cluster| *cluster < window.clusters.start);
        let dropped =
            self.kept.dropped.iter().skip(from).take_while(|cluster| **cluster < window.clusters.end);
        for cluster in dropped {
            let is_kept = self.kept.block(cluster / self.per_block) != 0;
            if is_kept && window.counts.usage(*cluster).count == 0 {
                self.counts.push((*cluster, 0));
            }
        }
    }

    /// Sets a count in its new block. A count over the width's limit is the limit.
    fn put<H: Host>(&mut self, host: &mut H, cluster: u64, count: u64) {
        let (index, slot) = (cluster / self.per_block, instar_abi::to_usize(cluster % self.per_block));
        if self.open.as_ref().is_none_or(|(open, _)| *open != index) {
            self.close(host);
            self.open = Some((index, alloc::vec![0; self.image.header.cluster.usize()]));
        }
        let width = self.image.header.refcount_width;
        if let Some((_, bytes)) = &mut self.open {
            // The slot is one of the block's, and the count fits.
            let is_set = width.set(bytes, slot, count.min(width.max()));
            debug_assert!(is_set);
        }
    }

    /// Gives the block under way the next new cluster.
    fn close<H: Host>(&mut self, host: &mut H) {
        if let Some((index, bytes)) = self.open.take() {
            self.append(host, self.made.len() as u64, &bytes);
            self.made.push(index);
        }
    }

    /// Writes the new cluster of this number.
    fn append<H: Host>(&mut self, host: &mut H, number: u64, bytes: &[u8]) {
        self.edits.write(self.image.header.cluster.offset(self.end + number), bytes);
        self.edits.propose_many(host, Cure::RebuildRefcounts);
    }

    /// Makes what is left once all windows were seen.
    pub fn finish<H: Host>(mut self, host: &mut H) -> Made {
        let tail_block = match self.open.take() {
            Some((index, bytes)) if index == self.tail() => Some(bytes),
            other => {
                self.open = other;
                self.close(host);
                None
            }
        };
        let (tails, table_clusters) = self.size(tail_block.is_some());
        let fresh = self.made.len() as u64 + tails.len() as u64 + table_clusters;
        self.tail_blocks(host, &tails, tail_block, fresh);
        let mut blocks = self.kept.blocks.clone();
        let cluster = self.image.header.cluster;
        let entries = self.made.iter().map(|index| index + 1).max().unwrap_or(0);
        blocks.resize(blocks.len().max(instar_abi::to_usize(entries)), 0);
        for (number, index) in (0..).zip(&self.made) {
            if let Some(block) = blocks.get_mut(instar_abi::to_usize(*index)) {
                *block = cluster.offset(self.end + number);
            }
        }
        let first = self.made.len() as u64;
        let table =
            (table_clusters > 0).then(|| NewTable { cluster: self.end + first, clusters: table_clusters });
        if table.is_some() {
            blocks.resize(instar_abi::to_usize(table_clusters * cluster.bytes() / 8), 0);
            self.table(host, first, &blocks);
        }
        self.edits.propose(host, Cure::RebuildRefcounts);
        self.counts.sort_unstable();
        Made { blocks, table, counts: self.counts }
    }

    /// Which blocks are to be made for the end of the file and what is new behind it, and how many clusters a new
    /// table takes, 0 where the old one does. Each may ask for more of the other, until both are enough.
    fn size(&self, has_tail_block: bool) -> (Vec<u64>, u64) {
        let entry_clusters = |entries: u64| self.image.header.cluster.count(entries.saturating_mul(8));
        let (mut tails, mut table_clusters) = (Vec::new(), 0);
        if has_tail_block {
            tails.push(self.tail());
        }
        loop {
            let fresh = self.made.len() as u64 + tails.len() as u64 + table_clusters;
            let last =
                (fresh > 0 || !self.kept.has_table).then(|| (self.end + fresh.max(1) - 1) / self.per_block);
            let next = tails.last().map_or(self.tail(), |last| last + 1);
            let wanted = last.and_then(|last| (next..=last).find(|index| self.kept.block(*index) == 0));
            if let Some(index) = wanted {
                tails.push(index);
                continue;
            }
            let made = self.made.iter().chain(&tails).max().map_or(0, |index| index + 1);
            let stored =
                if self.kept.has_table { self.kept.blocks.len() as u64 } else { self.kept.entries() };
            let is_short = !self.kept.has_table || made > stored;
            let needed = if is_short { entry_clusters(made.max(stored)) } else { 0 };
            if needed <= table_clusters {
                return (tails, table_clusters);
            }
            table_clusters = needed;
        }
    }

    /// Makes the blocks of the end, with the counts of the `fresh` new clusters.
    fn tail_blocks<H: Host>(&mut self, host: &mut H, tails: &[u64], first: Option<Vec<u8>>, fresh: u64) {
        let clusters = self.end..self.end + fresh;
        self.open = first.map(|bytes| (self.tail(), bytes));
        for cluster in clusters {
            if self.kept.block(cluster / self.per_block) == 0 {
                self.put(host, cluster, 1);
            } else {
                self.counts.push((cluster, 1));
            }
        }
        self.close(host);
        debug_assert!(self.made.ends_with(tails));
    }

    /// Writes the table behind the blocks.
    fn table<H: Host>(&mut self, host: &mut H, first: u64, blocks: &[u64]) {
        let per_cluster = self.image.header.cluster.usize() / 8;
        for (number, part) in (first..).zip(blocks.chunks(per_cluster)) {
            let bytes: Vec<u8> = part.iter().flat_map(|block| block.to_be_bytes()).collect();
            self.append(host, number, &bytes);
        }
    }
}
