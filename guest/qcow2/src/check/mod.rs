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
//! hidden its user. Findings and their order depend on the image alone, as long as memory holds the suspects and leaks.
//!
//! Where memory does not hold the counts of all clusters at once, count and compare are done for one window of
//! clusters after the other; entries are told of in the first pass only. What calls for a second look is kept, and
//! judged once, behind all windows; so is triage. Only where that is too much to be kept is every window judged by
//! itself, and leaks that there is no room for are told of as they are met, as ones that nothing is proven of.
//!
//! What this does not do: it writes nothing, looks into no guest data beyond the heads of leaked clusters, and
//! does not decide what is done about a finding.

pub(crate) mod bitmaps;
pub(crate) mod compare;
pub(crate) mod counts;
mod deep;
mod holes;
mod judge;
pub(crate) mod leaks;
pub(crate) mod reader;
pub(crate) mod recount;
pub(crate) mod report;
pub(crate) mod roots;
mod shares;
pub(crate) mod snapshots;
mod suspects;
pub(crate) mod tally;
mod triage;
pub(crate) mod walk;

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use instar_abi::call::Phase;
use instar_abi::finding::{NONE, Table};
use instar_abi::problem::Problem;
use instar_abi::summary::{Outcome, Summary};

use crate::evidence;
use crate::facts;
use crate::host::Host;
use crate::ondisk::{Fault, Header};
use compare::{Missing, Part};
use counts::{CHUNK_CLUSTERS, Counts, flags};
use deep::Deep;
use leaks::ClusterSet;
use reader::Reader;
use report::Report;
pub use report::{Faults, Problems};
use roots::{Image, Roots};
use suspects::Suspects;
use tally::{Seen, Tally, Totals};
use triage::{Evidence, Triage};

/// A set of clusters may take the memory budget divided by this; five of them live at once.
const LEAKS_PART: usize = 16;

/// Findings about header fields that evidence was looked for before.
const ROOTS: &[Problem] =
    &[Problem::HeaderL1Size, Problem::HeaderL1Offset, Problem::HeaderLength, Problem::HeaderRefcountOrder];
/// Findings that a damaged header field leaves behind where it leads to the wrong place.
const ASTRAY: &[Problem] = &[
    Problem::TableGarbage,
    Problem::L1EntryReserved,
    Problem::L1EntryUnaligned,
    Problem::L1EntryPastEof,
    Problem::L1EntryOverlap,
    Problem::L2EntryReserved,
    Problem::L2ZeroFlagInV2,
    Problem::ExtendedBitmapWithoutOffset,
    Problem::CompressedPastEof,
    Problem::OrphanTable,
];

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
    /// The same of what bitmaps have lost, or what leaked before ([`Problem::OrphanBitmap`]): worthless once no bitmap
    /// misses anything.
    pub lost_by_bitmaps: Vec<ClusterRun>,
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
            lost_by_bitmaps: Vec::new(),
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
    let mut check = Check {
        reader,
        report,
        image,
        roots,
        totals: Totals::default(),
        free: Vec::new(),
        lost_by_bitmaps: Vec::new(),
        end: 0,
        mapped_end: None,
        lost: BTreeSet::new(),
        last_lost: None,
        missing: Missing::default(),
        told: BTreeSet::new(),
        hearsay: ClusterSet::new(host.memory_budget() / LEAKS_PART),
        shared_blocks: ClusterSet::new(host.memory_budget() / LEAKS_PART),
    };
    let passes = check.passes(host);
    if options.deep {
        check.inflate(host);
    }
    check.finish(host, passes)
}

/// Counts all references to the clusters of a window; says what was seen on the way.
fn references<H: Host>(
    host: &mut H,
    reader: &mut Reader,
    report: &mut Report,
    image: &Image,
    roots: &Roots,
    counts: &mut Counts,
    phase: (Phase, u32),
) -> Seen {
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
    walk::walk(host, reader, report, image, roots, &mut tally, phase);
    tally.seen
}

/// The end of a check that could not begin.
fn not_opened<H: Host>(host: &mut H, mut report: Report, fault: &Fault) -> Checked {
    let root = evidence::find(host, false);
    // An image without its magic is told of as that.
    let is_image = root.is_some_and(|root| root.problem == Problem::HeaderMagic);
    report.keep_root(root);
    if !is_image {
        report.fault(fault);
    }
    report.tell_root();
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
    lost_by_bitmaps: Vec<ClusterRun>,
    /// One past the last cluster in use.
    end: u64,
    /// Where what is mapped behind the active disk's end ends.
    mapped_end: Option<u64>,
    /// Clusters past the end of the file that entries point at.
    lost: BTreeSet<u64>,
    /// The last of them that stored counts say is in use.
    last_lost: Option<u64>,
    /// Refcount blocks that are missing.
    missing: Missing,
    /// Regions whose overlap was told of.
    told: BTreeSet<usize>,
    /// Leaks that only a block tells of which is wrong about clusters in use. If it is something else too, it holds no
    /// counts, and they are no leaks.
    hearsay: ClusterSet,
    /// Indices of refcount blocks that are something else too.
    shared_blocks: ClusterSet,
}

