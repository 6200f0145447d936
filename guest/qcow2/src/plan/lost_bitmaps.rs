//! `DirtyBitmaps` of what bitmaps have lost: the part that cannot be known any more is marked as dirty.
//!
//! * A table entry that leads to nothing that a bitmap can have becomes one of all ones, in place. One that has reserved
//!   bits only loses them, and its cluster becomes ones.
//! * A bitmap whose table cannot be found gets one of all ones at the end of the file. So does one whose table is that of
//!   an earlier bitmap; the earlier one, which may not be the owner either, is marked as a whole where it stands.
//!
//! What the bitmaps had is not looked for: all that it could say is that less has to be copied. It is told as
//! `orphan-bitmap`, and freed in the same round with what leaked before: no bitmap misses anything then.
//!
//! Invariant: all of it is mended in one round or nothing is, so that no pointer past the end of the file is left when it
//! grows. A bitmap whose description is not sound keeps all of them as they are.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use instar_abi::cure::Cure;
use instar_abi::problem::{Problem, Problem as P};

use super::bitmaps::{ALL_ONES, bits, directory, visit};
use super::doubt::Doubt;
use super::leaks;
use super::marks::{Budget, Mark, Marks};
use super::round::Round;
use crate::check::Checked;
use crate::check::bitmaps::{Data, data};
use crate::check::reader::Reader;
use crate::check::roots::{Image, Roots};
use crate::host::Host;
use crate::ondisk::bitmaps::{BitmapEntry, BitmapTableEntry};
use crate::ondisk::units::Position;

/// Findings that say that bitmaps have lost something.
pub const LOST: &[Problem] = &[P::BitmapTableEntry, P::BitmapTableOffset, P::BitmapTableShared];

/// Bytes of a new table that are written at once.
const PIECE_BYTES: u64 = 256 << 10;

/// What becomes of a bitmap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Its table stays, with what it lost marked.
    Mended,
    /// Its table stays, and all of it is marked.
    Marked,
    /// It gets a new table.
    Renewed,
}

/// What is to be mended.
struct Work<'a> {
    image: &'a Image,
    roots: &'a Roots,
    /// The bitmaps, by their place in the directory, and what becomes of each.
    bitmaps: Vec<(u64, BitmapEntry, Fate)>,
}

/// Proposes the steps, where every bitmap can be mended.
pub fn propose<H: Host>(round: &mut Round<'_, H>, image: &Image, checked: &Checked, doubt: &Doubt) {
    let found = LOST.iter().filter(|problem| checked.problems.has(**problem));
    if !found.into_iter().all(|problem| doubt.may_mend(*problem)) {
        return;
    }
    let mut reader = Reader::new(image.bounds.len);
    let Some(bitmaps) = directory(round.host, &mut reader, image) else { return };
    let fates = fates(image, &bitmaps);
    let bitmaps = bitmaps.into_iter().zip(fates).map(|((at, entry), fate)| (at, entry, fate)).collect();
    let work = Work { image, roots: &checked.roots, bitmaps };
    let grows = work.bitmaps.iter().any(|(_, _, fate)| *fate == Fate::Renewed);
    // Looked through before the first of them is touched.
    let mut budget = Budget::default();
    let is_sound = work.renew(|mark| budget.take(mark)).is_some()
        && work.mend(round, &mut reader, |_, mark| budget.take(mark)).is_some();
    if !is_sound || (grows && !doubt.may_grow_beside(LOST)) {
        return;
    }
    let mut marks = Marks::default();
    if work.renew(|mark| marks.put(round, mark)).is_none() {
        return;
    }
    marks.flush(round);
    if work.mend(round, &mut reader, |round, mark| marks.put(round, mark)).is_none() {
        return;
    }
    marks.flush(round);
    work.switch(|mark| marks.put(round, mark));
    marks.flush(round);
    leaks::propose_left(round, checked, Cure::FreeLeaks, &checked.lost_by_bitmaps);
}

impl Work<'_> {
    /// What makes ones of all that the bitmaps have lost, until `take` has enough; `None` where one of them cannot be
    /// mended.
    fn mend<H: Host>(
        &self,
        host: &mut H,
        reader: &mut Reader,
        mut take: impl FnMut(&mut H, Mark) -> bool,
    ) -> Option<()> {
        for (_, entry, fate) in self.bitmaps.iter().filter(|(_, _, fate)| *fate != Fate::Renewed) {
            let places = (self.image, self.roots);
            let wants = |raw: BitmapTableEntry| {
                let is_lost = data(places.0, places.1, raw) == Data::Lost || raw.reserved() != 0;
                *fate == Fate::Marked || is_lost
            };
            visit(host, reader, places, entry, wants, &mut take)?;
        }
        Some(())
    }

    /// Where the bitmaps that get a new table have it at the end of the file: place of the directory entry, place and
    /// bytes of the table, entries.
    fn tables(&self) -> impl Iterator<Item = Option<(u64, u64, u64, u64)>> {
        let cluster = self.image.header.cluster;
        let mut end = Some(cluster.offset(self.image.bounds.clusters()));
        let renewed = self.bitmaps.iter().filter(|(_, _, fate)| *fate == Fate::Renewed);
        renewed.map(move |(at, entry, _)| {
            bits(self.image, entry)?;
            let entries = u64::from(entry.table_entries);
            let (start, len) = (end?, cluster.offset(cluster.count(entries * 8)));
            end = start.checked_add(len);
            end.map(|_| (*at, start, len, entries))
        })
    }

    /// The new tables, until `take` has enough; `None` where one cannot be.
    fn renew(&self, mut take: impl FnMut(Mark) -> bool) -> Option<()> {
        for table in self.tables() {
            let (_, start, len, entries) = table?;
            let mut done = 0;
            while done < len {
                let part = (len - done).min(PIECE_BYTES);
                let entries = entries.saturating_sub(done / 8).min(part / 8);
                let (entries, len) = (instar_abi::to_usize(entries), instar_abi::to_usize(part));
                if !take(Mark::Table { at: start.saturating_add(done), raw: ALL_ONES, entries, len }) {
                    return Some(());
                }
                done += part;
            }
        }
        Some(())
    }

    /// The directory entries that are to lead to them.
    fn switch(&self, mut take: impl FnMut(Mark) -> bool) {
        for (at, start, ..) in self.tables().flatten() {
            if !take(Mark::Entry { at, raw: start }) {
                return;
            }
        }
    }
}

/// What becomes of each bitmap, in the order of the directory.
fn fates(image: &Image, bitmaps: &[(u64, BitmapEntry)]) -> Vec<Fate> {
    let mut fates: Vec<Fate> = Vec::with_capacity(bitmaps.len());
    let mut tables: BTreeMap<u64, usize> = BTreeMap::new();
    for (index, (_, entry)) in bitmaps.iter().enumerate() {
        let offset = entry.table_offset;
        let is_inside = offset != 0 && image.bounds.position(offset) == Position::Inside;
        let first = tables.get(&offset).copied();
        fates.push(if is_inside && first.is_none() { Fate::Mended } else { Fate::Renewed });
        match first {
            Some(first) => {
                if let Some(fate) = fates.get_mut(first) {
                    *fate = Fate::Marked;
                }
            }
            None if is_inside => {
                tables.insert(offset, index);
            }
            None => {}
        }
    }
    fates
}
