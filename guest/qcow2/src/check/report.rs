//! Findings on their way to the host: like neighbours become one run, and what they say about the proof that a
//! leak is a leak is kept.
//!
//! Invariant: the order of findings depends on the image only.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::Range;

use instar_abi::call::{TEXT_BYTES_MAX, TextKind};
use instar_abi::finding::{Finding, NONE, Owner};
use instar_abi::problem::{PROBLEMS, Problem, Severity};

use crate::evidence::Root;
use crate::host::Host;
use crate::ondisk::Fault;

/// Pending findings after which they are handed over.
const PENDING_MAX: usize = 1024;
/// Owners told of one finding.
const OWNERS_MAX: u32 = 8;
/// Runs of faulty entries that one table may have at most, and one of any size at least, and still be told of
/// entry by entry.
const TABLE_RUNS_MAX: u64 = 64;
const TABLE_RUNS_MIN: u64 = 8;
/// Garbage tables that are remembered, so that a second look does not tell of them again.
const GARBAGE_MAX: usize = 4096;
/// Snapshots and bitmaps that are told by name; the ones after them have their index only.
const NAMES_MAX: u32 = 1024;
/// Findings whose owners are looked for.
const WANTED_MAX: usize = 256;
/// Findings of one problem that are kept for a plan.
pub const FAULTS_MAX: usize = 8192;
/// The same of leaks that are not proven worthless.
const ORPHANS_MAX: usize = 65_536;

/// A finding whose place's users are to be named.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    first: u64,
    end: u64,
    finding: u64,
    told: u32,
}

/// The faults of one table under the walk. Few are told as they are; a table full of them is told of as one.
#[derive(Debug)]
struct Fold {
    /// The finding that stands for all, with the place of the table.
    whole: Finding,
    runs: Vec<(Problem, Finding)>,
    total: u64,
    is_garbage: bool,
}

impl Fold {
    fn put(&mut self, problem: Problem, finding: Finding) {
        self.total = self.total.saturating_add(finding.count);
        // The runs that may go on are among the last ones, one for each problem.
        let open = self.runs.iter_mut().rev().take(8).find(|(open, _)| *open == problem);
        if open.is_some_and(|(_, run)| join(run, &finding, problem)) {
            return;
        }
        // A small table is garbage where a quarter of it is.
        let most = (self.whole.expected / 4).clamp(TABLE_RUNS_MIN, TABLE_RUNS_MAX);
        if (self.runs.len() as u64) < most {
            self.runs.push((problem, finding));
        } else {
            self.is_garbage = true;
        }
    }
}

/// Which problems an image has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Problems([u64; 4]);

impl Problems {
    /// Adds one.
    pub fn insert(&mut self, problem: Problem) {
        let number = problem as usize;
        if let Some(word) = self.0.get_mut(number / 64) {
            *word |= 1 << (number % 64);
        }
    }

    /// Takes one out.
    pub fn remove(&mut self, problem: Problem) {
        let number = problem as usize;
        if let Some(word) = self.0.get_mut(number / 64) {
            *word &= !(1 << (number % 64));
        }
    }

    /// Whether it is among them.
    #[must_use]
    pub fn has(&self, problem: Problem) -> bool {
        let number = problem as usize;
        self.0.get(number / 64).is_some_and(|word| word >> (number % 64) & 1 != 0)
    }

    /// Whether any of these is among them.
    #[must_use]
    pub fn has_any(&self, problems: &[Problem]) -> bool {
        problems.iter().any(|problem| self.has(*problem))
    }

    /// All of them, in the order of the problem table.
    pub fn iter(&self) -> impl Iterator<Item = Problem> + '_ {
        PROBLEMS.iter().map(|row| row.problem).filter(|problem| self.has(*problem))
    }
}

/// Findings kept for a plan: the first ones of each problem. Those about reference counts of clusters in use and
/// about proven leaks are not among them: there may be as many as clusters.
///
/// One stands for `count` items side by side: the item `n` is `n` times `host_len / count` bytes behind the first. Of
/// what they hold only the first one's value is kept.
#[derive(Debug, Default)]
pub struct Faults {
    found: BTreeMap<Problem, Vec<Finding>>,
}

