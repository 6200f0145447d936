//! Builds healthy images in memory, byte by byte, from a description: thousands in a second, and in shapes that
//! `qemu-img` makes only after years of use.
//!
//! A [`Shape`] is what the image has, and the steps that a guest and its operator took. [`model`] follows the
//! steps, [`layout`] gives every cluster a place (in any order, with gaps), [`write`] encodes.
//!
//! Invariant: what comes out is healthy by the specification, for any shape: a step that the image cannot take
//! (a count that does not fit its width, a snapshot of a disk with an external data file) is left out.

mod layout;
mod model;
mod write;

/// What an image is made from.
#[derive(Debug, Clone)]
pub struct Shape {
    /// 2 or 3.
    pub version: u32,
    /// log2 of the cluster size.
    pub cluster_bits: u32,
    /// log2 of the bits of a reference count; version 3.
    pub refcount_order: u32,
    /// Entries with subclusters; version 3, clusters of 16 KiB and more.
    pub extended_l2: bool,
    /// Compressed clusters are said to be Zstandard; version 3.
    pub zstd: bool,
    /// The lazy refcounts bit; version 3.
    pub lazy: bool,
    /// The dirty bit, though all counts are right; version 3.
    pub dirty: bool,
    /// L2 tables that the disk needs, at least 1.
    pub tables: u64,
    /// 512-byte sectors by which the disk ends before its last table does.
    pub short_sectors: u64,
    /// Entries of L1 tables beyond need.
    pub spare_l1: u64,
    /// Extra bytes of the fixed header, a multiple of 8; version 3.
    pub header_more: u32,
    /// Backing file name and format.
    pub backing: bool,
    /// External data file: none, plain, raw; version 3.
    pub data_file: Option<bool>,
    /// LUKS header of this many bytes; version 3.
    pub luks_bytes: u64,
    /// A feature name table and an extension that nobody knows.
    pub strange_extensions: bool,
    /// Granularity bits and table entries (0 none, 1 all ones, 2 data) of each bitmap; version 3.
    pub bitmaps: Vec<(u32, Vec<u8>)>,
    /// What happened to the disk.
    pub steps: Vec<Step>,
    /// Order of clusters in the file, gaps between them.
    pub seed: u64,
    /// Of 256 clusters, how many are followed by a gap.
    pub gaps: u8,
    /// Largest gap in clusters.
    pub gap_max: u64,
}

/// What happened to the disk. Guest clusters are taken modulo the disk's size.
#[derive(Debug, Clone)]
pub enum Step {
    /// Whole clusters were written.
    Write { at: u64, count: u64 },
    /// Zeros were written, with or without keeping the clusters.
    Zero { at: u64, count: u64, keep: bool },
    /// Subclusters were written or zeroed.
    Subclusters { at: u64, allocated: u32, zero: u32 },
    /// A compressed cluster of this many bytes was written.
    Compress { at: u64, bytes: u64 },
    /// Clusters were given back.
    Discard { at: u64, count: u64 },
    /// VM state was written behind the disk's end, kept by a snapshot, and given back.
    VmState { clusters: u64 },
    /// An internal snapshot was taken.
    Snapshot,
    /// The disk went back to a snapshot.
    Apply { which: usize },
    /// A snapshot was deleted.
    Delete { which: usize },
    /// The disk's size became another one.
    Resize { tables: u64, short_sectors: u64 },
}

/// An image.
#[derive(Debug, Clone)]
pub struct Built {
    /// The file.
    pub bytes: Vec<u8>,
    /// Bytes of the external data file. Nothing of an image says what is in it.
    pub data_file_bytes: Option<u64>,
    /// Bytes of the disk.
    pub virtual_bytes: u64,
    /// Clusters of the active disk that hold data, and how many of those are compressed.
    pub allocated: (u64, u64),
    /// One past the last cluster in use, in bytes.
    pub end_bytes: u64,
    /// Internal snapshots.
    pub snapshots: usize,
}

impl Shape {
    fn is_v3(&self) -> bool {
        self.version >= 3
    }

    fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    fn entry_bytes(&self) -> u64 {
        if self.is_extended() { 16 } else { 8 }
    }

    fn is_extended(&self) -> bool {
        self.is_v3() && self.extended_l2 && self.cluster_bits >= 14
    }

    fn has_data_file(&self) -> bool {
        self.is_v3() && self.data_file.is_some()
    }

    fn table_entries(&self) -> u64 {
        self.cluster_bytes() / self.entry_bytes()
    }

    fn refcount_bits(&self) -> u64 {
        if self.is_v3() { 1 << self.refcount_order } else { 16 }
    }

    fn count_max(&self) -> u64 {
        u64::MAX >> (64 - self.refcount_bits())
    }

    /// Bytes of a disk of this many tables.
    fn disk_bytes(&self, tables: u64, short_sectors: u64) -> u64 {
        let reach = self.table_entries() << self.cluster_bits;
        tables.max(1) * reach - (short_sectors * 512) % reach
    }

    /// Makes the image.
    pub fn build(&self) -> Built {
        let model = model::Model::follow(self);
        let layout = layout::Layout::of(self, &model);
        write::encode(self, &model, &layout)
    }
}

/// A small generator of numbers, so that a shape says everything about its image.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// Numbers that follow from a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    /// The next number, less than `bound`; 0 where that is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }
}

fn to_usize(value: u64) -> usize {
    usize::try_from(value).expect("64-bit tests")
}
