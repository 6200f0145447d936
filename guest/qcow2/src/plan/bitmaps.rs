//! `DirtyBitmaps`: marks all of a bitmap that cannot be trusted as dirty, so that the next backup copies everything.
//! What bitmaps have lost comes first (`lost_bitmaps`).
//!
//! A bitmap is in use where it was not saved; all of them are not to be trusted where the header says that a
//! program without bitmap support wrote to the image. Marking is done in place: the bitmap's data clusters become
//! ones up to the disk's end, table entries without a cluster become entries of all ones, and the flag goes last.
//! No cluster is taken or given back.
//!
//! Invariant: a bitmap is marked as a whole or not at all, and only where its description, its table and every
//! entry of the table are sound and nothing else uses its clusters.
//!
//! The user may decide to drop all bitmaps instead.

use alloc::vec::Vec;

use instar_abi::choice::Decision;
use instar_abi::cure::Cure;
use instar_abi::problem::{Problem, Problem as P};

use super::doubt::Doubt;
use super::drop::{self, DROPPED};
use super::lost_bitmaps::{self, LOST};
use super::round::{Proposal, Round, push};
use crate::check::Checked;
use crate::check::bitmaps::{Data, data};
use crate::check::reader::{Bytes, Reader};
use crate::check::roots::{Image, Roots, words};
use crate::host::Host;
use crate::ondisk::bitmaps::{
    BitmapEntry, BitmapTableEntry, FLAG_EXTRA_DATA_COMPATIBLE, FLAG_IN_USE, FLAGS_KNOWN, TABLE_ENTRIES_MAX,
    TYPE_DIRTY,
};
use crate::ondisk::header::autoclear;
use crate::ondisk::units::Position;

/// Bytes of bitmap data that are written at most in one round.
pub const DATA_BYTES_MAX: u64 = 256 << 20;
/// What a write counts as at least in this: it takes memory of its own.
const WRITE_BYTES_MIN: u64 = 64;
/// Bytes of the directory that are read at once.
const PIECE_BYTES: usize = 256 << 10;
/// The table entry of a part that is dirty as a whole and has no data cluster.
pub const ALL_ONES: u64 = 1;
/// Findings that say that some bitmap's clusters are not known or not its own.
pub const UNSOUND: &[Problem] = &[
    P::BitmapDirectory,
    P::BitmapTable,
    P::BitmapOverlap,
    P::ExtensionBitmaps,
    P::MetadataOverlap,
    P::L1EntryOverlap,
    P::L2EntryOverlapsMetadata,
    P::CompressedOverlapsMetadata,
    P::RefcountBlockShared,
];
/// What is to become of the header's bitmaps bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// It stays.
    AsBefore,
    /// The bitmaps can be trusted.
    Set,
    /// There are none.
    Clear,
}

/// Proposes the steps; the header's bitmaps bit is left to the caller.
pub fn propose<H: Host>(round: &mut Round<'_, H>, checked: &Checked, doubt: &Doubt) -> Trust {
    let Some(image) = &checked.image else { return Trust::AsBefore };
    if doubt.is_decided(Decision::DropBitmaps) && checked.problems.has_any(DROPPED) {
        return if doubt.are_alone(DROPPED) { drop::propose(round, image, checked) } else { Trust::AsBefore };
    }
    if checked.problems.has_any(UNSOUND) || image.extensions.bitmaps.is_none() || image.header.version < 3 {
        return Trust::AsBefore;
    }
    if checked.problems.has_any(LOST) {
        lost_bitmaps::propose(round, image, checked, doubt);
        return Trust::AsBefore;
    }
    let roots = &checked.roots;
    if image.header.autoclear & autoclear::BITMAPS != 0 {
        let is_wanted = |entry: &BitmapEntry| entry.flags & FLAG_IN_USE != 0;
        if checked.problems.has(P::BitmapInUse) && mark(round, image, roots, is_wanted) {
            return Trust::AsBefore;
        }
    } else if doubt.may_mend(P::AutoclearBitmaps)
        && !checked.problems.has(P::BitmapEntry)
        && mark(round, image, roots, |_| true)
    {
        return Trust::Set;
    }
    Trust::AsBefore
}

/// Marks the bitmaps that `wants` picks. False where one of them is not sound; nothing is proposed then.
fn mark<H: Host>(
    round: &mut Round<'_, H>,
    image: &Image,
    roots: &Roots,
    wants: impl Fn(&BitmapEntry) -> bool,
) -> bool {
    let mut reader = Reader::new(image.bounds.len);
    let Some(bitmaps) = directory(round.host, &mut reader, image) else { return false };
    let mut left = DATA_BYTES_MAX;
    let (mut writes, mut flags): (Vec<Proposal>, Vec<Proposal>) = (Vec::new(), Vec::new());
    for (at, entry) in bitmaps.iter().filter(|(_, entry)| wants(entry)) {
        if bits(image, entry).is_none() {
            return false;
        }
        let (host, all) = (&mut *round.host, |_| true);
        let Some(marked) = marked(host, &mut reader, (image, roots), entry, &mut left, all) else {
            return false;
        };
        writes.extend(marked);
        if entry.flags & FLAG_IN_USE != 0 {
            flags.push((at.saturating_add(12), (entry.flags & !FLAG_IN_USE).to_be_bytes().to_vec()));
        }
    }
    round.writes(Cure::DirtyBitmaps, &writes);
    round.writes(Cure::DirtyBitmaps, &flags);
    true
}

