//! `CountSnapshots`: the header's number of snapshots, where entries of zeros are counted at the table's end, or where
//! the user has decided to drop the snapshots of a table that cannot be found, or those that cannot be read.
//!
//! The number is lowered to that of the entries before them. Where none is left, the header names no table any more,
//! and the cluster that was taken for it is freed.
//!
//! Invariant: no entry that says anything is left out. An entry of zeros may be all that is left of a snapshot, but every
//! snapshot has an L1 table of its own: the number is lowered only where all counts are known and no cluster is
//! without a user, unless the user has given up those that are. The same goes for dropping snapshots by decision. Every
//! entry that can be read stays counted, whatever is wrong with it.

use instar_abi::choice::Decision;
use instar_abi::cure::Cure;
use instar_abi::problem::Problem as P;

use super::doubt::Doubt;
use super::leaks;
use super::round::Round;
use crate::check::roots::Image;
use crate::check::{Checked, ClusterRun};
use crate::host::Host;

/// Byte offset of the header's number of snapshots; behind it stands the table's offset.
const COUNT: u64 = 60;
/// Bytes of both.
const FIELDS_BYTES: usize = 12;

/// Proposes the step.
pub fn propose<H: Host>(round: &mut Round<'_, H>, checked: &Checked, doubt: &Doubt) {
    let Some(image) = &checked.image else { return };
    if checked.problems.has(P::HeaderSnapshotsOffset) {
        return drop_lost(round, image, doubt);
    }
    if let [end, ..] = checked.faults.of(P::SnapshotTableTruncated) {
        return keep_readable(round, end.index, doubt);
    }
    let [empty, ..] = checked.faults.of(P::SnapshotEntryEmpty) else { return };
    if !doubt.may_mend(P::SnapshotEntryEmpty) || !doubt.are_leaks_known() {
        return;
    }
    // The entries before the first empty one are whole.
    let Ok(kept) = u32::try_from(empty.index) else { return };
    if kept > 0 {
        round.writes(Cure::CountSnapshots, &[(COUNT, kept.to_be_bytes().to_vec())]);
    } else if let (true, Some(table)) = (doubt.are_alone(&[P::SnapshotEntryEmpty]), table(image)) {
        round.writes(Cure::CountSnapshots, &[(COUNT, alloc::vec![0; FIELDS_BYTES])]);
        leaks::propose_left(round, checked, Cure::CountSnapshots, &[table]);
    }
}

/// Counts the entries before the one with this index only, as the user has decided.
fn keep_readable<H: Host>(round: &mut Round<'_, H>, index: u64, doubt: &Doubt) {
    let Ok(kept) = u32::try_from(index) else { return };
    if doubt.is_decided(Decision::KeepReadableSnapshots)
        && doubt.may_mend(P::SnapshotTableTruncated)
        && doubt.are_leaks_known()
    {
        let fields = if kept > 0 { kept.to_be_bytes().to_vec() } else { alloc::vec![0; FIELDS_BYTES] };
        round.writes(Cure::CountSnapshots, &[(COUNT, fields)]);
    }
}

/// Takes number and offset back, as the user has decided. The table has no cluster that is known.
fn drop_lost<H: Host>(round: &mut Round<'_, H>, image: &Image, doubt: &Doubt) {
    // Where there are no snapshots, there is nothing that a leak could be left of.
    let is_nothing_hidden = image.header.snapshots == 0 || doubt.are_leaks_known();
    if doubt.is_decided(Decision::DropSnapshots)
        && doubt.may_mend(P::HeaderSnapshotsOffset)
        && is_nothing_hidden
    {
        round.writes(Cure::CountSnapshots, &[(COUNT, alloc::vec![0; FIELDS_BYTES])]);
    }
}

/// The cluster that a table without a snapshot is said to take.
fn table(image: &Image) -> Option<ClusterRun> {
    let start = image.header.snapshot_table_offset(&image.bounds).ok()??;
    Some(ClusterRun { first: image.header.cluster.index(start), count: 1 })
}
