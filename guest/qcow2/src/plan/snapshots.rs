//! `RewriteSnapshots`: writes the snapshot table anew at the end of the file, with the extra data that version 3
//! asks for.
//!
//! An entry with less of it gets 16 bytes: the VM state's size from the entry's 32-bit field (or what there is of
//! the longer one), and the disk's size from the header, which is what programs take where an entry has none.
//! Everything else is copied as it is, unknown extra data included. The header's 12 bytes that name the table are
//! written behind it.
//!
//! Invariant: the new table has the entries of the old one, in their order. The old table's clusters are freed in
//! the same round, which is when nothing else casts doubt on leaks: nothing else uses them then. A table that does
//! not fit memory is left as it is.

use alloc::vec::Vec;

use instar_abi::cure::Cure;
use instar_abi::problem::Problem as P;

use super::doubt::Doubt;
use super::leaks;
use super::round::{Proposal, Round};
use crate::check::reader::{Bytes, Reader};
use crate::check::roots::Image;
use crate::check::{Checked, ClusterRun};
use crate::host::Host;
use crate::ondisk::header::SNAPSHOTS_MAX;
use crate::ondisk::snapshots::{
    ENTRY_BYTES_MAX, EXTRA_BYTES_MAX, EXTRA_BYTES_V3, FIXED_BYTES, SnapshotEntry,
};

/// Most bytes of a table that is written anew.
const TABLE_BYTES_MAX: usize = 8 << 20;
/// Byte offset of the header's fields that name the table: number of snapshots, offset.
const HEADER_FIELDS: u64 = 60;

/// Proposes the new table, then the header's fields.
pub fn propose<H: Host>(round: &mut Round<'_, H>, checked: &Checked, doubt: &Doubt) {
    let Some(image) = &checked.image else { return };
    if !checked.problems.has(P::SnapshotExtraData)
        || image.header.version < 3
        || !doubt.are_alone(&[P::SnapshotExtraData])
        || !doubt.may_grow()
    {
        return;
    }
    let Some((table, left)) = rewritten(round.host, image) else { return };
    let fresh = image.header.cluster.offset(image.bounds.clusters());
    let mut fields = image.header.snapshots.to_be_bytes().to_vec();
    fields.extend_from_slice(&fresh.to_be_bytes());
    round.writes(Cure::RewriteSnapshots, &[(fresh, table)]);
    let switch: Proposal = (HEADER_FIELDS, fields);
    round.writes(Cure::RewriteSnapshots, &[switch]);
    leaks::propose_left(round, checked, Cure::RewriteSnapshots, &[left]);
}

/// The table as it should be, in whole clusters, and the clusters of the old one; `None` where it cannot be read
/// or is too long.
fn rewritten<H: Host>(host: &mut H, image: &Image) -> Option<(Vec<u8>, ClusterRun)> {
    let header = &image.header;
    let mut reader = Reader::new(image.bounds.len);
    let start = header.snapshot_table_offset(&image.bounds).ok()??;
    let mut at = start;
    let mut table = Vec::new();
    for _ in 0..header.snapshots.min(SNAPSHOTS_MAX) {
        let Bytes::Read(bytes) = reader.one(host, at, ENTRY_BYTES_MAX) else { return None };
        let entry = SnapshotEntry::decode(bytes).filter(|entry| entry.extra_bytes <= EXTRA_BYTES_MAX)?;
        put(&mut table, bytes, &entry, header.virtual_size)?;
        at = at.checked_add(entry.len.next_multiple_of(8) as u64)?;
        if table.len() > TABLE_BYTES_MAX {
            return None;
        }
    }
    table.resize(table.len().next_multiple_of(header.cluster.usize()), 0);
    let (first, count) = (header.cluster.index(start), header.cluster.count(at - start));
    Some((table, ClusterRun { first, count }))
}

/// Adds one entry, which begins `bytes`.
fn put(table: &mut Vec<u8>, bytes: &[u8], entry: &SnapshotEntry, disk_bytes: u64) -> Option<()> {
    let extra_end = FIXED_BYTES + entry.extra_bytes as usize;
    table.extend_from_slice(bytes.get(..FIXED_BYTES - 4)?);
    if entry.extra_bytes < EXTRA_BYTES_V3 {
        table.extend_from_slice(&EXTRA_BYTES_V3.to_be_bytes());
        table.extend_from_slice(&entry.vm_state_bytes.to_be_bytes());
        table.extend_from_slice(&disk_bytes.to_be_bytes());
    } else {
        table.extend_from_slice(bytes.get(FIXED_BYTES - 4..extra_end)?);
    }
    table.extend_from_slice(bytes.get(extra_end..entry.len)?);
    table.resize(table.len().next_multiple_of(8), 0);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(extra: &[u8]) -> Vec<u8> {
        let mut bytes = alloc::vec![7_u8; FIXED_BYTES];
        bytes[12..16].copy_from_slice(&[0, 1, 0, 3]);
        bytes[32..36].copy_from_slice(&99_u32.to_be_bytes());
        bytes[36..40].copy_from_slice(&u32::try_from(extra.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(extra);
        bytes.extend_from_slice(b"1abc");
        bytes
    }

    fn rewritten(bytes: &[u8]) -> Vec<u8> {
        let mut table = Vec::new();
        put(&mut table, bytes, &SnapshotEntry::decode(bytes).unwrap(), 1 << 30).unwrap();
        table
    }

    #[test]
    fn entry_without_extra_data_gets_both_sizes_and_keeps_the_rest() {
        let (before, table) = (entry(&[]), rewritten(&entry(&[])));
        let after = SnapshotEntry::decode(&table).unwrap();
        assert_eq!((after.vm_state_bytes, after.disk_bytes), (99, Some(1 << 30)));
        assert_eq!(table[..36], before[..36]);
        assert_eq!(&table[after.id.start..after.len], b"1abc");
        assert_eq!(table.len() % 8, 0);
    }

    #[test]
    fn entry_with_half_its_extra_data_keeps_the_long_size() {
        let table = rewritten(&entry(&(1_u64 << 40).to_be_bytes()));
        let after = SnapshotEntry::decode(&table).unwrap();
        assert_eq!((after.vm_state_bytes, after.disk_bytes), (1 << 40, Some(1 << 30)));
    }

    #[test]
    fn entry_with_unknown_extra_data_is_copied_whole() {
        let bytes = entry(&[5; 42]);
        assert_eq!(rewritten(&bytes)[..bytes.len()], bytes);
    }
}