impl Faults {
    fn put(&mut self, problem: Problem, finding: Finding) {
        let is_orphan = matches!(problem, Problem::OrphanData | Problem::OrphanTable);
        if !is_orphan && is_about_counts(problem) {
            return;
        }
        let found = self.found.entry(problem).or_default();
        if found.len() < if is_orphan { ORPHANS_MAX } else { FAULTS_MAX } {
            found.push(finding);
        }
    }

    /// The findings of a problem, in the order of reporting; the first [`FAULTS_MAX`] of them.
    #[must_use]
    pub fn of(&self, problem: Problem) -> &[Finding] {
        self.found.get(&problem).map_or(&[], Vec::as_slice)
    }

    /// The damaged header field whose value the rest of the file determines.
    #[must_use]
    pub fn determined(&self) -> Option<&Finding> {
        self.found.values().flatten().find(|finding| finding.witnesses > 0)
    }
}

/// Collects findings and owners.
#[derive(Debug, Default)]
pub struct Report {
    /// Findings that were closed, which is the number of the next one.
    closed: u64,
    open: Vec<(Problem, Finding)>,
    pending: Vec<Finding>,
    owners: Vec<Owner>,
    wanted: Vec<Wanted>,
    fold: Option<Fold>,
    garbage: Vec<u64>,
    muted: bool,
    silent: bool,
    seen: Problems,
    faults: Faults,
    casts_doubt: bool,
    has_lost_more_than_bitmaps: bool,
    are_counts_wrong: bool,
    has_corruption: bool,
    is_incomplete: bool,
    root: Option<Root>,
}

/// Whether a problem leaves the count of every cluster's users beyond doubt: nothing that could have pointed at
/// an unreferenced cluster was lost with it. Everything that is not named here casts doubt on every leak: an
/// entry that makes its cluster have more users than it should may once have pointed at the leaked one.
pub const fn leaves_counts_proven(problem: Problem) -> bool {
    use Problem as P;
    matches!(
        problem,
        P::RefcountLeak
            | P::RefcountTooHigh
            | P::RefcountContradicted
            | P::RefcountPastEof
            | P::RefcountTableEntryReserved
            | P::RefcountTableEntryUnaligned
            | P::RefcountTableEntryPastEof
            | P::HeaderDirty
            | P::HeaderCorrupt
            | P::HeaderBackingName
            | P::HeaderVirtualSize
            | P::HeaderCompressionType
            | P::ExtensionFeatureTable
            | P::ExtensionBackingFormat
            | P::AutoclearDataFileRaw
            | P::L1CopiedMissing
            | P::L2CopiedMissing
            | P::CompressedDamaged
            | P::L2ZeroPlaceLost
            | P::ExtendedReservedBit
            | P::DataFileMissing
            | P::DataFileRawBacking
            | P::DataFileSnapshots
            | P::SnapshotDuplicateId
            | P::BitmapInUse
            | P::BitmapDuplicateName
            | P::OrphanTable
            | P::OrphanData
            | P::OrphanBitmap
    )
}

/// Whether a problem is that a bitmap has lost clusters, and nothing else can have lost any with it.
pub const fn loses_bitmaps_alone(problem: Problem) -> bool {
    use Problem as P;
    matches!(problem, P::BitmapTableEntry | P::BitmapTableOffset | P::BitmapTableShared)
}

/// Whether a problem says that stored reference counts are not right.
const fn is_about_counts(problem: Problem) -> bool {
    use Problem as P;
    matches!(
        problem,
        P::RefcountLeak
            | P::RefcountTooHigh
            | P::RefcountContradicted
            | P::RefcountTooLow
            | P::RefcountOverflow
            | P::RefcountBlockMissing
            | P::OrphanData
            | P::OrphanTable
            | P::OrphanBitmap
    )
}

/// Whether a problem is a wrong flag of an L2 entry that leads to a cluster: however many there are, they do not
/// speak against the table.
const fn is_about_copied(problem: Problem) -> bool {
    matches!(problem, Problem::L2CopiedMissing | Problem::L2CopiedWrong)
}

/// Whether a problem is that the storage does not give some metadata.
const fn is_unreadable(problem: Problem) -> bool {
    matches!(problem, Problem::ReadError | Problem::L1TableUnreadable | Problem::L2TableUnreadable)
}

