//! Which clusters of the file are metadata beyond reasonable doubt, so that no guest data and no other table can lie
//! there.
//!
//! Where an entry and the image's structures claim one cluster, either of them may be the damaged one. Invariant: the
//! structures win only where the cluster's bytes read like what they make of it; otherwise the entry is followed, as
//! if nobody else had asked for the place. Two tables of one kind, or two guest ranges, that share a place are no
//! conflict of this kind: what they share is what both of them read.
//!
//! What this does not do: bitmaps and the encryption header are not looked for, and refcount blocks of less than 16
//! bits are believed nothing, because any bytes read like one. An image with more tables than the memory is meant for
//! is served as its entries say.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
use core::ops;

use instar_abi::boot::FILE_IMAGE;
use instar_abi::problem::Problem;
use instar_abi::to_usize;

use super::l1::L1Table;
use crate::describe::{self, Roots};
use crate::host::{Host, Range};
use crate::ondisk::Header;
use crate::ondisk::bytes::be_u64;
use crate::ondisk::l1::L1Entry;
use crate::ondisk::l2::{L2Format, Mapping};
use crate::ondisk::refcount::RefcountTableEntry;
use crate::ondisk::units::{FileBounds, Position};

/// Places whose nature is remembered; those after them are nobody's.
const JUDGED_MAX: usize = 1 << 16;
/// Snapshots whose tables are gathered, and bytes of their L1 tables in all.
const SNAPSHOTS_MAX: usize = 1024;
const SNAPSHOT_L1_BYTES_MAX: u64 = 64 << 20;
/// Part of the memory that the gathered places may take.
const MEMORY_PART: usize = 8;
/// A structure may have one bad entry in so many and still be one.
const BAD_PART: u64 = 8;
/// Faults below which a table is never garbage as a whole.
const GARBAGE_FAULTS_MIN: u64 = 16;
/// Reference counts above this are not expected in an image.
const REFCOUNT_MAX: u64 = 4096;

/// What makes metadata of a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    L2Table,
    SnapshotL1,
    RefcountTable,
    RefcountBlock,
    SnapshotTable,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Structures {
    header: Header,
    format: L2Format,
    bounds: FileBounds,
    /// The table of the active disk: the header's own word, which stands above all others.
    active: ops::Range<u64>,
    /// Ranges of clusters: few, in no order.
    regions: Vec<(ops::Range<u64>, Kind)>,
    /// Single clusters, in order.
    tables: Vec<u64>,
    /// Blocks with the position of their entry in the refcount table, in order.
    blocks: Vec<(u64, u64)>,
    /// What was found at the places that somebody else asked for too.
    judged: BTreeMap<(u64, Kind), bool>,
    garbage: BTreeMap<u64, bool>,
    /// A stretch without tables and blocks.
    free: ops::Range<u64>,
}

impl Structures {
    /// Gathers the places; what they hold is looked at when it matters.
    pub fn load<H: Host>(host: &mut H, roots: &Roots, active: &L1Table) -> Self {
        let header = roots.header.clone();
        let bounds = header.bounds(host.file_len(FILE_IMAGE).unwrap_or(0));
        let mut found = Self {
            format: L2Format::of(&header),
            bounds,
            active: needed_part(&header, active),
            regions: Vec::new(),
            tables: Vec::new(),
            blocks: Vec::new(),
            judged: BTreeMap::new(),
            garbage: BTreeMap::new(),
            free: 0..0,
            header,
        };
        let most = host.memory_budget() / MEMORY_PART / size_of::<u64>();
        found.add_tables(active, most);
        found.add_refcounts(host, most / 2);
        found.add_snapshots(host, most);
        found.tables.sort_unstable();
        found.tables.dedup();
        found.blocks.sort_unstable();
        found
    }

    fn add_tables(&mut self, l1: &L1Table, most: usize) {
        for index in 0..l1.entries() {
            let Ok(entry) = l1.entry(index) else { continue };
            let offset = entry.l2_offset();
            if offset != 0 && self.bounds.position(offset) == Position::Inside && self.tables.len() < most {
                self.tables.push(offset);
            }
        }
    }

    fn add_refcounts<H: Host>(&mut self, host: &mut H, most: usize) {
        let Ok(place) = self.header.refcount_table(&self.bounds) else { return };
        let region = place.offset..place.offset.saturating_add(place.len);
        let bytes = self.read(host, region.start, place.len);
        for (index, entry) in (0..).zip(bytes.chunks_exact(8)) {
            let offset = be_u64(entry, 0).map_or(0, |raw| RefcountTableEntry(raw).block_offset());
            if offset != 0 && self.bounds.position(offset) == Position::Inside && self.blocks.len() < most {
                self.blocks.push((offset, index));
            }
        }
        self.regions.push((region, Kind::RefcountTable));
    }

