//! `FreeLeaks`: sets the stored counts of proven leaks to zero.
//!
//! Invariant: only refcount blocks are in scope, counts only ever become zero, and only those that
//! [`Checked::free`] names, or that lie past the end of the file where [`Checked::frees_past_end`] says so.
//! Each write may reach the disk without any other: a half-applied plan leaves some leaks and nothing else.

use alloc::vec::Vec;
use core::ops::Range;

use instar_abi::call::Phase;
use instar_abi::cure::Cure;
use instar_abi::to_usize;

use super::diff::Edits;
use super::round::Round;
use crate::check::reader::{Bytes, Reader};
use crate::check::roots::Roots;
use crate::check::{Checked, ClusterRun};
use crate::host::Host;
use crate::ondisk::Header;
use crate::ondisk::refcount::RefcountTableEntry;
use crate::ondisk::units::{FileBounds, Position};

/// Most refcount blocks that are changed in one step.
const STEP_BLOCKS_MAX: usize = 4096;

/// Blocks from which on it is asked which of them are holes, whose counts are zero: a table may lead to a million that
/// are for clusters past the end of the file.
const ASKED_BLOCKS_MIN: usize = 64;

/// A refcount block with counts to be set to zero.
struct Block {
    /// Its first byte in the file.
    offset: u64,
    /// Number of the cluster that its first count is for.
    base: u64,
}

/// Proposes the steps.
pub fn propose<H: Host>(round: &mut Round<'_, H>, checked: &Checked) {
    let (free, frees_past_end) = (checked.free.as_slice(), checked.frees_past_end);
    release(round, checked, Cure::FreeLeaks, Frees { free, frees_past_end });
}

/// Proposes to free what a cure has left behind: sorted runs of clusters whose only user it has just taken away.
pub fn propose_left<H: Host>(round: &mut Round<'_, H>, checked: &Checked, cure: Cure, left: &[ClusterRun]) {
    release(round, checked, cure, Frees { free: left, frees_past_end: false });
}

fn release<H: Host>(round: &mut Round<'_, H>, checked: &Checked, cure: Cure, frees: Frees<'_>) {
    let Some(image) = &checked.image else { return };
    let release = Release { cure, roots: &checked.roots, header: &image.header, bounds: image.bounds, frees };
    let mut blocks = release.blocks();
    let mut reader = Reader::new(image.bounds.len);
    if blocks.len() >= ASKED_BLOCKS_MIN {
        let len = image.header.cluster.usize();
        blocks.retain(|block| !reader.is_hole(round.host, block.offset, len));
    }
    let mut rest = blocks.as_slice();
    while !rest.is_empty() {
        let done = (blocks.len() - rest.len()) as u64;
        round.host.progress(Phase::Planning, 0, done, blocks.len() as u64);
        let taken = release.step(round, &mut reader, rest).max(1);
        rest = rest.get(taken..).unwrap_or(&[]);
    }
}

/// What is to be freed.
#[derive(Debug, Clone, Copy)]
pub struct Frees<'a> {
    /// Sorted runs of clusters.
    pub free: &'a [ClusterRun],
    /// All clusters past the end of the file too.
    pub frees_past_end: bool,
}

impl Frees<'_> {
    /// Sets the counts of what is to be freed among `clusters` to zero in the bytes of their block, whose first count
    /// is that of cluster `base`.
    pub fn clear(
        &self,
        (header, bounds): (&Header, &FileBounds),
        bytes: &mut [u8],
        base: u64,
        clusters: Range<u64>,
    ) {
        let mut clear = |run: Range<u64>| {
            for cluster in run {
                // A count past the end of the bytes that there are reads as zero already.
                if !header.refcount_width.set(bytes, to_usize(cluster - base), 0) {
                    return;
                }
            }
        };
        let mut from = clusters.start;
        while let Some(run) = first_run(self.free, &(from..clusters.end)) {
            from = run.end;
            clear(run);
        }
        if self.frees_past_end {
            clear(clusters.start.max(bounds.clusters())..clusters.end);
        }
    }
}

struct Release<'a> {
    cure: Cure,
    roots: &'a Roots,
    header: &'a Header,
    bounds: FileBounds,
    frees: Frees<'a>,
}

impl Release<'_> {
    /// The blocks that hold counts to be changed, in the order of the clusters they are for.
    fn blocks(&self) -> Vec<Block> {
        let per_block = self.header.refcount_width.per_block(self.header.cluster);
        let end = self.bounds.clusters();
        let entries = (0_u64..).zip(&self.roots.refcount_table);
        let blocks = entries.filter_map(|(index, entry)| {
            let offset = RefcountTableEntry(*entry).block_offset();
            let base = index.checked_mul(per_block)?;
            let clusters = base..base.checked_add(per_block)?;
            let is_wanted = (self.frees.frees_past_end && clusters.end > end)
                || first_run(self.frees.free, &clusters).is_some();
            let is_there = offset != 0 && self.bounds.position(offset) == Position::Inside;
            (is_wanted && is_there).then_some(Block { offset, base })
        });
        blocks.collect()
    }

    /// Reads as many blocks as one batch takes and proposes their changes as one step. Says how many.
    fn step<H: Host>(&self, round: &mut Round<'_, H>, reader: &mut Reader, blocks: &[Block]) -> usize {
        let len = self.header.cluster.usize();
        let blocks = blocks.get(..STEP_BLOCKS_MAX).unwrap_or(blocks);
        let mut edits = Edits::default();
        let places = blocks.iter().map(|block| (block.offset, len));
        let taken = reader.batch(round.host, places, |position, bytes| {
            let (Some(block), Bytes::Read(before)) = (blocks.get(position), bytes) else { return };
            let clusters = block.base..block.base + self.header.refcount_width.per_block(self.header.cluster);
            let mut after = before.to_vec();
            self.frees.clear((self.header, &self.bounds), &mut after, block.base, clusters);
            edits.table(block.offset, before, &after);
        });
        edits.propose(round, self.cure);
        taken
    }
}

/// The part in `clusters` of the first of the sorted runs that has one.
pub fn first_run(runs: &[ClusterRun], clusters: &Range<u64>) -> Option<Range<u64>> {
    let at = runs.partition_point(|run| run.first.saturating_add(run.count) <= clusters.start);
    let run = runs.get(at)?;
    let part = run.first.max(clusters.start)..run.first.saturating_add(run.count).min(clusters.end);
    (part.start < part.end).then_some(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first: u64, count: u64) -> ClusterRun {
        ClusterRun { first, count }
    }

    #[test]
    fn first_run_is_cut_to_the_clusters_asked_for() {
        let runs = [run(10, 5), run(20, 1), run(30, 100)];
        assert_eq!(first_run(&runs, &(0..10)), None);
        assert_eq!(first_run(&runs, &(12..100)), Some(12..15));
        assert_eq!(first_run(&runs, &(15..40)), Some(20..21));
        assert_eq!(first_run(&runs, &(50..60)), Some(50..60));
        assert_eq!(first_run(&runs, &(130..200)), None);
    }
}
