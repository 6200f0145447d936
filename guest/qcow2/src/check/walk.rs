//! Finds every L2 table once, however many L1 entries point to it, and reads them in host order.
//!
//! L1 tables are streamed, never kept: what is kept of an entry is a [`TableRef`], and references to one L2
//! table are merged into one with a weight. A table that a thousand snapshots share is read once and counts a
//! thousand times. Where the references would outgrow their share of memory, those with the highest host
//! offsets are dropped and gathered by a further sweep over the L1 tables.

use alloc::vec::Vec;

use instar_abi::call::Phase;
use instar_abi::finding::{ACTIVE, Finding, NONE, Table};
use instar_abi::problem::Problem;

use super::reader::{BATCH_BYTES, Bytes, Reader};
use super::report::Report;
use super::roots::{Disk, Image, Roots, words};
use super::tally::table_finding;
use crate::host::Host;
use crate::ondisk::Fault;
use crate::ondisk::l1::L1Entry;
use crate::ondisk::units::Position;

/// References that are gathered at least, whatever the budget.
const REFS_MIN: usize = 4096;

/// An L2 table and who refers to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableRef {
    /// Byte offset of the table: aligned, within the file, not 0.
    pub offset: u64,
    /// L1 entries that point to it.
    pub weight: u64,
    /// The first owner: a snapshot index, or [`ACTIVE`] where the active disk is among the owners.
    pub snapshot: u32,
    /// Index of the first owner's L1 entry.
    pub l1_index: u32,
    /// L1 entries of the active disk among the weight.
    pub active: u32,
    /// Any of the active disk's L1 entries has COPIED set.
    pub is_copied: bool,
    /// Any of the active disk's L1 entries has COPIED clear.
    pub is_clear: bool,
}

/// Receives what the walk comes by.
pub trait Visitor {
    /// An L1 entry that is not zero. Called once for each in every sweep over the L1 tables; `sweep` counts
    /// them from 0. `at` is the entry's file offset.
    fn l1_entry(&mut self, report: &mut Report, disk: &Disk, index: u64, at: u64, entry: L1Entry, sweep: u32);

    /// An L1 table that cannot be read from this entry on.
    fn l1_unreadable(&mut self, report: &mut Report, disk: &Disk, at: u64, len: u64, errno: u32);

    /// An L2 table, as far as it is in the file.
    fn table(&mut self, report: &mut Report, table: &TableRef, bytes: Bytes<'_>);

    /// The end of a batch of L2 tables: the time to read what the tables led to.
    fn batch_end<H: Host>(&mut self, _: &mut H, _: &mut Report) {}
}

/// The L1 entries of one sweep, merged.
#[derive(Debug)]
struct Gathered {
    refs: Vec<TableRef>,
    most: usize,
    /// Only tables from here...
    low: u64,
    /// ...to here (exclusive) are gathered.
    high: u64,
}

impl Gathered {
    fn push(&mut self, table: TableRef) {
        if table.offset < self.low || table.offset >= self.high {
            return;
        }
        if self.refs.len() >= self.most {
            self.merge();
            if self.refs.len() > self.most / 4 * 3 {
                self.drop_upper_half();
            }
            if table.offset >= self.high {
                return;
            }
        }
        self.refs.push(table);
    }

    /// Sorts by host offset and makes one reference of those to the same table. The active disk comes first
    /// among owners, then snapshots in their order, so that the name of a table does not depend on memory.
    fn merge(&mut self) {
        self.refs.sort_unstable_by_key(|table| {
            (table.offset, table.snapshot != ACTIVE, table.snapshot, table.l1_index)
        });
        self.refs.dedup_by(|next, kept| {
            let same = next.offset == kept.offset;
            if same {
                kept.weight = kept.weight.saturating_add(next.weight);
                kept.active = kept.active.saturating_add(next.active);
                kept.is_copied |= next.is_copied;
                kept.is_clear |= next.is_clear;
            }
            same
        });
    }

