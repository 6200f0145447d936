//! A header on trial: how well the rest of the file bears it out.
//!
//! ```text
//! L1 table     every entry leads to a cluster, what is mapped lies within the disk
//! L2 tables    a sample of them: every entry can be used, none lies within another structure
//! counts       header, tables and a sample of data are counted, COPIED flags agree with the counts
//! ```
//!
//! Invariant: a header whose fields contradict each other, or whose L1 table cannot be found, gets no score at all.
//! What is read of a file is bounded, and the same for the same bytes.

use alloc::vec::Vec;

use instar_abi::problem::Problem as P;

use super::layout::{Layout, Read};
use crate::check::reader::{BATCH_BYTES, Bytes, Reader};
use crate::check::roots::words;
use crate::host::Host;
use crate::ondisk::Header;
use crate::ondisk::bytes::is_zero;
use crate::ondisk::extensions::Extensions;
use crate::ondisk::header::{Crypt, TableRange, V2_BYTES};
use crate::ondisk::l1::{L1_TABLE_BYTES_MAX, L1Entry};
use crate::ondisk::refcount::RefcountTableEntry;
use crate::ondisk::units::Position;

/// L2 tables that are read.
const TABLES_MAX: usize = 48;
/// Clusters of a table whose counts are looked up.
const TABLE_CLUSTERS_MAX: u64 = 16;
/// Bytes of a refcount block that are read for one count.
const COUNT_BYTES: u64 = 64;
/// Parts that must bear a header out at least.
const WITNESSES_MIN: u32 = 3;
/// Of so many witnesses one may speak against it.
const WITNESSES_PER_DOUBT: u32 = 16;

/// What came of a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Score {
    /// Parts of the file that agree.
    pub witnesses: u32,
    /// Parts of the file that do not.
    pub against: u32,
    /// L2 tables among the first: such as map something, and can be used from end to end.
    pub tables: u32,
}

impl Score {
    /// Whether a header with this score is borne out, and better than one with that of the stored header.
    #[must_use]
    pub fn passes(self, baseline: Option<Self>) -> bool {
        self.witnesses >= WITNESSES_MIN
            && self.against.saturating_mul(WITNESSES_PER_DOUBT) <= self.witnesses
            && baseline.is_none_or(|stored| self.against < stored.against)
    }

    const fn add(&mut self, agrees: bool) {
        if agrees {
            self.witnesses = self.witnesses.saturating_add(1);
        } else {
            self.against = self.against.saturating_add(1);
        }
    }
}

/// Tries a header, given as the first bytes of the file. `None` where it contradicts itself.
pub fn trial<H: Host>(host: &mut H, reader: &mut Reader, head: &[u8]) -> Option<Score> {
    let (header, faults) = Header::decode(head).ok()?;
    if faults.iter().any(|fault| matches!(fault.problem, P::HeaderL1Size | P::HeaderLength)) {
        return None;
    }
    let layout = Layout::of(host, reader, header);
    let l1 = layout.header.l1_table(&layout.bounds).ok()?;
    let counts = layout.header.refcount_table(&layout.bounds).ok();
    let mut trial = Trial { host, reader, layout, l1, counts, score: Score::default() };
    trial.extensions(head);
    let tables = trial.l1();
    trial.count_structures();
    trial.overlaps(&tables);
    for table in sample(&tables) {
        trial.table(table);
    }
    Some(trial.score)
}

/// An L1 entry that leads to a cluster, and its index.
type Target = (u64, L1Entry);

/// So many of the tables, evenly spread, the last ones among them.
fn sample(tables: &[Target]) -> impl Iterator<Item = Target> + '_ {
    let taken = tables.len().min(TABLES_MAX);
    (0..taken).filter_map(move |at| tables.get(tables.len() - 1 - at * tables.len() / taken).copied())
}

struct Trial<'a, H> {
    host: &'a mut H,
    reader: &'a mut Reader,
    layout: Layout,
    l1: TableRange,
    counts: Option<TableRange>,
    score: Score,
}

