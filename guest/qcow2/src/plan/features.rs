//! `ClearFeatures`: header flags and fields that nothing in the file bears out.
//!
//! * The raw-data-file bit without an external data file goes.
//! * The bitmaps bit without the bitmaps extension goes; the extension without the bit comes to be trusted again
//!   once every bitmap is marked dirty as a whole.
//! * A feature name table that is short of its last name's end by padding gets its length back. Otherwise the part of a
//!   name at its end goes: it becomes the end mark of the extensions, or, where others follow, one that is ignored.
//!
//! The dirty bit is the guard's business.

use alloc::vec::Vec;

use instar_abi::cure::Cure;
use instar_abi::problem::Problem as P;

use super::bitmaps::Trust;
use super::doubt::Doubt;
use super::round::{Proposal, Round};
use crate::check::Checked;
use crate::check::roots::Image;
use crate::host::Host;
use crate::ondisk::extensions::{FEATURE_ENTRY_BYTES, FEATURE_TABLE, IGNORED};
use crate::ondisk::header::autoclear;

/// Byte offset of the autoclear features.
const AUTOCLEAR: u64 = 88;

/// Proposes the steps, given what became of the bitmaps.
pub fn propose<H: Host>(round: &mut Round<'_, H>, checked: &Checked, doubt: &Doubt, trust: Trust) {
    let Some(image) = &checked.image else { return };
    let before = image.header.autoclear;
    let mut after = before;
    if checked.problems.has(P::AutoclearDataFileRaw) && doubt.may_mend(P::AutoclearDataFileRaw) {
        after &= !autoclear::DATA_FILE_RAW;
    }
    let is_lone = checked.problems.has(P::AutoclearBitmaps) && image.extensions.bitmaps.is_none();
    match trust {
        Trust::Set => after |= autoclear::BITMAPS,
        Trust::Clear => after &= !autoclear::BITMAPS,
        Trust::AsBefore if is_lone && doubt.may_mend(P::AutoclearBitmaps) => after &= !autoclear::BITMAPS,
        Trust::AsBefore => {}
    }
    if after != before && image.header.version >= 3 {
        round.writes(Cure::ClearFeatures, &[(AUTOCLEAR, after.to_be_bytes().to_vec())]);
    }
    if checked.problems.has(P::ExtensionFeatureTable) {
        for writes in feature_table(image) {
            round.writes(Cure::ClearFeatures, &[writes]);
        }
    }
}

/// The writes that give the feature name table a length that can be, in order.
fn feature_table(image: &Image) -> Vec<Proposal> {
    let Some(place) = &image.extensions.feature_table else { return Vec::new() };
    let len = place.len();
    let head = |len: usize| -> Option<Proposal> {
        Some((place.start.checked_sub(4)? as u64, u32::try_from(len).ok()?.to_be_bytes().to_vec()))
    };
    let padded = len.next_multiple_of(8);
    let is_last =
        image.extensions.seen.last().is_some_and(|(kind, other)| *kind == FEATURE_TABLE && other == place);
    if padded.is_multiple_of(FEATURE_ENTRY_BYTES) {
        return head(padded).into_iter().collect();
    }
    if !image.extensions.is_complete {
        return Vec::new();
    }
    let kept = len - len % FEATURE_ENTRY_BYTES;
    // At least 8 bytes, as both lengths are multiples of 8.
    let rest = u32::try_from(padded - kept).unwrap_or(0).saturating_sub(8);
    let mark = if is_last { alloc::vec![0; 8] } else { [IGNORED.to_be_bytes(), rest.to_be_bytes()].concat() };
    [Some(((place.start + kept) as u64, mark)), head(kept)].into_iter().flatten().collect()
}
