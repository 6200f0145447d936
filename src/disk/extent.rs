//! What guest bytes are made of, as checked and stored by the host.
//!
//! Invariant: every [`Run`] that [`checked`] returns lies within its file as long as the file does not
//! shrink, and a checked answer covers the range that was asked for, in order and without a gap.

use std::ops::Range;

use instar_abi::boot::FILE_IMAGE;
use instar_abi::extent::{Extent, ExtentKind};
use instar_abi::problem::Problem;
use thiserror::Error;

use super::source::Payload;

/// Most bytes that one compressed cluster can inflate to: the largest cluster of the format.
const COMPRESSED_GUEST_BYTES_MAX: u64 = 2 << 20;

/// What a run of guest bytes is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Bytes of a file, one for one.
    Data {
        /// File index.
        file: u8,
        /// Offset in that file of the run's first byte.
        offset: u64,
    },
    /// Zeros, by the metadata's word.
    Zero,
    /// Not allocated.
    Hole,
    /// A part of one compressed cluster.
    Compressed {
        /// Offset in the image of the compressed bytes.
        offset: u64,
        /// Compressed bytes.
        len: u32,
    },
    /// Cannot be told.
    Damaged(Problem),
    /// Encrypted.
    Encrypted,
}

/// A run of guest bytes made of one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// What it is made of. For data, `offset` is that of the byte that was asked for.
    pub place: Place,
    /// Guest bytes from the one that was asked for to the end of the run.
    pub len: u64,
}

/// A run that ends where its successor starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// First guest byte.
    pub start: u64,
    /// What it is made of, as seen from its first byte.
    pub place: Place,
}

// The cache's budget is spent on these.
const _: () = assert!(size_of::<Run>() == 24);

impl Place {
    /// The same place as seen from a guest byte that lies `skipped_bytes` further on in the run.
    fn skip(self, skipped_bytes: u64) -> Self {
        match self {
            Self::Data { file, offset } => Self::Data { file, offset: offset.saturating_add(skipped_bytes) },
            other => other,
        }
    }
}

impl From<Payload> for Place {
    fn from(payload: Payload) -> Self {
        Self::Compressed { offset: payload.offset, len: payload.len }
    }
}

impl Run {
    /// What guest byte `at`, which lies in the run, is made of.
    pub fn place_at(&self, at: u64) -> Place {
        self.place.skip(at.saturating_sub(self.start))
    }

    /// True if `next`, which starts where this run ends, is more of the same.
    pub fn continued_by(&self, next: &Self) -> bool {
        // Two compressed clusters never are one, even if they name the same bytes.
        !matches!(next.place, Place::Compressed { .. }) && self.place_at(next.start) == next.place
    }
}

/// How an answer of the source breaks the rules. None of these can come from a damaged image: they mean that the
/// source itself is wrong.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum AnswerError {
    /// The runs leave a gap, overlap or are not in order.
    #[error("extent starts at guest offset {got:#x}, expected {expected:#x}")]
    Order {
        /// Where the run starts.
        got: u64,
        /// Where its predecessor ended, or the request began.
        expected: u64,
    },
    /// The runs end before the request does.
    #[error("extents end at guest offset {got:#x}, the request at {expected:#x}")]
    Short {
        /// One past the last byte named.
        got: u64,
        /// One past the last byte asked for.
        expected: u64,
    },
    /// A run of no bytes, or one that runs over the end of the number space.
    #[error("extent at guest offset {guest_offset:#x} is {guest_len:#x} bytes long")]
    Length {
        /// First byte.
        guest_offset: u64,
        /// Bytes.
        guest_len: u64,
    },
    /// A kind, file or problem number that is not known.
    #[error("extent at guest offset {guest_offset:#x} has the unknown {what} {number}")]
    Unknown {
        /// First byte.
        guest_offset: u64,
        /// Which field.
        what: &'static str,
        /// Its value.
        number: u32,
    },
    /// A run outside of its file.
    #[error(
        "extent at guest offset {guest_offset:#x} names file bytes {offset:#x}+{len:#x}, the file ends at {end:#x}"
    )]
    OutOfFile {
        /// First guest byte.
        guest_offset: u64,
        /// First file byte.
        offset: u64,
        /// File bytes.
        len: u64,
        /// Length of the file in bytes.
        end: u64,
    },
}

