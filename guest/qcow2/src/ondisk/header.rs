//! The fixed header fields (specification: "Header").
//!
//! Version 2 ends at byte 72, where its first header extension begins; from version 3 on the header says its
//! own length. [`Header::decode`] fails only where nothing at all could be found with what it read; fields that
//! are wrong by themselves but leave the rest readable come back as faults beside the header, and pointers are
//! handed out only through methods that check them against the file.

use alloc::vec::Vec;

use instar_abi::finding::NONE;
use instar_abi::problem::Problem;

use super::bytes::{be_u8, be_u32, be_u64};
use super::fault::Fault;
use super::l1::L1_TABLE_BYTES_MAX;
use super::refcount::{REFCOUNT_ORDER_MAX, REFCOUNT_TABLE_BYTES_MAX, RefcountWidth};
use crate::inflate::Compression;

use super::units::{CLUSTER_BITS_MAX, CLUSTER_BITS_MIN, ClusterSize, FileBounds, Position};

/// "QFI\xfb".
pub const MAGIC: u32 = 0x5146_49fb;
/// Bytes of a version 2 header.
pub const V2_BYTES: u32 = 72;
/// log2 of the width of a version 2 reference count in bits.
const V2_REFCOUNT_ORDER: u32 = 4;
/// Least bytes of a version 3 header.
pub const V3_BYTES_MIN: u32 = 104;
/// Bytes from the start of the file that hold every fixed field known here.
pub const FIXED_BYTES: usize = 112;
/// Longest backing file name in bytes.
pub const BACKING_NAME_BYTES_MAX: u32 = 1023;
/// Most internal snapshots; QEMU's limit.
pub const SNAPSHOTS_MAX: u32 = 65_536;

/// Incompatible feature bits.
pub mod incompatible {
    /// Refcounts may be out of date.
    pub const DIRTY: u64 = 1 << 0;
    /// A program found metadata damaged.
    pub const CORRUPT: u64 = 1 << 1;
    /// Guest data is in an external data file.
    pub const DATA_FILE: u64 = 1 << 2;
    /// The compression type field is in force.
    pub const COMPRESSION: u64 = 1 << 3;
    /// L2 entries are 16 bytes long.
    pub const EXTENDED_L2: u64 = 1 << 4;
    /// All bits known here.
    pub const KNOWN: u64 = 0x1f;
}

/// Compatible feature bits.
pub mod compatible {
    /// Refcount updates may be put off.
    pub const LAZY_REFCOUNTS: u64 = 1 << 0;
    /// All bits known here.
    pub const KNOWN: u64 = LAZY_REFCOUNTS;
}

/// Autoclear feature bits.
pub mod autoclear {
    /// The bitmaps extension is consistent.
    pub const BITMAPS: u64 = 1 << 0;
    /// The external data file is a raw image of the disk.
    pub const DATA_FILE_RAW: u64 = 1 << 1;
    /// All bits known here.
    pub const KNOWN: u64 = BITMAPS | DATA_FILE_RAW;
}

/// How guest data is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crypt {
    /// Not at all.
    None,
    /// The old AES-CBC scheme.
    Aes,
    /// LUKS; its header lies where the crypto header extension says.
    Luks,
}

/// Where a table lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableRange {
    /// First byte in the file: aligned to a cluster and within the file.
    pub offset: u64,
    /// Bytes of the table; its end may lie past the end of the file.
    pub len: u64,
}

