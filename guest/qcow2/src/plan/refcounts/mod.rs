//! `RebuildRefcounts`: new refcount blocks, and where needed a new table, at the end of the file.
//!
//! A block that is missing, cannot be found, or is something else too gets a new cluster with the true counts of its
//! clusters, and its table entry is switched. A table that cannot be found, is something else too, or has too few
//! entries is written anew, and the header is switched to it; in the first two cases no old block is believed.
//!
//! Invariant: nothing is written in place but entries, the header's 12 bytes, and counts in blocks that stay: of the
//! new clusters, and zero for the old ones that nothing uses any more. A new block counts what is in use and nothing
//! else, so none is made while there are leaks that may be data. The file does not grow while anything points past
//! its end.

mod fresh;
mod kept;

use alloc::vec::Vec;

use instar_abi::cure::Cure;
use instar_abi::problem::{Problem, Problem as P};

use super::diff::Edits;
use super::doubt::Doubt;
use super::round::Round;
use crate::check::Checked;
use crate::check::compare::table_entry_offset;
use crate::check::reader::{Bytes, Reader};
use crate::check::recount::{overlaps, recount};
use crate::check::roots::Image;
use crate::host::Host;
use crate::ondisk::refcount::REFCOUNT_TABLE_BYTES_MAX;
use fresh::{Fresh, Made};
use kept::Kept;

/// Byte offset of the header's field for the place of the table; its size is right behind.
const TABLE_FIELD: u64 = 48;

/// What calls for it. Of overlaps only those of the table are mended here.
const PROBLEMS: &[Problem] = &[
    P::HeaderRefcountTableOffset,
    P::HeaderRefcountTableSize,
    P::RefcountTableEntryReserved,
    P::RefcountTableEntryUnaligned,
    P::RefcountTableEntryPastEof,
    P::RefcountBlockShared,
    P::RefcountBlockMissing,
    P::MetadataOverlap,
];

/// Proposes the steps.
pub fn propose<H: Host>(round: &mut Round<'_, H>, checked: &Checked, doubt: &Doubt) {
    let Some(image) = checked.image.as_ref().filter(|_| checked.problems.has_any(PROBLEMS)) else { return };
    let mut reader = Reader::new(image.bounds.len);
    let roots = &checked.roots;
    let Some(overlaps) = overlaps(round, &mut reader, image, roots, &checked.problems) else { return };
    let kept = Kept::of(checked, image, &overlaps);
    if !doubt.may_rebuild() || !has_room(image) {
        clear_reserved(round, checked, image, &kept);
        return;
    }
    let roots = roots.with_refcount_table(kept.blocks.clone(), kept.has_table);
    let mut fresh = Fresh::new(image, &kept);
    recount(round, &mut reader, image, &roots, |round, _, window| fresh.window(round, window));
    let made = fresh.finish(round);
    set_counts(round, &mut reader, image, &kept, &made.counts);
    switch(round, checked, image, &made);
}

/// Whether a table of the largest size has an entry for every cluster, new ones included.
fn has_room(image: &Image) -> bool {
    let per_block = image.header.refcount_width.per_block(image.header.cluster);
    let clusters = image.bounds.clusters();
    // There are never more new clusters than twice the blocks of all clusters, and a few.
    let most = clusters.saturating_add(clusters / per_block * 2 + 64);
    most / per_block < REFCOUNT_TABLE_BYTES_MAX / 8
}

/// Clears reserved bits of entries whose blocks can be used, where nothing else may be done.
fn clear_reserved<H: Host>(round: &mut Round<'_, H>, checked: &Checked, image: &Image, kept: &Kept) {
    let mut edits = Edits::default();
    let entries = checked.roots.refcount_table.iter().zip(&kept.blocks);
    for (index, (raw, block)) in (0..).zip(entries) {
        if *block != 0 && raw != block {
            edits.write(table_entry_offset(image, index), &block.to_be_bytes());
        }
    }
    edits.propose(round, Cure::RebuildRefcounts);
}

/// Sets counts in blocks that stay.
fn set_counts<H: Host>(
    round: &mut Round<'_, H>,
    reader: &mut Reader,
    image: &Image,
    kept: &Kept,
    counts: &[(u64, u64)],
) {
    let width = image.header.refcount_width;
    let per_block = width.per_block(image.header.cluster);
    let groups: Vec<&[(u64, u64)]> =
        counts.chunk_by(|one, next| one.0 / per_block == next.0 / per_block).collect();
    let block =
        |group: &[(u64, u64)]| kept.block(group.first().map_or(0, |(cluster, _)| cluster / per_block));
    let mut rest = groups.as_slice();
    while !rest.is_empty() {
        let mut edits = Edits::default();
        let places = rest.iter().map(|group| (block(group), image.header.cluster.usize()));
        let taken = reader.batch(round, places, |position, bytes| {
            let (Some(group), Bytes::Read(before)) = (rest.get(position), bytes) else { return };
            let mut before = before.to_vec();
            before.resize(image.header.cluster.usize(), 0);
            let mut after = before.clone();
            for (cluster, count) in *group {
                let is_set = width.set(&mut after, instar_abi::to_usize(cluster % per_block), *count);
                debug_assert!(is_set);
            }
            edits.table(block(group), &before, &after);
        });
        edits.propose(round, Cure::RebuildRefcounts);
        rest = rest.get(taken.max(1)..).unwrap_or(&[]);
    }
}

/// Leads to what was made: by the header where there is a new table, else by the entries of the old one.
fn switch<H: Host>(round: &mut Round<'_, H>, checked: &Checked, image: &Image, made: &Made) {
    let mut edits = Edits::default();
    if let Some(table) = &made.table {
        let mut field = image.header.cluster.offset(table.cluster).to_be_bytes().to_vec();
        field.extend(u32::try_from(table.clusters).unwrap_or(0).to_be_bytes());
        edits.write(TABLE_FIELD, &field);
    } else {
        for (index, (raw, block)) in (0..).zip(checked.roots.refcount_table.iter().zip(&made.blocks)) {
            if raw != block {
                edits.write(table_entry_offset(image, index), &block.to_be_bytes());
            }
        }
    }
    edits.propose(round, Cure::RebuildRefcounts);
}
