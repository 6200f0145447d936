//! Staged writes over an untouched backend.
//!
//! An overlay shows its base with the staged writes in place, a later one over an earlier one. Invariant: nothing
//! is ever written to the base, and what one group holds does not overlap, so that the writes of a group may reach
//! a disk in any order. The bytes held are bounded. It deliberately does not remember the groups: whoever writes
//! them to a disk has the plan.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use thiserror::Error;

use super::Backend;

/// One staged write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// Byte offset in the file.
    pub offset: u64,
    /// What goes there, at least one byte.
    pub bytes: Arc<[u8]>,
}

impl Write {
    /// One past the last byte. Cannot overflow for a write that an overlay has taken.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.bytes.len() as u64)
    }
}

/// Why a write could not be staged.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum OverlayError {
    /// Too much is staged already.
    #[error("staged writes over the limit of {limit_bytes} bytes")]
    Full {
        /// The limit.
        limit_bytes: u64,
    },
    /// No byte, or past the largest offset.
    #[error("staged write of {len} bytes at offset {offset:#x} is empty or past the largest file offset")]
    Range {
        /// Where.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// Two writes of one group touch the same byte.
    #[error("staged write of {len} bytes at offset {offset:#x} overlaps another one of the same group")]
    Overlap {
        /// Where.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
}

/// A part of a staged write that is not hidden by a later one.
#[derive(Debug, Clone)]
struct Piece {
    bytes: Arc<[u8]>,
    from: usize,
    to: usize,
}

impl Piece {
    fn len(&self) -> u64 {
        (self.to - self.from) as u64
    }
}

/// The view and the writes behind it.
#[derive(Debug, Clone)]
pub struct Overlay {
    base: Arc<dyn Backend>,
    base_len: u64,
    len: u64,
    pieces: BTreeMap<u64, Piece>,
    /// Ranges of the last group: start -> end.
    group_ranges: BTreeMap<u64, u64>,
    held_bytes: u64,
    limit_bytes: u64,
}

impl Overlay {
    /// An overlay that shows `base` as it is and holds at most `limit_bytes`.
    #[must_use]
    pub fn new(base: Arc<dyn Backend>, limit_bytes: u64) -> Self {
        let len = base.len();
        Self {
            base,
            base_len: len,
            len,
            pieces: BTreeMap::new(),
            group_ranges: BTreeMap::new(),
            held_bytes: 0,
            limit_bytes,
        }
    }

    /// As [`Overlay::new`], but shows the base cut to, or padded with zeros to, `len` bytes.
    #[must_use]
    pub fn with_len(base: Arc<dyn Backend>, len: u64, limit_bytes: u64) -> Self {
        let mut overlay = Self::new(base, limit_bytes);
        overlay.base_len = overlay.base_len.min(len);
        overlay.len = len;
        overlay
    }

    /// Stages a write; the view grows where it ends behind the end.
    ///
    /// # Errors
    /// Every [`OverlayError`]; the overlay is unchanged then.
    pub fn stage(&mut self, write: Write) -> Result<(), OverlayError> {
        let len = write.bytes.len() as u64;
        let offset = write.offset;
        let end = offset.checked_add(len).filter(|&end| len > 0 && i64::try_from(end).is_ok());
        let Some(end) = end else { return Err(OverlayError::Range { offset, len }) };
        let held = self.held_bytes.saturating_add(len);
        if held > self.limit_bytes {
            return Err(OverlayError::Full { limit_bytes: self.limit_bytes });
        }
        if self.group_ranges.range(..end).next_back().is_some_and(|(_, &other_end)| other_end > offset) {
            return Err(OverlayError::Overlap { offset, len });
        }
        self.held_bytes = held;
        self.group_ranges.insert(offset, end);
        self.cover(offset, end, &write.bytes);
        self.len = self.len.max(end);
        Ok(())
    }

    /// Ends a group: what is staged from now on may hide what was staged so far.
    pub fn barrier(&mut self) {
        self.group_ranges.clear();
    }

    fn cover(&mut self, offset: u64, end: u64, bytes: &Arc<[u8]>) {
        let hidden: Vec<u64> = self
            .pieces
            .range(..end)
            .rev()
            .take_while(|(start, piece)| *start + piece.len() > offset)
            .map(|(start, _)| *start)
            .collect();
        for start in hidden {
            let Some(old) = self.pieces.remove(&start) else { continue };
            let old_end = start + old.len();
            if start < offset {
                let to = old.from + instar_abi::to_usize(offset - start);
                self.pieces.insert(start, Piece { to, ..old.clone() });
            }
            if old_end > end {
                let from = old.from + instar_abi::to_usize(end - start);
                self.pieces.insert(end, Piece { from, ..old });
            }
        }
        self.pieces.insert(offset, Piece { bytes: Arc::clone(bytes), from: 0, to: bytes.len() });
    }

    /// Bytes that the staged writes hold, hidden ones included.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    /// What lies below.
    #[must_use]
    pub fn base(&self) -> &Arc<dyn Backend> {
        &self.base
    }
}

/// Merges sorted (start, end) ranges that touch or overlap into (offset, len) ranges.
fn merged(ranges: impl Iterator<Item = (u64, u64)>) -> Vec<(u64, u64)> {
    let mut out: Vec<(u64, u64)> = Vec::new();
    for (start, end) in ranges {
        match out.last_mut() {
            Some((offset, len)) if start <= *offset + *len => *len = (*len).max(end - *offset),
            _ => out.push((start, end - start)),
        }
    }
    out
}

impl Backend for Overlay {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset
            .checked_add(into.len() as u64)
            .filter(|&end| end <= self.len)
            .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        let from_base = instar_abi::to_usize(end.min(self.base_len).saturating_sub(offset)).min(into.len());
        let (below, past) = into.split_at_mut(from_base);
        if !below.is_empty() {
            self.base.read_at(below, offset)?;
        }
        past.fill(0);
        for (&start, piece) in self.pieces.range(..end).rev() {
            let piece_end = start + piece.len();
            if piece_end <= offset {
                break;
            }
            let (lo, hi) = (start.max(offset), piece_end.min(end));
            let source = piece.from + instar_abi::to_usize(lo - start);
            let len = instar_abi::to_usize(hi - lo);
            let target = instar_abi::to_usize(lo - offset);
            into[target..target + len].copy_from_slice(&piece.bytes[source..source + len]);
        }
        Ok(())
    }

    fn write_at(&self, _bytes: &[u8], _offset: u64) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "an overlay takes staged writes only"))
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "an overlay takes staged writes only"))
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn data_ranges(&self, offset: u64, len: u64) -> io::Result<Vec<(u64, u64)>> {
        let end = offset.saturating_add(len).min(self.len);
        let base_end = end.min(self.base_len);
        let mut ranges = match base_end.checked_sub(offset) {
            Some(len) if len > 0 => self.base.data_ranges(offset, len)?,
            _ => Vec::new(),
        };
        // A base that has grown since may tell more than what is shown of it.
        ranges = ranges.into_iter().map(|(o, l)| (o, o.saturating_add(l).min(base_end))).collect();
        let covering =
            self.pieces.range(..end).rev().take_while(|(start, piece)| *start + piece.len() > offset);
        ranges.extend(covering.map(|(&start, piece)| (start.max(offset), (start + piece.len()).min(end))));
        ranges.retain(|(start, end)| start < end);
        ranges.sort_unstable();
        Ok(merged(ranges.into_iter()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug)]
    struct Bytes(Vec<u8>);

    impl Backend for Bytes {
        fn len(&self) -> u64 {
            self.0.len() as u64
        }
        fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
            let from = instar_abi::to_usize(offset);
            into.copy_from_slice(self.0.get(from..from + into.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        }
        fn write_at(&self, _bytes: &[u8], _offset: u64) -> io::Result<()> {
            panic!("an overlay wrote to its base")
        }
        fn set_len(&self, _len: u64) -> io::Result<()> {
            panic!("an overlay resized its base")
        }
        fn sync(&self) -> io::Result<()> {
            Ok(())
        }
    }

    fn write(offset: u64, bytes: &[u8]) -> Write {
        Write { offset, bytes: bytes.into() }
    }

    fn all(backend: &dyn Backend) -> Vec<u8> {
        let mut bytes = vec![0; instar_abi::to_usize(backend.len())];
        backend.read_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn overlap_within_a_group_refused_after_a_barrier_allowed() {
        let mut overlay = Overlay::new(Arc::new(Bytes(b"0123456789".to_vec())), 100);
        overlay.stage(write(2, b"abcd")).unwrap();
        assert_eq!(overlay.stage(write(5, b"x")), Err(OverlayError::Overlap { offset: 5, len: 1 }));
        overlay.barrier();
        overlay.barrier();
        overlay.stage(write(3, b"XY")).unwrap();
        assert_eq!(all(&overlay), b"01aXYd6789");
    }

    #[test]
    fn limit_and_ranges_are_enforced_before_anything_changes() {
        let mut overlay = Overlay::new(Arc::new(Bytes(b"01".to_vec())), 3);
        assert_eq!(overlay.stage(write(0, b"abcd")), Err(OverlayError::Full { limit_bytes: 3 }));
        assert!(matches!(overlay.stage(write(u64::MAX, b"ab")), Err(OverlayError::Range { .. })));
        assert!(matches!(overlay.stage(write(0, b"")), Err(OverlayError::Range { .. })));
        assert_eq!(all(&overlay), b"01");
        assert_eq!(overlay.held_bytes(), 0);
    }

    #[test]
    fn write_past_the_end_grows_the_view_and_the_gap_reads_zero() {
        let mut overlay = Overlay::new(Arc::new(Bytes(b"ab".to_vec())), 100);
        overlay.stage(write(4, b"z")).unwrap();
        assert_eq!(all(&overlay), b"ab\0\0z");
        assert_eq!(overlay.data_ranges(0, 100).unwrap(), [(0, 2), (4, 1)]);
    }

    proptest! {
        #[test]
        fn overlay_reads_like_a_vector_that_was_written(
            base in proptest::collection::vec(any::<u8>(), 1..40),
            cut in 0u64..50,
            writes in proptest::collection::vec((0u64..60, proptest::collection::vec(any::<u8>(), 1..20)), 0..12),
            from in 0usize..40, len in 0usize..40,
        ) {
            let mut model = base.clone();
            model.resize(instar_abi::to_usize(cut), 0);
            let mut overlay = Overlay::with_len(Arc::new(Bytes(base)), cut, 10_000);
            for (offset, bytes) in writes {
                overlay.barrier();
                let at = instar_abi::to_usize(offset);
                model.resize(model.len().max(at + bytes.len()), 0);
                model[at..at + bytes.len()].copy_from_slice(&bytes);
                overlay.stage(write(offset, &bytes)).unwrap();
            }
            prop_assert_eq!(overlay.len(), model.len() as u64);
            let mut part = vec![0; len];
            let read = overlay.read_at(&mut part, from as u64);
            match model.get(from..from + len) {
                Some(expected) => { read.unwrap(); prop_assert_eq!(&part, expected); }
                None => prop_assert!(read.is_err()),
            }
            let told = overlay.data_ranges(0, u64::MAX).unwrap();
            prop_assert!(told.windows(2).all(|w| w[0].0 + w[0].1 < w[1].0));
        }
    }
}