/// The decoded header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Byte offset of the backing file name, 0 if there is none.
    pub backing_offset: u64,
    /// Bytes of the backing file name.
    pub backing_len: u32,
    /// Clusters of this image.
    pub cluster: ClusterSize,
    /// Size of the active disk in bytes.
    pub virtual_size: u64,
    /// Encryption of guest data.
    pub crypt: Crypt,
    /// Entries of the active L1 table.
    pub l1_entries: u32,
    /// Byte offset of the active L1 table; see [`Self::l1_table`].
    pub l1_offset: u64,
    /// Byte offset of the refcount table; see [`Self::refcount_table`].
    pub refcount_table_offset: u64,
    /// Clusters of the refcount table.
    pub refcount_table_clusters: u32,
    /// Internal snapshots.
    pub snapshots: u32,
    /// Byte offset of the snapshot table; see [`Self::snapshot_table_offset`].
    pub snapshots_offset: u64,
    /// [`incompatible`] bits; 0 in version 2.
    pub incompatible: u64,
    /// [`compatible`] bits; 0 in version 2.
    pub compatible: u64,
    /// [`autoclear`] bits; 0 in version 2.
    pub autoclear: u64,
    /// log2 of the width of reference counts in bits, as stored; 4 in version 2.
    pub refcount_order: u32,
    /// Width of reference counts, for who has got a refcount table from [`Self::refcount_table`]: where the order
    /// is impossible there is none.
    pub refcount_width: RefcountWidth,
    /// Bytes of the header: where its extensions begin. `None` where the field cannot be meant, so that whether
    /// there are extensions is not known.
    pub header_bytes: Option<u32>,
    /// Packing of compressed clusters, `None` where type field and feature bit do not agree or are not known.
    pub compression: Option<Compression>,
}

/// The field at `at`; the callers have made sure that the bytes are there.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    be_u32(bytes, at).unwrap_or(0)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    be_u64(bytes, at).unwrap_or(0)
}

impl Header {
    /// Decodes the header from the first bytes of the file ([`FIXED_BYTES`] of them, or all where the file is
    /// shorter). Faults that leave the rest of the image readable come back beside it.
    ///
    /// # Errors
    /// The one fault that keeps the image from being looked at. [`Problem::NotQcow2`] says that it is none;
    /// [`Problem::HeaderVersion`], [`Problem::HeaderIncompatibleFeature`] and [`Problem::HeaderCryptMethod`]
    /// that it is of a kind that is not understood; every other one is damage.
    pub fn decode(bytes: &[u8]) -> Result<(Self, Vec<Fault>), Fault> {
        let (version, cluster) = decode_identity(bytes)?;
        let v3 = version >= 3;
        let stored_bytes = if v3 { u32_at(bytes, 100) } else { V2_BYTES };
        let is_possible = |bytes| !v3 || bytes >= V3_BYTES_MIN && u64::from(bytes) <= cluster.bytes();
        let header_bytes = Some(stored_bytes).filter(|bytes| is_possible(*bytes));
        let refcount_order = if v3 { u32_at(bytes, 96) } else { V2_REFCOUNT_ORDER };
        let v3_u64 = |at| if v3 { u64_at(bytes, at) } else { 0 };
        let incompatible = v3_u64(72);
        check_incompatible(incompatible, cluster)?;
        let mut faults = Vec::new();
        if header_bytes.is_none_or(|bytes| bytes % 8 != 0) {
            let stored = u64::from(stored_bytes);
            faults.push(Fault::header(Problem::HeaderLength, 100, 4, stored, u64::from(V3_BYTES_MIN)));
        }
        let header = Self {
            version,
            backing_offset: u64_at(bytes, 8),
            backing_len: u32_at(bytes, 16),
            cluster,
            virtual_size: u64_at(bytes, 24),
            crypt: decode_crypt(bytes)?,
            l1_entries: u32_at(bytes, 36),
            l1_offset: u64_at(bytes, 40),
            refcount_table_offset: u64_at(bytes, 48),
            refcount_table_clusters: u32_at(bytes, 56),
            snapshots: u32_at(bytes, 60),
            snapshots_offset: u64_at(bytes, 64),
            incompatible,
            compatible: v3_u64(80),
            autoclear: v3_u64(88),
            refcount_order,
            refcount_width: RefcountWidth::new(refcount_order).unwrap_or(RefcountWidth::V2),
            header_bytes,
            compression: decode_compression(bytes, header_bytes, incompatible, &mut faults),
        };
        header.check_names_and_sizes(&mut faults);
        Ok((header, faults))
    }

