//! L2 table entries: standard, compressed, extended (specification: "Cluster mapping", "Extended L2 Entries").

use instar_abi::problem::Problem;

use super::bytes::be_u64;
use super::header::Header;
use super::l1::{COPIED, OFFSET_MASK};
use super::units::ClusterSize;

/// Bit 62: the entry is a compressed cluster descriptor.
pub const COMPRESSED: u64 = 1 << 62;
/// Bit 0 of a standard descriptor: the cluster reads as zeros (version 3, not with extended entries).
pub const ZERO: u64 = 1;
/// Bits 1 to 8 and 56 to 61 of a standard descriptor, which must be zero.
pub const RESERVED: u64 = 0x3f00_0000_0000_01fe;
/// Subclusters in a cluster with an extended entry.
pub const SUBCLUSTERS: u32 = 32;

/// What an image's L2 entries look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct L2Format {
    /// The image's clusters.
    pub cluster: ClusterSize,
    /// 16-byte entries with a subcluster bitmap.
    pub extended: bool,
    /// Bit 0 is the zero flag (from version 3 on).
    pub zero_flag: bool,
    /// Offsets point into an external data file, where offset 0 is as good as any other.
    pub data_file: bool,
}

impl L2Format {
    /// The format that a header asks for.
    #[must_use]
    pub const fn of(header: &Header) -> Self {
        Self {
            cluster: header.cluster,
            extended: header.has_extended_l2(),
            zero_flag: header.version >= 3,
            data_file: header.has_data_file(),
        }
    }

    /// Bytes in one entry.
    #[must_use]
    pub const fn entry_bytes(&self) -> usize {
        if self.extended { 16 } else { 8 }
    }

    /// log2 of the entries in one table.
    #[must_use]
    pub const fn table_bits(&self) -> u32 {
        self.cluster.bits() - if self.extended { 4 } else { 3 }
    }

    /// Guest bytes that one table maps.
    #[must_use]
    pub const fn table_reach_bytes(&self) -> u64 {
        1 << (self.table_bits() + self.cluster.bits())
    }

    /// Bytes in one subcluster; of a whole cluster where entries are not extended.
    #[must_use]
    pub const fn subcluster_bytes(&self) -> u64 {
        if self.extended { self.cluster.bytes() / SUBCLUSTERS as u64 } else { self.cluster.bytes() }
    }

    /// The entry at `index` of a table's bytes; bytes missing at the end of the table read as zeros.
    #[must_use]
    pub fn entry(&self, table: &[u8], index: usize) -> L2Entry {
        let at = index.saturating_mul(self.entry_bytes());
        let raw = be_u64(table, at).unwrap_or(0);
        let bitmap = if self.extended { be_u64(table, at.saturating_add(8)).unwrap_or(0) } else { 0 };
        L2Entry { raw, bitmap }
    }
}

/// One L2 entry as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct L2Entry {
    /// The cluster descriptor.
    pub raw: u64,
    /// The subcluster bitmap of an extended entry, 0 otherwise: bits 0 to 31 allocated, 32 to 63 zero.
    pub bitmap: u64,
}

/// What an entry maps its guest cluster to. Offsets are not compared with the file's length here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mapping {
    /// Not allocated: the backing file's bytes, or zeros.
    Hole,
    /// Zeros, perhaps with a host cluster that is kept for later.
    Zero {
        /// Byte offset of the kept cluster, aligned.
        host: Option<u64>,
    },
    /// A host cluster, aligned.
    Data {
        /// Its byte offset.
        host: u64,
    },
    /// Subclusters of different kinds. A bit that is set in neither word is a hole.
    Subclusters {
        /// Byte offset of the host cluster, aligned.
        host: Option<u64>,
        /// Subclusters that have data.
        allocated: u32,
        /// Subclusters that read as zeros.
        zero: u32,
    },
    /// A compressed cluster.
    Compressed {
        /// First byte of the payload; of any alignment.
        host: u64,
        /// Bytes that may belong to the payload: up to the end of its last sector.
        len: u64,
    },
    /// Cannot be used as it stands; the reason is among the entry's faults.
    Damaged(Problem),
}

/// What is wrong with an entry by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Faults {
    first: Option<Problem>,
    second: Option<Problem>,
}

impl Faults {
    const fn with(self, problem: Problem) -> Self {
        match self.first {
            None => Self { first: Some(problem), second: None },
            Some(_) => Self { first: self.first, second: Some(problem) },
        }
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// The problems, at most two.
    pub fn iter(self) -> impl Iterator<Item = Problem> {
        self.first.into_iter().chain(self.second)
    }
}

impl L2Entry {
    /// Whether the entry says that its cluster has one user.
    #[must_use]
    pub const fn is_copied(self) -> bool {
        self.raw & COPIED != 0
    }

