//! The entries of L1 and L2 tables that findings name, read anew.
//!
//! Invariant: each entry is handed out once, however many findings name it, and none while any cluster is used as
//! two things: a table may be somebody's data then. What this does not do: decide what an entry becomes.

use alloc::vec::Vec;

use instar_abi::finding::{ACTIVE, Table};
use instar_abi::problem::{Problem, Problem as P};

use super::round::Proposal;
use crate::check::Checked;
use crate::check::reader::{Bytes, Reader};
use crate::check::recount::OVERLAPS;
use crate::check::roots::Image;
use crate::host::Host;
use crate::ondisk::bytes::be_u64;
use crate::ondisk::l2::L2Entry;

/// Bytes of entries that are looked at as one place.
const PIECE_BYTES: u64 = 64 << 10;
/// Places of one batch.
const BATCH_PIECES: usize = 16;

/// Entries side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Piece {
    offset: u64,
    len: u64,
    is_l1: bool,
    is_active: bool,
    /// Guest offset of the first entry.
    guest: u64,
}

/// One entry as it stands in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Byte offset in the file.
    pub at: u64,
    /// It belongs to an L1 table, otherwise to an L2 table.
    pub is_l1: bool,
    /// The table is one of the active disk's.
    pub is_active: bool,
    /// First guest byte that it maps.
    pub guest: u64,
    /// Its words; the second one is 0 unless it is an extended entry.
    pub entry: L2Entry,
}

impl Place {
    /// The write that puts other words here.
    #[must_use]
    pub fn write(&self, after: L2Entry, is_extended: bool) -> Proposal {
        let mut bytes = after.raw.to_be_bytes().to_vec();
        if is_extended && !self.is_l1 {
            bytes.extend_from_slice(&after.bitmap.to_be_bytes());
        }
        (self.at, bytes)
    }
}

/// The entries that findings of some problems name, in the order of the file.
#[derive(Debug)]
pub struct Places<'i> {
    image: &'i Image,
    pieces: Vec<Piece>,
    done: usize,
}

impl<'i> Places<'i> {
    /// The entries that findings of these problems name. None while a table may be somebody's data.
    #[must_use]
    pub fn of(checked: &Checked, image: &'i Image, problems: &[Problem]) -> Self {
        // Two guest ranges on one cluster leave the tables out of doubt.
        let is_table = |problem: Problem| OVERLAPS.contains(&problem) && problem != P::L2EntryShared;
        let is_safe = !checked.problems.iter().any(is_table);
        Self::anyway(checked, image, if is_safe { problems } else { &[] })
    }

    /// The same for entries that are the overlap.
    #[must_use]
    pub fn anyway(checked: &Checked, image: &'i Image, problems: &[Problem]) -> Self {
        let mut pieces = Vec::new();
        for finding in problems.iter().flat_map(|problem| checked.faults.of(*problem)) {
            let is_l1 = finding.table == Table::L1 as u32;
            let end = finding.host_offset.saturating_add(finding.host_len);
            let (mut offset, mut guest) = (finding.host_offset, finding.guest_offset);
            while offset < end {
                let len = PIECE_BYTES.min(end - offset);
                let is_active = finding.snapshot == ACTIVE;
                pieces.push(Piece { offset, len, is_l1, is_active, guest });
                offset += len;
                guest =
                    guest.saturating_add(reach(image, is_l1).saturating_mul(len / entry_bytes(image, is_l1)));
            }
        }
        Self { image, pieces: apart(image, pieces), done: 0 }
    }

    /// The next batch of entries, `None` behind the last one. What cannot be read, or is not all there, is left out.
    pub fn next<H: Host>(&mut self, host: &mut H, reader: &mut Reader) -> Option<Vec<Place>> {
        let rest = self.pieces.get(self.done..).filter(|rest| !rest.is_empty())?;
        let image = self.image;
        let mut found = Vec::new();
        let places =
            rest.iter().take(BATCH_PIECES).map(|piece| (piece.offset, instar_abi::to_usize(piece.len)));
        let taken = reader.batch(host, places, |position, bytes| {
            let (Some(piece), Bytes::Read(bytes)) = (rest.get(position), bytes) else { return };
            let (len, reach) = (entry_bytes(image, piece.is_l1), reach(image, piece.is_l1));
            let words = bytes.chunks_exact(instar_abi::to_usize(len));
            found.extend((0..).zip(words).map(|(index, words)| Place {
                at: piece.offset + index * len,
                is_l1: piece.is_l1,
                is_active: piece.is_active,
                guest: piece.guest.saturating_add(reach.saturating_mul(index)),
                entry: L2Entry { raw: be_u64(words, 0).unwrap_or(0), bitmap: be_u64(words, 8).unwrap_or(0) },
            }));
        });
        self.done += taken.max(1);
        Some(found)
    }
}

/// Bytes of an entry.
fn entry_bytes(image: &Image, is_l1: bool) -> u64 {
    if is_l1 { 8 } else { image.format.entry_bytes() as u64 }
}

/// Guest bytes that an entry maps.
const fn reach(image: &Image, is_l1: bool) -> u64 {
    if is_l1 { image.format.table_reach_bytes() } else { image.header.cluster.bytes() }
}

/// Sorts pieces and cuts away what an earlier one has; of pieces of two kinds that overlap the later one goes.
fn apart(image: &Image, mut pieces: Vec<Piece>) -> Vec<Piece> {
    pieces.sort_unstable();
    let mut kept: Vec<Piece> = Vec::with_capacity(pieces.len());
    for mut piece in pieces {
        let end = piece.offset.saturating_add(piece.len);
        if let Some(last) = kept.last() {
            let taken = last.offset.saturating_add(last.len);
            if end <= taken || (taken > piece.offset && last.is_l1 != piece.is_l1) {
                continue;
            }
            let cut = taken.saturating_sub(piece.offset);
            let entries = cut / entry_bytes(image, piece.is_l1);
            piece.guest = piece.guest.saturating_add(reach(image, piece.is_l1).saturating_mul(entries));
            piece.offset += cut;
            piece.len -= cut;
        }
        kept.push(piece);
    }
    kept
}
