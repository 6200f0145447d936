//! The bitmap directory and the bitmap tables.
//!
//! Bitmap contents are never looked at. A bitmap whose description cannot be right still holds its clusters.
//!
//! Never followed is a table that is unaligned or not in the file, one that an earlier bitmap has, and an entry that
//! leads to nothing that a bitmap can have: nowhere in the file, or to the active disk's L1 table where that reads like
//! one. What these bitmaps had is lost to them, and a leak may be it.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use instar_abi::call::TextKind;
use instar_abi::finding::{ACTIVE, Finding, NONE, Table};
use instar_abi::problem::Problem;

use super::counts::{Counts, flags};
use super::reader::{BATCH_BYTES, Bytes, Reader};
use super::report::Report;
use super::roots::{Image, Roots, read_error, words};
use crate::host::Host;
use crate::ondisk::Fault;
use crate::ondisk::bitmaps::{
    BitmapEntry, BitmapTableEntry, FLAG_EXTRA_DATA_COMPATIBLE, FLAG_IN_USE, FLAGS_KNOWN,
    GRANULARITY_BITS_MAX, NAME_BYTES_MAX, TABLE_ENTRIES_MAX, TYPE_DIRTY,
};
use crate::ondisk::extensions::{BITMAP_DIRECTORY_BYTES_MAX, BITMAPS_MAX, BitmapsExtension};
use crate::ondisk::l1::L1Entry;
use crate::ondisk::units::Position;

/// Bytes of the directory that are read at once; more than any entry that QEMU takes has.
const PIECE_BYTES: usize = 256 << 10;

/// A bitmap whose table can be walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BitmapRoot {
    /// Its index in the directory.
    pub index: u32,
    /// Byte offset of its table: aligned, within the file.
    pub table_offset: u64,
    /// Entries of its table that are in the file.
    pub table_entries: u64,
    /// Bitmaps that have this very table, of which this is the first.
    pub weight: u64,
}

/// Where an entry of a bitmap's table leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Data {
    /// To no cluster: all bits are zero, or all are one.
    Nowhere,
    /// To the cluster at this offset.
    At(u64),
    /// To nothing that a bitmap can have.
    Lost,
}

/// Where `entry` leads in this image.
#[must_use]
pub fn data(image: &Image, roots: &Roots, entry: BitmapTableEntry) -> Data {
    match entry.data_offset() {
        0 => Data::Nowhere,
        offset if image.bounds.position(offset) != Position::Inside => Data::Lost,
        offset if roots.sure_l1_offset == Some(offset) => Data::Lost,
        offset => Data::At(offset),
    }
}

/// What the tables took that bitmaps have lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LostTables {
    /// Clusters, of all of them.
    pub clusters: u64,
    /// Entries of the longest one.
    pub entries_max: u64,
}

/// The offset of the active disk's L1 table where it reads like one: entries that all lead to clusters of the file,
/// and one at the least.
fn sure_l1_offset<H: Host>(host: &mut H, reader: &mut Reader, image: &Image, roots: &Roots) -> Option<u64> {
    let disk = roots.disks.iter().find(|disk| disk.snapshot == ACTIVE)?;
    let len = (disk.l1_entries * 8).min(image.header.cluster.bytes());
    let Bytes::Read(bytes) = reader.one(host, disk.l1_offset, instar_abi::to_usize(len)) else { return None };
    let is_sound = |entry: L1Entry| {
        entry.reserved() == 0 && image.bounds.position(entry.l2_offset()) == Position::Inside
    };
    let mut used = words(bytes).filter(|raw| *raw != 0).map(L1Entry).peekable();
    (used.peek().is_some() && used.all(is_sound)).then_some(disk.l1_offset)
}

fn fault(problem: Problem, table: Table, at: u64, index: u64, stored: u64, expected: u64) -> Fault {
    Fault { problem, table, host_offset: at, host_len: 8, index, stored, expected }
}

/// Reads the bitmap directory: adds its region and the bitmaps' tables to the roots.
pub fn find<H: Host>(
    host: &mut H,
    reader: &mut Reader,
    report: &mut Report,
    image: &Image,
    roots: &mut Roots,
) {
    let Some(extension) = image.extensions.bitmaps else { return };
    if !check_extension(&extension, report, image) {
        return;
    }
    roots.sure_l1_offset = sure_l1_offset(host, reader, image, roots);
    let (start, len) = (extension.directory_offset, extension.directory_bytes);
    roots.region(Table::BitmapDirectory, ACTIVE, start, len, extension.at + 16);
    let (names, tables) = (BTreeMap::new(), BTreeMap::new());
    let mut walk = Walk { at: start, end: start + len, next: 0, names, tables };
    roots.bitmap_entries_end = start;
    while walk.at < walk.end && walk.next < extension.bitmaps {
        let before = walk.at;
        let len = PIECE_BYTES.min(instar_abi::to_usize(walk.end - walk.at));
        match reader.one(host, walk.at, len) {
            Bytes::Failed(error) => {
                report.fault(&read_error(Table::BitmapDirectory, walk.at, len as u64, error));
                return;
            }
            Bytes::Read(bytes) => walk.piece(host, bytes, extension.bitmaps, report, image, roots),
        }
        roots.bitmap_entries_end = walk.at;
        if walk.at == before {
            break;
        }
    }
    if walk.at != walk.end || walk.next != extension.bitmaps {
        let index = u64::from(walk.next);
        let (stored, expected) = (walk.at - start, walk.end - start);
        let found = fault(
            Problem::BitmapDirectory,
            Table::BitmapDirectory,
            extension.directory_offset,
            index,
            stored,
            expected,
        );
        report.fault(&found);
    }
}

