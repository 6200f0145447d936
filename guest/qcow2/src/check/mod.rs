//! The check: walks all metadata once, counts every owner of every cluster, and compares with what is stored.
//!
//! ```text
//! roots     header, extensions, tables, snapshots, bitmaps, encryption header       roots, snapshots, bitmaps
//! count     every L1 and L2 entry, each L2 table once, in host order                walk, tally, counts
//! compare   refcount blocks against the counts                                      compare
//! judge     only if something is amiss: owners, overlaps, COPIED                    judge
//! inflate   only if asked to: the compressed clusters                               deep
//! triage    only if there are leaks: which of them are proven worthless             triage, leaks
//! ```
//!
//! Invariant: a pointer that is unaligned, or leads out of the file, is reported and not followed; a leak is
//! reported as one that may be freed ([`Problem::RefcountLeak`]) only where nothing was found that could have
//! hidden its user. Findings depend on the image alone; their order besides on the number of windows.
//!
//! Where memory does not hold the counts of all clusters at once, count, compare and judge are done for one window
//! of clusters after the other; entries are told of in the first pass only. Triage comes once, behind all windows.
//!
//! What this does not do: it writes nothing, looks into no guest data beyond the heads of leaked clusters, and
//! does not decide what is done about a finding.

mod bitmaps;
mod compare;
mod counts;
mod deep;
mod judge;
mod leaks;
pub(crate) mod reader;
pub(crate) mod report;
pub(crate) mod roots;
mod shares;
mod snapshots;
pub(crate) mod tally;
mod triage;
pub(crate) mod walk;

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use instar_abi::call::Phase;
use instar_abi::finding::{NONE, Table};
use instar_abi::problem::Problem;
use instar_abi::summary::{Outcome, Summary};

use crate::facts;
use crate::host::Host;
use crate::ondisk::{Fault, Header};
use counts::{CHUNK_CLUSTERS, Counts, flags};
use deep::Deep;
use leaks::ClusterSet;
use reader::Reader;
use report::Report;
pub use report::{Faults, Problems};
use roots::{Image, Roots};
use tally::{Tally, Totals};
use triage::{Evidence, Triage};

/// A set of clusters may take the memory budget divided by this; three of them live at once.
const LEAKS_PART: usize = 12;

/// What a check is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Also inflate every compressed cluster.
    pub deep: bool,
    /// Keep the findings for [`Checked`] instead of telling them.
    pub silent: bool,
}

/// A run of clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClusterRun {
    /// Number of the first cluster.
    pub first: u64,
    /// Clusters, at least 1.
    pub count: u64,
}

/// What a check learned, for whoever goes on from there.
#[derive(Debug)]
pub struct Checked {
    /// The summary as the host gets it.
    pub summary: Summary,
    /// The image, where its header could be read.
    pub(crate) image: Option<Image>,
    /// What its header leads to. Cluster `c` has its count in the block that the entry
    /// `c / refcount_width.per_block(cluster)` of the refcount table points to.
    pub(crate) roots: Roots,
    /// The problems found.
    pub problems: Problems,
    /// The findings, where [`Options::silent`] was asked for.
    pub faults: Faults,
    /// Leaked clusters that a complete walk proved unreferenced and triage found worthless: exactly those of
    /// the [`Problem::RefcountLeak`] findings, in order, each within the file and with a readable refcount
    /// block. Nothing else may ever be freed.
    pub free: Vec<ClusterRun>,
    /// The counts of all clusters past the end of the file may be set to zero too
    /// ([`Problem::RefcountPastEof`]): nothing worse than a leak was found, so no pointer leads there and no
    /// part of the file was cut off.
    pub frees_past_end: bool,
}

impl Checked {
    fn ended(summary: Summary) -> Self {
        Self {
            summary,
            image: None,
            roots: Roots::default(),
            problems: Problems::default(),
            faults: Faults::default(),
            free: Vec::new(),
            frees_past_end: false,
        }
    }
}

/// Checks an image and reports to the host.
pub fn run<H: Host>(host: &mut H, options: &Options) -> Summary {
    inspect(host, options).summary
}

/// Checks an image, reports to the host unless asked not to, and says what was learned.
pub fn inspect<H: Host>(host: &mut H, options: &Options) -> Checked {
    let file_len = host.file_len(instar_abi::boot::FILE_IMAGE).unwrap_or(0);
    let mut reader = Reader::new(file_len);
    let mut report = Report::new(options.silent);
    let image = match roots::open(host, &mut reader, &mut report) {
        Ok(image) => image,
        Err(fault) => return not_opened(host, report, &fault),
    };
    if image.header.is_corrupt() {
        let stored = image.header.incompatible;
        report.fault(&Fault::header(Problem::HeaderCorrupt, 72, 8, stored, NONE));
    }
    let roots = Roots::find(host, &mut reader, &mut report, &image);
    host.progress(Phase::Roots, 0, reader.bytes_read(), reader.bytes_read());
    let (totals, lost) = (Totals::default(), BTreeSet::new());
    let mut check =
        Check { reader, report, image, roots, totals, free: Vec::new(), end: 0, lost, last_lost: None };
    let passes = check.passes(host);
    if options.deep {
        check.inflate(host);
    }
    check.finish(host, passes)
}

