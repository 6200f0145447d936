//! From a guest range to extents: L1 entries, then the L2 entries that are needed, in batches.

use alloc::vec;
use alloc::vec::Vec;
use core::ops;

use instar_abi::boot::{FILE_DATA, FILE_IMAGE};
use instar_abi::extent::ExtentKind;
use instar_abi::problem::Problem;
use instar_abi::to_usize;

use super::emit::{Emitter, Plain};
use super::l1::L1Table;
use super::structures::Structures;
use crate::host::{Host, Range};
use crate::ondisk::Header;
use crate::ondisk::header::Crypt;
use crate::ondisk::l2::{L2Format, Mapping, SUBCLUSTERS};
use crate::ondisk::units::{FileBounds, Position};

/// Most bytes of L2 entries in memory at once.
pub(super) const BATCH_BYTES: usize = 1 << 20;
/// Most L1 entries looked at before what they name is read.
const BATCH_PARTS: usize = 4096;

/// A part of the request that one L1 entry maps.
struct Part {
    /// Guest bytes, whole clusters.
    guest: ops::Range<u64>,
    source: Source,
}

enum Source {
    /// All of it is one thing.
    Whole(Plain),
    /// L2 entries of the table at `table`, of which the file holds `present` bytes; they lie at `at` in the batch.
    /// `range` is the read.
    Entries { table: u64, at: usize, present: usize, range: Option<usize> },
}

/// Names the extents of `range`.
pub(super) fn translate<H: Host>(
    host: &mut H,
    header: &Header,
    l1: &L1Table,
    structures: &mut Structures,
    range: ops::Range<u64>,
) {
    let mut walk = Walk::new(host, header, l1, structures);
    let cluster = header.cluster;
    // Extents may reach over the ends of the request, and whole clusters are simpler.
    let mut at = range.start - cluster.within(range.start);
    let end = range.end.checked_next_multiple_of(cluster.bytes()).unwrap_or(u64::MAX);
    let mut out = Emitter::default();
    while at < end {
        let (parts, mut reads, bytes) = walk.batch(at..end);
        let mut entries = vec![0; bytes];
        if !reads.is_empty() {
            host.read(&mut reads, &mut entries);
        }
        for part in &parts {
            walk.part(host, &mut out, part, &reads, &entries);
            at = part.guest.end;
        }
    }
    out.finish(host);
}

struct Walk<'a> {
    format: L2Format,
    l1: &'a L1Table,
    image: FileBounds,
    /// Bounds and index of the file with the guest's data, `None` if it was not given.
    data: Option<(FileBounds, u32)>,
    encrypted: bool,
    /// Guest data lies at its guest offset in the data file.
    raw: bool,
    structures: &'a mut Structures,
}

impl<'a> Walk<'a> {
    fn new<H: Host>(host: &H, header: &Header, l1: &'a L1Table, structures: &'a mut Structures) -> Self {
        let file = if header.has_data_file() { FILE_DATA } else { FILE_IMAGE };
        Self {
            format: L2Format::of(header),
            l1,
            image: header.bounds(host.file_len(FILE_IMAGE).unwrap_or(0)),
            data: host.file_len(file).map(|len| (header.bounds(len), file)),
            encrypted: header.crypt != Crypt::None,
            raw: header.has_data_file() && header.is_data_file_raw(),
            structures,
        }
    }

    /// The next parts of `range`, at least one, with the reads that they need and how many bytes those are.
    fn batch(&self, range: ops::Range<u64>) -> (Vec<Part>, Vec<Range>, usize) {
        let (mut parts, mut reads, mut bytes) = (Vec::new(), Vec::new(), 0);
        let mut at = range.start;
        while at < range.end && bytes < BATCH_BYTES && parts.len() < BATCH_PARTS {
            let part = self.plan(at..range.end, BATCH_BYTES - bytes, bytes, &mut reads);
            if let Source::Entries { present, .. } = part.source {
                bytes += present;
            }
            at = part.guest.end;
            parts.push(part);
        }
        (parts, reads, bytes)
    }