    /// Whether it is a compressed cluster descriptor.
    #[must_use]
    pub const fn is_compressed(self) -> bool {
        self.raw & COMPRESSED != 0
    }

    /// Whether a descriptor, whatever its offset, maps zeros and holes only: the host cluster, if any, is merely kept.
    #[must_use]
    pub const fn maps_no_data(self, format: &L2Format) -> bool {
        if self.is_compressed() {
            false
        } else if format.extended {
            self.bitmap & 0xffff_ffff == 0
        } else {
            format.zero_flag && self.raw & ZERO != 0
        }
    }

    /// The same compressed descriptor with a payload of so many sectors, counted from the start of the one that it
    /// begins in: at least 1, and not more than it has.
    #[must_use]
    pub const fn with_sectors(self, sectors: u64, format: &L2Format) -> Self {
        let sector_bits = format.cluster.bits() - 8;
        let offset_bits = 62 - sector_bits;
        let mask = ((1 << sector_bits) - 1) << offset_bits;
        let count = (sectors.saturating_sub(1) << offset_bits) & mask;
        Self { raw: (self.raw & !mask) | count, ..self }
    }

    /// The host offset field of a standard descriptor, of any alignment.
    #[must_use]
    pub const fn host_field(self) -> u64 {
        self.raw & OFFSET_MASK
    }

    /// Whether all of the guest cluster reads as zeros, whatever the rest of the entry says.
    #[must_use]
    pub const fn is_all_zeros(self, format: &L2Format) -> bool {
        if self.is_compressed() {
            false
        } else if format.extended {
            self.bitmap == 0xffff_ffff_0000_0000
        } else {
            format.zero_flag && self.raw & ZERO != 0
        }
    }

    /// What the entry maps to, and what is wrong with it.
    #[must_use]
    pub const fn decode(self, format: &L2Format) -> (Mapping, Faults) {
        if self.is_compressed() { self.decode_compressed(format) } else { self.decode_standard(format) }
    }

    /// Compressed descriptor: offset in the low bits, 512-byte sectors behind the first one above them.
    const fn decode_compressed(self, format: &L2Format) -> (Mapping, Faults) {
        let mut faults = Faults { first: None, second: None };
        if self.is_copied() {
            faults = faults.with(Problem::CompressedCopied);
        }
        if format.data_file {
            faults = faults.with(Problem::CompressedInDataFile);
            return (Mapping::Damaged(Problem::CompressedInDataFile), faults);
        }
        if self.bitmap != 0 {
            faults = faults.with(Problem::ExtendedBitmapOnCompressed);
        }
        let sector_bits = format.cluster.bits() - 8;
        let offset_bits = 62 - sector_bits;
        let host = self.raw & ((1 << offset_bits) - 1);
        let sectors = (self.raw >> offset_bits) & ((1 << sector_bits) - 1);
        let len = (sectors + 1) * 512 - (host & 511);
        (Mapping::Compressed { host, len }, faults)
    }

    const fn decode_standard(self, format: &L2Format) -> (Mapping, Faults) {
        let mut faults = Faults { first: None, second: None };
        if self.raw & RESERVED != 0 {
            faults = faults.with(Problem::L2EntryReserved);
        }
        let field = self.host_field();
        if !format.cluster.is_aligned(field) {
            return (Mapping::Damaged(Problem::L2EntryUnaligned), faults.with(Problem::L2EntryUnaligned));
        }
        // Offset 0 is the header's place, so it means "no cluster", except in a data file of its own.
        let host = if field != 0 || (format.data_file && self.is_copied()) { Some(field) } else { None };
        if format.extended {
            return self.decode_extended(host, faults);
        }
        if self.raw & ZERO == 0 {
            return (
                match host {
                    Some(host) => Mapping::Data { host },
                    None => Mapping::Hole,
                },
                faults,
            );
        }
        if !format.zero_flag {
            return (Mapping::Damaged(Problem::L2ZeroFlagInV2), faults.with(Problem::L2ZeroFlagInV2));
        }
        (Mapping::Zero { host }, faults)
    }

