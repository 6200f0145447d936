//! Reads many places of the image in few large vectored calls.
//!
//! Places that touch each other become one range. Bytes past the end of the file are not asked for: a place
//! comes back as short as it is in the file, and what is missing reads as zeros by the format's custom.

use alloc::vec::Vec;

use instar_abi::boot::FILE_IMAGE;

use super::holes::Holes;
use crate::host::{Host, Range};

/// Most bytes of one batch: a cluster of the largest size, and little enough to stay in a processor's cache
/// between being read and being looked at.
pub const BATCH_BYTES: usize = 2 << 20;
/// Most ranges of one batch.
const BATCH_RANGES_MAX: usize = 4096;
/// Bytes of a table from which on its holes are asked for.
const HOLE_BYTES_MIN: u64 = 64 << 10;

/// What came of one place.
#[derive(Debug, Clone, Copy)]
pub enum Bytes<'a> {
    /// The place's bytes, shorter where the file ends within it.
    Read(&'a [u8]),
    /// The storage failed with this errno.
    Failed(u32),
}

/// A batch reader for the image file.
#[derive(Debug)]
pub struct Reader {
    file_len: u64,
    buffer: Vec<u8>,
    ranges: Vec<Range>,
    holes: Holes,
    bytes_read: u64,
}

impl Reader {
    /// A reader of a file of `file_len` bytes.
    #[must_use]
    pub const fn new(file_len: u64) -> Self {
        let holes = Holes::new(file_len);
        Self { file_len, buffer: Vec::new(), ranges: Vec::new(), holes, bytes_read: 0 }
    }

    /// Bytes read so far.
    #[must_use]
    pub const fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// Bytes of a place that are in the file.
    fn present(&self, offset: u64, len: usize) -> usize {
        instar_abi::to_usize(self.file_len.saturating_sub(offset).min(len as u64))
    }

