//! The first look at every L1 and L2 entry: counts its reference, and tells what is wrong with it by itself.
//!
//! The usual entry of an image is one mask, one bound and one two-bit update away from the next; everything
//! else goes through the full decoder.

use alloc::collections::BTreeSet;

use instar_abi::finding::{ACTIVE, Finding, NONE, Table};
use instar_abi::problem::Problem;

use super::counts::{Counts, flags};
use super::reader::Bytes;
use super::report::Report;
use super::roots::{Disk, Image};
use super::walk::{TableRef, Visitor, l1_entry_faults};
use crate::ondisk::bytes::{be_u64, is_zero};
use crate::ondisk::l1::{COPIED, L1Entry, OFFSET_MASK};
use crate::ondisk::l2::{L2Entry, Mapping, SUBCLUSTERS, ZERO};
use crate::ondisk::units::Position;

/// What QEMU's check tells of the active disk's allocation, with QEMU's meanings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Guest clusters that have a host cluster.
    pub allocated: u64,
    /// Of those, not right behind the one before in the same table; compressed ones always.
    pub fragmented: u64,
    /// Of those, compressed.
    pub compressed: u64,
}

/// Clusters past the end of the file that are remembered.
const LOST_MAX: usize = 4096;

/// What was seen besides.
#[derive(Debug, Default)]
pub struct Seen {
    /// What the active disk has.
    pub totals: Totals,
    /// L2 tables of the active disk that are zeros from end to end.
    pub empty_tables: u64,
    /// Lowest guest offset that is mapped past the active disk's end.
    pub beyond_end: Option<u64>,
    /// Clusters past the end of the file that entries point at, the first [`LOST_MAX`] of them.
    pub lost: BTreeSet<u64>,
}

/// Counts references.
#[derive(Debug)]
pub struct Tally<'a> {
    image: &'a Image,
    counts: &'a mut Counts,
    /// What was seen so far.
    pub seen: Seen,
    file_len: u64,
    /// Offset bits of a whole cluster.
    offsets: u64,
    /// Last offset at which a whole cluster of the file begins.
    last_whole: u64,
}

/// One table under the loop.
struct Context<'t> {
    table: &'t TableRef,
    /// Guest offset of the table's first entry.
    guest: u64,
    /// What the active disk's L1 entries for the table say of COPIED; 0 where it has none.
    users: u8,
    /// Where the next cluster of an unfragmented disk would be.
    next: u64,
}

impl<'a> Tally<'a> {
    /// A tally into `counts`.
    #[must_use]
    pub fn new(image: &'a Image, counts: &'a mut Counts) -> Self {
        let cluster = image.header.cluster.bytes();
        Self {
            image,
            counts,
            seen: Seen::default(),
            file_len: image.bounds.len,
            offsets: OFFSET_MASK & !(cluster - 1),
            last_whole: image.bounds.len.saturating_sub(cluster),
        }
    }

    /// The loop over standard entries. An entry is usual if it is a whole cluster of the file with COPIED as
    /// its table's owners want it.
    fn standard(&mut self, report: &mut Report, context: &mut Context<'_>, bytes: &[u8]) {
        let is_single = context.table.weight == 1 && context.table.active == 1;
        let is_active = context.table.active > 0;
        let bits = self.image.header.cluster.bits();
        let zeros = if self.image.format.zero_flag { ZERO } else { 0 };
        for (index, word) in bytes.as_chunks::<8>().0.iter().enumerate() {
            let raw = u64::from_be_bytes(*word);
            let offset = raw & self.offsets;
            if raw & !zeros == 0 {
                continue;
            }
            let is_whole = offset != 0 && offset <= self.last_whole && !self.image.format.data_file;
            if !is_whole || raw & !(self.offsets | COPIED) != 0 {
                self.unusual(report, context, index, L2Entry { raw, bitmap: 0 });
                continue;
            }
            if is_active {
                self.note_cluster(context, offset);
            }
            if is_single && raw & COPIED != 0 {
                self.counts.add_active_copied(offset >> bits);
            } else {
                self.counts.add(offset >> bits, data_users(context.users, raw), context.table.weight);
            }
        }
    }