/// The end of a check that could not begin.
fn not_opened<H: Host>(host: &mut H, mut report: Report, fault: &Fault) -> Checked {
    report.fault(fault);
    report.close_runs();
    report.flush(host);
    let summary = facts::of_refusal(fault, report.count());
    Checked { problems: report.seen(), faults: report.take_faults(), ..Checked::ended(summary) }
}

/// A check under way.
struct Check {
    reader: Reader,
    report: Report,
    image: Image,
    roots: Roots,
    totals: Totals,
    free: Vec<ClusterRun>,
    /// One past the last cluster in use.
    end: u64,
    /// Clusters past the end of the file that entries point at.
    lost: BTreeSet<u64>,
    /// The last of them that stored counts say is in use.
    last_lost: Option<u64>,
}

impl Check {
    /// Counts and compares window after window, then looks at the leaks of all of them. Says how many there were.
    fn passes<H: Host>(&mut self, host: &mut H) -> u32 {
        let (mut first, mut pass) = (0, 0);
        let mut leaks = ClusterSet::new(host.memory_budget() / LEAKS_PART);
        compare::check_table(&mut self.report, &self.image, &self.roots);
        loop {
            let (next, has_empty_tables) = self.pass(host, first, pass, &mut leaks);
            self.report.close_runs();
            self.report.flush(host);
            pass += 1;
            match next {
                Some(next) if next > first => first = next,
                _ => {
                    self.triage(host, &leaks, has_empty_tables, pass - 1);
                    return pass;
                }
            }
        }
    }

    /// One window: from cluster `first` on, as far as memory goes. Says where the next one begins, and whether the
    /// active disk has an empty L2 table.
    fn pass<H: Host>(
        &mut self,
        host: &mut H,
        first: u64,
        pass: u32,
        leaks: &mut ClusterSet,
    ) -> (Option<u64>, bool) {
        let cap = host.memory_budget() / 3;
        let mut counts = Counts::new(first, self.image.bounds.clusters(), cap);
        self.report.set_muted(pass > 0);
        let has_empty_tables = self.count(host, &mut counts, pass);
        self.report.set_muted(false);
        if !self.roots.is_active_found {
            // Without the active disk nearly every cluster would seem leaked.
            return (None, has_empty_tables);
        }
        let next = counts.next_window().map(|cluster| cluster & !(CHUNK_CLUSTERS - 1));
        let clusters = counts.first()..next.unwrap_or(u64::MAX);
        let mut mismatched = ClusterSet::new(host.memory_budget() / LEAKS_PART);
        self.compare(host, &counts, clusters, (leaks, &mut mismatched), pass);
        self.note_end(&counts, leaks);
        self.report.close_runs();
        if self.report.wants_owners() || judge::has_suspects(&counts) {
            self.judge(host, &counts, &mismatched, pass);
        }
        (next, has_empty_tables)
    }

    /// Counts all references. Says whether the active disk has an empty L2 table.
    fn count<H: Host>(&mut self, host: &mut H, counts: &mut Counts, pass: u32) -> bool {
        let Self { reader, report, image, roots, .. } = self;
        let cluster = image.header.cluster;
        for region in &roots.regions {
            let present = image.bounds.present(region.offset, region.len);
            counts.add_metadata(cluster.index(region.offset), cluster.count(present), region.weight);
        }
        for entry in &roots.refcount_table {
            if let Some(offset) = compare::block_offset(image, *entry) {
                counts.add(cluster.index(offset), flags::META, 1);
            }
        }
        bitmaps::count(host, reader, report, image, roots, counts);
        let mut tally = Tally::new(image, counts);
        walk::walk(host, reader, report, image, roots, &mut tally, (Phase::Mappings, pass));
        let (totals, beyond_end, empty) = (tally.totals, tally.beyond_end, tally.empty_tables);
        let lost = tally.lost;
        if pass == 0 {
            (self.totals, self.lost) = (totals, lost);
            if let Some(guest) = beyond_end {
                let stored = self.image.header.virtual_size;
                self.report.fault(&Fault::header(Problem::HeaderVirtualSize, 24, 8, stored, guest));
            }
        }
        empty > 0
    }

