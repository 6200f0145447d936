//! A raw editor for QCOW2 images: reads and writes single fields, and asks no questions.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// Bits of an L1 or L2 entry that hold an offset.
pub const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// The COPIED bit.
pub const COPIED: u64 = 1 << 63;
/// The compressed bit of an L2 entry.
pub const COMPRESSED: u64 = 1 << 62;

/// A field of the header: (offset, bytes).
pub type Field = (u64, u64);

/// Header fields by name.
pub mod field {
    use super::Field;

    pub const MAGIC: Field = (0, 4);
    pub const VERSION: Field = (4, 4);
    pub const BACKING_OFFSET: Field = (8, 8);
    pub const BACKING_SIZE: Field = (16, 4);
    pub const CLUSTER_BITS: Field = (20, 4);
    pub const SIZE: Field = (24, 8);
    pub const CRYPT_METHOD: Field = (32, 4);
    pub const L1_SIZE: Field = (36, 4);
    pub const L1_OFFSET: Field = (40, 8);
    pub const REFCOUNT_TABLE_OFFSET: Field = (48, 8);
    pub const REFCOUNT_TABLE_CLUSTERS: Field = (56, 4);
    pub const SNAPSHOTS: Field = (60, 4);
    pub const SNAPSHOTS_OFFSET: Field = (64, 8);
    pub const INCOMPATIBLE: Field = (72, 8);
    pub const AUTOCLEAR: Field = (88, 8);
    pub const REFCOUNT_ORDER: Field = (96, 4);
    pub const HEADER_LENGTH: Field = (100, 4);
    pub const COMPRESSION_TYPE: Field = (104, 1);
}

/// Types of header extensions.
pub mod extension {
    pub const BACKING_FORMAT: u32 = 0xe279_2aca;
    pub const FEATURE_NAMES: u32 = 0x6803_f857;
    pub const BITMAPS: u32 = 0x2385_2875;
    pub const CRYPTO: u32 = 0x0537_be77;
    pub const DATA_FILE: u32 = 0x4441_5441;
}

/// An image open for damage.
#[derive(Debug)]
pub struct Raw {
    file: File,
    /// Bytes of a cluster, as the header said when the image was opened.
    pub cluster_bytes: u64,
    /// Bytes of an L2 entry.
    pub l2_entry_bytes: u64,
    /// Bits of a refcount.
    pub refcount_bits: u64,
}

impl Raw {
    /// Opens an image whose header is still sound.
    pub fn open(path: &Path) -> Self {
        let file = File::options().read(true).write(true).open(path).expect("the image is there");
        let mut raw = Self { file, cluster_bytes: 0, l2_entry_bytes: 8, refcount_bits: 16 };
        raw.cluster_bytes = 1 << raw.get(field::CLUSTER_BITS);
        if raw.get(field::VERSION) >= 3 {
            raw.refcount_bits = 1 << raw.get(field::REFCOUNT_ORDER);
            if raw.get(field::INCOMPATIBLE) & 1 << 4 != 0 {
                raw.l2_entry_bytes = 16;
            }
        }
        raw
    }

    /// Bytes of the file.
    pub fn len(&self) -> u64 {
        self.file.metadata().expect("an open file has metadata").len()
    }

    /// Cuts or grows the file.
    pub fn set_len(&self, len: u64) {
        self.file.set_len(len).expect("the length can be set");
    }

