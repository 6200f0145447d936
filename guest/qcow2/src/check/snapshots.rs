//! The snapshot table and where it says that the snapshots' L1 tables are.
//!
//! Entries of zeros up to the last one are no snapshots: the header counts more than the table has. They take no
//! part of the file. A number of snapshots that no image can have says nothing of the table: it ends with the first entry
//! that is not sound then.

use alloc::collections::BTreeMap;

use instar_abi::call::TextKind;
use instar_abi::finding::{ACTIVE, NONE, Table};
use instar_abi::problem::Problem;

use super::reader::{Bytes, Reader};
use super::report::Report;
use super::roots::{Disk, Image, Roots, l1_entries_present, read_error};
use crate::host::Host;
use crate::ondisk::Fault;
use crate::ondisk::header::{SNAPSHOTS_MAX, TableRange};
use crate::ondisk::l1::L1_TABLE_BYTES_MAX;
use crate::ondisk::snapshots::{
    ENTRY_BYTES_MAX, EXTRA_BYTES_MAX, EXTRA_BYTES_V3, FIXED_BYTES, SnapshotEntry, TABLE_BYTES_MAX,
};
use crate::ondisk::units::Position;

/// Bytes of the table that are read at once.
const PIECE_BYTES: usize = 256 << 10;
const _: () = assert!(PIECE_BYTES > ENTRY_BYTES_MAX);

/// A fault of a snapshot table entry's field.
fn fault(problem: Problem, index: u32, at: u64, len: u64, stored: u64, expected: u64) -> Fault {
    Fault {
        problem,
        table: Table::SnapshotTable,
        host_offset: at,
        host_len: len,
        index: u64::from(index),
        stored,
        expected,
    }
}

/// Reads the snapshot table: adds its region, and each snapshot's disk and L1 region, to the roots.
pub fn find<H: Host>(
    host: &mut H,
    reader: &mut Reader,
    report: &mut Report,
    image: &Image,
    roots: &mut Roots,
) {
    let header = &image.header;
    if header.snapshots > SNAPSHOTS_MAX {
        let (stored, most) = (u64::from(header.snapshots), u64::from(SNAPSHOTS_MAX));
        report.fault(&Fault::header(Problem::HeaderSnapshotsCount, 60, 4, stored, most));
    }
    if header.has_data_file() && header.snapshots > 0 {
        let stored = u64::from(header.snapshots);
        report.fault(&Fault::header(Problem::DataFileSnapshots, 60, 4, stored, 0));
    }
    let start = match header.snapshot_table_offset(&image.bounds) {
        Err(fault) => return report.fault(&fault),
        Ok(None) => return,
        Ok(Some(start)) => start,
    };
    let count = header.snapshots.min(SNAPSHOTS_MAX);
    // The last entry is not known where there are too many.
    let seen_to = if count == header.snapshots { 0 } else { count };
    let has_count = count == header.snapshots;
    let mut walk = Walk { start, at: start, next: 0, sound: 0, has_count, seen_to, ids: BTreeMap::new() };
    let mut has_empty_end = false;
    while walk.next < count && !has_empty_end {
        let before = walk.next;
        let end = match reader.one(host, walk.at, PIECE_BYTES) {
            Bytes::Failed(error) => {
                report.fault(&read_error(Table::SnapshotTable, walk.at, PIECE_BYTES as u64, error));
                End::Lost
            }
            Bytes::Read(bytes) => walk.piece(host, bytes, count, report, image, roots),
        };
        match end {
            End::Empty => has_empty_end = walk.has_empty_end(host, reader, count),
            End::Piece if walk.next > before => {}
            End::Piece | End::Lost => break,
        }
    }
    if has_empty_end {
        walk.tell_empty(count, report);
    } else if walk.next < count {
        let at = walk.at;
        let sound = u64::from(walk.sound);
        report.fault(&fault(Problem::SnapshotTableTruncated, walk.next, at, 1, NONE, sound));
    }
    roots.region(Table::SnapshotTable, ACTIVE, start, (walk.at - start).max(1), 64);
}

