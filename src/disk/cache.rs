//! Extents that are known, bounded and read-mostly.
//!
//! The guest space is covered by chunks: gapless runs of extents that never overlap each other. A hit takes a read
//! lock for the length of two searches and allocates nothing. Neighbouring chunks grow together as long as they
//! are small, so that an unfragmented disk of any size is one chunk of a few runs. When the budget is used up,
//! chunks that were not hit since the hand last passed them are dropped (CLOCK); they can be asked for again.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

use super::extent::{Piece, Run};
use super::health::CacheCounts;

/// Chunks up to this many runs are joined with their neighbours.
const JOINED_RUNS_MAX: usize = 512;
/// Memory that a chunk costs besides its runs: its place in the tree and its allocation.
const CHUNK_BYTES: usize = 96;

#[derive(Debug)]
struct Chunk {
    /// One past the last guest byte.
    end: u64,
    /// At least one run; the first starts at the chunk's key.
    runs: Box<[Run]>,
    /// Hit since the hand last passed.
    used: AtomicBool,
}

impl Chunk {
    fn bytes(&self) -> usize {
        CHUNK_BYTES + size_of_val(&*self.runs)
    }

    fn piece(&self, at: u64) -> Option<Piece> {
        let next = self.runs.partition_point(|run| run.start <= at);
        let run = self.runs.get(next.checked_sub(1)?)?;
        let end = self.runs.get(next).map_or(self.end, |next| next.start);
        Some(Piece { place: run.place_at(at), len: end.checked_sub(at)? })
    }
}

#[derive(Debug, Default)]
struct Chunks {
    /// By first guest byte.
    by_start: BTreeMap<u64, Chunk>,
    bytes: usize,
    /// Where the CLOCK's hand stands.
    hand: u64,
    added: u64,
    dropped: u64,
}

/// The cache of one disk.
#[derive(Debug)]
pub(crate) struct Cache {
    chunks: RwLock<Chunks>,
    bytes_max: usize,
}

impl Cache {
    /// A cache that holds about `bytes_max` bytes, and always the chunk put in last.
    pub fn new(bytes_max: usize) -> Self {
        Self { chunks: RwLock::default(), bytes_max }
    }

    /// What guest byte `at` is made of, if that is known.
    pub fn piece(&self, at: u64) -> Option<Piece> {
        let chunks = self.chunks.read();
        let (_, chunk) = chunks.by_start.range(..=at).next_back()?;
        if at >= chunk.end {
            return None;
        }
        // Stored only when it changes, so that readers do not fight for the cache line.
        if !chunk.used.load(Ordering::Relaxed) {
            chunk.used.store(true, Ordering::Relaxed);
        }
        chunk.piece(at)
    }

    /// The part of `around` that holds `at` and is not known.
    pub fn gap(&self, at: u64, around: Range<u64>) -> Range<u64> {
        let chunks = self.chunks.read();
        let before = chunks.by_start.range(..=at).next_back().map_or(0, |(_, chunk)| chunk.end);
        let after = chunks.by_start.range((Bound::Excluded(at), Bound::Unbounded)).next();
        let after = after.map_or(u64::MAX, |(start, _)| *start);
        around.start.max(before)..around.end.min(after)
    }

    /// Puts in the runs of `range`, which is not empty and touches nothing that is known.
    pub fn insert(&self, range: Range<u64>, runs: Vec<Run>) {
        let mut chunks = self.chunks.write();
        let (start, chunk) = chunks.joined(range, runs);
        chunks.bytes += chunk.bytes();
        chunks.added += 1;
        chunks.by_start.insert(start, chunk);
        chunks.evict(self.bytes_max, start);
    }

    /// What it holds, and how often it was given something and dropped something.
    pub fn counts(&self) -> CacheCounts {
        let chunks = self.chunks.read();
        CacheCounts { bytes: chunks.bytes as u64, added: chunks.added, dropped: chunks.dropped }
    }

    /// Bytes of memory in use, about.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.chunks.read().bytes
    }
}

impl Chunks {
    fn take(&mut self, start: u64) -> Option<Chunk> {
        let chunk = self.by_start.remove(&start)?;
        self.bytes -= chunk.bytes();
        Some(chunk)
    }

