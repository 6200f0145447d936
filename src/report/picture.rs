//! What lies where in a file and in a disk, summed up in buckets.
//!
//! Invariant: a picture takes the same memory whatever it is of. Buckets are powers of two long and begin at
//! multiples of their length, so that fine ones can be joined to coarse ones without a loss.
//!
//! What a region is used as is the cage's word; nothing here reads a byte of the image.

use std::ops::Range;

use instar_abi::extent::{Extent, ExtentKind};
use instar_abi::finding::{Finding, NONE, Table};
use instar_abi::problem::{Problem, Severity};
use instar_abi::region::{Region, SNAPSHOT_ONLY};
use instar_abi::to_usize;

use crate::sandbox::observer::Observer;

/// Most buckets of a picture.
pub const BUCKETS_MAX: u64 = 16_384;
/// Least bytes of a bucket.
const BUCKET_BYTES_MIN: u64 = 512;
/// Most damaged ranges that are kept one by one.
const DAMAGED_MAX: usize = 1 << 20;

/// What a part of the file is used as, in the order of legends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "`FileUse::name` says what each one is")]
pub enum FileUse {
    Header,
    L1,
    L2,
    RefcountTable,
    RefcountBlock,
    Snapshots,
    Bitmaps,
    Encryption,
    Data,
    SnapshotData,
    Compressed,
    Leaked,
}

impl FileUse {
    /// Every use, in order.
    pub const ALL: [Self; 12] = [
        Self::Header,
        Self::L1,
        Self::L2,
        Self::RefcountTable,
        Self::RefcountBlock,
        Self::Snapshots,
        Self::Bitmaps,
        Self::Encryption,
        Self::Data,
        Self::SnapshotData,
        Self::Compressed,
        Self::Leaked,
    ];

    /// Its name in documents.
    #[must_use]
    pub const fn id(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::L1 => "l1-table",
            Self::L2 => "l2-table",
            Self::RefcountTable => "refcount-table",
            Self::RefcountBlock => "refcount-block",
            Self::Snapshots => "snapshot-table",
            Self::Bitmaps => "bitmap",
            Self::Encryption => "encryption-header",
            Self::Data => "data",
            Self::SnapshotData => "snapshot-data",
            Self::Compressed => "compressed-data",
            Self::Leaked => "leaked",
        }
    }

    /// What it is called in legends.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::L1 => "L1 tables",
            Self::L2 => "L2 tables",
            Self::RefcountTable => "refcount table",
            Self::RefcountBlock => "refcount blocks",
            Self::Snapshots => "snapshot table",
            Self::Bitmaps => "bitmaps",
            Self::Encryption => "encryption header",
            Self::Data => "guest data",
            Self::SnapshotData => "data of snapshots only",
            Self::Compressed => "compressed guest data",
            Self::Leaked => "leaked",
        }
    }

    /// What a region is.
    const fn of(table: Table, region: &Region) -> Self {
        match table {
            Table::L1 => Self::L1,
            Table::L2 => Self::L2,
            Table::RefcountTable => Self::RefcountTable,
            Table::RefcountBlock => Self::RefcountBlock,
            Table::SnapshotTable => Self::Snapshots,
            Table::BitmapDirectory | Table::BitmapTable | Table::BitmapData => Self::Bitmaps,
            Table::CryptoHeader => Self::Encryption,
            Table::Data | Table::DataFile if region.flags & SNAPSHOT_ONLY != 0 => Self::SnapshotData,
            Table::Data | Table::DataFile => Self::Data,
            Table::CompressedData => Self::Compressed,
            Table::File | Table::Header | Table::HeaderExtension => Self::Header,
        }
    }
}

/// What a part of the disk is made of, in the order of legends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "`DiskUse::name` says what each one is")]
pub enum DiskUse {
    Data,
    Compressed,
    Zero,
    Encrypted,
    Damaged,
}

impl DiskUse {
    /// Every use, in order. What is none of them is not allocated.
    pub const ALL: [Self; 5] = [Self::Data, Self::Compressed, Self::Zero, Self::Encrypted, Self::Damaged];

    /// Its name in documents.
    #[must_use]
    pub const fn id(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Compressed => "compressed",
            Self::Zero => "zero",
            Self::Encrypted => "encrypted",
            Self::Damaged => "damaged",
        }
    }

    /// What it is called in legends.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Compressed => "compressed data",
            Self::Zero => "zeros",
            Self::Encrypted => "encrypted data",
            Self::Damaged => "damaged: cannot be read",
        }
    }

    const fn of(kind: ExtentKind) -> Option<Self> {
        match kind {
            ExtentKind::Data => Some(Self::Data),
            ExtentKind::Compressed => Some(Self::Compressed),
            ExtentKind::Zero => Some(Self::Zero),
            ExtentKind::Encrypted => Some(Self::Encrypted),
            ExtentKind::Damaged => Some(Self::Damaged),
            ExtentKind::Hole => None,
        }
    }
}

