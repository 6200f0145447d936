//! `CopyShared`: gives each user of a doubly used data cluster a copy of its own at the end of the file.
//!
//! Every guest range keeps reading the bytes that it reads now. Of several guest clusters on one host cluster the
//! lowest keeps the place; beside a compressed payload, or on metadata, none does. A snapshot and the active disk
//! that share a cluster for the same guest cluster go on sharing the copy.
//!
//! Invariant: all copies come before the first entry that leads to one, and lie where no entry led before. Nothing
//! is moved in an image with LUKS encryption, whose data is bound to its place in the file, nor in an external
//! data file. What this does not do: count; the next rounds find the new clusters' counts wrong and set them.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use instar_abi::choice::Decision;
use instar_abi::cure::Cure;
use instar_abi::problem::Problem as P;

use super::doubt::Doubt;
use super::places::{Place, Places};
use super::round::{Proposal, Round};
use super::unmap;
use crate::check::Checked;
use crate::check::reader::{Bytes, Reader};
use crate::check::roots::Image;
use crate::host::Host;
use crate::ondisk::header::Crypt;
use crate::ondisk::l1::{COPIED, OFFSET_MASK};
use crate::ondisk::l2::{L2Entry, Mapping};
use crate::ondisk::units::Position;

/// Entries that are switched in one round; the others are found again in the next.
const ENTRIES_MAX: usize = 1 << 16;
/// Bytes of copies that are proposed as one step.
const STEP_BYTES: usize = 4 << 20;

/// Proposes the steps for clusters that two guest ranges use.
pub fn propose_shared<H: Host>(round: &mut Round<'_, H>, checked: &Checked, doubt: &Doubt) {
    if doubt.may_mend(P::L2EntryShared) {
        move_out(round, checked, doubt, P::L2EntryShared);
    }
}

/// Proposes what the user has decided about entries that lead to metadata.
pub fn propose_overlapping<H: Host>(round: &mut Round<'_, H>, checked: &Checked, doubt: &Doubt) {
    let problem = P::L2EntryOverlapsMetadata;
    if !doubt.may_mend(problem) || !doubt.may_mend(P::CompressedOverlapsMetadata) {
        return;
    }
    if doubt.is_decided(Decision::CopyOverlapping) {
        move_out(round, checked, doubt, problem);
    } else if doubt.is_decided(Decision::UnmapOverlapping) {
        let Some(image) = &checked.image else { return };
        let mut reader = Reader::new(image.bounds.len);
        let mut places = Places::anyway(checked, image, &[problem, P::CompressedOverlapsMetadata]);
        while let Some(batch) = places.next(round.host, &mut reader) {
            let empty = |place: &Place| {
                place.write(unmap::emptied(place.entry, &image.format), image.format.extended)
            };
            round.writes(Cure::Unmap, &batch.iter().map(empty).collect::<Vec<Proposal>>());
        }
    }
}

fn move_out<H: Host>(round: &mut Round<'_, H>, checked: &Checked, doubt: &Doubt, problem: P) {
    let Some(image) = &checked.image else { return };
    if !doubt.may_grow() || image.header.crypt == Crypt::Luks || image.format.data_file {
        return;
    }
    let mut reader = Reader::new(image.bounds.len);
    let mut users = Users::default();
    let is_shared = problem == P::L2EntryShared;
    let mut places = if is_shared {
        Places::of(checked, image, &[problem])
    } else {
        Places::anyway(checked, image, &[problem])
    };
    while users.plain.len() < ENTRIES_MAX
        && let Some(batch) = places.next(round.host, &mut reader)
    {
        batch.iter().for_each(|place| users.put(image, place));
    }
    let moves = users.moves(image, is_shared);
    let entries = copy(round, &mut reader, image, &moves);
    round.writes(Cure::CopyShared, &entries);
}

/// Who uses doubly used clusters.
#[derive(Debug, Default)]
struct Users {
    /// Entries that are not compressed.
    plain: Vec<Place>,
    /// Clusters that compressed payloads touch.
    compressed: BTreeSet<u64>,
}

/// One copy, and the entries that are to lead to it.
#[derive(Debug, PartialEq, Eq)]
struct Move {
    /// Byte offset of the cluster.
    host: u64,
    entries: Vec<Place>,
}

impl Users {
    fn put(&mut self, image: &Image, place: &Place) {
        let cluster = image.header.cluster;
        if let (Mapping::Compressed { host, len }, _) = place.entry.decode(&image.format) {
            self.compressed.extend(cluster.index(host)..=cluster.index(host.saturating_add(len - 1)));
        } else if place.entry.host_field() != 0
            && image.bounds.position(place.entry.host_field()) == Position::Inside
        {
            self.plain.push(*place);
        }
    }

    /// What is to be copied; of the users of a cluster the first keeps it where `keeps_first`.
    fn moves(mut self, image: &Image, keeps_first: bool) -> Vec<Move> {
        self.plain.sort_unstable_by_key(|place| (place.entry.host_field(), place.guest, place.at));
        let mut moves: Vec<Move> = Vec::new();
        for users in self.plain.chunk_by(|a, b| a.entry.host_field() == b.entry.host_field()) {
            let host = users.first().map_or(0, |first| first.entry.host_field());
            let is_kept = keeps_first && !self.compressed.contains(&image.header.cluster.index(host));
            let guests = users.chunk_by(|a, b| a.guest == b.guest).skip(usize::from(is_kept));
            moves.extend(guests.map(|entries| Move { host, entries: entries.to_vec() }));
        }
        moves
    }
}

/// Proposes the copies, and says what entries are to be written then. What cannot be read stays where it is.
fn copy<H: Host>(
    round: &mut Round<'_, H>,
    reader: &mut Reader,
    image: &Image,
    moves: &[Move],
) -> Vec<Proposal> {
    let cluster = image.header.cluster;
    let mut fresh = cluster.offset(image.bounds.clusters());
    let (mut copies, mut entries) = (Vec::new(), Vec::new());
    for moved in moves {
        let Bytes::Read(bytes) = reader.one(round.host, moved.host, cluster.usize()) else { continue };
        if fresh > OFFSET_MASK {
            break;
        }
        let mut bytes = bytes.to_vec();
        bytes.resize(cluster.usize(), 0);
        copies.push((fresh, bytes));
        entries.extend(moved.entries.iter().map(|place| switched(image, place, fresh, moved.entries.len())));
        fresh = fresh.saturating_add(cluster.bytes());
        if copies.len() * cluster.usize() >= STEP_BYTES {
            round.writes(Cure::CopyShared, &copies);
            copies.clear();
        }
    }
    round.writes(Cure::CopyShared, &copies);
    entries
}

/// The write that makes an entry lead to a copy that has so many users.
fn switched(image: &Image, place: &Place, fresh: u64, users: usize) -> Proposal {
    let copied = if place.is_active && users == 1 { COPIED } else { 0 };
    let raw = place.entry.raw & !(OFFSET_MASK | COPIED) | fresh | copied;
    place.write(L2Entry { raw, ..place.entry }, image.format.extended)
}