    /// The runs of `range` as a chunk, joined with its neighbours where all of them are small.
    fn joined(&mut self, range: Range<u64>, runs: Vec<Run>) -> (u64, Chunk) {
        let (mut start, mut end, mut all) = (range.start, range.end, runs);
        let left = self.by_start.range(..start).next_back().filter(|(_, left)| left.end == start);
        if let Some((&left_start, _)) =
            left.filter(|(_, left)| left.runs.len() + all.len() <= JOINED_RUNS_MAX)
            && let Some(left) = self.take(left_start)
        {
            all = join(left.runs.into_vec(), &all);
            start = left_start;
        }
        let fits = |right: &Chunk| right.runs.len() + all.len() <= JOINED_RUNS_MAX;
        if self.by_start.get(&end).is_some_and(fits)
            && let Some(right) = self.take(end)
        {
            all = join(all, &right.runs);
            end = right.end;
        }
        (start, Chunk { end, runs: all.into_boxed_slice(), used: AtomicBool::new(false) })
    }

    /// Drops chunks until the rest fits; never the one at `keep`. Two rounds of the hand are enough: the first
    /// takes every mark away.
    fn evict(&mut self, bytes_max: usize, keep: u64) {
        let mut steps = self.by_start.len().saturating_mul(2);
        while self.bytes > bytes_max && steps > 0 {
            steps -= 1;
            let next = self.by_start.range(self.hand..).next().or_else(|| self.by_start.iter().next());
            let Some((&start, chunk)) = next else { return };
            self.hand = start.saturating_add(1);
            if start != keep && !chunk.used.swap(false, Ordering::Relaxed) {
                self.take(start);
                self.dropped += 1;
            }
        }
    }
}

fn join(mut left: Vec<Run>, right: &[Run]) -> Vec<Run> {
    let merged =
        matches!((left.last(), right.first()), (Some(last), Some(first)) if last.continued_by(first));
    left.extend_from_slice(&right[usize::from(merged)..]);
    left
}

#[cfg(test)]
mod tests {
    use instar_abi::extent::{Extent, ExtentKind};

    use super::*;
    use crate::disk::extent::{Place, checked};

    fn runs(range: Range<u64>, step: u64, shift: u64) -> Vec<Run> {
        let extents: Vec<Extent> = (range.start / step..range.end / step)
            .map(|at| Extent {
                guest_offset: at * step,
                guest_len: step,
                host_offset: if shift == 0 { at * step } else { at * step * 2 + shift },
                host_len: step,
                kind: ExtentKind::Data as u32,
                file: 0,
                problem: 0,
                reserved: 0,
            })
            .collect();
        checked(&extents, range, |_| Some(u64::MAX)).unwrap()
    }

    #[test]
    fn cache_of_contiguous_chunks_grows_together() {
        let cache = Cache::new(1 << 20);
        for window in [0, 2, 1, 3] {
            let range = window * 0x1000..(window + 1) * 0x1000;
            cache.insert(range.clone(), runs(range, 0x100, 0));
        }
        assert_eq!(cache.bytes(), CHUNK_BYTES + 24);
        let piece = cache.piece(0x1234).unwrap();
        assert_eq!(piece, Piece { place: Place::Data { file: 0, offset: 0x1234 }, len: 0x4000 - 0x1234 });
        assert_eq!(cache.piece(0x4000), None);
    }

    #[test]
    fn cache_gap_is_cut_by_what_is_known() {
        let cache = Cache::new(1 << 20);
        cache.insert(0x1000..0x2000, runs(0x1000..0x2000, 0x100, 0));
        cache.insert(0x4000..0x5000, runs(0x4000..0x5000, 0x100, 0));
        assert_eq!(cache.gap(0x2800, 0..0x8000), 0x2000..0x4000);
        assert_eq!(cache.gap(0x2800, 0x2400..0x3000), 0x2400..0x3000);
        assert_eq!(cache.gap(0x800, 0..0x8000), 0..0x1000);
        assert_eq!(cache.gap(0x6000, 0..0x8000), 0x5000..0x8000);
    }

    #[test]
    fn cache_over_its_budget_drops_what_was_not_used() {
        let budget = 64 * 1024;
        let cache = Cache::new(budget);
        for window in 0..64 {
            let range = window * 0x10_0000..(window + 1) * 0x10_0000;
            cache.insert(range.clone(), runs(range, 0x1000, 7));
            assert!(cache.piece(0).is_some(), "the chunk in use stays");
            assert!(cache.bytes() <= budget + 256 * 24 + CHUNK_BYTES);
        }
        assert!(cache.piece(63 * 0x10_0000).is_some(), "the newest chunk stays");
        let known = (0..64).filter(|window| cache.piece(window * 0x10_0000).is_some()).count();
        assert!((1..32).contains(&known), "{known} of 64 windows are left");
    }
}