    /// The first part of `range`: up to the end of the L2 table's reach, or of what `room` bytes of entries map.
    fn plan(&self, range: ops::Range<u64>, room: usize, at: usize, reads: &mut Vec<Range>) -> Part {
        let reach = self.format.table_reach_bytes();
        let table_end = (range.start - range.start % reach).saturating_add(reach);
        let mut guest = range.start..range.end.min(table_end);
        let whole = |guest, plain| Part { guest, source: Source::Whole(plain) };
        let damaged = |guest, problem| whole(guest, Plain::Damaged(problem));
        let entry = match self.l1.entry(range.start / reach) {
            Ok(entry) => entry,
            Err(problem) => return damaged(guest, problem),
        };
        let table = entry.l2_offset();
        if table == 0 {
            return whole(guest, Plain::Hole);
        }
        match self.image.position(table) {
            Position::Unaligned => return damaged(guest, Problem::L1EntryUnaligned),
            Position::PastEof => return damaged(guest, Problem::L1EntryPastEof),
            Position::Inside => {}
        }
        let (entry_bytes, cluster_bits) = (self.format.entry_bytes() as u64, self.image.cluster.bits());
        let room_end = guest.start.saturating_add((room as u64 / entry_bytes).max(1) << cluster_bits);
        guest.end = guest.end.min(room_end);
        let first = table + ((guest.start % reach) >> cluster_bits) * entry_bytes;
        let wanted = (guest.end - guest.start).div_ceil(self.image.cluster.bytes()) * entry_bytes;
        let present = to_usize(self.image.present(first, wanted));
        let range = (present > 0).then(|| {
            reads.push(Range { offset: first, len: present, file: FILE_IMAGE, error: 0 });
            reads.len() - 1
        });
        Part { guest, source: Source::Entries { table, at, present, range } }
    }

    fn part<H: Host>(&mut self, host: &mut H, out: &mut Emitter, part: &Part, reads: &[Range], batch: &[u8]) {
        let (table, at, present, range) = match part.source {
            Source::Whole(plain) => return out.put(host, part.guest.clone(), plain),
            Source::Entries { table, at, present, range } => (table, at, present, range),
        };
        if self.structures.is_other_than_table(host, table) {
            return out.put(host, part.guest.clone(), Plain::Damaged(Problem::L1EntryOverlap));
        }
        let failed = range.and_then(|range| reads.get(range)).is_some_and(|read| read.error != 0);
        if failed {
            return out.put(host, part.guest.clone(), Plain::Damaged(Problem::L2TableUnreadable));
        }
        let entries = batch.get(at..at + present).unwrap_or(&[]);
        let whole_entries = present / self.format.entry_bytes();
        let has_faults = (0..whole_entries)
            .any(|index| !self.format.entry(entries, index).decode(&self.format).1.is_empty());
        if has_faults && self.structures.is_garbage(host, table) {
            return out.put(host, part.guest.clone(), Plain::Damaged(Problem::TableGarbage));
        }
        let mut guest = part.guest.start;
        let mut index = 0;
        while guest < part.guest.end {
            let end = guest.saturating_add(self.image.cluster.bytes());
            if index >= whole_entries {
                let rest = guest..part.guest.end;
                return out.put(host, rest, Plain::Damaged(Problem::L2TableTruncated));
            }
            let entry = self.format.entry(entries, index);
            let (mapping, _) = entry.decode(&self.format);
            // The place of a cluster that is not read may be as wrong as it likes.
            let is_zeros = entry.is_all_zeros(&self.format);
            let mapping = if is_zeros { Mapping::Zero { host: None } } else { mapping };
            self.cluster(host, out, guest..end, mapping);
            (guest, index) = (end, index + 1);
        }
    }

