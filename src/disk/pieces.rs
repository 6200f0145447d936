//! What the bytes of a disk are made of: from the cache, or asked of the source and checked.

use std::ops::Range;
use std::sync::atomic::Ordering;

use instar_abi::extent::Extent;
use tracing::warn;

use super::extent::{Piece, Place, checked};
use super::source::Payload;
use super::view::{Backing, Disk, Stop};

/// A window is doubled at most this many times, as long as the answers stay small.
const WINDOW_DOUBLINGS_MAX: u32 = 6;
/// An answer of up to this many runs is small.
const SMALL_ANSWER_RUNS: usize = 8;

/// What guest bytes are to somebody who looks for data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Nature {
    Data,
    /// Zeros by the metadata's word, or allocated nowhere.
    Zeros,
    Damaged,
}

impl Disk {
    /// What guest byte `at`, which is on the disk, is made of, and for how long.
    ///
    /// # Errors
    /// [`Stop::Source`] where the source gives no answer that can be believed.
    pub(super) fn piece(&self, at: u64) -> Result<Piece, Stop> {
        match self.cache.piece(at) {
            Some(piece) => Ok(piece),
            None => self.ask(at),
        }
    }

    /// Whether a read of `len` bytes from guest byte `offset` on asks no source: all of their extents are known, and what
    /// is compressed is kept inflated. It may still be otherwise a moment later.
    #[must_use]
    pub fn is_at_hand(&self, offset: u64, len: u64) -> bool {
        let end = offset.saturating_add(len).min(self.size_bytes);
        let mut at = offset;
        while at < end {
            let Some(piece) = self.cache.piece(at) else { return false };
            let len = piece.len.min(end - at);
            let is_at_hand = match (piece.place, &self.backing) {
                (Place::Compressed { offset, len }, _) => self.unpacker.holds(Payload { offset, len }),
                (Place::Hole, Backing::Disk(below)) => below.is_at_hand(at, len),
                _ => true,
            };
            if !is_at_hand {
                return false;
            }
            at += len.max(1);
        }
        true
    }

    /// Asks the source about the window round guest byte `at`.
    fn ask(&self, at: u64) -> Result<Piece, Stop> {
        let mut source = self.source.lock();
        // Whoever held the lock before may have asked the same.
        if let Some(piece) = self.cache.piece(at) {
            return Ok(piece);
        }
        let range = self.window(at);
        let mut answer: Vec<Extent> = Vec::new();
        source.map(self.snapshot, range.start, range.end - range.start, &mut answer).map_err(|error| {
            warn!(event = crate::event::CAGE_FAILED.id, guest_offset = range.start, %error, "the cage named no extents");
            Stop::Source
        })?;
        let runs = checked(&answer, range.clone(), |file| self.file_len(file)).map_err(|error| {
            warn!(event = crate::event::CAGE_FAILED.id, %error, "the cage broke a rule of the extent list");
            Stop::Source
        })?;
        let small = runs.len() <= SMALL_ANSWER_RUNS;
        let doublings = self.doublings.load(Ordering::Relaxed);
        let next = if small { (doublings + 1).min(WINDOW_DOUBLINGS_MAX) } else { 0 };
        self.doublings.store(next, Ordering::Relaxed);
        self.cache.insert(range, runs);
        self.cache.piece(at).ok_or(Stop::Source)
    }

    /// The unknown range round guest byte `at` to ask for.
    fn window(&self, at: u64) -> Range<u64> {
        let start = at - at % self.window_bytes;
        let bytes = self.window_bytes << self.doublings.load(Ordering::Relaxed);
        self.cache.gap(at, start..start.saturating_add(bytes).min(self.size_bytes))
    }

    fn file_len(&self, file: u32) -> Option<u64> {
        let file = self.files.get(usize::try_from(file).ok()?)?.as_ref()?;
        Some(file.len())
    }

    /// What guest byte `at`, which is on the disk, is, here or in a backing disk, and for how many bytes that stays so
    /// at least.
    ///
    /// # Errors
    /// [`Stop::Source`] where the source gives no answer that can be believed.
    pub(super) fn nature(&self, at: u64) -> Result<(Nature, u64), Stop> {
        let piece = self.piece(at)?;
        let nature = match (piece.place, &self.backing) {
            (Place::Hole, Backing::Disk(backing)) if at < backing.size_bytes() => {
                let (nature, len) = backing.nature(at)?;
                return Ok((nature, len.min(piece.len).min(backing.size_bytes() - at)));
            }
            (Place::Hole, Backing::LeftOut) | (Place::Damaged(_), _) => Nature::Damaged,
            (Place::Zero | Place::Hole, _) => Nature::Zeros,
            _ => Nature::Data,
        };
        Ok((nature, piece.len))
    }

    /// The first byte at or behind `offset` that is (`data`) or is not data; `None` where there is none before the
    /// end of the disk. Zeros and unallocated ranges are holes, and so is what lies behind the end.
    ///
    /// # Errors
    /// [`Stop::Source`] where the source gives no answer that can be believed.
    pub fn seek(&self, offset: u64, data: bool) -> Result<Option<u64>, Stop> {
        let mut at = offset;
        while at < self.size_bytes {
            let (nature, len) = self.nature(at).inspect_err(|stop| self.health.count(stop.event()))?;
            if (nature != Nature::Zeros) == data {
                return Ok(Some(at));
            }
            at = at.saturating_add(len);
        }
        Ok(None)
    }
}
