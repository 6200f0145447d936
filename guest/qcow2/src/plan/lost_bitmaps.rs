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

use super::bitmaps::{ALL_ONES, DATA_BYTES_MAX, bits, directory, marked};
use super::doubt::Doubt;
use super::leaks;
use super::round::{Proposal, Round};
use crate::check::Checked;
use crate::check::bitmaps::{Data, data};
use crate::check::reader::Reader;
use crate::check::roots::{Image, Roots};
use crate::host::Host;
use crate::ondisk::bitmaps::{BitmapEntry, BitmapTableEntry};
use crate::ondisk::units::Position;

/// Findings that say that bitmaps have lost something.
pub const LOST: &[Problem] = &[P::BitmapTableEntry, P::BitmapTableOffset, P::BitmapTableShared];

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

/// Writes of one round.
struct Work<'a> {
    image: &'a Image,
    roots: &'a Roots,
    reader: Reader,
    /// Bytes that may still be written.
    left: u64,
    /// Where the next fresh cluster is.
    end: u64,
    fresh: Vec<Proposal>,
    in_place: Vec<Proposal>,
    switches: Vec<Proposal>,
}

/// Proposes the steps, where every bitmap can be mended.
pub fn propose<H: Host>(round: &mut Round<'_, H>, image: &Image, checked: &Checked, doubt: &Doubt) {
    let found = LOST.iter().filter(|problem| checked.problems.has(**problem));
    if !found.into_iter().all(|problem| doubt.may_mend(*problem)) {
        return;
    }
    let end = image.header.cluster.offset(image.bounds.clusters());
    let mut work = Work {
        image,
        roots: &checked.roots,
        reader: Reader::new(image.bounds.len),
        left: DATA_BYTES_MAX,
        end,
        fresh: Vec::new(),
        in_place: Vec::new(),
        switches: Vec::new(),
    };
    if work.mend(round.host).is_none() || (!work.fresh.is_empty() && !doubt.may_grow_beside(LOST)) {
        return;
    }
    for writes in [&work.fresh, &work.in_place, &work.switches] {
        round.writes(Cure::DirtyBitmaps, writes);
    }
    leaks::propose_left(round, checked, Cure::FreeLeaks, &checked.lost_by_bitmaps);
}

impl Work<'_> {
    /// Collects the writes; `None` where one of the bitmaps cannot be mended.
    fn mend<H: Host>(&mut self, host: &mut H) -> Option<()> {
        let bitmaps = directory(host, &mut self.reader, self.image)?;
        let fates = fates(self.image, &bitmaps);
        for ((at, entry), fate) in bitmaps.iter().zip(fates) {
            if fate == Fate::Renewed {
                self.renew(*at, entry)?;
            } else {
                let places = (self.image, self.roots);
                let wants = |raw: BitmapTableEntry| {
                    let is_lost = data(places.0, places.1, raw) == Data::Lost || raw.reserved() != 0;
                    fate == Fate::Marked || is_lost
                };
                let writes = marked(host, &mut self.reader, places, entry, &mut self.left, wants)?;
                self.in_place.extend(writes);
            }
        }
        Some(())
    }

    /// Gives the bitmap at `at` a table of all ones at the end of the file.
    fn renew(&mut self, at: u64, entry: &BitmapEntry) -> Option<()> {
        bits(self.image, entry)?;
        let cluster = self.image.header.cluster;
        let bytes = cluster.offset(cluster.count(u64::from(entry.table_entries) * 8));
        self.left = self.left.checked_sub(bytes)?;
        let mut table = ALL_ONES.to_be_bytes().repeat(entry.table_entries as usize);
        table.resize(instar_abi::to_usize(bytes), 0);
        self.fresh.push((self.end, table));
        self.switches.push((at, self.end.to_be_bytes().to_vec()));
        self.end = self.end.checked_add(bytes)?;
        Some(())
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