/// What came of a window.
struct Passed {
    /// Where the next window begins.
    next: Option<u64>,
    /// The active disk has an empty L2 table.
    has_empty_tables: bool,
    /// Nothing of it is left to be judged.
    is_judged: bool,
}

impl Check {
    /// Counts and compares window after window, then judges what is amiss, and looks at the leaks, in all of them.
    /// Says how many windows there were.
    fn passes<H: Host>(&mut self, host: &mut H) -> u32 {
        let (mut first, mut pass) = (0, 0);
        let mut leaks = ClusterSet::new(host.memory_budget() / LEAKS_PART);
        let mut suspects = Suspects::new(host.memory_budget() / LEAKS_PART);
        compare::check_table(&mut self.report, &self.image, &self.roots);
        loop {
            let passed = self.pass(host, first, pass, &mut leaks, &mut suspects);
            self.report.flush_some(host);
            pass += 1;
            match passed.next {
                Some(next) if next > first => first = next,
                _ => {
                    if !passed.is_judged {
                        self.judge_suspects(host, &suspects, pass - 1);
                    }
                    drop(suspects);
                    self.report.close_runs();
                    self.report.flush(host);
                    self.triage(host, &leaks, passed.has_empty_tables, pass - 1);
                    return pass;
                }
            }
        }
    }

    /// One window: from cluster `first` on, as far as memory goes.
    fn pass<H: Host>(
        &mut self,
        host: &mut H,
        first: u64,
        pass: u32,
        leaks: &mut ClusterSet,
        suspects: &mut Suspects,
    ) -> Passed {
        let cap = host.memory_budget() / 3;
        let mut counts = Counts::new(first, self.image.bounds.clusters(), cap);
        self.report.set_muted(pass > 0);
        let has_empty_tables = self.count(host, &mut counts, pass);
        self.report.set_muted(false);
        if !self.roots.is_active_found {
            // Without the active disk nearly every cluster would seem leaked.
            return Passed { next: None, has_empty_tables, is_judged: true };
        }
        let next = counts.next_window().map(|cluster| cluster & !(CHUNK_CLUSTERS - 1));
        let clusters = counts.first()..next.unwrap_or(u64::MAX);
        let mut mismatched = ClusterSet::new(host.memory_budget() / LEAKS_PART);
        self.compare(host, &counts, clusters, (leaks, &mut mismatched), pass);
        self.note_end(&counts, leaks);
        if next.is_none() {
            self.missing.tell(&mut self.report, &self.image);
        }
        let is_only = pass == 0 && next.is_none();
        let is_judged = is_only || !suspects.add(&counts, &mismatched);
        if is_judged {
            if !suspects.is_empty() {
                self.judge_suspects(host, suspects, pass);
                suspects.clear();
            }
            self.report.close_runs();
            if self.report.wants_owners() || judge::has_suspects(&counts) {
                self.judge(host, &judge::Window(&counts, &mismatched), pass);
            }
        }
        Passed { next, has_empty_tables, is_judged }
    }

    /// Counts all references. Says whether the active disk has an empty L2 table.
    fn count<H: Host>(&mut self, host: &mut H, counts: &mut Counts, pass: u32) -> bool {
        let Self { reader, report, image, roots, .. } = self;
        let seen = references(host, reader, report, image, roots, counts, (Phase::Mappings, pass));
        if pass == 0 {
            let image_cluster = self.image.header.cluster.bytes();
            (self.totals, self.lost) = (seen.totals, seen.lost);
            self.mapped_end = seen.beyond_end.map(|guest| guest.saturating_add(image_cluster));
        }
        seen.empty_tables > 0
    }