    /// What a header that [`Self::decode`] refuses for one of its fields says otherwise: such fields are taken for
    /// the widest that the format has, or for not set. Good for finding names, and for nothing that is measured in
    /// clusters where the cluster size is among them. `None` where it says nothing.
    #[must_use]
    pub fn salvage(bytes: &[u8]) -> Option<Self> {
        let mut bytes = bytes.get(..FIXED_BYTES.min(bytes.len()))?.to_vec();
        // Each turn takes one field out of the way.
        for _ in 0..=4 {
            let problem = match Self::decode(&bytes) {
                Ok((header, _)) => return Some(header),
                Err(fault) => fault.problem,
            };
            let known = match problem {
                Problem::HeaderIncompatibleFeature => incompatible::KNOWN,
                Problem::HeaderExtendedL2 => incompatible::KNOWN & !incompatible::EXTENDED_L2,
                _ => u64::MAX,
            };
            let features = (u64_at(&bytes, 72) & known).to_be_bytes();
            match problem {
                Problem::HeaderClusterBits => {
                    bytes.get_mut(20..24)?.copy_from_slice(&CLUSTER_BITS_MAX.to_be_bytes())
                }
                Problem::HeaderCryptMethod => bytes.get_mut(32..36)?.fill(0),
                Problem::HeaderIncompatibleFeature | Problem::HeaderExtendedL2 => {
                    bytes.get_mut(72..80)?.copy_from_slice(&features);
                }
                _ => return None,
            }
        }
        None
    }

    fn check_names_and_sizes(&self, faults: &mut Vec<Fault>) {
        let end = self.backing_offset.saturating_add(u64::from(self.backing_len));
        let named = self.backing_offset != 0;
        if named
            && (self.backing_len > BACKING_NAME_BYTES_MAX
                || self.backing_offset < u64::from(self.header_bytes.unwrap_or(V3_BYTES_MIN))
                || end > self.cluster.bytes())
        {
            let mut fault =
                Fault::header(Problem::HeaderBackingName, 8, 8, u64::from(self.backing_len), NONE);
            fault.host_offset = self.backing_offset;
            faults.push(fault);
        }
        let (stored, needed, most) =
            (u64::from(self.l1_entries), self.l1_entries_needed(), L1_TABLE_BYTES_MAX / 8);
        if stored < needed || stored > most {
            let expected = if stored < needed { needed } else { most };
            faults.push(Fault::header(Problem::HeaderL1Size, 36, 4, stored, expected));
        }
        if self.has_data_file() && self.is_data_file_raw() && named {
            let stored = self.backing_offset;
            faults.push(Fault::header(Problem::DataFileRawBacking, 8, 8, stored, 0));
        }
        if self.is_data_file_raw() && !self.has_data_file() {
            let (stored, expected) = (self.autoclear, self.autoclear & !autoclear::DATA_FILE_RAW);
            faults.push(Fault::header(Problem::AutoclearDataFileRaw, 88, 8, stored, expected));
        }
    }

    /// Width of a reference count in bits, 0 where it is not known.
    #[must_use]
    pub fn refcount_bits(&self) -> u32 {
        RefcountWidth::new(self.refcount_order).map_or(0, RefcountWidth::bits)
    }

    /// Whether guest data is in an external data file.
    #[must_use]
    pub const fn has_data_file(&self) -> bool {
        self.incompatible & incompatible::DATA_FILE != 0
    }

    /// Whether the external data file is said to be a raw image of the disk.
    #[must_use]
    pub const fn is_data_file_raw(&self) -> bool {
        self.autoclear & autoclear::DATA_FILE_RAW != 0
    }

    /// Whether L2 entries are 16 bytes long.
    #[must_use]
    pub const fn has_extended_l2(&self) -> bool {
        self.incompatible & incompatible::EXTENDED_L2 != 0
    }

    /// Whether refcounts may be out of date.
    #[must_use]
    pub const fn is_dirty(&self) -> bool {
        self.incompatible & incompatible::DIRTY != 0
    }

    /// Whether a program marked the image as damaged.
    #[must_use]
    pub const fn is_corrupt(&self) -> bool {
        self.incompatible & incompatible::CORRUPT != 0
    }

    /// log2 of the guest bytes that one L1 entry maps.
    #[must_use]
    pub const fn l1_entry_reach_bits(&self) -> u32 {
        self.cluster.bits() * 2 - if self.has_extended_l2() { 4 } else { 3 }
    }

    /// Entries that the active L1 table needs to map the whole disk.
    #[must_use]
    pub const fn l1_entries_needed(&self) -> u64 {
        self.virtual_size.div_ceil(1 << self.l1_entry_reach_bits())
    }