/// Whether the users of the clusters that a finding names are worth naming.
const fn wants_owners(problem: Problem) -> bool {
    use Problem as P;
    matches!(
        problem,
        P::RefcountTooHigh
            | P::RefcountContradicted
            | P::RefcountTooLow
            | P::RefcountOverflow
            | P::MetadataOverlap
    )
}

impl Report {
    /// A report that keeps its findings to itself where `silent`.
    #[must_use]
    pub fn new(silent: bool) -> Self {
        Self { silent, ..Self::default() }
    }

    /// Tells the name of a snapshot or bitmap, which findings then go by.
    pub fn name<H: Host>(&self, host: &mut H, kind: TextKind, index: u32, name: &[u8]) {
        if !self.silent && index < NAMES_MAX && !name.is_empty() {
            host.text(kind, index, name.get(..TEXT_BYTES_MAX).unwrap_or(name));
        }
    }

    /// The problems found.
    #[must_use]
    pub const fn seen(&self) -> Problems {
        self.seen
    }

    /// The findings, for a plan; none unless the report keeps them to itself.
    pub fn take_faults(&mut self) -> Faults {
        core::mem::take(&mut self.faults)
    }

    /// Drops what is put from now on, or stops doing so: a further pass sees every entry again.
    pub fn set_muted(&mut self, muted: bool) {
        self.muted = muted;
    }

