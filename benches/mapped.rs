//! Images for the bench: every cluster of the disk mapped, and no data.
//!
//! Only metadata is written, straight into a sparse file, so that a terabyte takes seconds and a few hundred
//! megabytes. The file is laid out as QEMU lays out a preallocated image: header, refcount table and blocks in
//! front, then the L1 table, then the L2 tables, then the data.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// The COPIED bit.
const COPIED: u64 = 1 << 63;
/// Bytes of a version 3 header.
const HEADER_LEN: usize = 104;
/// Words that are written at once.
const PIECE_WORDS: u64 = 1 << 17;

/// What is built.
#[derive(Debug, Clone, Copy)]
pub struct Mapped {
    /// log2 of the cluster size.
    pub cluster_bits: u32,
    /// Bytes of the disk: a multiple of what an L2 table maps.
    pub disk_bytes: u64,
    /// Host clusters are dealt out in no order.
    pub is_shuffled: bool,
}

/// Where everything is, in clusters.
#[derive(Debug)]
struct Layout {
    cluster_bytes: u64,
    table_clusters: u64,
    blocks: u64,
    l1_clusters: u64,
    tables: u64,
    data: u64,
}

impl Layout {
    fn of(image: &Mapped) -> Self {
        let cluster_bytes = 1 << image.cluster_bits;
        let data = image.disk_bytes / cluster_bytes;
        let tables = data.div_ceil(cluster_bytes / 8);
        let l1_clusters = (tables * 8).div_ceil(cluster_bytes);
        let (mut blocks, mut table_clusters) = (1, 1);
        loop {
            let clusters = 1 + table_clusters + blocks + l1_clusters + tables + data;
            let needed = clusters.div_ceil(cluster_bytes / 2);
            if needed <= blocks {
                return Self { cluster_bytes, table_clusters, blocks, l1_clusters, tables, data };
            }
            blocks = needed;
            table_clusters = (blocks * 8).div_ceil(cluster_bytes);
        }
    }

    fn first_block(&self) -> u64 {
        1 + self.table_clusters
    }

    fn l1(&self) -> u64 {
        self.first_block() + self.blocks
    }

    fn first_table(&self) -> u64 {
        self.l1() + self.l1_clusters
    }

    fn first_data(&self) -> u64 {
        self.first_table() + self.tables
    }

    fn clusters(&self) -> u64 {
        self.first_data() + self.data
    }
}

impl Mapped {
    /// Writes the image to a new file.
    pub fn build(&self, path: &Path) -> io::Result<()> {
        let layout = Layout::of(self);
        let bytes = layout.cluster_bytes;
        let file = File::create_new(path)?;
        file.set_len(layout.clusters() * bytes)?;
        file.write_all_at(&self.header(&layout)?, 0)?;
        words(&file, bytes, layout.blocks, |index| (layout.first_block() + index) * bytes)?;
        words(&file, layout.l1() * bytes, layout.tables, |index| {
            ((layout.first_table() + index) * bytes) | COPIED
        })?;
        let order = Shuffle::of(layout.data);
        words(&file, layout.first_table() * bytes, layout.data, |index| {
            let cluster = if self.is_shuffled { order.place(index) } else { index };
            ((layout.first_data() + cluster) * bytes) | COPIED
        })?;
        counts(&file, &layout)?;
        file.sync_all()
    }

    fn header(&self, layout: &Layout) -> io::Result<[u8; HEADER_LEN]> {
        let narrow = |number: u64| u32::try_from(number).map(u32::to_be_bytes).map_err(io::Error::other);
        let bytes = layout.cluster_bytes;
        let mut header = [0; HEADER_LEN];
        let mut put = |at: usize, field: &[u8]| header[at..at + field.len()].copy_from_slice(field);
        put(0, b"QFI\xfb");
        put(4, &3_u32.to_be_bytes());
        put(20, &self.cluster_bits.to_be_bytes());
        put(24, &self.disk_bytes.to_be_bytes());
        put(36, &narrow(layout.tables)?);
        put(40, &(layout.l1() * bytes).to_be_bytes());
        put(48, &bytes.to_be_bytes());
        put(56, &narrow(layout.table_clusters)?);
        // Counts of 16 bits.
        put(96, &4_u32.to_be_bytes());
        put(100, &narrow(HEADER_LEN as u64)?);
        Ok(header)
    }
}

/// A count of one for every cluster of the file.
fn counts(file: &File, layout: &Layout) -> io::Result<()> {
    const ONES: u64 = 0x0001_0001_0001_0001;
    let at = layout.first_block() * layout.cluster_bytes;
    let whole = layout.clusters() / 4;
    words(file, at, whole, |_| ONES)?;
    let rest = layout.clusters() % 4;
    let last = if rest == 0 { 0 } else { ONES << (64 - 16 * rest) };
    words(file, at + whole * 8, u64::from(rest > 0), |_| last)
}

/// Writes `count` big-endian words from byte `at` on.
fn words(file: &File, at: u64, count: u64, word: impl Fn(u64) -> u64) -> io::Result<()> {
    let mut first = 0;
    while first < count {
        let end = count.min(first + PIECE_WORDS);
        let piece: Vec<u8> = (first..end).flat_map(|index| word(index).to_be_bytes()).collect();
        file.write_all_at(&piece, at + first * 8)?;
        first = end;
    }
    Ok(())
}

/// A permutation of the numbers below a bound that looks like none: four rounds of a Feistel network over the next
/// even power of two, walked on until it is below the bound.
#[derive(Debug)]
struct Shuffle {
    bound: u64,
    half_bits: u32,
}

impl Shuffle {
    fn of(bound: u64) -> Self {
        let bits = u64::BITS - bound.saturating_sub(1).leading_zeros();
        Self { bound, half_bits: bits.div_ceil(2).max(1) }
    }

    fn place(&self, index: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let mut at = index;
        loop {
            let (mut left, mut right) = (at >> self.half_bits, at & mask);
            for round in 1..=4_u64 {
                let mixed = (right ^ (round << 40)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                (left, right) = (right, left ^ ((mixed >> 32) & mask));
            }
            at = (left << self.half_bits) | right;
            if at < self.bound {
                return at;
            }
        }
    }
}