    fn note_cluster(&mut self, context: &mut Context<'_>, offset: u64) {
        let times = u64::from(context.table.active);
        self.seen.totals.allocated += times;
        if context.next != 0 && offset != context.next {
            self.seen.totals.fragmented += times;
        }
        context.next = offset + self.image.header.cluster.bytes();
    }

    fn extended(&mut self, report: &mut Report, context: &mut Context<'_>, bytes: &[u8]) {
        for (index, pair) in bytes.as_chunks::<16>().0.iter().enumerate() {
            let (raw, bitmap) = (be_u64(pair, 0).unwrap_or(0), be_u64(pair, 8).unwrap_or(0));
            if raw != 0 || bitmap != 0 {
                self.unusual(report, context, index, L2Entry { raw, bitmap });
            }
        }
    }

    /// Any entry, by the full decoder.
    #[inline(never)]
    fn unusual(&mut self, report: &mut Report, context: &mut Context<'_>, index: usize, entry: L2Entry) {
        let (mapping, faults) = entry.decode(&self.image.format);
        for problem in faults.iter() {
            let is_place = problem == Problem::L2EntryUnaligned && entry.maps_no_data(&self.image.format);
            let problem = if is_place { Problem::L2ZeroPlaceLost } else { problem };
            let stored = match problem {
                Problem::L2EntryUnaligned | Problem::L2ZeroPlaceLost => entry.host_field(),
                Problem::ExtendedBitmapConflict
                | Problem::ExtendedBitmapWithoutOffset
                | Problem::ExtendedBitmapOnCompressed => entry.bitmap,
                _ => entry.raw,
            };
            self.tell(report, context, index, problem, stored, NONE);
        }
        if let Mapping::Compressed { host, len } = mapping {
            self.compressed(report, context, index, host, len);
            return;
        }
        let host = entry.host_field();
        if self.image.format.data_file {
            self.data_file(report, context, index, mapping);
        } else if host == 0 {
            if entry.is_copied() && faults.is_empty() {
                self.tell(report, context, index, Problem::L2CopiedWrong, entry.raw, 0);
            }
        } else if self.image.header.cluster.is_aligned(host) {
            self.cluster(report, context, index, entry, mapping);
        }
    }

    /// A host cluster, whatever its entry says of its contents.
    fn cluster(
        &mut self,
        report: &mut Report,
        context: &mut Context<'_>,
        index: usize,
        entry: L2Entry,
        mapping: Mapping,
    ) {
        let host = entry.host_field();
        if host >= self.file_len {
            self.note_lost(host);
            let is_place = entry.maps_no_data(&self.image.format);
            let problem = if is_place { Problem::L2ZeroPlaceLost } else { Problem::L2EntryPastEof };
            self.tell(report, context, index, problem, host, self.file_len);
            return;
        }
        if context.table.active > 0 {
            self.note_cluster(context, host);
        }
        let users = data_users(context.users, entry.raw);
        self.counts.add(self.image.header.cluster.index(host), users, context.table.weight);
        let needed = host.saturating_add(self.bytes_needed(context, index, mapping));
        if needed > self.file_len {
            self.tell(report, context, index, Problem::L2EntryPartlyPastEof, host, self.file_len);
        }
    }

    /// Bytes of the host cluster that hold data of the disk. A cluster may be physically short by the rest: the
    /// last cluster of a disk whose size is not a multiple, subclusters that were never written.
    fn bytes_needed(&self, context: &Context<'_>, index: usize, mapping: Mapping) -> u64 {
        let cluster = self.image.header.cluster.bytes();
        let used = match mapping {
            Mapping::Data { .. } => cluster,
            Mapping::Subclusters { allocated, .. } => {
                u64::from(SUBCLUSTERS - allocated.leading_zeros()) * self.image.format.subcluster_bytes()
            }
            _ => 0,
        };
        let disk_bytes = self.image.header.virtual_size;
        let guest = self.guest_offset(context, index);
        used.min(disk_bytes.saturating_sub(guest))
    }

