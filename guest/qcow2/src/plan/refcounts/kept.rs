//! Which of the refcount structures can be gone on with.
//!
//! A block is kept where its entry leads to a cluster of the file that is nothing else. A table is believed where its
//! place is known, within the file, and nothing else; of one that is not, no entry is. It stays where it also has an
//! entry for what comes behind the file, or nothing has to come there.

use alloc::vec::Vec;

use instar_abi::finding::Table;
use instar_abi::problem::Problem as P;

use crate::check::Checked;
use crate::check::compare::block_offset;
use crate::check::leaks::ClusterSet;
use crate::check::roots::Image;

/// Findings whose cure makes new blocks, behind the file.
const LACKS_BLOCKS: &[P] = &[
    P::RefcountTableEntryUnaligned,
    P::RefcountTableEntryPastEof,
    P::RefcountBlockShared,
    P::RefcountBlockMissing,
];

/// The refcount structures that stay, and those that do not.
#[derive(Debug)]
pub struct Kept {
    /// The table stays where it is.
    pub has_table: bool,
    /// For each entry of the table, the byte offset of the block that stays; 0 where none does.
    pub blocks: Vec<u64>,
    /// Clusters of what does not stay, in order.
    pub dropped: Vec<u64>,
}

impl Kept {
    /// What can be kept of an image, of which `overlaps` are the clusters that are two things.
    #[must_use]
    pub fn of(checked: &Checked, image: &Image, overlaps: &ClusterSet) -> Self {
        let roots = &checked.roots;
        let cluster = image.header.cluster;
        let regions = roots.regions.iter().filter(|region| region.table == Table::RefcountTable);
        let places = regions.flat_map(|region| {
            let present = image.bounds.present(region.offset, region.len);
            let first = cluster.index(region.offset);
            first..first.saturating_add(cluster.count(present))
        });
        let table: Vec<u64> = places.collect();
        let is_believed = !table.is_empty()
            && !checked.problems.has_any(&[P::HeaderRefcountTableOffset, P::HeaderRefcountTableSize])
            && !table.iter().any(|place| overlaps.contains(*place));
        let per_block = image.header.refcount_width.per_block(cluster);
        let is_full = image.bounds.clusters() / per_block >= roots.refcount_table.len() as u64;
        let has_table = is_believed && !(is_full && checked.problems.has_any(LACKS_BLOCKS));
        let mut dropped = if has_table { Vec::new() } else { table };
        let mut blocks = Vec::with_capacity(roots.refcount_table.len());
        for raw in &roots.refcount_table {
            let offset = block_offset(image, *raw);
            let is_own = |offset: &u64| is_believed && !overlaps.contains(cluster.index(*offset));
            let block = offset.filter(is_own).unwrap_or(0);
            if let (Some(offset), 0) = (offset, block) {
                dropped.push(cluster.index(offset));
            }
            blocks.push(block);
        }
        dropped.sort_unstable();
        dropped.dedup();
        Self { has_table, blocks, dropped }
    }

    /// Entries that a table needs for the blocks that stay.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.blocks.iter().rposition(|block| *block != 0).map_or(0, |last| last as u64 + 1)
    }

    /// Byte offset of the block of this index that stays, 0 if there is none.
    #[must_use]
    pub fn block(&self, index: u64) -> u64 {
        self.blocks.get(instar_abi::to_usize(index)).copied().unwrap_or(0)
    }
}
