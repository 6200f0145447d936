//! Counts once more what a check has counted, for a plan that needs the counts themselves.
//!
//! Invariant: the counts are those of the check, window after window in the order of the clusters, each cluster in
//! exactly one window. Nothing is reported.

use core::ops::Range;

use instar_abi::call::Phase;

use super::counts::{CHUNK_CLUSTERS, Chunk, Counts};
use super::leaks::ClusterSet;
use super::reader::Reader;
use super::report::{Problems, Report};
use super::roots::{Image, Roots};
use super::{LEAKS_PART, references};
use crate::host::Host;
use instar_abi::problem::Problem as P;

/// Findings of which each tells of a cluster that is used as what only one can use it as.
pub const OVERLAPS: &[P] = &[
    P::RefcountBlockShared,
    P::L1EntryOverlap,
    P::L2EntryOverlapsMetadata,
    P::CompressedOverlapsMetadata,
    P::L2EntryShared,
    P::SnapshotTableOverlap,
    P::SnapshotL1Shared,
    P::BitmapOverlap,
    P::CryptoHeaderOverlap,
    P::MetadataOverlap,
];

/// True counts of a window.
#[derive(Debug)]
pub struct Window<'a> {
    /// The counts.
    pub counts: &'a Counts,
    /// The clusters that they are for: up to the next window, or to the end of all clusters.
    pub clusters: Range<u64>,
    /// Number of the window.
    pub pass: u32,
}

/// Counts the references to every cluster and hands the counts to `take`, window after window.
pub fn recount<H: Host>(
    host: &mut H,
    reader: &mut Reader,
    image: &Image,
    roots: &Roots,
    take: impl FnMut(&mut H, &mut Reader, &Window<'_>),
) {
    recount_during(Phase::Planning, host, reader, image, roots, take);
}

/// [`recount`], as a part of this phase of a job.
pub fn recount_during<H: Host>(
    phase: Phase,
    host: &mut H,
    reader: &mut Reader,
    image: &Image,
    roots: &Roots,
    mut take: impl FnMut(&mut H, &mut Reader, &Window<'_>),
) {
    let mut report = Report::new(true);
    report.set_muted(true);
    let (mut first, mut pass) = (0, 0);
    loop {
        let mut counts = Counts::new(first, image.bounds.clusters(), host.memory_budget() / 3);
        references(host, reader, &mut report, image, roots, &mut counts, (phase, pass));
        let next = counts.next_window().map(|cluster| cluster & !(CHUNK_CLUSTERS - 1));
        let window = Window { counts: &counts, clusters: counts.first()..next.unwrap_or(u64::MAX), pass };
        take(host, reader, &window);
        match next {
            Some(next) if next > first => first = next,
            _ => return,
        }
        pass += 1;
    }
}

/// The clusters that are used as what only one can use them as: whoever writes there writes something else too.
/// `None` where they are too many to be known.
pub fn overlaps<H: Host>(
    host: &mut H,
    reader: &mut Reader,
    image: &Image,
    roots: &Roots,
    problems: &Problems,
) -> Option<ClusterSet> {
    let mut found = ClusterSet::new(host.memory_budget() / LEAKS_PART);
    if problems.has_any(OVERLAPS) {
        recount(host, reader, image, roots, |_, _, window| {
            for (clusters, chunk) in window.counts.used_chunks() {
                let Chunk::Wide(wide) = chunk else { continue };
                for (slot, cluster) in clusters.enumerate() {
                    if wide.usage(slot).is_overlap() {
                        found.insert(cluster);
                    }
                }
            }
        });
    }
    (!found.is_overfull()).then_some(found)
}