    /// Reads as many of the places `(offset, len)` as fit a batch, from the first on, and hands each to `take`
    /// by its position. Says how many that were: at least one unless there are none.
    pub fn batch<H: Host>(
        &mut self,
        host: &mut H,
        places: impl Iterator<Item = (u64, usize)> + Clone,
        mut take: impl FnMut(usize, Bytes<'_>),
    ) -> usize {
        self.batch_in_turn(host, places, |_, position, bytes| take(position, bytes))
    }

    /// The same, for a `take` that has something to say to the host in between.
    pub fn batch_in_turn<H: Host>(
        &mut self,
        host: &mut H,
        places: impl Iterator<Item = (u64, usize)> + Clone,
        mut take: impl FnMut(&mut H, usize, Bytes<'_>),
    ) -> usize {
        let taken = self.fill(host, places.clone());
        let mut slot = Slot::default();
        for (position, (offset, len)) in places.take(taken).enumerate() {
            let present = self.present(offset, len);
            if present == 0 {
                take(host, position, Bytes::Read(&[]));
                continue;
            }
            let (error, start) = slot.find(&self.ranges, offset, present as u64);
            if error == 0 {
                let bytes = self.buffer.get(start..start.saturating_add(present)).unwrap_or(&[]);
                take(host, position, Bytes::Read(bytes));
            } else {
                take(host, position, Bytes::Failed(error));
            }
        }
        taken
    }

    /// The first entry from `first` on that is worth reading, of a table of `entries` entries of 8 bytes; entries
    /// in a hole of the file are zeros. May be `entries`. Small tables are not asked about: reading is cheaper.
    pub fn skip_hole<H: Host>(&mut self, host: &mut H, table: u64, first: u64, entries: u64) -> u64 {
        let (at, len) = (table.saturating_add(first * 8), entries.saturating_sub(first) * 8);
        if len < HOLE_BYTES_MIN {
            return first;
        }
        let data = self.holes.data_from(host, at, at.saturating_add(len)).saturating_sub(at);
        first.saturating_add(data / 8).min(entries)
    }

    /// Whether a place is a hole of the file, or past its end, as a whole.
    pub fn is_hole<H: Host>(&mut self, host: &mut H, offset: u64, len: usize) -> bool {
        let end = offset.saturating_add(len as u64);
        self.holes.data_from(host, offset, end) == end
    }

    /// Reads one place as one buffer; at most [`BATCH_BYTES`] bytes of it.
    pub fn one<H: Host>(&mut self, host: &mut H, offset: u64, len: usize) -> Bytes<'_> {
        let len = len.min(BATCH_BYTES);
        self.fill(host, core::iter::once((offset, len)));
        match self.ranges.first() {
            None => Bytes::Read(&[]),
            Some(range) if range.error != 0 => Bytes::Failed(range.error),
            Some(range) => Bytes::Read(self.buffer.get(..range.len).unwrap_or(&[])),
        }
    }

    /// Reads a batch into the buffer. A range that fails is read again place by place, so that a bad sector
    /// costs no more than the place that it is in.
    fn fill<H: Host>(&mut self, host: &mut H, places: impl Iterator<Item = (u64, usize)> + Clone) -> usize {
        let taken = self.gather(places.clone(), true);
        self.transfer(host);
        if self.ranges.iter().any(|range| range.error != 0) {
            self.gather(places.take(taken), false);
            self.transfer(host);
        }
        taken
    }

    fn gather(&mut self, places: impl Iterator<Item = (u64, usize)>, merge: bool) -> usize {
        self.ranges.clear();
        let (mut taken, mut total) = (0, 0_usize);
        for (offset, len) in places {
            let present = self.present(offset, len);
            if taken > 0 && total.saturating_add(present) > BATCH_BYTES {
                break;
            }
            taken += 1;
            total = total.saturating_add(present);
            if present == 0 {
                continue;
            }
            if let Some(last) = self.ranges.last_mut()
                && merge
                && last.offset + last.len as u64 == offset
            {
                last.len += present;
            } else if merge && self.ranges.len() == BATCH_RANGES_MAX {
                taken -= 1;
                break;
            } else {
                self.ranges.push(Range { offset, len: present, file: FILE_IMAGE, error: 0 });
            }
        }
        taken
    }

    fn transfer<H: Host>(&mut self, host: &mut H) {
        let total = self.ranges.iter().map(|range| range.len).sum();
        if self.buffer.len() < total {
            self.buffer.resize(total, 0);
        }
        let Some(into) = self.buffer.get_mut(..total) else { return };
        if total > 0 {
            host.read(&mut self.ranges, into);
            self.bytes_read += total as u64;
        }
    }
}

/// Finds places in the ranges of a batch; both are in the same order.
#[derive(Debug, Default)]
struct Slot {
    range: usize,
    start: usize,
}

impl Slot {
    /// Error and position in the buffer of the place of `len` bytes at `offset`. Places may overlap, as the
    /// payloads of compressed clusters do: a range is a place's only if it holds all of it.
    fn find(&mut self, ranges: &[Range], offset: u64, len: u64) -> (u32, usize) {
        while let Some(range) = ranges.get(self.range) {
            let end = range.offset.saturating_add(range.len as u64);
            if offset >= range.offset && offset.saturating_add(len) <= end {
                return (range.error, self.start + instar_abi::to_usize(offset - range.offset));
            }
            self.range += 1;
            self.start += range.len;
        }
        (0, self.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(offset: u64, len: usize) -> Range {
        Range { offset, len, file: FILE_IMAGE, error: 0 }
    }

    #[test]
    fn overlapping_places_are_found_each_in_a_range_that_holds_it() {
        let ranges = [range(100, 50), range(140, 50), range(10, 5)];
        let mut slot = Slot::default();
        assert_eq!(slot.find(&ranges, 100, 50), (0, 0));
        assert_eq!(slot.find(&ranges, 140, 50), (0, 50));
        assert_eq!(slot.find(&ranges, 10, 5), (0, 100));
    }

    #[test]
    fn touching_places_become_one_range_and_the_file_end_cuts_them() {
        let mut reader = Reader::new(1000);
        let taken = reader.gather([(0, 512), (512, 512), (5000, 512)].into_iter(), true);
        assert_eq!((taken, reader.ranges.as_slice()), (3, &[range(0, 1000)][..]));
    }
}
