//! Sets of clusters: one bit each, in chunks that exist only where there is a member.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use core::ops::Range;

const CHUNK_BITS: u32 = 14;
const WORDS: usize = 1 << (CHUNK_BITS - 6);
/// Memory of one chunk, with a share of the tree that holds it.
const CHUNK_BYTES: usize = WORDS * 8 + 64;

/// A set of clusters within a memory cap.
#[derive(Debug)]
pub struct ClusterSet {
    chunks: BTreeMap<u64, Box<[u64; WORDS]>>,
    most: usize,
    is_overfull: bool,
}

impl ClusterSet {
    /// An empty set that takes at most about `cap_bytes` of memory.
    #[must_use]
    pub fn new(cap_bytes: usize) -> Self {
        Self { chunks: BTreeMap::new(), most: (cap_bytes / CHUNK_BYTES).max(1), is_overfull: false }
    }

    /// Whether it has no member.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Whether a cluster was left out for lack of memory.
    #[must_use]
    pub const fn is_overfull(&self) -> bool {
        self.is_overfull
    }

    /// Adds a cluster; false where memory does not allow it.
    pub fn insert(&mut self, cluster: u64) -> bool {
        let key = cluster >> CHUNK_BITS;
        if !self.chunks.contains_key(&key) {
            let words = alloc::vec![0; WORDS].into_boxed_slice();
            match Box::<[u64; WORDS]>::try_from(words) {
                Ok(words) if self.chunks.len() < self.most => self.chunks.insert(key, words),
                _ => {
                    self.is_overfull = true;
                    return false;
                }
            };
        }
        if let Some(words) = self.chunks.get_mut(&key) {
            words[instar_abi::to_usize(cluster >> 6) % WORDS] |= 1 << (cluster & 63);
        }
        true
    }

    /// Whether the cluster is in it.
    #[must_use]
    pub fn contains(&self, cluster: u64) -> bool {
        self.chunks
            .get(&(cluster >> CHUNK_BITS))
            .is_some_and(|words| words[instar_abi::to_usize(cluster >> 6) % WORDS] >> (cluster & 63) & 1 != 0)
    }

    /// The first member within a range.
    #[must_use]
    pub fn first_in(&self, range: Range<u64>) -> Option<u64> {
        if range.is_empty() {
            return None;
        }
        let keys = range.start >> CHUNK_BITS..=(range.end - 1) >> CHUNK_BITS;
        self.chunks.range(keys).find_map(|(key, words)| {
            let base = key << CHUNK_BITS;
            let start = range.start.saturating_sub(base).min(1 << CHUNK_BITS);
            next_bit(words, instar_abi::to_usize(start), true)
                .map(|at| base + at as u64)
                .filter(|found| *found < range.end)
        })
    }

    /// The last member.
    #[must_use]
    pub fn last(&self) -> Option<u64> {
        self.chunks.iter().next_back().and_then(|(key, words)| {
            let word = words.iter().rposition(|word| *word != 0)?;
            let bit = 63 - u64::from(words[word].leading_zeros());
            Some((key << CHUNK_BITS) + word as u64 * 64 + bit)
        })
    }

    /// The first run of members at or after a cluster.
    #[must_use]
    pub fn run_from(&self, cluster: u64) -> Option<Range<u64>> {
        let start = self.first_in(cluster..u64::MAX)?;
        let mut end = start;
        while let Some(words) = self.chunks.get(&(end >> CHUNK_BITS)) {
            let base = end >> CHUNK_BITS << CHUNK_BITS;
            let stop = next_bit(words, instar_abi::to_usize(end - base), false).unwrap_or(1 << CHUNK_BITS);
            end = base + stop as u64;
            if stop < 1 << CHUNK_BITS {
                break;
            }
        }
        Some(start..end)
    }
}

/// The first bit of this value at or after a position.
fn next_bit(words: &[u64; WORDS], from: usize, value: bool) -> Option<usize> {
    let flip = if value { 0 } else { u64::MAX };
    let mut mask = u64::MAX << (from % 64);
    for (index, word) in words.iter().enumerate().skip(from / 64) {
        let bits = (word ^ flip) & mask;
        if bits != 0 {
            return Some(index * 64 + bits.trailing_zeros() as usize);
        }
        mask = u64::MAX;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn runs_cross_words_and_chunks() {
        let mut set = ClusterSet::new(1 << 20);
        for cluster in (3..70).chain(16_380..16_400).chain([100_000]) {
            assert!(set.insert(cluster));
        }
        let mut runs = Vec::new();
        while let Some(run) = set.run_from(runs.last().map_or(0, |run: &Range<u64>| run.end)) {
            runs.push(run);
        }
        assert_eq!(runs, [3..70, 16_380..16_400, 100_000..100_001]);
        assert_eq!(set.last(), Some(100_000));
        assert!(set.contains(69) && !set.contains(70));
        assert_eq!(set.first_in(70..16_380), None);
        assert_eq!(set.first_in(50..16_380), Some(50));
        assert_eq!(set.first_in(70..16_381), Some(16_380));
    }

    #[test]
    fn full_set_refuses_new_chunks_only() {
        let mut set = ClusterSet::new(1);
        assert!(set.insert(5));
        assert!(!set.is_overfull());
        assert!(!set.insert(1 << 20));
        assert!(set.is_overfull());
        assert!(set.insert(6));
    }
}