    fn add_snapshots<H: Host>(&mut self, host: &mut H, most: usize) {
        let Ok(Some(start)) = self.header.snapshot_table_offset(&self.bounds) else { return };
        let (mut end, mut named) = (start, Vec::new());
        let walked = describe::each_snapshot(host, &self.header, |_, _, entry, _| {
            end = end.saturating_add(entry.len.next_multiple_of(8) as u64);
            if named.len() < SNAPSHOTS_MAX {
                named.push((entry.l1_offset, entry.l1_entries));
            }
        });
        // An empty entry is a wrong count, and the entries before it are none the worse.
        if walked.is_ok() || walked.is_err_and(|fault| fault.problem == Problem::SnapshotEntryEmpty) {
            self.regions.push((start..end, Kind::SnapshotTable));
        }
        let cluster = self.bounds.cluster.bytes();
        let mut bytes_left = SNAPSHOT_L1_BYTES_MAX;
        for (offset, entries) in named {
            let len = u64::from(entries) * 8;
            if len == 0 || len > bytes_left {
                continue;
            }
            bytes_left -= len;
            if let Ok(l1) = L1Table::snapshot(host, &self.header, offset, entries) {
                self.add_tables(&l1, most);
                // How long it is may be what is wrong with it.
                let first = l1.place.start..l1.place.end.min(l1.place.start.saturating_add(cluster));
                self.regions.push((first, Kind::SnapshotL1));
            }
        }
    }

    /// Whether an L2 table that an L1 entry names at `place` is some other structure.
    pub fn is_other_than_table<H: Host>(&mut self, host: &mut H, place: u64) -> bool {
        // A snapshot's L1 table and an L2 table read alike: neither of them can be told to be the other.
        self.active.contains(&place)
            || self.is_block(host, place)
            || self.is_in_region(host, place, |kind| kind != Kind::SnapshotL1)
    }

    /// Whether guest data that an L2 entry names at `place` is metadata.
    pub fn is_other_than_data<H: Host>(&mut self, host: &mut H, place: u64) -> bool {
        if self.free.contains(&place) {
            return false;
        }
        if let Some(gap) = self.gap(place) {
            self.free = gap;
            return false;
        }
        self.active.contains(&place)
            || self.is_in_region(host, place, |_| true)
            || self.is_block(host, place)
            || self.tables.binary_search(&place).is_ok() && self.judge(host, place, Kind::L2Table, 0)
    }

    /// The stretch round the cluster at `place` that nothing claims; `None` where something claims the cluster itself.
    fn gap(&self, place: u64) -> Option<ops::Range<u64>> {
        let table = self.tables.binary_search(&place).err()?;
        let block = self.blocks.binary_search_by_key(&place, |(offset, _)| *offset).err()?;
        let last_table = table.checked_sub(1).and_then(|at| self.tables.get(at)).copied();
        let last_block = block.checked_sub(1).and_then(|at| self.blocks.get(at)).map(|block| block.0);
        let behind = |offset: Option<u64>| offset.map_or(0, |offset| offset.saturating_add(1));
        let mut start = behind(last_table).max(behind(last_block));
        let mut end = self.tables.get(table).copied().unwrap_or(u64::MAX);
        end = end.min(self.blocks.get(block).map_or(u64::MAX, |block| block.0));
        for region in self.regions.iter().map(|(region, _)| region).chain([&self.active]) {
            let first = region.start - self.bounds.cluster.within(region.start);
            if place >= region.end {
                start = start.max(region.end);
            } else if place < first {
                end = end.min(first);
            } else {
                return None;
            }
        }
        Some(start..end)
    }

    fn is_block<H: Host>(&mut self, host: &mut H, place: u64) -> bool {
        let Ok(found) = self.blocks.binary_search_by_key(&place, |(offset, _)| *offset) else { return false };
        let index = self.blocks.get(found).map_or(0, |(_, index)| *index);
        self.judge(host, place, Kind::RefcountBlock, index)
    }

    fn is_in_region<H: Host>(&mut self, host: &mut H, place: u64, wanted: impl Fn(Kind) -> bool) -> bool {
        for at in 0..self.regions.len() {
            let Some((region, kind)) = self.regions.get(at).cloned() else { continue };
            // A cluster is a structure's where any byte of it is.
            let end = place.saturating_add(self.bounds.cluster.bytes());
            if wanted(kind)
                && region.start < end
                && place < region.end
                && self.judge_region(host, &region, kind)
            {
                return true;
            }
        }
        false
    }

    fn judge_region<H: Host>(&mut self, host: &mut H, region: &ops::Range<u64>, kind: Kind) -> bool {
        // That the snapshot table is one was seen when it was gone through.
        kind == Kind::SnapshotTable || self.judge(host, region.start, kind, 0)
    }

