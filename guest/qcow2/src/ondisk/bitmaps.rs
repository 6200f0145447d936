//! Bitmap directory and bitmap table entries (specification: "Bitmaps").

use core::ops::Range;

use super::bytes::{be_u8, be_u16, be_u32, be_u64};
use super::l1::OFFSET_MASK;

/// Bytes of the fixed part of a directory entry.
pub const FIXED_BYTES: usize = 24;
/// Flag: the bitmap was not saved cleanly.
pub const FLAG_IN_USE: u32 = 1 << 0;
/// Flag: the bitmap is to be tracked from the start.
pub const FLAG_AUTO: u32 = 1 << 1;
/// Flag: the extra data is understood by those who know it only.
pub const FLAG_EXTRA_DATA_COMPATIBLE: u32 = 1 << 2;
/// Flags that are defined.
pub const FLAGS_KNOWN: u32 = 7;
/// The one type: a dirty tracking bitmap.
pub const TYPE_DIRTY: u8 = 1;
/// Smallest granularity, log2 of bytes.
pub const GRANULARITY_BITS_MIN: u8 = 9;
/// Largest granularity, log2 of bytes.
pub const GRANULARITY_BITS_MAX: u8 = 31;
/// Longest name in bytes.
pub const NAME_BYTES_MAX: u16 = 1023;
/// Most entries of a bitmap table; QEMU's limit.
pub const TABLE_ENTRIES_MAX: u32 = 1 << 27;

/// One directory entry, decoded. Ranges are positions in the bytes that it was decoded from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BitmapEntry {
    /// Byte offset of the bitmap table.
    pub table_offset: u64,
    /// Entries of the bitmap table.
    pub table_entries: u32,
    /// `FLAG_*` bits.
    pub flags: u32,
    /// [`TYPE_DIRTY`].
    pub kind: u8,
    /// log2 of the guest bytes that one bit stands for.
    pub granularity_bits: u8,
    /// Bytes of extra data.
    pub extra_bytes: u32,
    /// The name.
    pub name: Range<usize>,
    /// Bytes of the whole entry with padding.
    pub len: usize,
}

impl BitmapEntry {
    /// Decodes the entry at the start of `bytes`; `None` if it is not all there.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (name_bytes, extra_bytes) = (be_u16(bytes, 18)?, be_u32(bytes, 20)?);
        let name_start = FIXED_BYTES + extra_bytes as usize;
        let name = name_start..name_start + usize::from(name_bytes);
        let len = name.end.next_multiple_of(8);
        if bytes.len() < len {
            return None;
        }
        Some(Self {
            table_offset: be_u64(bytes, 0)?,
            table_entries: be_u32(bytes, 8)?,
            flags: be_u32(bytes, 12)?,
            kind: be_u8(bytes, 16)?,
            granularity_bits: be_u8(bytes, 17)?,
            extra_bytes,
            name,
            len,
        })
    }

    /// Bytes of bitmap data that a disk of this size needs, saturating; `None` if the granularity is out of
    /// range.
    #[must_use]
    pub const fn data_bytes_needed(&self, disk_bytes: u64) -> Option<u64> {
        if self.granularity_bits < GRANULARITY_BITS_MIN || self.granularity_bits > GRANULARITY_BITS_MAX {
            return None;
        }
        Some(disk_bytes.div_ceil(1 << self.granularity_bits).div_ceil(8))
    }
}

/// One entry of a bitmap table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BitmapTableEntry(pub u64);

impl BitmapTableEntry {
    /// Bits 1 to 8 and 56 to 63, which must be zero.
    pub const RESERVED: u64 = 0xff00_0000_0000_01fe;

    /// Byte offset of the data cluster; 0 if there is none.
    #[must_use]
    pub const fn data_offset(self) -> u64 {
        self.0 & OFFSET_MASK
    }

    /// Without a data cluster: every bit of it is one.
    #[must_use]
    pub const fn is_all_ones(self) -> bool {
        self.0 & 1 != 0
    }

    /// The bits that must not be set and are: bit 0 counts among them where there is a data cluster.
    #[must_use]
    pub const fn reserved(self) -> u64 {
        let bit0 = if self.data_offset() != 0 { self.0 & 1 } else { 0 };
        (self.0 & Self::RESERVED) | bit0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_with_extra_data_and_name_is_decoded_with_its_padding() {
        let mut bytes = [0_u8; 40];
        bytes[5] = 3;
        bytes[11] = 2;
        bytes[15] = 1;
        bytes[16] = 1;
        bytes[17] = 16;
        bytes[19] = 2;
        bytes[23] = 4;
        bytes[28..30].copy_from_slice(b"ab");
        let entry = BitmapEntry::decode(&bytes).unwrap();
        assert_eq!((entry.table_offset, entry.table_entries, entry.flags), (0x3_0000, 2, FLAG_IN_USE));
        assert_eq!((entry.name.clone(), entry.len), (28..30, 32));
        assert_eq!(entry.data_bytes_needed(1 << 20), Some(2));
        assert!((0..32).all(|len| BitmapEntry::decode(&bytes[..len]).is_none()));
    }

    #[test]
    fn table_entry_bit_zero_is_reserved_beside_an_offset() {
        assert_eq!(BitmapTableEntry(1).reserved(), 0);
        assert!(BitmapTableEntry(1).is_all_ones());
        assert_eq!(BitmapTableEntry(0x5_0001).reserved(), 1);
        assert_eq!(BitmapTableEntry(0x5_0000).data_offset(), 0x5_0000);
    }
}
