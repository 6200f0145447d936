//! How a header says that the file is laid out, and what L1 entries and L2 tables look like by it.

use alloc::vec::Vec;

use instar_abi::boot::FILE_IMAGE;

use crate::check::reader::{Bytes, Reader};
use crate::host::Host;
use crate::ondisk::Header;
use crate::ondisk::bytes::is_zero;
use crate::ondisk::l1::L1Entry;
use crate::ondisk::l2::{L2Format, Mapping};
use crate::ondisk::snapshots::{ENTRY_BYTES_MAX, SnapshotEntry};
use crate::ondisk::units::{FileBounds, Position};

/// Snapshots that are read; with more of them nothing is said that depends on them.
const SNAPSHOTS_MAX: u32 = 1024;
/// Data clusters of an L2 table that are named.
const DATA_MAX: usize = 3;

/// A header and what follows from it alone.
#[derive(Debug)]
pub struct Layout {
    /// The header.
    pub header: Header,
    /// The file's bounds.
    pub bounds: FileBounds,
    /// How L2 entries look.
    pub format: L2Format,
    /// The entries of the snapshot table; `None` where it cannot be read as one.
    pub snapshots: Option<Vec<SnapshotEntry>>,
}

/// What a cluster reads like as an L2 table.
#[derive(Debug)]
pub enum Read {
    /// Nothing but zeros.
    Empty,
    /// An entry cannot be used, or maps what lies behind the disk's end.
    Bad,
    /// A table; the first of its data clusters, and whether the entry says that the cluster has one user. None where
    /// they are in another file.
    Good(Vec<(u64, bool)>),
}

impl Layout {
    /// The layout by a header.
    pub fn of<H: Host>(host: &mut H, reader: &mut Reader, header: Header) -> Self {
        let bounds = header.bounds(host.file_len(FILE_IMAGE).unwrap_or(0));
        let snapshots = snapshots(host, reader, &header, &bounds);
        Self { bounds, format: L2Format::of(&header), snapshots, header }
    }

    /// Whether an L1 entry can be used as it is.
    #[must_use]
    pub fn is_usable(&self, entry: L1Entry) -> bool {
        let offset = entry.l2_offset();
        entry.reserved() == 0 && offset != 0 && self.bounds.position(offset) == Position::Inside
    }

    /// Whether clusters behind the disk's end may hold a snapshot's VM state.
    fn may_have_state(&self) -> bool {
        let has_state =
            |snapshots: &Vec<SnapshotEntry>| snapshots.iter().any(|entry| entry.vm_state_bytes > 0);
        self.snapshots.as_ref().is_none_or(has_state)
    }

    /// Reads a cluster as the L2 table of the L1 entry at `index`.
    #[must_use]
    pub fn read_table(&self, index: u64, bytes: &[u8]) -> Read {
        if is_zero(bytes) {
            return Read::Empty;
        }
        let guest = index.saturating_mul(self.format.table_reach_bytes());
        let is_behind = guest >= self.header.virtual_size;
        let mapped_max = if is_behind && self.may_have_state() { u64::MAX } else { self.header.virtual_size };
        let mut data = Vec::new();
        for slot in 0..bytes.len() / self.format.entry_bytes() {
            let entry = self.format.entry(bytes, slot);
            if entry.raw == 0 && entry.bitmap == 0 {
                continue;
            }
            let (mapping, faults) = entry.decode(&self.format);
            let host = match mapping {
                Mapping::Damaged(_) => return Read::Bad,
                Mapping::Hole | Mapping::Zero { host: None } | Mapping::Subclusters { host: None, .. } => {
                    None
                }
                Mapping::Data { host }
                | Mapping::Zero { host: Some(host) }
                | Mapping::Subclusters { host: Some(host), .. }
                | Mapping::Compressed { host, .. } => Some(host),
            };
            let at = guest.saturating_add(self.header.cluster.offset(slot as u64));
            let is_inside = self.format.data_file || host.is_none_or(|host| host < self.bounds.len);
            if !faults.is_empty() || !is_inside || host.is_some() && at >= mapped_max {
                return Read::Bad;
            }
            if let (Some(host), false, false) = (host, entry.is_compressed(), self.format.data_file)
                && data.len() < DATA_MAX
            {
                data.push((host, entry.is_copied()));
            }
        }
        Read::Good(data)
    }
}

fn snapshots<H: Host>(
    host: &mut H,
    reader: &mut Reader,
    header: &Header,
    bounds: &FileBounds,
) -> Option<Vec<SnapshotEntry>> {
    let Some(mut at) = header.snapshot_table_offset(bounds).ok()? else { return Some(Vec::new()) };
    let mut entries = Vec::new();
    for _ in 0..Some(header.snapshots).filter(|count| *count <= SNAPSHOTS_MAX)? {
        let Bytes::Read(bytes) = reader.one(host, at, ENTRY_BYTES_MAX) else { return None };
        let entry = SnapshotEntry::decode(bytes)?;
        if entry.l1_offset == 0 || bounds.position(entry.l1_offset) != Position::Inside {
            return None;
        }
        at = at.checked_add(entry.len.next_multiple_of(8) as u64)?;
        entries.push(entry);
    }
    Some(entries)
}
