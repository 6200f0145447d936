//! Single entries of L1 and L2 tables: what can be mended by rewriting one where it stands.
//!
//! Invariant: an entry is written as a whole, 8 or 16 bytes within one sector, and by one cure: emptying it comes
//! before clearing reserved bits. No other entry depends on it, so any subset of the writes is a valid state.

use alloc::vec::Vec;

use instar_abi::cure::Cure;

use super::doubt::Doubt;
use super::payload::Payloads;
use super::places::{Place, Places};
use super::round::{Round, push};
use super::{reserved, unmap};
use crate::check::Checked;
use crate::check::reader::Reader;
use crate::check::roots::Image;
use crate::host::Host;
use crate::ondisk::l1::L1Entry;
use crate::ondisk::l2::{L2Entry, Mapping};

/// Proposes the steps: one of each cure for every batch of entries.
pub fn propose<H: Host>(round: &mut Round<'_, H>, checked: &Checked, doubt: &Doubt) {
    let Some(image) = checked.image.as_ref().filter(|_| doubt.may_write_tables()) else { return };
    let reader = Reader::new(image.bounds.len);
    let mut work = Work { image, doubt, reader, payloads: Payloads::new(image) };
    let problems = [reserved::PROBLEMS, unmap::PROBLEMS].concat();
    let mut places = Places::of(checked, image, &problems);
    while let Some(batch) = places.next(round.host, &mut work.reader) {
        let (mut cleared, mut emptied) = (Vec::new(), Vec::new());
        for place in &batch {
            match work.mend(round.host, place) {
                Some((Cure::Unmap, after)) => push(&mut emptied, place.write(after, image.format.extended)),
                Some((_, after)) => push(&mut cleared, place.write(after, image.format.extended)),
                None => {}
            }
        }
        round.writes(Cure::ClearReserved, &cleared);
        round.writes(Cure::Unmap, &emptied);
    }
}

struct Work<'a> {
    image: &'a Image,
    doubt: &'a Doubt,
    reader: Reader,
    payloads: Payloads<'a>,
}

impl Work<'_> {
    /// What becomes of an entry, and by which cure.
    fn mend<H: Host>(&mut self, host: &mut H, place: &Place) -> Option<(Cure, L2Entry)> {
        if place.is_l1 {
            return self
                .mend_l1(L1Entry(place.entry.raw))
                .map(|(cure, after)| (cure, L2Entry { raw: after.0, bitmap: 0 }));
        }
        let cleared = reserved::l2(place.entry, &self.image.format, self.doubt);
        let Some(lost) = unmap::lost(self.image, place.entry) else {
            // Bits of an entry that cannot be used may be what is left of another kind of entry.
            let is_usable = !matches!(cleared.decode(&self.image.format).0, Mapping::Damaged(_));
            return (is_usable && cleared != place.entry).then_some((Cure::ClearReserved, cleared));
        };
        if let Some(payload) = lost.payload
            && self.doubt.may_mend(lost.problem)
            && let Some(after) = self.payloads.shortened(host, &mut self.reader, cleared, payload)
        {
            return Some((Cure::Unmap, after));
        }
        // What is else wrong with the entry goes with it.
        let (_, faults) = place.entry.decode(&self.image.format);
        let may_empty = unmap::may_empty_l2(self.image, &lost, self.doubt)
            && faults.iter().all(|problem| self.doubt.may_mend(problem));
        may_empty.then(|| (Cure::Unmap, unmap::emptied(place.entry, &self.image.format)))
    }

    fn mend_l1(&self, entry: L1Entry) -> Option<(Cure, L1Entry)> {
        if let Some(problem) = unmap::lost_l1(self.image, entry) {
            let may_empty = unmap::may_empty_l1(self.image, problem, self.doubt);
            return may_empty.then_some((Cure::Unmap, L1Entry(0)));
        }
        let cleared = reserved::l1(entry, self.doubt);
        (cleared != entry).then_some((Cure::ClearReserved, cleared))
    }
}