    fn compare<H: Host>(
        &mut self,
        host: &mut H,
        counts: &Counts,
        clusters: core::ops::Range<u64>,
        (leaks, mismatched): (&mut ClusterSet, &mut ClusterSet),
        pass: u32,
    ) {
        let Self { reader, report, image, roots, lost, last_lost, missing, hearsay, .. } = self;
        let mut comparison = compare::Comparison {
            image,
            counts,
            clusters,
            mismatched,
            lost,
            last_lost: *last_lost,
            leaks,
            missing,
            hearsay,
            part: Part::default(),
        };
        if roots.refcount_table.is_empty() {
            return comparison.without_table(host, report);
        }
        let clusters = comparison.clusters.clone();
        let blocks = compare::Blocks { image, roots, clusters, phase: (Phase::Refcounts, pass) };
        let asked = compare::Wanted { counts, roots };
        blocks.for_each(
            host,
            reader,
            report,
            |range, is_hole| asked.wants(range, is_hole),
            |host, report, base, bytes| comparison.block(host, report, roots, base, bytes),
        );
        comparison.missing_below(host, report, roots, u64::MAX);
        *last_lost = comparison.last_lost;
    }

    /// Keeps the end of what is in use or held.
    fn note_end(&mut self, counts: &Counts, leaks: &ClusterSet) {
        let used = counts.used_chunks().last().and_then(|(clusters, chunk)| {
            let slots = (0..instar_abi::to_usize(clusters.end - clusters.start)).rev();
            let last = slots.into_iter().find(|slot| chunk.usage(*slot).count > 0);
            last.map(|slot| clusters.start + slot as u64 + 1)
        });
        let leaked = leaks.last().map(|last| last + 1);
        self.end = self.end.max(used.unwrap_or(0)).max(leaked.unwrap_or(0));
    }

    /// Judges by the suspects of the windows so far, where there is anything to judge or to name.
    fn judge_suspects<H: Host>(&mut self, host: &mut H, suspects: &Suspects, pass: u32) {
        self.report.close_runs();
        if self.report.wants_owners() || !suspects.is_empty() {
            self.judge(host, suspects, pass);
        }
    }

    fn judge<H: Host>(&mut self, host: &mut H, usages: &dyn judge::Usages, pass: u32) {
        let Self { reader, report, image, roots, told, shared_blocks, .. } = self;
        let mut judge = judge::Judge { image, usages, told, shared_blocks };
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
        let Self { reader, report, image, roots, free, lost_by_bitmaps, hearsay, shared_blocks, .. } = self;
        let triage = Triage::run(host, reader, report, image, roots, leaks, evidence);
        let per_block = image.header.refcount_width.per_block(image.header.cluster);
        let is_hearsay = |cluster| hearsay.contains(cluster) && shared_blocks.contains(cluster / per_block);
        triage.tell(
            host,
            reader,
            report,
            image,
            roots,
            leaks,
            evidence.pass,
            is_hearsay,
            |problem, cluster| {
                let runs = match problem {
                    Problem::RefcountLeak => &mut *free,
                    Problem::OrphanBitmap => &mut *lost_by_bitmaps,
                    _ => return,
                };
                match runs.last_mut() {
                    Some(run) if run.first + run.count == cluster => run.count += 1,
                    _ => runs.push(ClusterRun { first: cluster, count: 1 }),
                }
            },
        );
    }

    /// Inflates every compressed cluster. Where it is unknown how they are packed, the header's finding stands.
    fn inflate<H: Host>(&mut self, host: &mut H) {
        let Some(compression) = self.image.header.compression else { return };
        let Self { reader, report, image, roots, .. } = self;
        let mut deep = Deep::new(image, compression);
        walk::walk(host, reader, report, image, roots, &mut deep, (Phase::Inflate, 0));
    }

    /// Tells of header fields that are damaged by what they led to.
    fn find_roots<H: Host>(&mut self, host: &mut H) {
        let seen = self.report.seen();
        let header = &self.image.header;
        let is_longer = u64::from(header.l1_entries) > header.l1_entries_needed();
        if !seen.has_any(ROOTS) && (seen.has_any(ASTRAY) || is_longer || self.mapped_end.is_some()) {
            self.report.keep_root(evidence::find(host, seen.has(Problem::OrphanTable)));
        }
        if let Some(end) = self.mapped_end {
            let stored = header.virtual_size;
            self.report.fault(&Fault::header(Problem::HeaderVirtualSize, 24, 8, stored, end));
        }
        self.report.tell_root();
    }

    fn finish<H: Host>(mut self, host: &mut H, passes: u32) -> Checked {
        self.find_roots(host);
        // Leaks alone make an image dirty, and are no doubt of where its pointers lead.
        let is_sound = !self.report.has_corruption();
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
        // Without a refcount table there are no counts to be compared, and its own finding says so.
        let is_complete = self.roots.is_active_found && !self.report.is_incomplete();
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
        let frees_past_end = is_complete && is_sound;
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
            lost_by_bitmaps: self.lost_by_bitmaps,
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
