//! Snapshot table entries (specification: "Snapshots").
//!
//! Entries are of different lengths and follow each other at multiples of eight bytes, so each one is found
//! only through the ones before it.

use core::ops::Range;

use super::bytes::{be_u16, be_u32, be_u64};

/// Bytes of the fixed part of an entry.
pub const FIXED_BYTES: usize = 40;
/// Most bytes of extra data that QEMU takes.
pub const EXTRA_BYTES_MAX: u32 = 1024;
/// Extra data that version 3 asks for: the VM state's 64-bit size and the disk size.
pub const EXTRA_BYTES_V3: u32 = 16;
/// Largest snapshot table that QEMU opens, in bytes.
pub const TABLE_BYTES_MAX: u64 = 64 << 20;
/// Most bytes of one entry: fixed part, extra data at its limit, two names of 65535 bytes, padding.
pub const ENTRY_BYTES_MAX: usize = (FIXED_BYTES + 1024 + 2 * 65_535 + 7) & !7;

/// One entry, decoded. Ranges are positions in the bytes that it was decoded from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotEntry {
    /// Byte offset of the snapshot's L1 table.
    pub l1_offset: u64,
    /// Entries of that table.
    pub l1_entries: u32,
    /// Seconds since the epoch when the snapshot was taken.
    pub date_seconds: u32,
    /// Nanoseconds of that moment.
    pub date_nanoseconds: u32,
    /// Guest run time in nanoseconds.
    pub vm_clock_ns: u64,
    /// Bytes of VM state, which is kept behind the disk's end.
    pub vm_state_bytes: u64,
    /// Size of the disk in bytes, where the entry says it.
    pub disk_bytes: Option<u64>,
    /// Bytes of extra data.
    pub extra_bytes: u32,
    /// The unique id string.
    pub id: Range<usize>,
    /// The name.
    pub name: Range<usize>,
    /// Bytes of the whole entry without padding.
    pub len: usize,
}

impl SnapshotEntry {
    /// Bytes of the entry that begins with these [`FIXED_BYTES`], without padding. `None` if there are fewer.
    #[must_use]
    pub fn measure(bytes: &[u8]) -> Option<u64> {
        let names = u64::from(be_u16(bytes, 12)?) + u64::from(be_u16(bytes, 14)?);
        Some(FIXED_BYTES as u64 + u64::from(be_u32(bytes, 36)?) + names)
    }

    /// Whether the entry that begins `bytes` is none: no id, no name, no L1 table, nothing but zeros.
    #[must_use]
    pub fn is_empty(bytes: &[u8]) -> bool {
        bytes.get(..FIXED_BYTES).is_some_and(|fixed| fixed.iter().all(|byte| *byte == 0))
    }

    /// Bytes of extra data that the entry at the start of `bytes` says to have; 0 if it is not there.
    #[must_use]
    pub fn extra_bytes(bytes: &[u8]) -> u32 {
        be_u32(bytes, 36).unwrap_or(0)
    }

    /// Decodes an entry whose lengths cannot be meant, as if it had no names and the extra data of its version.
    #[must_use]
    pub fn decode_nameless(bytes: &[u8], version: u32) -> Option<Self> {
        let extra_bytes = if version >= 3 { EXTRA_BYTES_V3 } else { 0 };
        let mut plain = bytes.get(..FIXED_BYTES + extra_bytes as usize)?.to_vec();
        plain.get_mut(12..16)?.fill(0);
        plain.get_mut(36..40)?.copy_from_slice(&extra_bytes.to_be_bytes());
        Self::decode(&plain)
    }

    /// Decodes the entry at the start of `bytes`; `None` if it is not all there.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let len = instar_abi::to_usize(Self::measure(bytes)?);
        let bytes = bytes.get(..len)?;
        let extra_bytes = be_u32(bytes, 36)?;
        let extra = bytes.get(FIXED_BYTES..FIXED_BYTES + extra_bytes as usize)?;
        let id_start = FIXED_BYTES + extra_bytes as usize;
        let name_start = id_start + usize::from(be_u16(bytes, 12)?);
        Some(Self {
            l1_offset: be_u64(bytes, 0)?,
            l1_entries: be_u32(bytes, 8)?,
            date_seconds: be_u32(bytes, 16)?,
            date_nanoseconds: be_u32(bytes, 20)?,
            vm_clock_ns: be_u64(bytes, 24)?,
            vm_state_bytes: be_u64(extra, 0).unwrap_or(u64::from(be_u32(bytes, 32)?)),
            disk_bytes: be_u64(extra, 8),
            extra_bytes,
            id: id_start..name_start,
            name: name_start..len,
            len,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn entry() -> Vec<u8> {
        let mut bytes = alloc::vec![0_u8; FIXED_BYTES];
        bytes[..8].copy_from_slice(&0x7_0000_u64.to_be_bytes());
        bytes[11] = 3;
        bytes[13] = 1;
        bytes[15] = 4;
        bytes[39] = 16;
        bytes.extend_from_slice(&9_u64.to_be_bytes());
        bytes.extend_from_slice(&77_u64.to_be_bytes());
        bytes.extend_from_slice(b"1name");
        bytes
    }

    #[test]
    fn entry_with_extra_data_gives_size_id_and_name() {
        let bytes = entry();
        let entry = SnapshotEntry::decode(&bytes).unwrap();
        assert_eq!((entry.l1_offset, entry.l1_entries), (0x7_0000, 3));
        assert_eq!((entry.vm_state_bytes, entry.disk_bytes), (9, Some(77)));
        assert_eq!((&bytes[entry.id.clone()], &bytes[entry.name.clone()]), (&b"1"[..], &b"name"[..]));
        assert_eq!(entry.len, bytes.len());
    }

    #[test]
    fn entry_is_empty_where_all_of_its_fixed_part_is_zeros() {
        let zeros = alloc::vec![0_u8; FIXED_BYTES];
        assert!(SnapshotEntry::is_empty(&zeros) && !SnapshotEntry::is_empty(&zeros[1..]));
        for at in 0..FIXED_BYTES {
            let mut bytes = zeros.clone();
            bytes[at] = 1;
            assert!(!SnapshotEntry::is_empty(&bytes), "byte {at}");
        }
    }

    #[test]
    fn every_prefix_of_an_entry_is_none() {
        let bytes = entry();
        assert!((0..bytes.len()).all(|len| SnapshotEntry::decode(&bytes[..len]).is_none()));
    }

    #[test]
    fn lengths_at_their_limits_do_not_overflow() {
        assert_eq!(SnapshotEntry::measure(&[0xff; 40]), Some(40 + u64::from(u32::MAX) + 2 * 65535));
    }
}