/// The directory's entries with their byte offsets; `None` where it cannot be read as a whole.
pub fn directory<H: Host>(
    host: &mut H,
    reader: &mut Reader,
    image: &Image,
) -> Option<Vec<(u64, BitmapEntry)>> {
    let extension = image.extensions.bitmaps?;
    let mut at = extension.directory_offset;
    let mut found = Vec::new();
    while (found.len() as u64) < u64::from(extension.bitmaps) {
        let Bytes::Read(bytes) = reader.one(host, at, PIECE_BYTES) else { return None };
        let (mut used, before) = (0, found.len());
        while (found.len() as u64) < u64::from(extension.bitmaps)
            && let Some(entry) = bytes.get(used..).and_then(BitmapEntry::decode)
        {
            let len = entry.len;
            found.push((at + used as u64, entry));
            used += len;
        }
        at = at.checked_add(used as u64)?;
        if found.len() == before {
            return None;
        }
    }
    Some(found)
}

/// The writes that make the bits below those entries ones that `wants` picks; `None` where the bitmap is not sound, or
/// more than `left` bytes would be written. An entry that leads to nothing becomes one of all ones.
pub fn marked<H: Host>(
    host: &mut H,
    reader: &mut Reader,
    (image, roots): (&Image, &Roots),
    entry: &BitmapEntry,
    left: &mut u64,
    wants: impl Fn(BitmapTableEntry) -> bool,
) -> Option<Vec<Proposal>> {
    let cluster = image.header.cluster;
    let table_bytes = u64::from(entry.table_entries) * 8;
    if entry.table_offset == 0 || image.bounds.position(entry.table_offset) != Position::Inside {
        return None;
    }
    let mut writes: Vec<Proposal> = Vec::new();
    let mut at = 0;
    while at < table_bytes {
        let place = entry.table_offset.checked_add(at)?;
        let len = instar_abi::to_usize((table_bytes - at).min(PIECE_BYTES as u64));
        let Bytes::Read(bytes) = reader.one(host, place, len) else { return None };
        if bytes.len() != len {
            return None;
        }
        let entries = (at / 8..).zip(words(bytes)).map(|(index, raw)| (index, BitmapTableEntry(raw)));
        for (index, raw) in entries.filter(|(_, raw)| wants(*raw)) {
            let place = entry.table_offset + index * 8;
            let write = if let Data::At(offset) = data(image, roots, raw) {
                if raw.reserved() != 0 {
                    push(&mut writes, (place, offset.to_be_bytes().to_vec()));
                }
                let bits = bits(image, entry)?;
                let is_whole = image.bounds.present(offset, cluster.bytes()) == cluster.bytes();
                let from = index.checked_mul(cluster.bytes() * 8)?;
                if !is_whole {
                    return None;
                }
                (offset, ones(cluster.usize(), bits.saturating_sub(from)))
            } else {
                (place, ALL_ONES.to_be_bytes().to_vec())
            };
            *left = left.checked_sub(WRITE_BYTES_MIN.max(write.1.len() as u64))?;
            push(&mut writes, write);
        }
        at += len as u64;
    }
    Some(writes)
}

/// How many bits a bitmap has; `None` where its description or its table's size is not sound.
pub fn bits(image: &Image, entry: &BitmapEntry) -> Option<u64> {
    let bytes = entry.data_bytes_needed(image.header.virtual_size)?;
    let has_known_extra = entry.extra_bytes == 0 || entry.flags & FLAG_EXTRA_DATA_COMPATIBLE != 0;
    let is_sound = entry.kind == TYPE_DIRTY
        && entry.flags & !FLAGS_KNOWN == 0
        && has_known_extra
        && entry.table_entries <= TABLE_ENTRIES_MAX
        && u64::from(entry.table_entries) == image.header.cluster.count(bytes);
    is_sound.then(|| image.header.virtual_size.div_ceil(1 << entry.granularity_bits))
}

/// `len` bytes of which the first `bits` bits are ones, from the least significant of each byte up.
fn ones(len: usize, bits: u64) -> Vec<u8> {
    let mut bytes = alloc::vec![0_u8; len];
    let whole = instar_abi::to_usize((bits / 8).min(len as u64));
    if let Some(full) = bytes.get_mut(..whole) {
        full.fill(0xff);
    }
    if let Some(last) = bytes.get_mut(whole) {
        *last = (1 << (bits % 8)) - 1;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ones_end_with_the_last_bit() {
        assert_eq!(ones(4, 11), [0xff, 0x07, 0, 0]);
        assert_eq!(ones(2, 16), [0xff, 0xff]);
        assert_eq!(ones(2, 1 << 40), [0xff, 0xff]);
        assert_eq!(ones(2, 0), [0, 0]);
    }
}
