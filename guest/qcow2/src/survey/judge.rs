//! Whether a table reads like one: what does not may be somebody's data.
//!
//! Invariant: single bad entries never speak against a table, since they are what a check is there to find; only
//! where most of what a table holds breaks the format by itself is it taken for something else.

use crate::check::roots::{Image, words};
use crate::ondisk::bitmaps::BitmapTableEntry;
use crate::ondisk::l1::L1Entry;
use crate::ondisk::l2::Mapping;
use crate::ondisk::refcount::RefcountTableEntry;

/// Bad entries below which nothing is said against a table.
const BAD_MIN: usize = 8;
/// Reference counts above this are not expected in an image.
const COUNT_MAX: u64 = 4096;
/// Widths below this hold counts that any byte could be.
const TELLING_BITS: u32 = 16;

/// Whether most of what these entries say is impossible. `None` is for an entry that says nothing.
fn is_mostly_bad(entries: impl Iterator<Item = Option<bool>>) -> bool {
    let (mut bad, mut used) = (0, 0);
    for is_good in entries.flatten() {
        used += 1;
        bad += usize::from(!is_good);
    }
    bad >= BAD_MIN && bad * 2 > used
}

/// Whether these are no pointers, whose reserved bits and offset `parts` gives.
fn are_no_pointers(image: &Image, bytes: &[u8], parts: impl Fn(u64) -> (u64, u64)) -> bool {
    is_mostly_bad(words(bytes).map(|raw| {
        let (reserved, offset) = parts(raw);
        (raw != 0).then_some(reserved == 0 && image.header.cluster.is_aligned(offset))
    }))
}

/// Whether this is no part of an L1 table.
pub fn is_no_l1(image: &Image, bytes: &[u8]) -> bool {
    are_no_pointers(image, bytes, |raw| (L1Entry(raw).reserved(), L1Entry(raw).l2_offset()))
}

/// Whether this is no part of a refcount table.
pub fn is_no_refcount_table(image: &Image, bytes: &[u8]) -> bool {
    let parts = |raw| (RefcountTableEntry(raw).reserved(), RefcountTableEntry(raw).block_offset());
    are_no_pointers(image, bytes, parts)
}

/// Whether this is no part of a bitmap's table.
pub fn is_no_bitmap_table(image: &Image, bytes: &[u8]) -> bool {
    are_no_pointers(image, bytes, |raw| {
        (BitmapTableEntry(raw).reserved(), BitmapTableEntry(raw).data_offset())
    })
}

/// Whether this is no L2 table.
pub fn is_no_l2(image: &Image, bytes: &[u8]) -> bool {
    let format = &image.format;
    let entries = (0..bytes.len() / format.entry_bytes()).map(|index| format.entry(bytes, index));
    is_mostly_bad(entries.map(|entry| {
        let (mapping, faults) = entry.decode(format);
        // Any bytes are a compressed cluster somewhere.
        let is_far = matches!(mapping, Mapping::Compressed { host, .. } if host >= image.bounds.len);
        (entry.raw != 0 || entry.bitmap != 0).then_some(faults.is_empty() && !is_far)
    }))
}

/// Whether this is no refcount block.
pub fn is_no_block(image: &Image, bytes: &[u8]) -> bool {
    let width = image.header.refcount_width;
    let counts = instar_abi::to_usize(width.per_block(image.header.cluster));
    width.bits() >= TELLING_BITS
        && is_mostly_bad((0..counts).map(|at| {
            let count = width.get(bytes, at).unwrap_or(0);
            (count != 0).then_some(count <= COUNT_MAX)
        }))
}