    /// The fault of a header that contradicts itself in what one L1 entry maps: the table is too short for the disk,
    /// and exactly as long as it would be for another cluster size, one bit or one step away, or without the bit of
    /// extended entries. Whatever is read by such a header may be some other place's bytes.
    #[must_use]
    pub fn geometry_fault(&self) -> Option<Fault> {
        let (stored, needed) = (u64::from(self.l1_entries), self.l1_entries_needed());
        if stored == 0 || stored >= needed {
            return None;
        }
        let bits = self.cluster.bits();
        let sizes = (0..5).map(|bit| bits ^ (1 << bit)).chain([bits + 1]).filter_map(ClusterSize::new);
        let by_clusters = sizes.map(|cluster| Self { cluster, ..self.clone() });
        let by_entries = Self { incompatible: self.incompatible ^ incompatible::EXTENDED_L2, ..self.clone() };
        let fits = by_clusters.chain([by_entries]).any(|other| other.l1_entries_needed() == stored);
        fits.then(|| Fault::header(Problem::HeaderL1Size, 36, 4, stored, needed))
    }

    /// The image file's bounds, given its length in bytes.
    #[must_use]
    pub const fn bounds(&self, file_len: u64) -> FileBounds {
        FileBounds { len: file_len, cluster: self.cluster }
    }

    /// Where the active L1 table is. A table over QEMU's limit is taken to be as long as the disk needs.
    ///
    /// # Errors
    /// [`Problem::HeaderL1Offset`] where it does not start at a cluster of the file other than the first.
    pub fn l1_table(&self, bounds: &FileBounds) -> Result<TableRange, Fault> {
        let stored = u64::from(self.l1_entries) * 8;
        let needed = self.l1_entries_needed().saturating_mul(8).min(L1_TABLE_BYTES_MAX);
        let len = if stored > L1_TABLE_BYTES_MAX { needed } else { stored };
        table(bounds, self.l1_offset, len, Problem::HeaderL1Offset, 40)
    }

    /// Where the refcount table is.
    ///
    /// # Errors
    /// [`Problem::HeaderRefcountOrder`], [`Problem::HeaderRefcountTableOffset`] or
    /// [`Problem::HeaderRefcountTableSize`].
    pub fn refcount_table(&self, bounds: &FileBounds) -> Result<TableRange, Fault> {
        if RefcountWidth::new(self.refcount_order).is_none() {
            let (stored, most) = (u64::from(self.refcount_order), u64::from(REFCOUNT_ORDER_MAX));
            return Err(Fault::header(Problem::HeaderRefcountOrder, 96, 4, stored, most));
        }
        let clusters = u64::from(self.refcount_table_clusters);
        let most = (REFCOUNT_TABLE_BYTES_MAX / self.cluster.bytes()).max(1);
        if clusters == 0 || clusters > most {
            return Err(Fault::header(Problem::HeaderRefcountTableSize, 56, 4, clusters, most));
        }
        let len = clusters * self.cluster.bytes();
        table(bounds, self.refcount_table_offset, len, Problem::HeaderRefcountTableOffset, 48)
    }

    /// Where the snapshot table begins, `None` if there are no snapshots.
    ///
    /// # Errors
    /// [`Problem::HeaderSnapshotsOffset`] where it does not start at a cluster of the file; without snapshots, where
    /// it is no cluster's offset at all.
    pub fn snapshot_table_offset(&self, bounds: &FileBounds) -> Result<Option<u64>, Fault> {
        if self.snapshots == 0 {
            // Programs look at the field's form even where it points to nothing.
            let is_plain =
                bounds.cluster.is_aligned(self.snapshots_offset) && self.snapshots_offset >> 63 == 0;
            let fault =
                Fault::header(Problem::HeaderSnapshotsOffset, 64, 8, self.snapshots_offset, bounds.len);
            return if is_plain { Ok(None) } else { Err(fault) };
        }
        table(bounds, self.snapshots_offset, 8, Problem::HeaderSnapshotsOffset, 64)
            .map(|range| Some(range.offset))
    }
}

fn table(bounds: &FileBounds, offset: u64, len: u64, problem: Problem, at: u64) -> Result<TableRange, Fault> {
    if len == 0 || (offset != 0 && bounds.position(offset) == Position::Inside) {
        Ok(TableRange { offset, len })
    } else {
        Err(Fault::header(problem, at, 8, offset, bounds.len))
    }
}

