//! Which whole clusters of the file nothing uses.
//!
//! Invariant: a cluster is told as free only where a check of the whole image has found nothing at all, so that every
//! stored count is the number of users that a complete walk has found; where nothing refers to it, a refcount block
//! says zero of it, and all of its bytes are in the file. An image that has a part of which it is not known which
//! clusters are its own has no free clusters. What is told is in ascending order, and no two ranges touch.
//!
//! What this does not do: it gives nothing back, and leaves it to the host whether to believe it.

use core::ops::Range;

use instar_abi::call::Phase;
use instar_abi::finding::Table;
use instar_abi::region::{FREE, Region};
use instar_abi::summary::{Outcome, Stranger, Summary};

use crate::check::compare::block_offset;
use crate::check::counts::{CHUNK_CLUSTERS, Chunk, Counts};
use crate::check::reader::Reader;
use crate::check::recount::recount_during;
use crate::check::roots::{Image, Roots};
use crate::check::{self, Options};
use crate::host::Host;
use crate::ondisk::extensions;
use crate::ondisk::header::{FIXED_BYTES, autoclear, compatible};
use crate::ondisk::units::ClusterSize;

/// Checks the image, and tells of its free clusters where nothing speaks against it.
pub fn run<H: Host>(host: &mut H) -> Summary {
    let checked = check::inspect(host, &Options::default());
    let is_complete = checked.summary.outcome == Outcome::Complete as u32;
    let (Some(image), None, true) = (&checked.image, checked.problems.iter().next(), is_complete) else {
        return checked.summary;
    };
    if let Some((stranger, value)) = stranger(image) {
        return Summary { stranger: stranger as u32, stranger_value: value, ..checked.summary };
    }
    tell(host, image, &checked.roots);
    checked.summary
}

/// The first part of the image that may use clusters in a way that is not known here.
fn stranger(image: &Image) -> Option<(Stranger, u64)> {
    let (header, seen) = (&image.header, &image.extensions.seen);
    let extension = seen.iter().map(|(kind, _)| *kind).find(|kind| !extensions::KNOWN.contains(kind));
    let (compatible, autoclear) =
        (header.compatible & !compatible::KNOWN, header.autoclear & !autoclear::KNOWN);
    let header_bytes = u64::from(header.header_bytes.unwrap_or(0));
    [
        (header.has_data_file(), Stranger::DataFile, 0),
        (header_bytes > FIXED_BYTES as u64, Stranger::HeaderLength, header_bytes),
        (extension.is_some(), Stranger::Extension, extension.unwrap_or(0).into()),
        (compatible != 0, Stranger::Compatible, compatible),
        (autoclear != 0, Stranger::Autoclear, autoclear),
    ]
    .into_iter()
    .find_map(|(is_there, stranger, value)| is_there.then_some((stranger, value)))
}

fn tell<H: Host>(host: &mut H, image: &Image, roots: &Roots) {
    let mut reader = Reader::new(image.bounds.len);
    let cluster = image.header.cluster;
    let per_block = image.header.refcount_width.per_block(cluster);
    let whole = image.bounds.len / cluster.bytes();
    let mut run = Run { cluster, clusters: 0..0 };
    recount_during(Phase::Survey, host, &mut reader, image, roots, |host, _, window| {
        let clusters = window.clusters.start..window.clusters.end.min(whole);
        let first = clusters.start / per_block;
        let entries = roots.refcount_table.iter().skip(instar_abi::to_usize(first));
        for (base, entry) in (0..).map(|index| (first + index).saturating_mul(per_block)).zip(entries) {
            if base >= clusters.end {
                break;
            }
            if block_offset(image, *entry).is_some() {
                let counted = base.max(clusters.start)..base.saturating_add(per_block).min(clusters.end);
                unused(window.counts, counted, |free| run.add(host, free));
            }
        }
    });
    run.tell(host);
}

/// Hands the runs of clusters of a range to `take` that nothing refers to, in order.
fn unused(counts: &Counts, clusters: Range<u64>, mut take: impl FnMut(Range<u64>)) {
    let mut at = clusters.start;
    while at < clusters.end {
        let stop = (at | (CHUNK_CLUSTERS - 1)).saturating_add(1).min(clusters.end);
        match counts.chunk_of(at) {
            None | Some(Chunk::Empty) => take(at..stop),
            Some(chunk) => {
                let is_free =
                    |cluster: u64| chunk.usage(instar_abi::to_usize(cluster % CHUNK_CLUSTERS)).count == 0;
                let mut free = (at..stop).filter(|cluster| is_free(*cluster)).peekable();
                while let Some(first) = free.next() {
                    let mut end = first + 1;
                    while free.next_if_eq(&end).is_some() {
                        end += 1;
                    }
                    take(first..end);
                }
            }
        }
        at = stop;
    }
}

/// A run of free clusters that may go on.
struct Run {
    cluster: ClusterSize,
    clusters: Range<u64>,
}

impl Run {
    /// Adds clusters behind all that were added before.
    fn add<H: Host>(&mut self, host: &mut H, free: Range<u64>) {
        if free.start != self.clusters.end {
            self.tell(host);
            self.clusters.start = free.start;
        }
        self.clusters.end = free.end;
    }

    fn tell<H: Host>(&self, host: &mut H) {
        let offset = self.cluster.offset(self.clusters.start);
        let len = self.cluster.offset(self.clusters.end).saturating_sub(offset);
        if len > 0 {
            host.region(&Region { offset, len, table: Table::File as u32, flags: FREE });
        }
    }
}