    fn compressed(
        &mut self,
        report: &mut Report,
        context: &mut Context<'_>,
        index: usize,
        host: u64,
        len: u64,
    ) {
        let times = u64::from(context.table.active);
        self.seen.totals.allocated += times;
        self.seen.totals.fragmented += times;
        self.seen.totals.compressed += times;
        let cluster = self.image.header.cluster;
        // The last sector may be physically short: payloads are not padded to sectors at the end of a file.
        let end = host.saturating_add(len);
        if host >= self.file_len || end > self.file_len.saturating_add(511) {
            self.note_lost(end.saturating_sub(1));
            self.tell(report, context, index, Problem::CompressedPastEof, host, self.file_len);
        }
        let last = cluster.index(end - 1).min(cluster.count(self.file_len).saturating_sub(1));
        for touched in cluster.index(host)..=last {
            self.counts.add(touched, flags::COMPRESSED, context.table.weight);
        }
    }

    /// An entry that points into the external data file.
    fn data_file(&mut self, report: &mut Report, context: &mut Context<'_>, index: usize, mapping: Mapping) {
        let (Mapping::Data { host }
        | Mapping::Zero { host: Some(host) }
        | Mapping::Subclusters { host: Some(host), .. }) = mapping
        else {
            return;
        };
        // A zero cluster at offset 0 does not show that it has a place.
        let has_place = host != 0 || !matches!(mapping, Mapping::Zero { .. });
        if context.table.active > 0 && has_place {
            self.note_cluster(context, host);
        }
        let guest = self.guest_offset(context, index);
        if host != guest {
            // Programs take the offset for what it says; only a raw data file has to be laid out like the disk.
            if self.image.header.is_data_file_raw() {
                self.tell(report, context, index, Problem::DataFileOffset, host, guest);
                return;
            }
        }
        let needed = host.saturating_add(self.bytes_needed(context, index, mapping));
        if let Some(len) = self.image.data_file_len
            && needed > len
        {
            self.tell(report, context, index, Problem::DataFileShort, host, len);
        }
    }

    /// Looks for what is mapped past the disk's end within its last table. Tables further on hold VM state.
    fn note_end(&mut self, guest: u64, reach: u64, bytes: &[u8]) {
        let end = self.image.header.virtual_size;
        if guest >= end || guest.saturating_add(reach) <= end {
            return;
        }
        let cluster = self.image.header.cluster;
        let first = cluster.count(end - guest);
        let mapped = (first..1 << self.image.format.table_bits()).find(|index| {
            let entry = self.image.format.entry(bytes, instar_abi::to_usize(*index));
            entry.is_compressed() || entry.host_field() != 0
        });
        if let Some(index) = mapped {
            self.seen.beyond_end = Some(guest.saturating_add(cluster.offset(index)));
        }
    }

    fn note_lost(&mut self, offset: u64) {
        if self.seen.lost.len() < LOST_MAX {
            self.seen.lost.insert(self.image.header.cluster.index(offset));
        }
    }

    fn guest_offset(&self, context: &Context<'_>, index: usize) -> u64 {
        context.guest.saturating_add(self.image.header.cluster.offset(index as u64))
    }

    fn tell(
        &self,
        report: &mut Report,
        context: &Context<'_>,
        index: usize,
        problem: Problem,
        stored: u64,
        expected: u64,
    ) {
        report.put(problem, entry_finding(self.image, context.table, index, problem, stored, expected));
    }
}

/// The flags of a data reference by an entry of a table with these owners.
const fn data_users(owners: u8, raw: u64) -> u8 {
    flags::DATA
        | if owners & flags::ACTIVE == 0 {
            0
        } else if raw & COPIED != 0 {
            flags::ACTIVE_COPIED
        } else {
            flags::ACTIVE_CLEAR
        }
}