/// The extension's fields; false where the directory cannot be read.
fn check_extension(extension: &BitmapsExtension, report: &mut Report, image: &Image) -> bool {
    let mut is_good = true;
    let mut bad = |at: u64, index, stored, expected| {
        let table = Table::HeaderExtension;
        report.fault(&fault(Problem::ExtensionBitmaps, table, extension.at + at, index, stored, expected));
        is_good = false;
    };
    if extension.bitmaps == 0 || extension.bitmaps > BITMAPS_MAX {
        bad(0, 0, u64::from(extension.bitmaps), u64::from(BITMAPS_MAX));
    }
    let size = extension.directory_bytes;
    if size == 0 || size > BITMAP_DIRECTORY_BYTES_MAX {
        bad(8, 2, size, BITMAP_DIRECTORY_BYTES_MAX);
    }
    let offset = extension.directory_offset;
    let is_inside = offset != 0 && image.bounds.position(offset) == Position::Inside;
    if !is_inside || size > image.bounds.len.saturating_sub(offset) {
        bad(16, 3, offset, image.bounds.len);
    }
    is_good
}

struct Walk {
    at: u64,
    end: u64,
    next: u32,
    names: BTreeMap<Vec<u8>, u32>,
    /// Offsets of the tables seen, and whose they are.
    tables: BTreeMap<u64, u32>,
}

impl Walk {
    fn piece<H: Host>(
        &mut self,
        host: &mut H,
        bytes: &[u8],
        count: u32,
        report: &mut Report,
        image: &Image,
        roots: &mut Roots,
    ) {
        let mut used = 0;
        while self.next < count {
            let rest = bytes.get(used..).unwrap_or(&[]);
            let Some(entry) = BitmapEntry::decode(rest) else { return };
            let place = Place { index: self.next, at: self.at };
            let name = rest.get(entry.name.clone()).unwrap_or(&[]);
            report.name(host, TextKind::BitmapName, self.next, name);
            if name.len() <= usize::from(NAME_BYTES_MAX)
                && let Some(first) = self.names.insert(name.to_vec(), self.next)
            {
                let (problem, table) = (Problem::BitmapDuplicateName, Table::BitmapDirectory);
                let index = u64::from(self.next);
                report.fault(&fault(problem, table, self.at, index, index, u64::from(first)));
            }
            place.check_fields(&entry, report);
            place.check_table(&entry, report, image, roots, &mut self.tables);
            used += entry.len;
            self.at += entry.len as u64;
            self.next += 1;
        }
    }
}

/// Where a directory entry is.
#[derive(Clone, Copy)]
struct Place {
    index: u32,
    at: u64,
}

impl Place {
    fn bad(self, problem: Problem, at: u64, stored: u64, expected: u64, report: &mut Report) {
        report.fault(&fault(problem, Table::BitmapDirectory, at, u64::from(self.index), stored, expected));
    }

    /// The entry's own fields. Its table is walked in any case: its clusters are in use.
    fn check_fields(self, entry: &BitmapEntry, report: &mut Report) {
        let problem = Problem::BitmapEntry;
        if entry.kind != TYPE_DIRTY {
            self.bad(problem, self.at + 16, u64::from(entry.kind), u64::from(TYPE_DIRTY), report);
        }
        if entry.data_bytes_needed(0).is_none() {
            let (stored, most) = (u64::from(entry.granularity_bits), u64::from(GRANULARITY_BITS_MAX));
            self.bad(problem, self.at + 17, stored, most, report);
        }
        if entry.flags & !FLAGS_KNOWN != 0 {
            let (stored, known) = (u64::from(entry.flags), u64::from(entry.flags & FLAGS_KNOWN));
            self.bad(problem, self.at + 12, stored, known, report);
        }
        if entry.name.len() > usize::from(NAME_BYTES_MAX) || entry.name.is_empty() {
            let stored = entry.name.len() as u64;
            self.bad(problem, self.at + 18, stored, u64::from(NAME_BYTES_MAX), report);
        }
        if entry.extra_bytes != 0 && entry.flags & FLAG_EXTRA_DATA_COMPATIBLE == 0 {
            self.bad(problem, self.at + 20, u64::from(entry.extra_bytes), 0, report);
        }
        if entry.flags & FLAG_IN_USE != 0 {
            self.bad(Problem::BitmapInUse, self.at + 12, u64::from(entry.flags), NONE, report);
        }
    }

