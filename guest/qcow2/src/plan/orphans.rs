//! What the user has decided about leaks that may be data: to free them, or to attach a lost table.
//!
//! A table says nothing of where it belongs: an L2 table holds host offsets only. What makes its place likely is that
//! there is one table and one slot. It is never attached without a decision, for the slot may have been empty all
//! along and the table a leftover of a disk that is gone.
//!
//! Invariant: a table is attached only where it is the one orphan that reads like a table, every entry of it is
//! sound, every cluster that it maps is an orphan too (compressed payloads may begin in a cluster that others share),
//! nothing of it lies past the disk's end, and exactly one L1 entry can take it: the one that leads nowhere, or else
//! the one empty entry of the active disk where there are no snapshots. The L1 entry is all that is written.

use alloc::vec::Vec;

use instar_abi::choice::Decision;
use instar_abi::cure::Cure;
use instar_abi::finding::{ACTIVE, Finding};
use instar_abi::problem::Problem as P;

use super::doubt::Doubt;
use super::leaks::first_run;
use super::round::Round;
use crate::check::reader::{BATCH_BYTES, Bytes, Reader};
use crate::check::roots::{Disk, Image, words};
use crate::check::{Checked, ClusterRun};
use crate::host::Host;
use crate::ondisk::l1::COPIED;
use crate::ondisk::l2::Mapping;

/// The L1 entry that takes a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slot {
    /// Byte offset of the entry.
    at: u64,
    /// First guest byte that it maps.
    guest: u64,
    is_active: bool,
}

/// Adds the leaks that the user gives up to those that are proven worthless. While lost tables are kept, all is kept
/// that they may lead to.
pub fn free_decided(checked: &mut Checked, doubt: &Doubt) {
    if !checked.faults.of(P::OrphanTable).is_empty() && !doubt.is_decided(Decision::FreeOrphanTables) {
        return;
    }
    let decided = [(Decision::FreeOrphanData, P::OrphanData), (Decision::FreeOrphanTables, P::OrphanTable)];
    let mut free = core::mem::take(&mut checked.free);
    for (_, problem) in decided.iter().filter(|(decision, _)| doubt.is_decided(*decision)) {
        let runs = checked.faults.of(*problem).iter();
        free.extend(runs.map(|run| ClusterRun { first: run.index, count: run.count }));
    }
    free.sort_unstable_by_key(|run| run.first);
    checked.free = free;
}

/// Attaches the one orphan table where the user has decided so.
pub fn attach<H: Host>(round: &mut Round<'_, H>, checked: &Checked, doubt: &Doubt) {
    let Some(image) = checked.image.as_ref().filter(|image| !image.format.data_file) else { return };
    let [table] = checked.faults.of(P::OrphanTable) else { return };
    if !doubt.is_decided(Decision::AttachOrphanTables) || table.count != 1 {
        return;
    }
    let mut reader = Reader::new(image.bounds.len);
    let Some(slot) = slot(round.host, &mut reader, checked, image) else { return };
    let offset = image.header.cluster.offset(table.index);
    let Bytes::Read(bytes) = reader.one(round.host, offset, image.header.cluster.usize()) else { return };
    if fits(checked, image, bytes, slot.guest) {
        let entry = offset | if slot.is_active { COPIED } else { 0 };
        round.writes(Cure::AttachTables, &[(slot.at, entry.to_be_bytes().to_vec())]);
    }
}

/// The one L1 entry that can take a table.
fn slot<H: Host>(host: &mut H, reader: &mut Reader, checked: &Checked, image: &Image) -> Option<Slot> {
    let lost: Vec<&Finding> = [P::L1EntryUnaligned, P::L1EntryPastEof]
        .iter()
        .flat_map(|problem| checked.faults.of(*problem))
        .collect();
    match lost.as_slice() {
        [] => {}
        [one] if one.count == 1 => {
            let is_active = one.snapshot == ACTIVE;
            return Some(Slot { at: one.host_offset, guest: one.guest_offset, is_active });
        }
        _ => return None,
    }
    let [disk] = checked.roots.disks.as_slice() else { return None };
    empty_slot(host, reader, image, disk)
}

/// The one empty L1 entry of a disk among those that it needs.
fn empty_slot<H: Host>(host: &mut H, reader: &mut Reader, image: &Image, disk: &Disk) -> Option<Slot> {
    let entries = disk.l1_entries.min(image.header.l1_entries_needed());
    let mut found = None;
    let mut first = 0;
    while first < entries {
        let count = (BATCH_BYTES as u64 / 8).min(entries - first);
        let at = disk.l1_offset.checked_add(first * 8)?;
        let Bytes::Read(bytes) = reader.one(host, at, instar_abi::to_usize(count * 8)) else { return None };
        for (index, _) in (first..).zip(words(bytes)).filter(|(_, raw)| *raw == 0) {
            if found.is_some() {
                return None;
            }
            found = Some(index);
        }
        first += count;
    }
    let (index, reach) = (found?, image.format.table_reach_bytes());
    Some(Slot {
        at: disk.l1_offset.checked_add(index * 8)?,
        guest: index.checked_mul(reach)?,
        is_active: disk.snapshot == ACTIVE,
    })
}

/// Whether a table can be the one that maps the guest bytes from `guest` on.
fn fits(checked: &Checked, image: &Image, bytes: &[u8], guest: u64) -> bool {
    let (format, cluster) = (&image.format, image.header.cluster);
    let mut orphans: Vec<ClusterRun> = [P::OrphanData, P::OrphanTable]
        .iter()
        .flat_map(|problem| checked.faults.of(*problem))
        .map(|run| ClusterRun { first: run.index, count: run.count })
        .collect();
    orphans.sort_unstable_by_key(|run| run.first);
    let is_orphan = |host: u64| {
        let index = cluster.index(host);
        first_run(&orphans, &(index..index.saturating_add(1))).is_some()
    };
    bytes.len() == cluster.usize()
        && (0..bytes.len() / format.entry_bytes()).all(|index| {
            let entry = format.entry(bytes, index);
            let place = guest.saturating_add(cluster.offset(index as u64));
            let is_beyond = place >= image.header.virtual_size;
            let (mapping, faults) = entry.decode(format);
            faults.is_empty()
                && match mapping {
                    Mapping::Hole => true,
                    _ if is_beyond => false,
                    Mapping::Zero { host: None } | Mapping::Subclusters { host: None, .. } => true,
                    Mapping::Data { host }
                    | Mapping::Zero { host: Some(host) }
                    | Mapping::Subclusters { host: Some(host), .. } => is_orphan(host),
                    Mapping::Compressed { host, .. } => host < image.bounds.len,
                    Mapping::Damaged(_) => false,
                }
        })
}