/// One bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket<const N: usize> {
    /// Bytes of each use.
    pub bytes: [u64; N],
    /// Findings of corruption that lie in it.
    pub damage: u64,
}

impl<const N: usize> Bucket<N> {
    const EMPTY: Self = Self { bytes: [0; N], damage: 0 };

    /// Which use has most of its bytes, as a position in the list of uses; `None` where it has none.
    #[must_use]
    pub fn most(&self) -> Option<usize> {
        // Of equals the first one is the rarer.
        let best = self.bytes.iter().enumerate().rev().max_by_key(|(_, bytes)| **bytes);
        best.filter(|(_, bytes)| **bytes > 0).map(|(at, _)| at)
    }

    /// Bytes that are used.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.bytes.iter().fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }

    fn add(&mut self, other: &Self) {
        for (sum, more) in self.bytes.iter_mut().zip(other.bytes) {
            *sum = sum.saturating_add(more);
        }
        self.damage = self.damage.saturating_add(other.damage);
    }
}

/// A stretch of bytes in buckets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buckets<const N: usize> {
    len: u64,
    bucket_bytes: u64,
    buckets: Vec<Bucket<N>>,
}

impl<const N: usize> Buckets<N> {
    /// Empty buckets for `len` bytes.
    #[must_use]
    pub fn new(len: u64) -> Self {
        let bucket_bytes = fit(len, BUCKETS_MAX).max(BUCKET_BYTES_MIN);
        let count = to_usize(len.div_ceil(bucket_bytes));
        Self { len, bucket_bytes, buckets: vec![Bucket::EMPTY; count] }
    }

    /// Bytes in all.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of one bucket; the last one may be shorter.
    #[must_use]
    pub const fn bucket_bytes(&self) -> u64 {
        self.bucket_bytes
    }

    /// The buckets, in order.
    #[must_use]
    pub fn buckets(&self) -> &[Bucket<N>] {
        &self.buckets
    }

    /// The bytes of the bucket at a position.
    #[must_use]
    pub fn range(&self, position: usize) -> Range<u64> {
        let start = (position as u64).saturating_mul(self.bucket_bytes);
        start..start.saturating_add(self.bucket_bytes).min(self.len)
    }

    /// The sum of all buckets.
    #[must_use]
    pub fn total(&self) -> Bucket<N> {
        let mut total = Bucket::EMPTY;
        self.buckets.iter().for_each(|bucket| total.add(bucket));
        total
    }

    /// The same in at most `most` buckets, none of them shorter than `unit_bytes`, a power of two.
    #[must_use]
    pub fn coarse(&self, most: u64, unit_bytes: u64) -> Self {
        let bucket_bytes = fit(self.len, most).max(unit_bytes).max(self.bucket_bytes);
        let joined = to_usize((bucket_bytes / self.bucket_bytes).max(1));
        let join = |part: &[Bucket<N>]| {
            let mut sum = Bucket::EMPTY;
            part.iter().for_each(|bucket| sum.add(bucket));
            sum
        };
        Self { len: self.len, bucket_bytes, buckets: self.buckets.chunks(joined).map(join).collect() }
    }

    /// Adds bytes of a use.
    fn add(&mut self, used_as: usize, bytes: Range<u64>) {
        self.each(bytes, |bucket, len| {
            if let Some(sum) = bucket.bytes.get_mut(used_as) {
                *sum = sum.saturating_add(len);
            }
        });
    }

    /// Marks damage in every bucket that a range touches.
    fn mark(&mut self, bytes: Range<u64>) {
        self.each(bytes, |bucket, _| bucket.damage = bucket.damage.saturating_add(1));
    }

    fn each(&mut self, bytes: Range<u64>, mut change: impl FnMut(&mut Bucket<N>, u64)) {
        let end = bytes.end.min(self.len);
        let mut at = bytes.start;
        while at < end {
            let position = at / self.bucket_bytes;
            let next = (position + 1).saturating_mul(self.bucket_bytes).min(end);
            if let Some(bucket) = self.buckets.get_mut(to_usize(position)) {
                change(bucket, next - at);
            }
            at = next;
        }
    }
}

/// Bytes of a bucket, a power of two, so that at most `most` of them hold `len` bytes.
fn fit(len: u64, most: u64) -> u64 {
    len.div_ceil(most.max(1)).checked_next_power_of_two().unwrap_or(1 << 63)
}

/// The picture of an image: of its file and of its active disk.
#[derive(Debug, Clone)]
pub struct Picture {
    /// The file; uses are those of [`FileUse::ALL`].
    pub file: Buckets<12>,
    /// The disk; uses are those of [`DiskUse::ALL`].
    pub disk: Buckets<5>,
    /// Damaged guest ranges, in order and apart from each other.
    pub damaged: Vec<Range<u64>>,
    /// Guest bytes, from 0 on, whose damaged ranges are known.
    pub seen_bytes: u64,
}