    fn drop_upper_half(&mut self) {
        let half = self.refs.len() / 2;
        if let Some(first) = self.refs.get(half) {
            self.high = first.offset;
            self.refs.truncate(half);
        }
    }
}

/// Walks all L1 and L2 tables of all disks.
pub fn walk<H: Host, V: Visitor>(
    host: &mut H,
    reader: &mut Reader,
    report: &mut Report,
    image: &Image,
    roots: &Roots,
    visitor: &mut V,
    phase: (Phase, u32),
) {
    let most = (host.memory_budget() / 4 / size_of::<TableRef>()).max(REFS_MIN);
    let (mut low, mut sweep) = (0, 0);
    loop {
        let mut gathered = Gathered { refs: Vec::new(), most, low, high: u64::MAX };
        for disk in &roots.disks {
            gather(host, reader, report, image, disk, &mut gathered, visitor, sweep);
            report.flush_some(host);
        }
        gathered.merge();
        read_tables(host, reader, report, image, &gathered.refs, visitor, phase);
        if gathered.high == u64::MAX {
            return;
        }
        low = gathered.high;
        sweep = sweep.saturating_add(1);
    }
}

#[expect(clippy::too_many_arguments, reason = "the state of one sweep, borrowed apart")]
fn gather<H: Host, V: Visitor>(
    host: &mut H,
    reader: &mut Reader,
    report: &mut Report,
    image: &Image,
    disk: &Disk,
    gathered: &mut Gathered,
    visitor: &mut V,
    sweep: u32,
) {
    let piece = BATCH_BYTES as u64 / 8;
    let mut first = 0;
    report.begin_table(garbage(disk, image));
    while first < disk.l1_entries {
        first = reader.skip_hole(host, disk.l1_offset, first, disk.l1_entries);
        let count = piece.min(disk.l1_entries - first);
        let at = disk.l1_offset + first * 8;
        match reader.one(host, at, instar_abi::to_usize(count * 8)) {
            Bytes::Failed(errno) => visitor.l1_unreadable(report, disk, at, count * 8, errno),
            Bytes::Read(bytes) => {
                for (index, raw) in (first..).zip(words(bytes)) {
                    if raw == 0 {
                        continue;
                    }
                    let entry = L1Entry(raw);
                    visitor.l1_entry(report, disk, index, disk.l1_offset + index * 8, entry, sweep);
                    if let Some(table) = reference(image, disk, index, entry) {
                        gathered.push(table);
                    }
                }
            }
        }
        first += count;
    }
    report.end_table();
}

/// The finding that says of a whole L1 table that it is none.
fn garbage(disk: &Disk, image: &Image) -> Finding {
    let fault = Fault {
        problem: Problem::TableGarbage,
        table: Table::L1,
        host_offset: disk.l1_offset,
        host_len: disk.l1_entries.saturating_mul(8),
        index: NONE,
        stored: 0,
        expected: disk.l1_entries,
    };
    let guest_len = disk.l1_entries.saturating_mul(image.format.table_reach_bytes());
    Finding { snapshot: disk.snapshot, guest_offset: 0, guest_len, ..fault.finding() }
}

/// The table that an L1 entry points to, if it may be followed.
fn reference(image: &Image, disk: &Disk, index: u64, entry: L1Entry) -> Option<TableRef> {
    let offset = entry.l2_offset();
    if offset == 0 || image.bounds.position(offset) != Position::Inside {
        return None;
    }
    let is_active = disk.snapshot == ACTIVE;
    Some(TableRef {
        offset,
        weight: disk.weight,
        snapshot: disk.snapshot,
        l1_index: u32::try_from(index).ok()?,
        active: u32::from(is_active),
        is_copied: is_active && entry.is_copied(),
        is_clear: is_active && !entry.is_copied(),
    })
}

fn read_tables<H: Host, V: Visitor>(
    host: &mut H,
    reader: &mut Reader,
    report: &mut Report,
    image: &Image,
    refs: &[TableRef],
    visitor: &mut V,
    phase: (Phase, u32),
) {
    let cluster = image.header.cluster.usize();
    let total = refs.len() as u64 * cluster as u64;
    let entries = 1 << image.format.table_bits();
    let mut rest = refs;
    while !rest.is_empty() {
        let done = total - rest.len() as u64 * cluster as u64;
        host.progress(phase.0, phase.1, done, total);
        let places = rest.iter().map(|table| (table.offset, cluster));
        let taken = reader.batch(host, places, |position, bytes| {
            if let Some(table) = rest.get(position) {
                let mut whole = table_finding(image, table, Problem::TableGarbage, 0, entries);
                whole.index = NONE;
                report.begin_table(whole);
                visitor.table(report, table, bytes);
                report.end_table();
            }
        });
        visitor.batch_end(host, report);
        report.flush_some(host);
        rest = rest.get(taken.max(1)..).unwrap_or(&[]);
    }
}

/// What is wrong with an L1 entry by itself.
pub fn l1_entry_faults(image: &Image, index: u64, at: u64, entry: L1Entry) -> impl Iterator<Item = Fault> {
    let fault = |problem, stored, expected| Fault {
        problem,
        table: Table::L1,
        host_offset: at,
        host_len: 8,
        index,
        stored,
        expected,
    };
    let offset = entry.l2_offset();
    let reserved = (entry.reserved() != 0).then(|| fault(Problem::L1EntryReserved, entry.0, 0));
    let place = match image.bounds.position(offset) {
        _ if offset == 0 => entry.is_copied().then(|| fault(Problem::L1CopiedWrong, entry.0, 0)),
        Position::Unaligned => Some(fault(Problem::L1EntryUnaligned, offset, image.header.cluster.bytes())),
        Position::PastEof => Some(fault(Problem::L1EntryPastEof, offset, image.bounds.len)),
        Position::Inside => None,
    };
    reserved.into_iter().chain(place)
}
