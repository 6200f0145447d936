//! What stands in a copy in place of names.
//!
//! Invariant: a name keeps its length, and two names of one kind are the same afterwards where they were the same
//! before: what a check says of names it says of their masks too.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use instar_abi::finding::Table;
use instar_abi::to_usize;

use crate::check::reader::{Bytes, Reader};
use crate::check::roots::{Image, Roots};
use crate::check::snapshots::hash;
use crate::describe::each_snapshot;
use crate::host::Host;
use crate::ondisk::bitmaps::{self, BitmapEntry};
use crate::ondisk::extensions::{
    BACKING_FORMAT, BITMAP_DIRECTORY_BYTES_MAX, BITMAPS, CRYPTO, DATA_FILE, FEATURE_TABLE,
};
use crate::ondisk::header::SNAPSHOTS_MAX;
use crate::ondisk::{Header, snapshots};

/// Bytes of the bitmap directory that are read at once.
const PIECE_BYTES: usize = 256 << 10;
/// Bytes of a snapshot's extra data that have a meaning.
const SNAPSHOT_EXTRA_BYTES: usize = 24;
/// Bytes of the encryption header that a check reads.
const MAGIC_BYTES: usize = 8;
/// Formats of backing files that name nothing but themselves.
const PLAIN_FORMATS: [&[u8]; 2] = [b"qcow2", b"raw"];
/// Numbers that a mask has to tell apart at most.
const NAMES_MAX: u64 = 65_536;
/// The characters that masks are made of.
const DIGITS: Range<u8> = b'a'..b'z' + 1;

/// Keeps of the encryption header what says that it is one; its keys stay where they are.
pub fn keep_crypto_magic<H: Host>(host: &mut H, reader: &mut Reader, image: &Image, offset: u64) {
    if offset == 0 || !image.header.cluster.is_aligned(offset) {
        return;
    }
    let mut magic = Vec::new();
    if let Bytes::Read(bytes) = reader.one(host, offset, MAGIC_BYTES) {
        magic.extend_from_slice(bytes);
    }
    if !magic.is_empty() {
        host.replace(offset, &magic);
    }
}

/// Replaces all names.
pub fn mask<H: Host>(host: &mut H, reader: &mut Reader, image: &Image, roots: &Roots) {
    mask_header(host, reader, image);
    mask_snapshots(host, image, roots);
    mask_bitmaps(host, reader, image);
}

fn mask_header<H: Host>(host: &mut H, reader: &mut Reader, image: &Image) {
    let header = &image.header;
    let len = u64::from(header.backing_len);
    if header.backing_offset != 0 && header.backing_offset.saturating_add(len) <= header.cluster.bytes() {
        replace_by_mask(host, image, header.backing_offset, to_usize(len), 0);
    }
    let first_cluster = match reader.one(host, 0, header.cluster.usize()) {
        Bytes::Read(bytes) => bytes.to_vec(),
        Bytes::Failed(_) => Vec::new(),
    };
    for (kind, place) in &image.extensions.seen {
        let (at, len) = (place.start as u64, place.len());
        match *kind {
            FEATURE_TABLE | BITMAPS | CRYPTO => {}
            BACKING_FORMAT
                if PLAIN_FORMATS.iter().any(|plain| first_cluster.get(place.clone()) == Some(*plain)) => {}
            BACKING_FORMAT | DATA_FILE => replace_by_mask(host, image, at, len, 0),
            // What an extension that is not known says is nobody's business.
            _ => replace(host, image, at, &vec![0; len]),
        }
    }
}

fn mask_snapshots<H: Host>(host: &mut H, image: &Image, roots: &Roots) {
    let Ok(Some(start)) = image.header.snapshot_table_offset(&image.bounds) else { return };
    let (mut at, mut ids, mut names) = (start, Masks::default(), Masks::default());
    // A count that is too large keeps nobody from finding the names that there are.
    let header = Header { snapshots: image.header.snapshots.min(SNAPSHOTS_MAX), ..image.header.clone() };
    let gone_through = each_snapshot(host, &header, |host, _, entry, bytes| {
        let place = |range: &Range<usize>| at.saturating_add(range.start as u64);
        let bytes_of = |range: &Range<usize>| bytes.get(range.clone()).unwrap_or(&[]);
        let extra = snapshots::FIXED_BYTES + SNAPSHOT_EXTRA_BYTES..entry.id.start;
        if !extra.is_empty() {
            replace(host, image, place(&extra), &vec![0; extra.len()]);
        }
        for (range, masks) in [(&entry.id, &mut ids), (&entry.name, &mut names)] {
            let number = masks.number(bytes_of(range));
            replace_by_mask(host, image, place(range), range.len(), number);
        }
        at = at.saturating_add(entry.len.next_multiple_of(8) as u64);
    });
    if gone_through.is_err() {
        // Where a check goes on behind an entry that says nothing, it may take names for anything.
        let table = roots.regions.iter().find(|region| region.table == Table::SnapshotTable);
        let end = table.map_or(0, |table| table.offset.saturating_add(table.len));
        clear(host, image, at.saturating_add(snapshots::FIXED_BYTES as u64)..end);
    }
}

