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
use instar_abi::problem::{Problem, Problem as P};

use super::doubt::Doubt;
use super::drop::{self, DROPPED};
use super::lost_bitmaps::{self, LOST};
use super::marks::{Budget, Mark, Marks};
use super::round::Round;
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
    let chosen: Vec<&(u64, BitmapEntry)> = bitmaps.iter().filter(|(_, entry)| wants(entry)).collect();
    // Looked through before the first of them is touched.
    let mut budget = Budget::default();
    for (_, entry) in &chosen {
        let look = visit(round, &mut reader, (image, roots), entry, |_| true, |_, mark| budget.take(mark));
        if look.is_none() {
            return false;
        }
    }
    let mut marks = Marks::default();
    for (_, entry) in &chosen {
        let put = |round: &mut Round<'_, H>, mark| marks.put(round, mark);
        if visit(round, &mut reader, (image, roots), entry, |_| true, put).is_none() {
            return false;
        }
    }
    marks.flush(round);
    for (at, entry) in chosen.iter().filter(|(_, entry)| entry.flags & FLAG_IN_USE != 0) {
        let flags = entry.flags & !FLAG_IN_USE;
        marks.put(round, Mark::Flags { at: at.saturating_add(12), flags });
    }
    marks.flush(round);
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

/// Hands over what makes the bits below those entries ones that `wants` picks, until `take` has enough; `None` where the
/// bitmap is not sound. An entry that leads to nothing becomes one of all ones.
pub fn visit<H: Host>(
    host: &mut H,
    reader: &mut Reader,
    (image, roots): (&Image, &Roots),
    entry: &BitmapEntry,
    wants: impl Fn(BitmapTableEntry) -> bool,
    mut take: impl FnMut(&mut H, Mark) -> bool,
) -> Option<()> {
    let cluster = image.header.cluster;
    let bits = bits(image, entry)?;
    let table_bytes = u64::from(entry.table_entries) * 8;
    if entry.table_offset == 0 || image.bounds.position(entry.table_offset) != Position::Inside {
        return None;
    }
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
            let mark = if let Data::At(offset) = data(image, roots, raw) {
                if raw.reserved() != 0 && !take(host, Mark::Entry { at: place, raw: offset }) {
                    return Some(());
                }
                let from = index.checked_mul(cluster.bytes() * 8)?;
                if image.bounds.present(offset, cluster.bytes()) != cluster.bytes() {
                    return None;
                }
                Mark::Ones { at: offset, len: cluster.usize(), bits: bits.saturating_sub(from) }
            } else {
                Mark::Entry { at: place, raw: ALL_ONES }
            };
            if !take(host, mark) {
                return Some(());
            }
        }
        at += len as u64;
    }
    Some(())
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