    const fn decode_extended(self, host: Option<u64>, mut faults: Faults) -> (Mapping, Faults) {
        #[expect(clippy::cast_possible_truncation, reason = "the two halves of the bitmap")]
        let (allocated, zero) = (self.bitmap as u32, (self.bitmap >> 32) as u32);
        if self.raw & ZERO != 0 {
            faults = faults.with(Problem::ExtendedReservedBit);
        }
        if allocated & zero != 0 {
            faults = faults.with(Problem::ExtendedBitmapConflict);
            return (Mapping::Damaged(Problem::ExtendedBitmapConflict), faults);
        }
        if host.is_none() && allocated != 0 {
            faults = faults.with(Problem::ExtendedBitmapWithoutOffset);
            return (Mapping::Damaged(Problem::ExtendedBitmapWithoutOffset), faults);
        }
        let mapping = match host {
            None if zero == 0 => Mapping::Hole,
            Some(host) if allocated == u32::MAX => Mapping::Data { host },
            _ if zero == u32::MAX => Mapping::Zero { host },
            _ => Mapping::Subclusters { host, allocated, zero },
        };
        (mapping, faults)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(bits: u32, extended: bool) -> L2Format {
        L2Format { cluster: ClusterSize::new(bits).unwrap(), extended, zero_flag: true, data_file: false }
    }

    fn plain(raw: u64) -> (Mapping, Faults) {
        L2Entry { raw, bitmap: 0 }.decode(&format(16, false))
    }

    #[test]
    fn standard_entries_decode_by_offset_and_zero_flag() {
        assert_eq!(plain(0).0, Mapping::Hole);
        assert_eq!(plain(1).0, Mapping::Zero { host: None });
        assert_eq!(plain(COPIED | 0x5_0000).0, Mapping::Data { host: 0x5_0000 });
        assert_eq!(plain(COPIED | 0x5_0001).0, Mapping::Zero { host: Some(0x5_0000) });
        assert_eq!(plain(0x5_0200).0, Mapping::Damaged(Problem::L2EntryUnaligned));
        assert_eq!(plain(0x5_0002).1.iter().collect::<alloc::vec::Vec<_>>(), [Problem::L2EntryReserved]);
    }

    #[test]
    fn zero_flag_in_version_2_is_damage() {
        let v2 = L2Format { zero_flag: false, ..format(16, false) };
        let (mapping, faults) = L2Entry { raw: 0x5_0001, bitmap: 0 }.decode(&v2);
        assert_eq!(mapping, Mapping::Damaged(Problem::L2ZeroFlagInV2));
        assert!(!faults.is_empty());
    }

    #[test]
    fn compressed_entry_counts_sectors_from_the_sector_of_its_first_byte() {
        // 64 KiB clusters: 54 bits of offset, 8 bits of further sectors.
        let raw = COMPRESSED | (3 << 54) | 0x1_0064;
        let (mapping, faults) = plain(raw);
        assert_eq!(mapping, Mapping::Compressed { host: 0x1_0064, len: 4 * 512 - 0x64 });
        assert!(faults.is_empty());
        assert_eq!(plain(raw | COPIED).1.iter().next(), Some(Problem::CompressedCopied));
        let shorter = L2Entry { raw, bitmap: 0 }.with_sectors(2, &format(16, false));
        assert_eq!(plain(shorter.raw).0, Mapping::Compressed { host: 0x1_0064, len: 2 * 512 - 0x64 });
    }

    #[test]
    fn extended_entries_decode_by_bitmap() {
        let format = format(16, true);
        let decode = |raw, bitmap| L2Entry { raw, bitmap }.decode(&format).0;
        assert_eq!(decode(0, 0), Mapping::Hole);
        assert_eq!(decode(0x5_0000, 0xffff_ffff), Mapping::Data { host: 0x5_0000 });
        assert_eq!(decode(0x5_0000, 0xffff_ffff << 32), Mapping::Zero { host: Some(0x5_0000) });
        assert_eq!(
            decode(0x5_0000, (1 << 33) | 1),
            Mapping::Subclusters { host: Some(0x5_0000), allocated: 1, zero: 2 }
        );
        assert_eq!(decode(0x5_0000, (1 << 32) | 1), Mapping::Damaged(Problem::ExtendedBitmapConflict));
        assert_eq!(decode(0, 1), Mapping::Damaged(Problem::ExtendedBitmapWithoutOffset));
    }

    #[test]
    fn entry_past_the_end_of_a_cut_table_reads_as_zeros() {
        let table = [0xff_u8; 12];
        assert_eq!(format(16, false).entry(&table, 1).raw, 0);
        assert_eq!(format(16, false).entry(&table, usize::MAX).raw, 0);
    }
}
