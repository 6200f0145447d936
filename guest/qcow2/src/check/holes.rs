//! Which parts of the image file are holes, learned by large stretches and remembered.
//!
//! Tens of thousands of tables may lie in one hole; asking for each would cost more than looking.
//!
//! Invariant: what is called a hole is one. What is not remembered for lack of room is asked for anew, and a
//! stretch with many small holes may be called data as a whole.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use instar_abi::boot::FILE_IMAGE;
use instar_abi::call::DataRange;

use crate::host::Host;

/// Bytes of the file that are asked for at once.
const STRETCH_BYTES: u64 = 1 << 30;
/// Ranges of data that are remembered of one stretch; the last one then reaches to its end.
const STRETCH_RANGES_MAX: usize = 256;
/// Ranges that are remembered in all; a stretch that is a hole counts as one.
const RANGES_MAX: usize = 16_384;

/// The holes of a file of `file_len` bytes.
#[derive(Debug)]
pub struct Holes {
    file_len: u64,
    stretches: BTreeMap<u64, Vec<DataRange>>,
    remembered: usize,
    answer: Vec<DataRange>,
}

impl Holes {
    /// Nothing is known yet.
    #[must_use]
    pub const fn new(file_len: u64) -> Self {
        Self { file_len, stretches: BTreeMap::new(), remembered: 0, answer: Vec::new() }
    }

    /// The first byte of a range that may hold data; `end` where all of it is a hole or past the end of the file.
    pub fn data_from<H: Host>(&mut self, host: &mut H, start: u64, end: u64) -> u64 {
        let mut at = start;
        while at < end.min(self.file_len) {
            let stretch = at / STRETCH_BYTES;
            if !self.stretches.contains_key(&stretch) && self.remembered >= RANGES_MAX {
                self.ask(host, at, end);
                return self.answer.first().map_or(end, |range| range.offset.clamp(at, end));
            }
            let known = self.learn(host, stretch);
            let next = known.partition_point(|range| range.offset.saturating_add(range.len) <= at);
            if let Some(range) = known.get(next) {
                return range.offset.clamp(at, end);
            }
            at = (stretch + 1).saturating_mul(STRETCH_BYTES);
        }
        end
    }

    fn ask<H: Host>(&mut self, host: &mut H, start: u64, end: u64) {
        self.answer.clear();
        let len = end.min(self.file_len).saturating_sub(start);
        if len > 0 {
            host.data_ranges(FILE_IMAGE, start, len, &mut self.answer);
        }
    }

    fn learn<H: Host>(&mut self, host: &mut H, stretch: u64) -> &[DataRange] {
        if !self.stretches.contains_key(&stretch) {
            let start = stretch * STRETCH_BYTES;
            let end = start.saturating_add(STRETCH_BYTES);
            self.ask(host, start, end);
            let mut ranges: Vec<DataRange> = self.answer.iter().take(STRETCH_RANGES_MAX).copied().collect();
            if let (true, Some(last)) = (self.answer.len() > STRETCH_RANGES_MAX, ranges.last_mut()) {
                last.len = end - last.offset;
            }
            self.remembered += ranges.len().max(1);
            self.stretches.insert(stretch, ranges);
        }
        self.stretches.get(&stretch).map_or(&[], Vec::as_slice)
    }
}