fn mask_bitmaps<H: Host>(host: &mut H, reader: &mut Reader, image: &Image) {
    let Some(extension) = image.extensions.bitmaps else { return };
    let mut at = extension.directory_offset;
    let end = at.saturating_add(extension.directory_bytes.min(BITMAP_DIRECTORY_BYTES_MAX));
    let mut masks = Masks::default();
    let mut left = extension.bitmaps;
    while left > 0 && at < end {
        let len = PIECE_BYTES.min(to_usize(end - at));
        let piece = match reader.one(host, at, len) {
            Bytes::Read(bytes) => bytes.to_vec(),
            Bytes::Failed(_) => return,
        };
        let mut used = 0;
        while let Some(rest) = piece.get(used..).filter(|_| left > 0) {
            let Some(entry) = BitmapEntry::decode(rest) else { break };
            let place = at.saturating_add(used as u64);
            let extra = bitmaps::FIXED_BYTES..entry.name.start;
            if !extra.is_empty() {
                replace(host, image, place.saturating_add(extra.start as u64), &vec![0; extra.len()]);
            }
            let number = masks.number(rest.get(entry.name.clone()).unwrap_or(&[]));
            replace_by_mask(
                host,
                image,
                place.saturating_add(entry.name.start as u64),
                entry.name.len(),
                number,
            );
            used += entry.len;
            left -= 1;
        }
        if used == 0 {
            return;
        }
        at = at.saturating_add(used as u64);
    }
}

fn replace_by_mask<H: Host>(host: &mut H, image: &Image, at: u64, len: usize, number: u64) {
    replace(host, image, at, &mask_of(number, len));
}

/// Replaces a place by zeros.
fn clear<H: Host>(host: &mut H, image: &Image, place: Range<u64>) {
    let mut at = place.start;
    while at < place.end.min(image.bounds.len) {
        let len = PIECE_BYTES.min(to_usize(place.end - at));
        replace(host, image, at, &vec![0; len]);
        at = at.saturating_add(len as u64);
    }
}

/// Replaces what of a place is in the file.
fn replace<H: Host>(host: &mut H, image: &Image, at: u64, bytes: &[u8]) {
    let present = to_usize(image.bounds.present(at, bytes.len() as u64));
    if let Some(bytes) = bytes.get(..present).filter(|bytes| !bytes.is_empty()) {
        host.replace(at, bytes);
    }
}

/// Numbers the names of one kind.
#[derive(Debug, Default)]
struct Masks {
    /// By length and hash.
    numbers: BTreeMap<(usize, (u64, u64)), u64>,
    /// Different names of each length.
    by_len: BTreeMap<usize, u64>,
}

impl Masks {
    /// The number of a name among those of its length.
    fn number(&mut self, name: &[u8]) -> u64 {
        let next = self.by_len.entry(name.len()).or_default();
        *self.numbers.entry((name.len(), hash(name))).or_insert_with(|| {
            *next += 1;
            *next - 1
        })
    }
}

/// A mask of `len` bytes for a number: letters, where so many letters tell all numbers apart; else any bytes.
fn mask_of(number: u64, len: usize) -> Vec<u8> {
    let letters = u64::from(DIGITS.end - DIGITS.start);
    let enough = u32::try_from(len).ok().and_then(|len| letters.checked_pow(len));
    let base = if enough.is_none_or(|enough| enough >= NAMES_MAX) { letters } else { 256 };
    let mut rest = number;
    let mut mask = vec![DIGITS.start; len];
    for byte in mask.iter_mut().rev() {
        let digit = u8::try_from(rest % base).unwrap_or(0);
        *byte = DIGITS.start.wrapping_add(digit);
        rest /= base;
    }
    mask
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeSet;

    use super::*;

    #[test]
    fn masks_of_one_length_are_different_and_as_long_as_the_name() {
        for (len, numbers) in [(1, 256), (2, 60_000), (3, 60_000), (4, 60_000), (1023, 1000)] {
            let masks: BTreeSet<Vec<u8>> = (0..numbers).map(|number| mask_of(number, len)).collect();
            assert_eq!(masks.len() as u64, numbers, "{len}");
            assert!(masks.iter().all(|mask| mask.len() == len));
        }
        assert_eq!(mask_of(27, 6), b"aaaabb");
        assert_eq!(mask_of(7, 0), b"");
    }

    #[test]
    fn names_have_one_number_however_often_they_are_met() {
        let mut masks = Masks::default();
        let numbers = [&b"a"[..], b"bb", b"a", b"c", b""].map(|name| masks.number(name));
        assert_eq!(numbers, [0, 0, 0, 1, 0]);
    }
}
