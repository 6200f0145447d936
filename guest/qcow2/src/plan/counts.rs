//! `FixCounts`: writes the counted number of users over a wrong one, both ways and at every width.
//!
//! Invariant: only counts of clusters of the file are written: of those in use the true count, and zero for
//! proven leaks, which may share a byte with them. The count of an orphan stays as it is stored. What is left wrong:
//! counts that do not fit the width, counts that must not be raised while there is evidence, those that would
//! contradict a flag that is not to be set, and those of blocks that are something else too, or may be what a hidden
//! user has: they are never written in place.

use core::ops::Range;

use instar_abi::cure::Cure;
use instar_abi::problem::Problem as P;

use super::diff::Edits;
use super::doubt::Doubt;
use super::leaks::Frees;
use crate::check::Checked;
use crate::check::compare::{Blocks, Wanted, block_offset};
use crate::check::counts::{CHUNK_CLUSTERS, Chunk, Usage, flags};
use crate::check::leaks::ClusterSet;
use crate::check::reader::Reader;
use crate::check::recount::Window;
use crate::check::report::Report;
use crate::check::roots::Image;
use crate::host::Host;
use crate::ondisk::bytes::is_zero;
use instar_abi::call::Phase;

/// The cure, as far as it may be applied.
#[derive(Debug, Clone, Copy)]
pub struct FixCounts<'a> {
    checked: &'a Checked,
    image: &'a Image,
    /// Clusters that are two things.
    overlaps: &'a ClusterSet,
    may_lower: bool,
    may_raise: bool,
    /// The flag of an entry that leads to a cluster with one user may be set.
    may_flag: bool,
    /// Clusters may have users that were not found, and what is taken for a block may be one of those clusters.
    may_be_foreign: bool,
}

impl<'a> FixCounts<'a> {
    /// Whether there is anything for it to do.
    #[must_use]
    pub fn is_wanted(checked: &Checked, doubt: &Doubt) -> bool {
        let problems = [P::RefcountTooHigh, P::RefcountContradicted, P::RefcountTooLow];
        let may_set = |problem| doubt.may_set(problem) && (problem == P::RefcountTooLow || doubt.may_lower());
        problems.iter().any(|problem| checked.problems.has(*problem) && may_set(*problem))
    }

    /// The cure in view of what is known.
    #[must_use]
    pub fn new(checked: &'a Checked, image: &'a Image, overlaps: &'a ClusterSet, doubt: &Doubt) -> Self {
        let is_wanted = Self::is_wanted(checked, doubt);
        let may_raise = is_wanted && doubt.may_set(P::RefcountTooLow);
        let may_lower = is_wanted && doubt.may_lower();
        let may_flag = doubt.may_set(P::L1CopiedMissing) && doubt.may_set(P::L2CopiedMissing);
        let may_be_foreign = doubt.may_hide_users();
        Self { checked, image, overlaps, may_lower, may_raise, may_flag, may_be_foreign }
    }

    /// Proposes the counts of a window. Clusters in use whose stored count stays wrong go to `unsettled`.
    pub fn window<H: Host>(
        &self,
        host: &mut H,
        reader: &mut Reader,
        window: &Window<'_>,
        unsettled: &mut ClusterSet,
    ) {
        let (image, roots) = (self.image, &self.checked.roots);
        let per_block = image.header.refcount_width.per_block(image.header.cluster);
        let phase = (Phase::Planning, window.pass);
        let blocks = Blocks { image, roots, clusters: window.clusters.clone(), phase };
        let mut edits = Edits::default();
        let mut report = Report::new(true);
        // A hole has the counts of clusters that nothing uses right, and nothing to free.
        let asked = Wanted { counts: window.counts, roots };
        let want = |clusters: &Range<u64>, is_hole: bool| !is_hole || asked.wants(clusters, is_hole);
        blocks.for_each(host, reader, &mut report, want, |host, _, base, before| {
            let entry = roots.refcount_table.get(instar_abi::to_usize(base / per_block));
            let Some(offset) = entry.and_then(|entry| block_offset(image, *entry)) else { return };
            let mut after = before.to_vec();
            let is_overlap = self.overlaps.contains(image.header.cluster.index(offset));
            let is_own =
                !is_overlap && (!self.may_be_foreign || self.reads_like_counts(before, base, window));
            self.block(&mut after, base, window, is_own, unsettled);
            if is_own {
                // A block at the end of the file may be physically short: what is changed is written.
                edits.table(offset, before, &after);
            }
            edits.propose_many(host, Cure::FixCounts);
        });
        edits.propose(host, Cure::FixCounts);
    }

    /// Whether a block is right about most of the clusters in use, or says nothing at all.
    fn reads_like_counts(&self, bytes: &[u8], base: u64, window: &Window<'_>) -> bool {
        let width = self.image.header.refcount_width;
        let end = base.saturating_add(width.per_block(self.image.header.cluster));
        let clusters = base.max(window.clusters.start)..end.min(window.counts.counted_end());
        let (mut used, mut right) = (0_u64, 0_u64);
        for cluster in clusters {
            let count = window.counts.usage(cluster).count;
            if count > 0 {
                used += 1;
                right += u64::from(width.get(bytes, instar_abi::to_usize(cluster - base)) == Some(count));
            }
        }
        right * 2 >= used || is_zero(bytes)
    }

    /// Sets the counts of one block as far as they are the window's.
    fn block(
        &self,
        bytes: &mut [u8],
        base: u64,
        window: &Window<'_>,
        is_own: bool,
        unsettled: &mut ClusterSet,
    ) {
        let width = self.image.header.refcount_width;
        let end = base.saturating_add(width.per_block(self.image.header.cluster));
        let clusters = base.max(window.clusters.start)..end.min(window.clusters.end);
        let in_file = clusters.start..clusters.end.min(self.image.bounds.clusters());
        let mut at = in_file.start;
        while at < in_file.end {
            let stop = (at | (CHUNK_CLUSTERS - 1)).saturating_add(1).min(in_file.end);
            if let Some(chunk @ (Chunk::Narrow(_) | Chunk::Wide(_))) = window.counts.chunk_of(at) {
                for cluster in at..stop {
                    let slot = instar_abi::to_usize(cluster - base);
                    let usage = chunk.usage(instar_abi::to_usize(cluster % CHUNK_CLUSTERS));
                    let count = usage.count;
                    let stored = width.get(bytes, slot).unwrap_or(0);
                    if count == 0 || count == stored {
                        continue;
                    }
                    let may_set = self.may_make_single(usage)
                        && if stored > count { self.may_lower } else { self.may_raise };
                    if !(is_own && may_set && width.set(bytes, slot, count)) {
                        unsettled.insert(cluster);
                    }
                }
            }
            at = stop;
        }
        if self.may_lower {
            let Checked { free, frees_past_end, .. } = self.checked;
            let frees = Frees { free, frees_past_end: *frees_past_end };
            frees.clear((&self.image.header, &self.image.bounds), bytes, base, clusters);
        }
    }

    /// Whether the count of a cluster may say that it has one user. Where an entry does not, and may not be made to, a
    /// count that says so contradicts it.
    fn may_make_single(&self, usage: Usage) -> bool {
        self.may_flag || usage.count != 1 || usage.flags & flags::ACTIVE_CLEAR == 0
    }
}