    fn check_table(
        self,
        entry: &BitmapEntry,
        report: &mut Report,
        image: &Image,
        roots: &mut Roots,
        tables: &mut BTreeMap<u64, u32>,
    ) {
        let (offset, entries) = (entry.table_offset, u64::from(entry.table_entries));
        let is_inside = offset != 0 && image.bounds.position(offset) == Position::Inside;
        if !is_inside {
            self.bad(Problem::BitmapTableOffset, self.at, offset, image.bounds.len, report);
            roots.lost_bitmap_table(image, entries);
            return;
        }
        if entries == 0 || entries > u64::from(TABLE_ENTRIES_MAX) {
            self.bad(Problem::BitmapTable, self.at + 8, entries, u64::from(TABLE_ENTRIES_MAX), report);
            return;
        }
        if let Some(first) = tables.get(&offset) {
            self.bad(Problem::BitmapTableShared, self.at, offset, u64::from(*first), report);
            roots.lost_bitmap_table(image, entries);
            return;
        }
        tables.insert(offset, self.index);
        let needed = entry
            .data_bytes_needed(image.header.virtual_size)
            .map_or(entries, |bytes| image.header.cluster.count(bytes));
        if entries != needed && entry.flags & FLAG_IN_USE == 0 {
            self.bad(Problem::BitmapTable, self.at + 8, entries, needed, report);
        }
        let table_entries = image.bounds.present(offset, entries * 8) / 8;
        if table_entries < entries {
            self.bad(Problem::BitmapTable, self.at + 8, entries, table_entries, report);
        }
        roots.region(Table::BitmapTable, self.index, offset, entries * 8, self.at);
        roots.bitmaps.push(BitmapRoot { index: self.index, table_offset: offset, table_entries, weight: 1 });
    }
}

/// Calls `each` with index, file offset and raw value of every entry of a bitmap's table.
pub fn for_each_entry<H: Host>(
    host: &mut H,
    reader: &mut Reader,
    report: &mut Report,
    bitmap: &BitmapRoot,
    mut each: impl FnMut(u64, u64, BitmapTableEntry, &mut Report),
) {
    for_each_entry_in_turn(host, reader, report, bitmap, |_, index, at, entry, report| {
        each(index, at, entry, report);
    });
}

/// The same, for an `each` that has something to say to the host in between.
pub fn for_each_entry_in_turn<H: Host>(
    host: &mut H,
    reader: &mut Reader,
    report: &mut Report,
    bitmap: &BitmapRoot,
    mut each: impl FnMut(&mut H, u64, u64, BitmapTableEntry, &mut Report),
) {
    let piece = BATCH_BYTES as u64 / 8;
    let mut first = 0;
    while first < bitmap.table_entries {
        first = reader.skip_hole(host, bitmap.table_offset, first, bitmap.table_entries);
        let count = piece.min(bitmap.table_entries - first);
        let offset = bitmap.table_offset + first * 8;
        match reader.one(host, offset, instar_abi::to_usize(count * 8)) {
            Bytes::Failed(error) => {
                report.fault(&read_error(Table::BitmapTable, offset, count * 8, error));
            }
            Bytes::Read(bytes) => {
                for (index, raw) in (first..).zip(words(bytes)) {
                    each(host, index, bitmap.table_offset + index * 8, BitmapTableEntry(raw), report);
                }
            }
        }
        first += count;
    }
}

/// Counts the data clusters of all bitmaps.
pub fn count<H: Host>(
    host: &mut H,
    reader: &mut Reader,
    report: &mut Report,
    image: &Image,
    roots: &Roots,
    counts: &mut Counts,
) {
    for bitmap in &roots.bitmaps {
        for_each_entry(host, reader, report, bitmap, |index, at, entry, report| {
            let data = data(image, roots, entry);
            if entry.reserved() != 0 || data == Data::Lost {
                let mut finding = entry_finding(Problem::BitmapTableEntry, bitmap.index, index, at, entry.0);
                finding.expected = image.bounds.len;
                report.put(Problem::BitmapTableEntry, finding);
            }
            if let Data::At(offset) = data {
                counts.add(image.header.cluster.index(offset), flags::META, bitmap.weight);
            }
        });
    }
}

/// A finding at a bitmap table entry.
#[must_use]
pub fn entry_finding(problem: Problem, bitmap: u32, index: u64, at: u64, stored: u64) -> Finding {
    let mut finding = fault(problem, Table::BitmapTable, at, index, stored, NONE).finding();
    finding.snapshot = bitmap;
    finding
}
