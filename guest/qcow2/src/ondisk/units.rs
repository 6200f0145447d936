//! Sizes and bounds that every offset is measured with.

/// Smallest `cluster_bits` (512 bytes).
pub const CLUSTER_BITS_MIN: u32 = 9;
/// Largest `cluster_bits` (2 MiB); QEMU's limit, which the specification leaves open.
pub const CLUSTER_BITS_MAX: u32 = 21;

/// The size of a cluster: a power of two from 512 bytes to 2 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClusterSize {
    bits: u32,
}

impl ClusterSize {
    /// The cluster size with this `cluster_bits`, `None` if it is out of range.
    #[must_use]
    pub const fn new(bits: u32) -> Option<Self> {
        if bits >= CLUSTER_BITS_MIN && bits <= CLUSTER_BITS_MAX { Some(Self { bits }) } else { None }
    }

    /// log2 of the size.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.bits
    }

    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        1 << self.bits
    }

    /// The size in bytes, as a length in memory.
    #[must_use]
    pub const fn usize(self) -> usize {
        1 << self.bits
    }

    /// Number of the cluster that holds the byte at `offset`.
    #[must_use]
    pub const fn index(self, offset: u64) -> u64 {
        offset >> self.bits
    }

    /// Byte offset of cluster `index`; saturating.
    #[must_use]
    pub const fn offset(self, index: u64) -> u64 {
        index.saturating_mul(self.bytes())
    }

    /// Where `offset` lies within its cluster, in bytes.
    #[must_use]
    pub const fn within(self, offset: u64) -> u64 {
        offset & (self.bytes() - 1)
    }

    /// Whether `offset` is the first byte of a cluster.
    #[must_use]
    pub const fn is_aligned(self, offset: u64) -> bool {
        self.within(offset) == 0
    }

    /// How many clusters `bytes` bytes take.
    #[must_use]
    pub const fn count(self, bytes: u64) -> u64 {
        bytes.div_ceil(self.bytes())
    }
}

/// The length of the file that offsets point into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileBounds {
    /// Bytes in the file.
    pub len: u64,
    /// Its clusters' size.
    pub cluster: ClusterSize,
}

/// How an offset stands to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// A cluster of the file; the last one may be physically short, its missing bytes read as zeros.
    Inside,
    /// Not a multiple of the cluster size.
    Unaligned,
    /// At or past the end of the file.
    PastEof,
}

impl FileBounds {
    /// Clusters of the file, the last one perhaps short.
    #[must_use]
    pub const fn clusters(&self) -> u64 {
        self.cluster.count(self.len)
    }

    /// How a cluster offset stands to the file. Unaligned is said first.
    #[must_use]
    pub const fn position(&self, offset: u64) -> Position {
        if !self.cluster.is_aligned(offset) {
            Position::Unaligned
        } else if offset >= self.len {
            Position::PastEof
        } else {
            Position::Inside
        }
    }

    /// Bytes of `offset .. offset + len` that are in the file.
    #[must_use]
    pub const fn present(&self, offset: u64, len: u64) -> u64 {
        let left = self.len.saturating_sub(offset);
        if left < len { left } else { len }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_size_out_of_range_is_none() {
        assert_eq!(ClusterSize::new(8), None);
        assert_eq!(ClusterSize::new(22), None);
        assert_eq!(ClusterSize::new(9).map(ClusterSize::bytes), Some(512));
    }

    #[test]
    fn position_prefers_unaligned_and_treats_a_short_last_cluster_as_inside() {
        let bounds = FileBounds { len: 1000, cluster: ClusterSize::new(9).unwrap() };
        assert_eq!(bounds.position(512), Position::Inside);
        assert_eq!(bounds.position(1024), Position::PastEof);
        assert_eq!(bounds.position(5001), Position::Unaligned);
        assert_eq!(bounds.clusters(), 2);
        assert_eq!(bounds.present(900, 512), 100);
        assert_eq!(bounds.present(u64::MAX, 512), 0);
    }
}