struct Walk {
    start: u64,
    /// Byte offset of the next entry.
    at: u64,
    /// Index of the next entry.
    next: u32,
    /// Entries so far that are sound.
    sound: u32,
    /// The header's number of entries is one that can be.
    has_count: bool,
    /// Entries before this one are not followed by empty ones alone.
    seen_to: u32,
    /// Hashes of the ids seen.
    ids: BTreeMap<(u64, u64), u32>,
}

/// Why a piece of the table is done with.
enum End {
    /// Nothing more of it is whole.
    Piece,
    /// The next entry is empty, and it is not known what follows.
    Empty,
    /// The table cannot be followed further.
    Lost,
}

impl Walk {
    /// Takes the entries that are whole in `bytes`, which begin at `self.at`.
    fn piece<H: Host>(
        &mut self,
        host: &mut H,
        bytes: &[u8],
        count: u32,
        report: &mut Report,
        image: &Image,
        roots: &mut Roots,
    ) -> End {
        let mut used = 0;
        while self.next < count {
            let rest = bytes.get(used..).unwrap_or(&[]);
            if self.next >= self.seen_to && SnapshotEntry::is_empty(rest) {
                return End::Empty;
            }
            let Some(entry) = SnapshotEntry::decode(rest) else {
                // Not whole in this piece: perhaps in the next one, which begins here.
                let may_be_whole =
                    SnapshotEntry::measure(rest).is_none_or(|len| len <= ENTRY_BYTES_MAX as u64);
                return if may_be_whole { End::Piece } else { self.too_long(rest, report) };
            };
            if entry.extra_bytes > EXTRA_BYTES_MAX
                || self.at - self.start + entry.len as u64 > TABLE_BYTES_MAX
            {
                return self.too_long(rest, report);
            }
            let is_sound = is_sound(&entry, image);
            if !is_sound && !self.has_count {
                return End::Lost;
            }
            self.sound += u32::from(is_sound);
            report.name(host, TextKind::SnapshotName, self.next, rest.get(entry.name.clone()).unwrap_or(&[]));
            self.entry(&entry, rest, report, image, roots);
            let len = entry.len.next_multiple_of(8);
            used += len;
            self.at += len as u64;
            self.next += 1;
        }
        End::Piece
    }

    /// Whether nothing but zeros is where the entries from here to the last one would be. Each place is looked at once.
    fn has_empty_end<H: Host>(&mut self, host: &mut H, reader: &mut Reader, count: u32) -> bool {
        let len = u64::from(count - self.next) * FIXED_BYTES as u64;
        let mut done = 0;
        while done < len {
            let wanted = PIECE_BYTES.min(instar_abi::to_usize(len - done));
            let bytes = match reader.one(host, self.at + done, wanted) {
                Bytes::Read(bytes) if !bytes.is_empty() => bytes,
                _ => {
                    self.seen_to = count;
                    return false;
                }
            };
            if let Some(other) = bytes.iter().position(|byte| *byte != 0) {
                let empty = (done + other as u64) / FIXED_BYTES as u64;
                self.seen_to = u32::try_from(empty.max(1)).map_or(count, |empty| self.next + empty);
                return false;
            }
            done += bytes.len() as u64;
        }
        true
    }

    /// Tells of the entries from here to the last one, which are empty.
    fn tell_empty(&self, count: u32, report: &mut Report) {
        for index in self.next..count {
            let at = self.at + u64::from(index - self.next) * FIXED_BYTES as u64;
            let (stored, expected) = (u64::from(count), u64::from(self.next));
            let len = FIXED_BYTES as u64;
            report.fault(&fault(Problem::SnapshotEntryEmpty, index, at, len, stored, expected));
        }
    }

    /// An entry whose lengths cannot be meant: what is behind it cannot be found.
    fn too_long(&self, bytes: &[u8], report: &mut Report) -> End {
        let stored = crate::ondisk::bytes::be_u32(bytes, 36).map_or(NONE, u64::from);
        let most = u64::from(EXTRA_BYTES_MAX);
        report.fault(&fault(Problem::SnapshotExtraData, self.next, self.at + 36, 4, stored, most));
        End::Lost
    }