    /// One guest cluster.
    fn cluster<H: Host>(
        &mut self,
        host: &mut H,
        out: &mut Emitter,
        guest: ops::Range<u64>,
        mapping: Mapping,
    ) {
        match mapping {
            Mapping::Hole => out.put(host, guest, Plain::Hole),
            Mapping::Zero { .. } => out.put(host, guest, Plain::Zero),
            Mapping::Damaged(problem) => out.put(host, guest, Plain::Damaged(problem)),
            Mapping::Data { host: place } => match self.usable(host, guest.start, place) {
                Ok((bounds, file)) => self.data(host, out, guest, place, (&bounds, file)),
                Err(problem) => out.put(host, guest, Plain::Damaged(problem)),
            },
            Mapping::Compressed { host: place, len } => {
                // The length counts whole sectors, so that its end may lie past that of the file.
                match self.image.present(place, len) {
                    0 => out.put(host, guest, Plain::Damaged(Problem::CompressedPastEof)),
                    present => out.put_compressed(host, guest, place, present),
                }
            }
            Mapping::Subclusters { host: place, allocated, zero } => {
                self.subclusters(host, out, guest, place, (allocated, zero));
            }
        }
    }

    /// The bounds and index of the file that the data cluster at `place` lies in, or why it cannot be used.
    fn usable<H: Host>(
        &mut self,
        host: &mut H,
        guest: u64,
        place: u64,
    ) -> Result<(FileBounds, u32), Problem> {
        let (bounds, file) = self.data.ok_or(Problem::DataFileMissing)?;
        let is_image = file == FILE_IMAGE;
        match bounds.position(place) {
            Position::Unaligned => Err(Problem::L2EntryUnaligned),
            Position::PastEof if is_image => Err(Problem::L2EntryPastEof),
            Position::PastEof => Err(Problem::DataFileShort),
            Position::Inside if is_image && self.structures.is_other_than_data(host, place) => {
                Err(Problem::L2EntryOverlapsMetadata)
            }
            Position::Inside if self.raw && place != guest => Err(Problem::DataFileOffset),
            Position::Inside => Ok((bounds, file)),
        }
    }

    /// Bytes at `place`, which begins in the file; what the file is too short for reads as zeros.
    fn data<H: Host>(
        &self,
        host: &mut H,
        out: &mut Emitter,
        guest: ops::Range<u64>,
        place: u64,
        (bounds, file): (&FileBounds, u32),
    ) {
        let kind = if self.encrypted { ExtentKind::Encrypted } else { ExtentKind::Data };
        let present = guest.start.saturating_add(bounds.present(place, guest.end - guest.start));
        out.put_bytes(host, guest.start..present, kind, file, place);
        out.put(host, present..guest.end, Plain::Zero);
    }

    fn subclusters<H: Host>(
        &mut self,
        host: &mut H,
        out: &mut Emitter,
        guest: ops::Range<u64>,
        place: Option<u64>,
        (allocated, zero): (u32, u32),
    ) {
        let bytes = self.format.subcluster_bytes();
        let usable = place.map(|place| (place, self.usable(host, guest.start, place)));
        for sub in 0..SUBCLUSTERS {
            let skipped = u64::from(sub) * bytes;
            let start = guest.start.saturating_add(skipped);
            let part = start..start.saturating_add(bytes);
            if zero >> sub & 1 != 0 {
                out.put(host, part, Plain::Zero);
            } else if allocated >> sub & 1 == 0 {
                out.put(host, part, Plain::Hole);
            } else {
                match usable {
                    Some((place, Ok((bounds, file)))) => {
                        self.data(host, out, part, place.saturating_add(skipped), (&bounds, file));
                    }
                    Some((_, Err(problem))) => out.put(host, part, Plain::Damaged(problem)),
                    None => {
                        out.put(host, part, Plain::Damaged(Problem::ExtendedBitmapWithoutOffset));
                    }
                }
            }
        }
    }
}