impl Picture {
    /// An empty picture of a file and a disk of these lengths.
    #[must_use]
    pub fn new(file_bytes: u64, disk_bytes: u64) -> Self {
        Self {
            file: Buckets::new(file_bytes),
            disk: Buckets::new(disk_bytes),
            damaged: Vec::new(),
            seen_bytes: 0,
        }
    }

    /// Puts a finding in its place: leaks are a use of the file, what is worse is damage.
    pub fn put(&mut self, problem: Problem, finding: &Finding) {
        if finding.host_offset == NONE {
            return;
        }
        let place = finding.host_offset..finding.host_offset.saturating_add(finding.host_len.max(1));
        match problem.row().severity {
            Severity::Leak => self.file.add(FileUse::Leaked as usize, place),
            Severity::Corruption | Severity::Fatal => self.file.mark(place),
        }
    }

    fn put_damaged(&mut self, guest: Range<u64>) {
        match self.damaged.last_mut() {
            Some(last) if last.end >= guest.start => last.end = last.end.max(guest.end),
            _ => self.damaged.push(guest),
        }
    }
}

impl Observer for Picture {
    fn finding(&mut self, problem: Problem, finding: &Finding) {
        self.put(problem, finding);
    }

    fn finding_dropped(&mut self, problem: Problem, finding: &Finding) {
        self.put(problem, finding);
    }

    fn region(&mut self, table: Table, region: &Region) {
        let place = region.offset..region.offset.saturating_add(region.len);
        self.file.add(FileUse::of(table, region) as usize, place);
    }

    fn extent(&mut self, kind: ExtentKind, extent: &Extent) {
        let end = extent.guest_offset.saturating_add(extent.guest_len).min(self.disk.len());
        let guest = extent.guest_offset..end;
        if let Some(used_as) = DiskUse::of(kind) {
            self.disk.add(used_as as usize, guest.clone());
        }
        if self.seen_bytes != guest.start || guest.is_empty() {
            return;
        }
        if kind == ExtentKind::Damaged {
            if self.damaged.len() >= DAMAGED_MAX {
                return;
            }
            self.put_damaged(guest);
        }
        self.seen_bytes = end;
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros as _;

    use super::*;

    fn extent(guest_offset: u64, guest_len: u64) -> Extent {
        Extent { guest_offset, guest_len, ..Extent::new_zeroed() }
    }

    #[test]
    fn picture_of_any_length_has_few_buckets_that_are_powers_of_two() {
        for len in [0, 1, 512, 513, 1 << 20, (1 << 30) + 1, 64 << 40, u64::MAX] {
            let buckets: Buckets<2> = Buckets::new(len);
            assert!(buckets.buckets().len() as u64 <= BUCKETS_MAX, "{len}");
            assert!(buckets.bucket_bytes().is_power_of_two() && buckets.bucket_bytes() >= 512);
            let last = buckets.buckets().len().checked_sub(1).map_or(0, |last| buckets.range(last).end);
            assert_eq!(last, len);
        }
    }

    #[test]
    fn bytes_are_split_at_buckets_and_kept_when_these_are_joined() {
        let mut buckets: Buckets<2> = Buckets::new(64 << 20);
        buckets.add(1, 1000..(3 << 20) + 5);
        buckets.mark((1 << 20)..(1 << 20) + 1);
        assert_eq!(buckets.total().bytes, [0, (3 << 20) + 5 - 1000]);
        let coarse = buckets.coarse(64, 65_536);
        assert_eq!((coarse.bucket_bytes(), coarse.buckets().len()), (1 << 20, 64));
        assert_eq!(coarse.total().bytes, buckets.total().bytes);
        assert_eq!(coarse.buckets()[1].bytes, [0, 1 << 20]);
        assert_eq!((coarse.buckets()[0].damage, coarse.buckets()[1].damage), (0, 1));
        assert_eq!(buckets.coarse(1 << 20, 16 << 20).buckets().len(), 4);
    }

    #[test]
    fn damaged_ranges_are_known_up_to_the_first_gap() {
        let mut picture = Picture::new(512, 10_000);
        picture.extent(ExtentKind::Damaged, &extent(0, 100));
        picture.extent(ExtentKind::Damaged, &extent(100, 100));
        picture.extent(ExtentKind::Hole, &extent(200, 100));
        picture.extent(ExtentKind::Damaged, &extent(300, 50));
        picture.extent(ExtentKind::Damaged, &extent(400, 50));
        assert_eq!((picture.damaged.as_slice(), picture.seen_bytes), (&[0..200, 300..350][..], 350));
        assert_eq!(picture.disk.total().bytes[DiskUse::Damaged as usize], 300);
    }

    #[test]
    fn uses_are_numbered_in_the_order_of_their_lists() {
        assert!(FileUse::ALL.iter().enumerate().all(|(at, used_as)| *used_as as usize == at));
        assert!(DiskUse::ALL.iter().enumerate().all(|(at, used_as)| *used_as as usize == at));
    }
}