impl<H: Host> Trial<'_, H> {
    /// Extensions that do not fit, and a version 3 header behind one that is said to end.
    fn extensions(&mut self, head: &[u8]) {
        let cluster = self.layout.header.cluster.usize();
        let Bytes::Read(first) = self.reader.one(self.host, 0, cluster) else { return };
        let (extensions, faults) = Extensions::decode(first, &self.layout.header);
        let is_bad = faults.iter().any(|fault| fault.problem == P::ExtensionLength);
        let is_luks = self.layout.header.crypt == Crypt::Luks;
        let is_sealed = extensions.crypto.is_some() == is_luks;
        // Behind the mark that ends a version 2 header nothing stands but the backing file's name.
        let behind = head.get(V2_BYTES as usize + 8..).unwrap_or(&[]);
        let is_named = self.layout.header.backing_offset != 0;
        let is_longer =
            self.layout.header.version < 3 && extensions.seen.is_empty() && !is_named && !is_zero(behind);
        for is_wrong in [is_bad, !is_sealed, is_longer] {
            if is_wrong {
                self.score.add(false);
            }
        }
    }

    /// Reads the L1 table; returns the entries that lead to a cluster.
    fn l1(&mut self) -> Vec<Target> {
        let mut targets = Vec::new();
        let (start, len) = (self.l1.offset, self.l1.len.min(L1_TABLE_BYTES_MAX));
        let mut at = 0;
        let mut unusable = 0_u64;
        while at < len {
            let piece = (len - at).min(BATCH_BYTES as u64);
            let Bytes::Read(bytes) = self.reader.one(self.host, start + at, instar_abi::to_usize(piece))
            else {
                unusable += 1;
                break;
            };
            for (index, word) in (at / 8..).zip(words(bytes)).filter(|(_, word)| *word != 0) {
                let entry = L1Entry(word);
                let is_usable = self.layout.is_usable(entry);
                if is_usable {
                    targets.push((index, entry));
                }
                unusable += u64::from(!is_usable);
            }
            at += piece;
        }
        if self.layout.bounds.present(start, len) < len {
            unusable += 1;
        }
        let unusable = u32::try_from(unusable).unwrap_or(u32::MAX);
        self.score.against = self.score.against.saturating_add(unusable);
        self.tail(start.saturating_add(len));
        targets
    }

    /// What stands behind the L1 table in its last cluster must not read on like it.
    fn tail(&mut self, end: u64) {
        let left = self.layout.header.cluster.within(end.wrapping_neg());
        let Bytes::Read(bytes) = self.reader.one(self.host, end, instar_abi::to_usize(left)) else { return };
        let first = words(bytes).find(|word| *word != 0).map(L1Entry);
        let Some(entry) = first.filter(|entry| left > 0 && self.layout.is_usable(*entry)) else { return };
        let cluster = self.layout.header.cluster.index(entry.l2_offset());
        if entry.is_copied() || self.count(cluster).is_some_and(|count| count > 0) {
            self.score.add(false);
        }
    }

    /// The header's and the tables' own counts.
    fn count_structures(&mut self) {
        let Some(counts) = self.counts else { return };
        self.score.witnesses = self.score.witnesses.saturating_add(1);
        self.is_counted(0);
        for table in [counts, self.l1] {
            let present = self.layout.bounds.present(table.offset, table.len);
            let clusters = self.layout.header.cluster.count(present).min(TABLE_CLUSTERS_MAX);
            let first = self.layout.header.cluster.index(table.offset);
            (first..first.saturating_add(clusters)).for_each(|cluster| self.is_counted(cluster));
        }
    }

    fn is_counted(&mut self, cluster: u64) {
        let is_counted = self.count(cluster).is_some_and(|count| count > 0);
        self.score.add(is_counted);
    }

    /// L2 tables within the L1 table or the refcount table.
    fn overlaps(&mut self, tables: &[Target]) {
        let cluster = self.layout.header.cluster;
        let is_within = |table: &TableRange, offset: u64| {
            offset >= table.offset && offset - table.offset < cluster.offset(cluster.count(table.len))
        };
        let known = [Some(self.l1), self.counts];
        let within = tables
            .iter()
            .filter(|(_, entry)| known.iter().flatten().any(|table| is_within(table, entry.l2_offset())));
        let within = u32::try_from(within.count()).unwrap_or(u32::MAX);
        self.score.against = self.score.against.saturating_add(within);
    }

    /// One L2 table: its entries, its count, and those of some of its clusters.
    fn table(&mut self, (index, l1): Target) {
        if self.counts.is_some() {
            let count = self.count(self.layout.header.cluster.index(l1.l2_offset()));
            self.score.add(count.is_some_and(|count| count > 0 && l1.is_copied() == (count == 1)));
        }
        let cluster = self.layout.header.cluster.usize();
        let Bytes::Read(bytes) = self.reader.one(self.host, l1.l2_offset(), cluster) else { return };
        let read = self.layout.read_table(index, bytes);
        match read {
            Read::Empty => {}
            Read::Bad => self.score.add(false),
            Read::Good(data) => {
                self.score.add(true);
                self.score.tables = self.score.tables.saturating_add(1);
                for (host, is_copied) in data {
                    let count = self.count(self.layout.header.cluster.index(host));
                    self.score.add(count.is_some_and(|count| count > 0 && is_copied == (count == 1)));
                }
            }
        }
    }

    /// The stored count of a cluster; `None` where there is none.
    fn count(&mut self, cluster: u64) -> Option<u64> {
        let (table, width) = (self.counts?, self.layout.header.refcount_width);
        let per_block = width.per_block(self.layout.header.cluster);
        let at = (cluster / per_block).checked_mul(8).filter(|at| *at < table.len)?;
        let Bytes::Read(entry) = self.reader.one(self.host, table.offset.checked_add(at)?, 8) else {
            return None;
        };
        let entry = RefcountTableEntry(words(entry).next()?);
        let block = entry.block_offset();
        let is_block =
            entry.reserved() == 0 && block != 0 && self.layout.bounds.position(block) == Position::Inside;
        let per_piece = (COUNT_BYTES * 8) / u64::from(width.bits());
        let slot = cluster % per_block;
        let piece = block.checked_add(slot / per_piece * COUNT_BYTES).filter(|_| is_block)?;
        let Bytes::Read(bytes) = self.reader.one(self.host, piece, instar_abi::to_usize(COUNT_BYTES)) else {
            return None;
        };
        width.get(bytes, instar_abi::to_usize(slot % per_piece))
    }
}