/// Checks an answer to the request for `range` and cuts it to that range. `file_len` tells the length in bytes of
/// the file with an index, `None` where there is none.
///
/// # Errors
/// The first rule that the answer breaks.
pub(crate) fn checked(
    answer: &[Extent],
    range: Range<u64>,
    file_len: impl Fn(u32) -> Option<u64>,
) -> Result<Vec<Run>, AnswerError> {
    let mut runs: Vec<Run> = Vec::new();
    let mut expected = None;
    for extent in answer {
        let (start, len) = (extent.guest_offset, extent.guest_len);
        let end = start.checked_add(len).filter(|_| len > 0);
        let end = end.ok_or(AnswerError::Length { guest_offset: start, guest_len: len })?;
        let in_order = match expected {
            None => start <= range.start,
            Some(expected) => start == expected,
        };
        if !in_order {
            return Err(AnswerError::Order { got: start, expected: expected.unwrap_or(range.start) });
        }
        expected = Some(end);
        if end <= range.start || start >= range.end {
            continue;
        }
        push(&mut runs, Run { start, place: place(extent, &file_len)? }, range.start);
    }
    match expected {
        Some(end) if end >= range.end => Ok(runs),
        end => Err(AnswerError::Short { got: end.unwrap_or(range.start), expected: range.end }),
    }
}

/// Adds a run, cut to what lies at or behind `from`, to the runs before it.
fn push(runs: &mut Vec<Run>, run: Run, from: u64) {
    let start = run.start.max(from);
    let run = Run { start, place: run.place_at(start) };
    if !runs.last().is_some_and(|last| last.continued_by(&run)) {
        runs.push(run);
    }
}

/// Checks one extent by itself.
fn place(extent: &Extent, file_len: &impl Fn(u32) -> Option<u64>) -> Result<Place, AnswerError> {
    let guest_offset = extent.guest_offset;
    let unknown = |what, number| AnswerError::Unknown { guest_offset, what, number };
    let kind = ExtentKind::from_u32(extent.kind).ok_or(unknown("kind", extent.kind))?;
    Ok(match kind {
        ExtentKind::Zero => Place::Zero,
        ExtentKind::Hole => Place::Hole,
        ExtentKind::Encrypted => Place::Encrypted,
        ExtentKind::Damaged => {
            Place::Damaged(Problem::from_u32(extent.problem).ok_or(unknown("problem", extent.problem))?)
        }
        ExtentKind::Data => {
            Place::Data { file: in_file(extent, extent.guest_len, file_len)?, offset: extent.host_offset }
        }
        ExtentKind::Compressed => {
            let wrong = |guest_len| AnswerError::Length { guest_offset, guest_len };
            if extent.guest_len > COMPRESSED_GUEST_BYTES_MAX {
                return Err(wrong(extent.guest_len));
            }
            in_file(extent, extent.host_len, file_len)?;
            if extent.file != FILE_IMAGE {
                return Err(unknown("file", extent.file));
            }
            Place::Compressed {
                offset: extent.host_offset,
                len: u32::try_from(extent.host_len).map_err(|_| wrong(extent.host_len))?,
            }
        }
    })
}