    fn entry(
        &mut self,
        entry: &SnapshotEntry,
        bytes: &[u8],
        report: &mut Report,
        image: &Image,
        roots: &mut Roots,
    ) {
        let (index, at) = (self.next, self.at);
        if image.header.version >= 3 && entry.extra_bytes < EXTRA_BYTES_V3 {
            let (stored, least) = (u64::from(entry.extra_bytes), u64::from(EXTRA_BYTES_V3));
            report.fault(&fault(Problem::SnapshotExtraData, index, at + 36, 4, stored, least));
        }
        let id = bytes.get(entry.id.clone()).unwrap_or(&[]);
        if let Some(first) = self.ids.insert(hash(id), index) {
            let id_at = at + entry.id.start as u64;
            report.fault(&fault(
                Problem::SnapshotDuplicateId,
                index,
                id_at,
                id.len() as u64,
                u64::from(index),
                u64::from(first),
            ));
        }
        let disk_bytes = entry.disk_bytes.unwrap_or(image.header.virtual_size);
        check_sizes(entry, disk_bytes, index, at, report, image);
        let needed = disk_bytes.div_ceil(1 << image.header.l1_entry_reach_bits());
        let stored = u64::from(entry.l1_entries) * 8;
        let len = if stored > L1_TABLE_BYTES_MAX {
            needed.saturating_mul(8).min(L1_TABLE_BYTES_MAX)
        } else {
            stored
        };
        if !has_usable_l1(entry, image) {
            if len > 0 || entry.l1_offset == 0 || !image.header.cluster.is_aligned(entry.l1_offset) {
                let bound = image.bounds.len;
                report.fault(&fault(Problem::SnapshotL1Offset, index, at, 8, entry.l1_offset, bound));
            }
            return;
        }
        let range = TableRange { offset: entry.l1_offset, len };
        roots.region(Table::L1, index, range.offset, range.len, at);
        let l1_entries = l1_entries_present(report, image, index, range);
        roots.disks.push(Disk {
            snapshot: index,
            l1_offset: range.offset,
            l1_entries,
            disk_bytes,
            weight: 1,
        });
    }
}

fn has_usable_l1(entry: &SnapshotEntry, image: &Image) -> bool {
    entry.l1_offset != 0 && image.bounds.position(entry.l1_offset) == Position::Inside
}

/// Whether an entry names itself and leads to a table of its own that can map its disk.
fn is_sound(entry: &SnapshotEntry, image: &Image) -> bool {
    let disk_bytes = entry.disk_bytes.unwrap_or(image.header.virtual_size);
    let needed = disk_bytes.div_ceil(1 << image.header.l1_entry_reach_bits());
    let stored = u64::from(entry.l1_entries);
    has_usable_l1(entry, image) && !entry.id.is_empty() && (needed..=L1_TABLE_BYTES_MAX / 8).contains(&stored)
}

/// The L1 table's size against the disk's size and against what programs open.
fn check_sizes(
    entry: &SnapshotEntry,
    disk_bytes: u64,
    index: u32,
    at: u64,
    report: &mut Report,
    image: &Image,
) {
    let reach_bits = image.header.l1_entry_reach_bits();
    let (stored, most) = (u64::from(entry.l1_entries), L1_TABLE_BYTES_MAX / 8);
    let needed = disk_bytes.div_ceil(1 << reach_bits);
    if stored > most {
        report.fault(&fault(Problem::SnapshotL1Size, index, at + 8, 4, stored, most));
    } else if needed > most {
        let (place, reach) = (at + 48, stored << reach_bits);
        report.fault(&fault(Problem::SnapshotDiskSize, index, place, 8, disk_bytes, reach));
    } else if stored < needed {
        report.fault(&fault(Problem::SnapshotL1Size, index, at + 8, 4, stored, needed));
    }
}

/// Two independent FNV-1a style hashes of an id.
pub fn hash(bytes: &[u8]) -> (u64, u64) {
    bytes.iter().fold((0xcbf2_9ce4_8422_2325, 0x9e37_79b9_7f4a_7c15), |(a, b), byte| {
        let byte = u64::from(*byte);
        (
            (a ^ byte).wrapping_mul(0x100_0000_01b3),
            (b.rotate_left(9) ^ byte).wrapping_mul(0xff51_afd7_ed55_8ccd),
        )
    })
}
