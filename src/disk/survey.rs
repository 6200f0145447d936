//! What is known of a disk as a whole: how much of it is data, and where it is damaged.
//!
//! Invariant: a survey asks for extents only and reads no guest data, so that a compressed cluster counts as damaged
//! only once a read has found it so. It is bounded by [`STEPS_MAX`], and says how far it came.

use std::ops::Range;

use super::pieces::Nature;
use super::view::Disk;

/// Pieces that a survey looks at.
const STEPS_MAX: usize = 1 << 18;

/// What a survey found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Survey {
    /// Bytes that are data, damaged ones included.
    pub data_bytes: u64,
    /// Damaged guest ranges, in order, apart from each other.
    pub damaged: Vec<Range<u64>>,
    /// Guest bytes that were looked at, from 0 on.
    pub seen_bytes: u64,
}

impl Disk {
    /// Goes through all extents of the disk, and of those below it where it has nothing allocated.
    #[must_use]
    pub fn survey(&self) -> Survey {
        let mut survey = Survey::default();
        for _ in 0..STEPS_MAX {
            let at = survey.seen_bytes;
            if at >= self.size_bytes() {
                break;
            }
            let Ok((nature, len)) = self.nature(at) else { break };
            let end = at.saturating_add(len.max(1)).min(self.size_bytes());
            if nature != Nature::Zeros {
                survey.data_bytes += end - at;
            }
            if nature == Nature::Damaged {
                push(&mut survey.damaged, at..end);
            }
            survey.seen_bytes = end;
        }
        survey
    }

    /// [`Survey::data_bytes`], found once; all of the disk where the survey did not come to its end.
    pub fn data_bytes(&self) -> u64 {
        *self.data_bytes.get_or_init(|| {
            let survey = self.survey();
            if survey.seen_bytes < self.size_bytes() { self.size_bytes() } else { survey.data_bytes }
        })
    }
}

/// Adds a range behind those that are there.
fn push(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
        _ => ranges.push(range),
    }
}

/// Ranges in any order as ranges in order that are apart from each other.
#[must_use]
pub fn merged(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut merged = Vec::new();
    for range in ranges {
        push(&mut merged, range);
    }
    merged
}