/// Checks that `len` bytes from the extent's host offset on lie within its file, and returns the file's index.
fn in_file(extent: &Extent, len: u64, file_len: &impl Fn(u32) -> Option<u64>) -> Result<u8, AnswerError> {
    let unknown =
        AnswerError::Unknown { guest_offset: extent.guest_offset, what: "file", number: extent.file };
    let (Some(end), Ok(file)) = (file_len(extent.file), u8::try_from(extent.file)) else {
        return Err(unknown);
    };
    let last = extent.host_offset.checked_add(len);
    if last.is_none_or(|last| last > end) {
        let (guest_offset, offset) = (extent.guest_offset, extent.host_offset);
        return Err(AnswerError::OutOfFile { guest_offset, offset, len, end });
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE_BYTES: u64 = 0x10_0000;

    fn extent(kind: ExtentKind, guest_offset: u64, guest_len: u64, host_offset: u64) -> Extent {
        let host_len = if kind == ExtentKind::Data { guest_len } else { 0 };
        let problem = if kind == ExtentKind::Damaged { Problem::L2EntryPastEof as u32 } else { 0 };
        Extent {
            guest_offset,
            guest_len,
            host_offset,
            host_len,
            kind: kind as u32,
            file: 0,
            problem,
            reserved: 0,
        }
    }

    fn check(answer: &[Extent], range: Range<u64>) -> Result<Vec<Run>, AnswerError> {
        checked(answer, range, |file| (file == 0).then_some(FILE_BYTES))
    }

    #[test]
    fn answer_wider_than_the_request_is_cut_to_it() {
        let runs = check(&[extent(ExtentKind::Data, 0, 0x1000, 0x2000)], 0x200..0x400).unwrap();
        assert_eq!(runs.len(), 1);
        assert_eq!(runs[0].start, 0x200);
        assert_eq!(runs[0].place_at(0x300), Place::Data { file: 0, offset: 0x2300 });
    }

    #[test]
    fn answer_of_contiguous_data_is_merged() {
        let answer = [
            extent(ExtentKind::Data, 0, 0x1000, 0x2000),
            extent(ExtentKind::Data, 0x1000, 0x1000, 0x3000),
            extent(ExtentKind::Zero, 0x2000, 0x1000, 0),
        ];
        assert_eq!(check(&answer, 0..0x3000).unwrap().len(), 2);
    }

    #[test]
    fn answer_with_a_gap_is_refused() {
        let answer =
            [extent(ExtentKind::Data, 0, 0x1000, 0x2000), extent(ExtentKind::Hole, 0x2000, 0x1000, 0)];
        assert_eq!(check(&answer, 0..0x3000), Err(AnswerError::Order { got: 0x2000, expected: 0x1000 }));
    }

    #[test]
    fn answer_that_begins_late_or_ends_early_is_refused() {
        let answer = [extent(ExtentKind::Hole, 0x1000, 0x1000, 0)];
        assert_eq!(check(&answer, 0..0x1000), Err(AnswerError::Order { got: 0x1000, expected: 0 }));
        assert_eq!(check(&answer, 0x1000..0x3000), Err(AnswerError::Short { got: 0x2000, expected: 0x3000 }));
        assert_eq!(check(&[], 0..1), Err(AnswerError::Short { got: 0, expected: 1 }));
    }

    #[test]
    fn answer_outside_of_its_file_is_refused() {
        for offset in [FILE_BYTES, FILE_BYTES - 1, u64::MAX] {
            let answer = [extent(ExtentKind::Data, 0, 0x1000, offset)];
            assert!(matches!(check(&answer, 0..0x1000), Err(AnswerError::OutOfFile { .. })), "{offset:#x}");
        }
        let mut absent = extent(ExtentKind::Data, 0, 0x1000, 0);
        absent.file = 1;
        assert!(matches!(check(&[absent], 0..0x1000), Err(AnswerError::Unknown { what: "file", .. })));
    }

    #[test]
    fn answer_with_unknown_numbers_is_refused() {
        let mut kind = extent(ExtentKind::Hole, 0, 1, 0);
        kind.kind = 99;
        assert!(matches!(check(&[kind], 0..1), Err(AnswerError::Unknown { what: "kind", number: 99, .. })));
        let mut problem = extent(ExtentKind::Damaged, 0, 1, 0);
        problem.problem = 9999;
        assert!(matches!(check(&[problem], 0..1), Err(AnswerError::Unknown { what: "problem", .. })));
    }

    #[test]
    fn answer_of_empty_or_overflowing_runs_is_refused() {
        for (offset, len) in [(0, 0), (1, u64::MAX)] {
            let answer = [extent(ExtentKind::Hole, offset, len, 0)];
            assert!(matches!(check(&answer, 0..1), Err(AnswerError::Length { .. })));
        }
    }
}
