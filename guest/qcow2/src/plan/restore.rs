//! `RestoreHeader`: writes one header field as the rest of the file asks for it, where the user has decided so.
//!
//! The check has told of the field, of its value, and how many parts of the file bear it out; what is written is that
//! value. It is a round of its own, before any other: what the header leads to is looked at anew with the field in
//! place, and the host holds the repair against that image, not against the one that could not be looked at.
//!
//! Invariant: one field in one round, 4 or 8 bytes within the first sector, and only with witnesses. The guard is that
//! of the header with the field in place; its bits stay as they are.

use instar_abi::choice::{Decision, Decisions};
use instar_abi::cure::Cure;
use instar_abi::finding::Finding;

use super::guard::Guard;
use super::round::Round;
use crate::check::Checked;
use crate::check::reader::{Bytes, Reader};
use crate::evidence::patched;
use crate::host::Host;
use crate::ondisk::Header;
use crate::ondisk::header::FIXED_BYTES;

/// Proposes the round; false if there is nothing of the kind to do.
pub fn propose<H: Host>(host: &mut H, checked: &Checked, decisions: Decisions) -> bool {
    let Some(field) = decided(checked, decisions) else { return false };
    let Ok(len) = usize::try_from(field.host_len) else { return false };
    let Some(value) = 8_usize.checked_sub(len).and_then(|skip| {
        let bytes = field.expected.to_be_bytes();
        bytes.get(skip..).map(<[u8]>::to_vec)
    }) else {
        return false;
    };
    let mut reader = Reader::new(host.file_len(instar_abi::boot::FILE_IMAGE).unwrap_or(0));
    let Bytes::Read(head) = reader.one(host, 0, FIXED_BYTES) else { return false };
    let head = patched(head, field.host_offset, field.host_len, field.expected);
    // A field that is wrong beside this one is told of, and decided about, once this one is in place.
    let guard = Header::decode(&head).ok().and_then(|(header, _)| Guard::as_it_is(&header));
    let mut round = Round::new(host, guard);
    round.writes(Cure::RestoreHeader, &[(field.host_offset, value)]);
    round.finish();
    true
}

/// The field that is determined, if the user has decided to have it restored.
fn decided(checked: &Checked, decisions: Decisions) -> Option<Finding> {
    let restored = Decision::ALL.iter().filter(|decision| decision.restores() && decisions.has(**decision));
    let mut found = restored.flat_map(|decision| checked.faults.of(decision.problem()));
    found.find(|finding| finding.witnesses > 0).copied()
}
