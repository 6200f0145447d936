//! Dropping all bitmaps, by decision: the next backup copies everything.
//!
//! The header extension that leads to them becomes the end mark of the extensions where it is the last one, else one that
//! is ignored: a few bytes within one sector. In the same round the clusters that only the bitmaps used are freed: the
//! directory, and the tables and data as far as they can be followed.
//!
//! Invariant: nothing else casts doubt on leaks when this is done, and no cluster that something else uses too is
//! freed.

use alloc::vec::Vec;

use instar_abi::cure::Cure;
use instar_abi::finding::Table;
use instar_abi::problem::{Problem, Problem as P};

use super::bitmaps::Trust;
use super::leaks;
use super::round::Round;
use crate::check::bitmaps::{Data, data, for_each_entry};
use crate::check::leaks::ClusterSet;
use crate::check::reader::Reader;
use crate::check::recount::overlaps;
use crate::check::report::Report;
use crate::check::roots::Image;
use crate::check::{Checked, ClusterRun};
use crate::host::Host;
use crate::ondisk::extensions::{BITMAPS, IGNORED};

/// Findings about bitmaps that dropping all of them ends.
pub const DROPPED: &[Problem] = &[
    P::BitmapDirectory,
    P::BitmapEntry,
    P::BitmapTable,
    P::BitmapTableEntry,
    P::BitmapTableOffset,
    P::BitmapTableShared,
    P::BitmapInUse,
    P::BitmapDuplicateName,
    P::BitmapOverlap,
    P::ExtensionBitmaps,
    P::AutoclearBitmaps,
];
/// The set of the bitmaps' clusters may take the memory budget divided by this.
const CLUSTERS_PART: usize = 12;

/// Proposes the steps; the header's bitmaps bit is left to the caller.
pub fn propose<H: Host>(round: &mut Round<'_, H>, image: &Image, checked: &Checked) -> Trust {
    let seen = &image.extensions.seen;
    let Some(at) = seen.iter().position(|(kind, _)| *kind == BITMAPS) else { return Trust::AsBefore };
    let Some((_, place)) = seen.get(at) else { return Trust::AsBefore };
    let Some(left) = clusters(round.host, image, checked) else { return Trust::AsBefore };
    let head = place.start.saturating_sub(8) as u64;
    let is_last = image.extensions.is_complete && at + 1 == seen.len();
    let mark = if is_last { alloc::vec![0; 8] } else { IGNORED.to_be_bytes().to_vec() };
    round.writes(Cure::DirtyBitmaps, &[(head, mark)]);
    leaks::propose_left(round, checked, Cure::DirtyBitmaps, &left);
    Trust::Clear
}

/// The clusters that only bitmaps use; `None` where they are too many to be known.
fn clusters<H: Host>(host: &mut H, image: &Image, checked: &Checked) -> Option<Vec<ClusterRun>> {
    let cluster = image.header.cluster;
    let mut reader = Reader::new(image.bounds.len);
    let shared = overlaps(host, &mut reader, image, &checked.roots, &checked.problems)?;
    let mut own = ClusterSet::new(host.memory_budget() / CLUSTERS_PART);
    let mut put = |index: u64| {
        if !shared.contains(index) {
            own.insert(index);
        }
    };
    let is_bitmaps = |table| matches!(table, Table::BitmapDirectory | Table::BitmapTable);
    for region in checked.roots.regions.iter().filter(|region| is_bitmaps(region.table)) {
        let first = cluster.index(region.offset);
        let present = image.bounds.present(region.offset, region.len);
        (first..first.saturating_add(cluster.count(present))).for_each(&mut put);
    }
    // The check has told of what cannot be read.
    let mut report = Report::new(true);
    for bitmap in &checked.roots.bitmaps {
        for_each_entry(host, &mut reader, &mut report, bitmap, |_, _, entry, _| {
            if let Data::At(offset) = data(image, &checked.roots, entry) {
                put(cluster.index(offset));
            }
        });
    }
    let mut runs = Vec::new();
    let mut from = 0;
    while let Some(run) = own.run_from(from) {
        runs.push(ClusterRun { first: run.start, count: run.end - run.start });
        from = run.end;
    }
    (!own.is_overfull()).then_some(runs)
}
