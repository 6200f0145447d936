//! The snapshot table, entry by entry.

use alloc::vec;
use alloc::vec::Vec;

use instar_abi::boot::FILE_IMAGE;
use instar_abi::finding::{NONE, Table};
use instar_abi::problem::Problem;
use instar_abi::to_usize;

use super::read;
use crate::host::Host;
use crate::ondisk::header::SNAPSHOTS_MAX;
use crate::ondisk::snapshots::{ENTRY_BYTES_MAX, EXTRA_BYTES_MAX, FIXED_BYTES, SnapshotEntry};
use crate::ondisk::units::Position;
use crate::ondisk::{Fault, Header};

/// Bytes of the table in memory at once: more than one entry at its limits.
const WINDOW_BYTES: usize = 256 << 10;

const _: () = assert!(WINDOW_BYTES >= 2 * FIXED_BYTES && WINDOW_BYTES > ENTRY_BYTES_MAX);

/// Calls `each` with index, entry and the bytes that the entry's ranges point into, for every snapshot up to the
/// first that cannot be read or is empty. Of an entry whose lengths cannot be meant the names are left out.
///
/// # Errors
/// Why there is no next one, with its index; for a header that counts more than there can be, after all that are there.
pub fn each_snapshot<H: Host>(
    host: &mut H,
    header: &Header,
    mut each: impl FnMut(&mut H, u32, &SnapshotEntry, &[u8]),
) -> Result<(), Fault> {
    let file_len = host.file_len(FILE_IMAGE).unwrap_or(0);
    let bounds = header.bounds(file_len);
    let Some(mut at) = header.snapshot_table_offset(&bounds)? else { return Ok(()) };
    let is_counted = header.snapshots <= SNAPSHOTS_MAX;
    // Where the count is wrong, or an entry's lengths are, what stands there may be no entry at all.
    let leads_to_a_table =
        |entry: &SnapshotEntry| entry.l1_offset != 0 && bounds.position(entry.l1_offset) == Position::Inside;
    let mut window: Vec<u8> = Vec::new();
    let mut window_at = at;
    for index in 0..header.snapshots.min(SNAPSHOTS_MAX) {
        let fault = |problem, stored, expected| Fault {
            problem,
            table: Table::SnapshotTable,
            host_offset: at,
            host_len: FIXED_BYTES as u64,
            index: u64::from(index),
            stored,
            expected,
        };
        let mut bytes = window.get(to_usize(at - window_at)..).unwrap_or(&[]);
        if SnapshotEntry::decode(bytes).is_none() {
            window = vec![0; WINDOW_BYTES.min(to_usize(file_len.saturating_sub(at)))];
            window_at = at;
            read(host, at, &mut window)
                .map_err(|error| fault(Problem::ReadError, error, window.len() as u64))?;
            bytes = &window;
        }
        if SnapshotEntry::is_empty(bytes) && is_counted {
            return Err(fault(Problem::SnapshotEntryEmpty, u64::from(header.snapshots), u64::from(index)));
        }
        let extra_bytes = SnapshotEntry::extra_bytes(bytes);
        if extra_bytes > EXTRA_BYTES_MAX {
            let nameless = SnapshotEntry::decode_nameless(bytes, header.version);
            if let Some(entry) = nameless.filter(leads_to_a_table) {
                each(host, index, &entry, bytes);
            }
            let (stored, most) = (u64::from(extra_bytes), u64::from(EXTRA_BYTES_MAX));
            return Err(fault(Problem::SnapshotExtraData, stored, most));
        }
        let Some(entry) = SnapshotEntry::decode(bytes) else {
            let stored = SnapshotEntry::measure(bytes).unwrap_or(NONE);
            return Err(fault(Problem::SnapshotTableTruncated, stored, ENTRY_BYTES_MAX as u64));
        };
        if !is_counted && !leads_to_a_table(&entry) {
            break;
        }
        each(host, index, &entry, bytes);
        at = at.saturating_add(entry.len.next_multiple_of(8) as u64);
    }
    if is_counted {
        return Ok(());
    }
    let (stored, most) = (u64::from(header.snapshots), u64::from(SNAPSHOTS_MAX));
    Err(Fault::header(Problem::HeaderSnapshotsCount, 60, 4, stored, most))
}