    /// Writes bytes.
    pub fn write(&self, offset: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, offset).expect("the image can be written");
    }

    /// Reads bytes; those past the end are zero.
    pub fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let mut at = 0;
        while at < len {
            match self.file.read_at(&mut bytes[at..], offset + at as u64).expect("the image can be read") {
                0 => break,
                got => at += got,
            }
        }
        bytes
    }

    /// A big-endian number of up to 8 bytes.
    pub fn number(&self, offset: u64, bytes: u64) -> u64 {
        let read = self.read(offset, usize::try_from(bytes).expect("small"));
        read.iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
    }

    /// Writes a big-endian number of up to 8 bytes.
    pub fn set_number(&self, offset: u64, bytes: u64, number: u64) {
        let skip = usize::try_from(8 - bytes).expect("small");
        self.write(offset, &number.to_be_bytes()[skip..]);
    }

    /// A header field.
    pub fn get(&self, (offset, bytes): Field) -> u64 {
        self.number(offset, bytes)
    }

    /// Sets a header field.
    pub fn set(&self, (offset, bytes): Field, number: u64) {
        self.set_number(offset, bytes, number);
    }

    /// Offset and data length of a header extension.
    pub fn extension(&self, wanted: u32) -> Option<(u64, u64)> {
        let mut at = if self.get(field::VERSION) >= 3 { self.get(field::HEADER_LENGTH) } else { 72 };
        while at + 8 <= self.cluster_bytes {
            let (kind, len) = (self.number(at, 4), self.number(at + 4, 4));
            if kind == u64::from(wanted) {
                return Some((at, len));
            }
            if kind == 0 {
                return None;
            }
            at += 8 + len.next_multiple_of(8);
        }
        None
    }

    /// Where the L1 entry with this index stands.
    pub fn l1_entry(&self, index: u64) -> u64 {
        self.get(field::L1_OFFSET) + 8 * index
    }

    /// Where the L2 entry of a guest cluster stands.
    pub fn l2_entry(&self, guest_cluster: u64) -> u64 {
        self.l2_entry_below(self.get(field::L1_OFFSET), guest_cluster)
    }

    /// Where the L2 entry of a guest cluster below the L1 table at `l1_offset` stands.
    pub fn l2_entry_below(&self, l1_offset: u64, guest_cluster: u64) -> u64 {
        let entries = self.cluster_bytes / self.l2_entry_bytes;
        let table = self.number(l1_offset + 8 * (guest_cluster / entries), 8) & OFFSET;
        assert_ne!(table, 0, "guest cluster {guest_cluster} has no L2 table");
        table + guest_cluster % entries * self.l2_entry_bytes
    }

    /// The host offset of a guest cluster that is neither compressed nor unallocated.
    pub fn host_offset(&self, guest_cluster: u64) -> u64 {
        self.number(self.l2_entry(guest_cluster), 8) & OFFSET
    }

    /// Changes the 8 bytes at `offset`.
    pub fn change(&self, offset: u64, change: impl FnOnce(u64) -> u64) {
        self.set_number(offset, 8, change(self.number(offset, 8)));
    }

    /// The refcount table entry with this index.
    pub fn refcount_table_entry(&self, index: u64) -> u64 {
        self.get(field::REFCOUNT_TABLE_OFFSET) + 8 * index
    }

    /// Where a host cluster's refcount stands: the offset of its first byte, and its first bit in there.
    fn refcount_place(&self, cluster: u64) -> (u64, u64) {
        let per_block = self.cluster_bytes * 8 / self.refcount_bits;
        let block = self.number(self.refcount_table_entry(cluster / per_block), 8) & OFFSET;
        assert_ne!(block, 0, "cluster {cluster} has no refcount block");
        let bit = cluster % per_block * self.refcount_bits;
        (block + bit / 8, bit % 8)
    }

    /// A host cluster's refcount.
    pub fn refcount(&self, cluster: u64) -> u64 {
        let (offset, bit) = self.refcount_place(cluster);
        if self.refcount_bits >= 8 {
            return self.number(offset, self.refcount_bits / 8);
        }
        self.number(offset, 1) >> bit & ((1 << self.refcount_bits) - 1)
    }

    /// Sets a host cluster's refcount.
    pub fn set_refcount(&self, cluster: u64, count: u64) {
        let (offset, bit) = self.refcount_place(cluster);
        if self.refcount_bits >= 8 {
            return self.set_number(offset, self.refcount_bits / 8, count);
        }
        let mask = ((1 << self.refcount_bits) - 1) << bit;
        let byte = self.number(offset, 1) & !mask | count << bit & mask;
        self.set_number(offset, 1, byte);
    }

    /// Adds clusters at the end of the file that nothing refers to, with this refcount; returns the first one's
    /// number.
    pub fn append_clusters(&self, count: u64, refcount: u64) -> u64 {
        let first = self.len().div_ceil(self.cluster_bytes);
        self.set_len((first + count) * self.cluster_bytes);
        for cluster in first..first + count {
            self.set_refcount(cluster, refcount);
        }
        first
    }

    /// Where the snapshot table entry with this index begins.
    pub fn snapshot_entry(&self, index: u64) -> u64 {
        let mut at = self.get(field::SNAPSHOTS_OFFSET);
        for _ in 0..index {
            let strings = self.number(at + 12, 2) + self.number(at + 14, 2);
            at = (at + 40 + self.number(at + 36, 4) + strings).next_multiple_of(8);
        }
        at
    }

    /// Where the bitmaps extension's data begins.
    pub fn bitmaps_extension(&self) -> u64 {
        self.extension(extension::BITMAPS).expect("the image has bitmaps").0 + 8
    }

    /// Where the bitmap directory entry with this index begins.
    pub fn bitmap_entry(&self, index: u64) -> u64 {
        let mut at = self.number(self.bitmaps_extension() + 16, 8);
        for _ in 0..index {
            at = (at + 24 + self.number(at + 18, 2) + self.number(at + 20, 4)).next_multiple_of(8);
        }
        at
    }
}
