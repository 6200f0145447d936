//! How much memory a mount keeps of what it found out, and how that is shared out between its disks.
//!
//! Invariant: the parts together are no more than what was given, however many snapshots and members there are. What
//! does not fit is found out again when it is needed, so a small cache costs time and nothing else. Each cache holds
//! what it was given last whatever its part is, because a read needs that.

use clap::Args;
use instar_abi::to_usize;

use super::size;

/// Least and largest `--cache-size`.
const CACHE_BYTES_MIN: u64 = 4 << 20;
const CACHE_BYTES_MAX: u64 = 64 << 30;
/// One part in so many is for extents, the rest for inflated clusters.
const EXTENTS_PART: u64 = 4;

/// What a mount may keep.
#[derive(Debug, Clone, Copy, Args)]
pub struct CacheArgs {
    /// Most memory for what the mount keeps of its disks: a quarter for where their clusters are, the rest for clusters
    /// that were inflated, which are given back when nobody has read them for some seconds. 4M to 64G; a disk in very
    /// many pieces and random reads of a compressed image gain from more.
    #[arg(long, value_parser = cache_size, default_value = "64M", value_name = "SIZE")]
    pub cache_size: u64,
}

/// A part of that memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheMemory {
    /// For extents.
    pub extents_bytes: usize,
    /// For inflated clusters.
    pub inflated_bytes: usize,
}

impl CacheArgs {
    /// All of it.
    #[must_use]
    pub fn memory(self) -> CacheMemory {
        let extents = self.cache_size / EXTENTS_PART;
        CacheMemory {
            extents_bytes: to_usize(extents),
            inflated_bytes: to_usize(self.cache_size.saturating_sub(extents)),
        }
    }
}

impl CacheMemory {
    /// One of `parts` equal parts.
    #[must_use]
    pub fn part(self, parts: usize) -> Self {
        let parts = parts.max(1);
        Self { extents_bytes: self.extents_bytes / parts, inflated_bytes: self.inflated_bytes / parts }
    }
}

fn cache_size(text: &str) -> Result<u64, String> {
    let bytes = size::parse(text)?;
    if (CACHE_BYTES_MIN..=CACHE_BYTES_MAX).contains(&bytes) {
        Ok(bytes)
    } else {
        Err(format!("{bytes} bytes given, allowed are 4M to 64G"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_size_is_bounded() {
        assert_eq!((cache_size("4M"), cache_size("64G")), (Ok(CACHE_BYTES_MIN), Ok(CACHE_BYTES_MAX)));
        for wrong in ["0", "4194303", "65G", "64", "M", "-4M"] {
            assert!(cache_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn cache_parts_are_no_more_than_the_whole() {
        let all = CacheArgs { cache_size: (64 << 20) + 3 }.memory();
        assert_eq!(all.extents_bytes + all.inflated_bytes, (64 << 20) + 3);
        for parts in [0, 1, 2, 3, 1024] {
            let part = all.part(parts);
            assert!(part.extents_bytes * parts.max(1) <= all.extents_bytes, "{parts}");
            assert!(part.inflated_bytes * parts.max(1) <= all.inflated_bytes, "{parts}");
        }
    }
}