    /// Whether the bytes at `place` read like a structure of this kind.
    fn judge<H: Host>(&mut self, host: &mut H, place: u64, kind: Kind, index: u64) -> bool {
        if let Some(is_one) = self.judged.get(&(place, kind)) {
            return *is_one;
        }
        if self.judged.len() >= JUDGED_MAX {
            return false;
        }
        let bytes = self.read(host, place, self.bounds.cluster.bytes());
        let is_one = match kind {
            Kind::L2Table => self.reads_like_table(&bytes),
            Kind::SnapshotL1 => self.reads_like_pointers(&bytes, |raw| {
                let entry = L1Entry(raw);
                (entry.reserved() == 0).then(|| entry.l2_offset())
            }),
            Kind::RefcountTable => self.reads_like_pointers(&bytes, |raw| {
                let entry = RefcountTableEntry(raw);
                (entry.reserved() == 0).then(|| entry.block_offset())
            }),
            Kind::RefcountBlock => self.reads_like_block(&bytes, place, index),
            Kind::SnapshotTable => true,
        };
        self.judged.insert((place, kind), is_one);
        is_one
    }

    fn reads_like_pointers(&self, bytes: &[u8], offset: impl Fn(u64) -> Option<u64>) -> bool {
        let is_good = |raw| offset(raw).is_some_and(|at| self.bounds.position(at) == Position::Inside);
        let entries = bytes.chunks_exact(8).filter_map(|entry| be_u64(entry, 0)).filter(|raw| *raw != 0);
        is_mostly(entries.map(is_good))
    }

    fn reads_like_table(&self, bytes: &[u8]) -> bool {
        is_mostly(self.table_entries(bytes).map(|(mapping, is_faulty)| match mapping {
            _ if is_faulty => false,
            Mapping::Data { host } | Mapping::Compressed { host, .. } => host < self.bounds.len,
            Mapping::Zero { host } | Mapping::Subclusters { host, .. } => {
                host.is_none_or(|host| host < self.bounds.len)
            }
            Mapping::Hole | Mapping::Damaged(_) => false,
        }))
    }

    /// A block counts itself, where it is among the clusters that it counts, and its counts are small.
    fn reads_like_block(&self, bytes: &[u8], place: u64, index: u64) -> bool {
        let width = self.header.refcount_width;
        if width.bits() < 16 {
            return false;
        }
        let per_block = width.per_block(self.bounds.cluster);
        let base = index.saturating_mul(per_block);
        let own = self.bounds.cluster.index(place).checked_sub(base).filter(|own| *own < per_block);
        if own.is_some_and(|own| width.get(bytes, to_usize(own)) == Some(0)) {
            return false;
        }
        let in_file = self.bounds.clusters().saturating_sub(base).min(per_block);
        let counts = (0..to_usize(in_file)).filter_map(|at| width.get(bytes, at)).filter(|count| *count != 0);
        is_mostly(counts.map(|count| count <= REFCOUNT_MAX))
    }

    /// Whether what an L1 entry takes for an L2 table at `place` is none: most of its entries break rules that only
    /// an entry which was never one breaks.
    pub fn is_garbage<H: Host>(&mut self, host: &mut H, place: u64) -> bool {
        if let Some(is_garbage) = self.garbage.get(&place) {
            return *is_garbage;
        }
        if self.garbage.len() >= JUDGED_MAX {
            return false;
        }
        let bytes = self.read(host, place, self.bounds.cluster.bytes());
        let (mut faulty, mut used) = (0_u64, 0_u64);
        for (_, is_faulty) in self.table_entries(&bytes) {
            used += 1;
            faulty += u64::from(is_faulty);
        }
        let is_garbage = faulty >= GARBAGE_FAULTS_MIN && faulty * 2 > used;
        self.garbage.insert(place, is_garbage);
        is_garbage
    }

    /// The entries of a table that say anything, with whether they break a rule of the format by themselves.
    fn table_entries(&self, bytes: &[u8]) -> impl Iterator<Item = (Mapping, bool)> {
        let format = self.format;
        let entries = (0..bytes.len() / format.entry_bytes()).map(move |index| format.entry(bytes, index));
        entries.filter(|entry| entry.raw != 0 || entry.bitmap != 0).map(move |entry| {
            let (mapping, faults) = entry.decode(&format);
            (mapping, !faults.is_empty())
        })
    }

    /// Bytes of the image, at most a refcount table of them; zeros where they cannot be read.
    fn read<H: Host>(&self, host: &mut H, place: u64, len: u64) -> Vec<u8> {
        let len = to_usize(self.bounds.present(place, len));
        let mut bytes = vec![0; len];
        if len > 0 {
            host.read(&mut [Range { offset: place, len, file: FILE_IMAGE, error: 0 }], &mut bytes);
        }
        bytes
    }
}

/// The active disk's table as far as the disk needs it: a table that is said to be longer is no reason to doubt what
/// lies behind.
fn needed_part(header: &Header, l1: &L1Table) -> ops::Range<u64> {
    let needed = header.l1_entries_needed().saturating_mul(8);
    l1.place.start..l1.place.end.min(l1.place.start.saturating_add(needed))
}

/// Whether there are any, and nearly all of them are good.
fn is_mostly(all: impl Iterator<Item = bool>) -> bool {
    let (mut good, mut bad) = (0_u64, 0_u64);
    for is_good in all {
        if is_good {
            good += 1;
        } else {
            bad += 1;
        }
    }
    good > 0 && bad * BAD_PART <= good
}