/// What can be told of a header that [`Header::decode`] refuses: fields that are there and mean something by
/// themselves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PlainFacts {
    /// 2 or 3.
    pub version: Option<u32>,
    /// log2 of the cluster size.
    pub cluster_bits: Option<u32>,
    /// Size of the active disk in bytes.
    pub virtual_size: Option<u64>,
}

impl PlainFacts {
    /// Reads them from the first bytes of the file, however few.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        if be_u32(bytes, 0) != Some(MAGIC) {
            return Self::default();
        }
        let Some(version @ (2 | 3)) = be_u32(bytes, 4) else { return Self::default() };
        Self {
            version: Some(version),
            cluster_bits: be_u32(bytes, 20).filter(|bits| ClusterSize::new(*bits).is_some()),
            virtual_size: be_u64(bytes, 24),
        }
    }
}

/// Magic, version and cluster size: what every other field depends on.
fn decode_identity(bytes: &[u8]) -> Result<(u32, ClusterSize), Fault> {
    let magic = be_u32(bytes, 0);
    if magic != Some(MAGIC) {
        let stored = magic.map_or(NONE, u64::from);
        return Err(Fault::header(Problem::NotQcow2, 0, 4, stored, u64::from(MAGIC)));
    }
    let truncated = |needed: u32| {
        Fault::header(Problem::HeaderTruncated, 0, u64::from(needed), bytes.len() as u64, u64::from(needed))
    };
    let version = be_u32(bytes, 4).ok_or_else(|| truncated(V2_BYTES))?;
    if version != 2 && version != 3 {
        return Err(Fault::header(Problem::HeaderVersion, 4, 4, u64::from(version), 3));
    }
    let needed = if version >= 3 { V3_BYTES_MIN } else { V2_BYTES };
    if (bytes.len() as u64) < u64::from(needed) {
        return Err(truncated(needed));
    }
    let bits = u32_at(bytes, 20);
    let cluster = ClusterSize::new(bits).ok_or_else(|| {
        Fault::header(Problem::HeaderClusterBits, 20, 4, u64::from(bits), u64::from(CLUSTER_BITS_MIN))
    })?;
    Ok((version, cluster))
}

fn check_incompatible(bits: u64, cluster: ClusterSize) -> Result<(), Fault> {
    let unknown = bits & !incompatible::KNOWN;
    if unknown != 0 {
        let fault = Fault::header(Problem::HeaderIncompatibleFeature, 72, 8, bits, incompatible::KNOWN);
        return Err(fault.at_index(u64::from(unknown.trailing_zeros())));
    }
    let least = 512 * u64::from(super::l2::SUBCLUSTERS);
    if bits & incompatible::EXTENDED_L2 != 0 && cluster.bytes() < least {
        return Err(Fault::header(Problem::HeaderExtendedL2, 72, 8, cluster.bytes(), least));
    }
    Ok(())
}

fn decode_crypt(bytes: &[u8]) -> Result<Crypt, Fault> {
    match u32_at(bytes, 32) {
        0 => Ok(Crypt::None),
        1 => Ok(Crypt::Aes),
        2 => Ok(Crypt::Luks),
        other => Err(Fault::header(Problem::HeaderCryptMethod, 32, 4, u64::from(other), 2)),
    }
}

/// The compression type is in byte 104 of headers that are long enough, deflate otherwise; the feature bit
/// stands if and only if it is not deflate. Where the length is not known, the bit says whether the byte is one.
fn decode_compression(
    bytes: &[u8],
    header_bytes: Option<u32>,
    incompatible: u64,
    faults: &mut Vec<Fault>,
) -> Option<Compression> {
    let has_bit = incompatible & incompatible::COMPRESSION != 0;
    let has_type = header_bytes.map_or(has_bit, |bytes| bytes > V3_BYTES_MIN);
    let stored = if has_type { be_u8(bytes, 104).unwrap_or(0) } else { 0 };
    match (stored, has_bit) {
        (0, false) => Some(Compression::Deflate),
        (1, true) => Some(Compression::Zstd),
        _ => {
            faults.push(Fault::header(Problem::HeaderCompressionType, 104, 1, u64::from(stored), NONE));
            None
        }
    }
}

#[cfg(test)]
#[path = "header_tests.rs"]
mod tests;