    fn compare<H: Host>(
        &mut self,
        host: &mut H,
        counts: &Counts,
        clusters: core::ops::Range<u64>,
        (leaks, mismatched): (&mut ClusterSet, &mut ClusterSet),
        pass: u32,
    ) {
        let Self { reader, report, image, roots, lost, last_lost, .. } = self;
        if roots.refcount_table.is_empty() {
            return;
        }
        let blocks =
            compare::Blocks { image, roots, clusters: clusters.clone(), phase: (Phase::Refcounts, pass) };
        let mut comparison =
            compare::Comparison { image, counts, clusters, mismatched, lost, last_lost: *last_lost, leaks };
        let asked = compare::Wanted { counts, roots };
        blocks.for_each(
            host,
            reader,
            report,
            |range| asked.wants(&range),
            |host, report, base, bytes| comparison.block(host, report, base, bytes),
        );
        comparison.missing_blocks(report, roots);
        *last_lost = comparison.last_lost;
    }

    /// Keeps the end of what is in use or held.
    fn note_end(&mut self, counts: &Counts, leaks: &ClusterSet) {
        let used = counts.used_chunks().last().and_then(|(first, chunk)| {
            let slots = (0..1 << counts::CHUNK_BITS).rev();
            slots.into_iter().find(|slot| chunk.usage(*slot).count > 0).map(|slot| first + slot as u64 + 1)
        });
        let leaked = leaks.last().map(|last| last + 1);
        self.end = self.end.max(used.unwrap_or(0)).max(leaked.unwrap_or(0));
    }

    fn judge<H: Host>(&mut self, host: &mut H, counts: &Counts, mismatched: &ClusterSet, pass: u32) {
        let Self { reader, report, image, roots, .. } = self;
        let mut judge = judge::Judge { image, counts, mismatched };
        judge.roots(host, reader, report, roots);
        walk::walk(host, reader, report, image, roots, &mut judge, (Phase::Owners, pass));
        report.forget_wanted();
    }

    /// What proves a leak worthless must know all leaks and all other findings: a table and the data that it leads
    /// to may lie in different windows.
    fn triage<H: Host>(&mut self, host: &mut H, leaks: &ClusterSet, has_empty_tables: bool, pass: u32) {
        if leaks.is_empty() {
            return;
        }
        let cap_bytes = host.memory_budget() / LEAKS_PART;
        let evidence = Evidence { has_empty_tables, pass, cap_bytes };
        let Self { reader, report, image, roots, free, .. } = self;
        let triage = Triage::run(host, reader, report, image, roots, leaks, evidence);
        triage.tell(host, reader, report, image, roots, leaks, evidence.pass, |cluster| {
            match free.last_mut() {
                Some(run) if run.first + run.count == cluster => run.count += 1,
                _ => free.push(ClusterRun { first: cluster, count: 1 }),
            }
        });
    }

    /// Inflates every compressed cluster. Where it is unknown how they are packed, the header's finding stands.
    fn inflate<H: Host>(&mut self, host: &mut H) {
        let Some(compression) = self.image.header.compression else { return };
        let Self { reader, report, image, roots, .. } = self;
        let mut deep = Deep::new(image, compression);
        walk::walk(host, reader, report, image, roots, &mut deep, (Phase::Inflate, 0));
    }

    fn finish<H: Host>(mut self, host: &mut H, passes: u32) -> Checked {
        let header = &self.image.header;
        if header.is_dirty() && self.report.are_counts_wrong() {
            let stored = header.incompatible;
            self.report.fault(&Fault::header(Problem::HeaderDirty, 72, 8, stored, NONE));
        }
        if let Some(cluster) = self.last_lost {
            self.report.fault(&truncated(self.image.bounds.len, cluster, header));
        }
        self.report.close_runs();
        self.report.flush(host);
        let is_complete = self.roots.is_active_found
            && !self.roots.refcount_table.is_empty()
            && !self.report.is_incomplete();
        let outcome = if is_complete { Outcome::Complete } else { Outcome::Incomplete };
        let bitmaps = self.image.extensions.bitmaps.map_or(0, |extension| extension.bitmaps);
        let summary = Summary {
            outcome: outcome as u32,
            passes,
            findings: self.report.count(),
            total_clusters: header.cluster.count(header.virtual_size),
            allocated_clusters: self.totals.allocated,
            fragmented_clusters: self.totals.fragmented,
            compressed_clusters: self.totals.compressed,
            image_end_offset: header.cluster.offset(self.end),
            metadata_bytes: self.reader.bytes_read(),
            ..facts::of_header(header, bitmaps)
        };
        let frees_past_end = is_complete && !self.report.has_corruption();
        if self.report.casts_doubt() {
            // A later window may have found what an earlier one did not know.
            self.free.clear();
        }
        Checked {
            summary,
            image: Some(self.image),
            roots: self.roots,
            problems: self.report.seen(),
            faults: self.report.take_faults(),
            free: self.free,
            frees_past_end,
        }
    }
}

/// The fault of a file that ends before a cluster which is pointed at and counted as in use.
const fn truncated(file_len: u64, cluster: u64, header: &Header) -> Fault {
    Fault {
        problem: Problem::FileTruncated,
        table: Table::File,
        host_offset: file_len,
        host_len: 0,
        index: cluster,
        stored: file_len,
        expected: header.cluster.offset(cluster.saturating_add(1)),
    }
}