    /// Findings so far; open runs are not counted.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.closed
    }

    /// Whether anything was found that could have hidden a user of a cluster.
    #[must_use]
    pub const fn casts_doubt(&self) -> bool {
        self.casts_doubt
    }

    /// Whether anything was found that could have hidden a user that is not a bitmap.
    #[must_use]
    pub const fn has_lost_more_than_bitmaps(&self) -> bool {
        self.has_lost_more_than_bitmaps
    }

    /// Whether parts of the image could not be looked at.
    #[must_use]
    pub const fn is_incomplete(&self) -> bool {
        self.is_incomplete
    }

    /// Whether anything worse than a leak was found.
    #[must_use]
    pub const fn has_corruption(&self) -> bool {
        self.has_corruption
    }

    /// Whether stored reference counts were found wrong.
    #[must_use]
    pub const fn are_counts_wrong(&self) -> bool {
        self.are_counts_wrong
    }

    /// Whether the users of any cluster are to be named.
    #[must_use]
    pub const fn wants_owners(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// Tells a decoder's fault; that of a field that is determined, with what is known of it.
    pub fn fault(&mut self, fault: &Fault) {
        match self.root.take_if(|root| (root.problem, root.at) == (fault.problem, fault.host_offset)) {
            Some(root) => self.put(root.problem, root.finding()),
            None => self.put(fault.problem, fault.finding()),
        }
    }

    /// Keeps a field that is determined, for the fault that it is told as.
    pub fn keep_root(&mut self, root: Option<Root>) {
        self.root = root;
    }

    /// Tells of the field that is determined, if no fault has.
    pub fn tell_root(&mut self) {
        if let Some(root) = self.root.take() {
            self.put(root.problem, root.finding());
        }
    }

    /// Tells a finding; it joins the open run of its problem where it is the next item.
    pub fn put(&mut self, problem: Problem, finding: Finding) {
        if self.muted {
            return;
        }
        self.seen.insert(problem);
        let casts_doubt = !leaves_counts_proven(problem);
        self.casts_doubt |= casts_doubt;
        self.has_lost_more_than_bitmaps |= casts_doubt && !loses_bitmaps_alone(problem);
        self.are_counts_wrong |= is_about_counts(problem);
        self.has_corruption |= problem.row().severity > Severity::Leak;
        self.is_incomplete |= problem.row().severity == Severity::Fatal || is_unreadable(problem);
        match &mut self.fold {
            Some(fold) if fold.is_garbage || !is_about_copied(problem) => fold.put(problem, finding),
            _ => self.put_run(problem, finding),
        }
    }

    /// From here on up to [`Self::end_table`], faults are those of the table that `whole` names: a
    /// [`Problem::TableGarbage`] finding whose `expected` is the number of the table's entries.
    pub fn begin_table(&mut self, whole: Finding) {
        self.fold = Some(Fold { whole, runs: Vec::new(), total: 0, is_garbage: false });
    }

    /// Tells the table's faults one by one, or of the table as a whole where they are too many.
    pub fn end_table(&mut self) {
        let Some(fold) = self.fold.take() else { return };
        if !fold.is_garbage {
            for (problem, run) in fold.runs {
                self.put_run(problem, run);
            }
        } else if !self.garbage.contains(&fold.whole.host_offset) {
            if self.garbage.len() < GARBAGE_MAX {
                self.garbage.push(fold.whole.host_offset);
            }
            self.put(Problem::TableGarbage, Finding { stored: fold.total, ..fold.whole });
        }
    }

    fn put_run(&mut self, problem: Problem, finding: Finding) {
        let Some(slot) = self.open.iter().position(|(open, _)| *open == problem) else {
            self.open.push((problem, finding));
            return;
        };
        let Some((_, run)) = self.open.get_mut(slot) else { return };
        if !join(run, &finding, problem) {
            let done = core::mem::replace(run, finding);
            self.close(problem, done);
        }
    }

    /// Ends all open runs.
    pub fn close_runs(&mut self) {
        for (problem, run) in core::mem::take(&mut self.open) {
            self.close(problem, run);
        }
    }

    fn close(&mut self, problem: Problem, finding: Finding) {
        if wants_owners(problem) && finding.index != NONE && self.wanted.len() < WANTED_MAX {
            let (first, end) = (finding.index, finding.index.saturating_add(finding.count));
            self.wanted.push(Wanted { first, end, finding: self.closed, told: 0 });
        }
        self.closed += 1;
        if self.silent {
            self.faults.put(problem, finding);
        } else {
            self.pending.push(finding);
        }
    }

    /// Names a user of a cluster if a finding asks for it. `owner.finding` is filled in here.
    pub fn owner(&mut self, cluster: u64, owner: Owner) {
        self.owner_of_run(&(cluster..cluster.saturating_add(1)), owner);
    }

    /// Names a user of all clusters of a run, once for each finding that asks for any of them.
    pub fn owner_of_run(&mut self, clusters: &Range<u64>, owner: Owner) {
        for wanted in &mut self.wanted {
            if clusters.end > wanted.first && clusters.start < wanted.end && wanted.told < OWNERS_MAX {
                wanted.told += 1;
                self.owners.push(Owner { finding: wanted.finding, ..owner });
            }
        }
    }

    /// Forgets whose users are to be named: they have been.
    pub fn forget_wanted(&mut self) {
        self.wanted.clear();
    }

    /// Hands over what is closed, if it is much.
    pub fn flush_some<H: Host>(&mut self, host: &mut H) {
        if self.pending.len() >= PENDING_MAX {
            self.flush(host);
        }
    }

    /// Hands over what is closed; owners behind the findings that they belong to.
    pub fn flush<H: Host>(&mut self, host: &mut H) {
        for finding in self.pending.drain(..) {
            host.finding(&finding);
        }
        for owner in self.owners.drain(..) {
            if !self.silent {
                host.owner(&owner);
            }
        }
    }
}

/// Extends a run by the item right behind it. Counts are merged only where they say the same.
fn join(run: &mut Finding, next: &Finding, problem: Problem) -> bool {
    // A missing block's count is that of its clusters in use.
    let is_next = run.index != NONE
        && problem != Problem::RefcountBlockMissing
        && run.table == next.table
        && run.snapshot == next.snapshot
        && run.index.checked_add(run.count) == Some(next.index);
    let is_alike = !is_about_counts(problem) || (run.stored == next.stored && run.expected == next.expected);
    let is_guest_next = run.guest_offset == NONE && next.guest_offset == NONE
        || run.guest_offset.checked_add(run.guest_len) == Some(next.guest_offset);
    let is_host_next = run.host_offset == NONE && next.host_offset == NONE
        || run.host_offset.checked_add(run.host_len) == Some(next.host_offset);
    if !(is_next && is_alike && is_guest_next && is_host_next) {
        return false;
    }
    run.count = run.count.saturating_add(next.count);
    run.guest_len = run.guest_len.saturating_add(next.guest_len);
    run.host_len = run.host_len.saturating_add(next.host_len);
    true
}