/// A finding at entry `index` of an L2 table.
#[must_use]
pub fn entry_finding(
    image: &Image,
    table: &TableRef,
    index: usize,
    problem: Problem,
    stored: u64,
    expected: u64,
) -> Finding {
    let entry_bytes = image.format.entry_bytes() as u64;
    let first = u64::from(table.l1_index) << image.format.table_bits();
    let guest_cluster = first.saturating_add(index as u64);
    let cluster = image.header.cluster.bytes();
    Finding {
        problem: problem as u32,
        table: Table::L2 as u32,
        snapshot: table.snapshot,
        witnesses: 0,
        host_offset: table.offset + index as u64 * entry_bytes,
        host_len: entry_bytes,
        index: guest_cluster,
        count: 1,
        guest_offset: image.header.cluster.offset(guest_cluster),
        guest_len: cluster,
        stored,
        expected,
    }
}

/// A finding about a whole L2 table.
#[must_use]
pub fn table_finding(
    image: &Image,
    table: &TableRef,
    problem: Problem,
    stored: u64,
    expected: u64,
) -> Finding {
    let mut finding = entry_finding(image, table, 0, problem, stored, expected);
    finding.host_len = image.header.cluster.bytes();
    finding.guest_len = image.format.table_reach_bytes();
    finding
}

impl Visitor for Tally<'_> {
    fn l1_entry(
        &mut self,
        report: &mut Report,
        disk: &Disk,
        index: u64,
        at: u64,
        entry: L1Entry,
        sweep: u32,
    ) {
        if sweep > 0 {
            return;
        }
        if self.image.bounds.position(entry.l2_offset()) == Position::PastEof {
            self.note_lost(entry.l2_offset());
        }
        for fault in l1_entry_faults(self.image, index, at, entry) {
            let mut finding = fault.finding();
            finding.snapshot = disk.snapshot;
            finding.guest_len = self.image.format.table_reach_bytes();
            finding.guest_offset = index.saturating_mul(finding.guest_len);
            report.put(fault.problem, finding);
        }
    }

    fn l1_unreadable(&mut self, report: &mut Report, disk: &Disk, at: u64, len: u64, errno: u32) {
        let mut finding = super::roots::read_error(Table::L1, at, len, errno).finding();
        finding.problem = Problem::L1TableUnreadable as u32;
        finding.snapshot = disk.snapshot;
        report.put(Problem::L1TableUnreadable, finding);
    }

    fn table(&mut self, report: &mut Report, table: &TableRef, bytes: Bytes<'_>) {
        let active = if table.is_clear { flags::ACTIVE_CLEAR } else { 0 }
            | if table.is_copied { flags::ACTIVE_COPIED } else { 0 };
        let crossed = if table.active > 1 { flags::CROSS } else { 0 };
        let cluster = self.image.header.cluster;
        self.counts.add(cluster.index(table.offset), flags::L2 | active | crossed, table.weight);
        let reach = self.image.format.table_reach_bytes();
        let guest = u64::from(table.l1_index).saturating_mul(reach);
        let mut context = Context { table, guest, users: active, next: 0 };
        let bytes = match bytes {
            Bytes::Read(bytes) => bytes,
            Bytes::Failed(errno) => {
                let (problem, stored) = (Problem::L2TableUnreadable, u64::from(errno));
                report.put(problem, table_finding(self.image, table, problem, stored, NONE));
                return;
            }
        };
        let (present, whole) = (bytes.len() as u64, cluster.bytes());
        if present < whole {
            let problem = Problem::L2TableTruncated;
            report.put(problem, table_finding(self.image, table, problem, present, whole));
        }
        let before = self.seen.totals.allocated;
        if self.image.format.extended {
            self.extended(report, &mut context, bytes);
        } else {
            self.standard(report, &mut context, bytes);
        }
        if table.snapshot == ACTIVE {
            self.seen.empty_tables += u64::from(self.seen.totals.allocated == before && is_zero(bytes));
            self.note_end(guest, reach, bytes);
        }
    }
}
