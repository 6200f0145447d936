//! The journal: a plan that has been proven and is being written, so that any interruption can be finished.
//!
//! Invariant: it is durable under its name before the first byte of the image changes, and is removed only
//! against an attestation of the live image (or after the image has been put back). Reading one back goes
//! through the same rules as recording a plan: scopes, bounds, no overlaps.

use std::io;

use instar_abi::cure::Cure;
use instar_abi::problem::Tier;
use zerocopy::FromZeros;

use super::plan::{Plan, Recorder, SCOPES_MAX};
use super::record::{FileHead, JOURNAL_MAGIC, Reader, RecordHead, RecordKind, ScopeRecord};
use super::side::{RecordError, SideWriter, read_record};
use super::site::{Folder, SideFile};
use crate::sandbox::observer::Observer;

const WHAT: &str = "journal";

/// A journal that was found.
#[derive(Debug)]
pub(super) struct Journal {
    pub plan: Plan,
    pub fingerprint: [u8; 32],
    pub len_before: u64,
    pub len_after: u64,
    pub undo_digest: [u8; 32],
}

/// Facts about the image that both records carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Binding {
    pub fingerprint: [u8; 32],
    pub len_before: u64,
    pub len_after: u64,
}

/// Bytes that the journal of a plan takes.
pub(super) fn size_estimate(plan: &Plan) -> u64 {
    let mut bytes = size_of::<FileHead>() as u64;
    plan.encode(&mut |piece| bytes += piece.len() as u64);
    bytes
}

/// Writes the journal; it is durable when this returns.
pub(super) fn write(
    folder: &dyn Folder,
    plan: &Plan,
    binding: Binding,
    undo_digest: [u8; 32],
) -> io::Result<()> {
    let mut writer = SideWriter::create(folder, SideFile::Journal)?;
    plan.encode(&mut |bytes| writer.append(bytes));
    let mut head = FileHead::new_zeroed();
    head.magic = JOURNAL_MAGIC;
    head.tier = (plan.tier() as u32).into();
    head.len_before = binding.len_before.into();
    head.len_after = binding.len_after.into();
    head.items = (plan.writes().count() as u64).into();
    head.fingerprint = binding.fingerprint;
    head.plan_digest = plan.digest();
    head.undo_digest = undo_digest;
    writer.finish(head)?;
    Ok(())
}

/// Reads the journal, `None` if there is none.
pub(super) fn read(folder: &dyn Folder) -> Result<Option<Journal>, RecordError> {
    let Some((head, body)) = read_record(folder, SideFile::Journal, JOURNAL_MAGIC, WHAT)? else {
        return Ok(None);
    };
    let tier = Tier::from_u32(head.tier.get())
        .ok_or_else(|| RecordError::damaged(WHAT, format!("tier {} is not known", head.tier.get())))?;
    let plan = decode(&body, tier)?;
    let (len_before, len_after) = (head.len_before.get(), head.len_after.get());
    if plan.digest() != head.plan_digest {
        return Err(RecordError::damaged(WHAT, "its plan is not in canonical form"));
    }
    if len_after < len_before {
        let why = format!("the image would shrink from {len_before} to {len_after} bytes");
        return Err(RecordError::damaged(WHAT, why));
    }
    if let Some(write) = plan.writes().find(|write| write.end() > len_after) {
        let why = format!(
            "write at {:#x} ends behind the image's length {len_after} after the repair",
            write.offset
        );
        return Err(RecordError::damaged(WHAT, why));
    }
    let (fingerprint, undo_digest) = (head.fingerprint, head.undo_digest);
    Ok(Some(Journal { plan, fingerprint, len_before, len_after, undo_digest }))
}

fn decode(body: &[u8], tier: Tier) -> Result<Plan, RecordError> {
    let short = || RecordError::damaged(WHAT, "it ends within a record");
    let mut reader = Reader::new(body);
    let mut recorder = Recorder::new(None);
    while !reader.is_at_end() {
        let head: RecordHead = reader.take().ok_or_else(short)?;
        let len = head.len.get();
        match RecordKind::from_u32(head.kind.get()) {
            Some(RecordKind::Step) => {
                let number = head.cure.get();
                let cure = Cure::from_u32(number)
                    .ok_or_else(|| RecordError::damaged(WHAT, format!("cure {number} is not known")))?;
                recorder.scope(cure, &scope(&mut reader, len).ok_or_else(short)?);
            }
            Some(RecordKind::Write) => {
                recorder.stage(head.offset.get(), reader.bytes(len).ok_or_else(short)?.to_vec());
            }
            Some(RecordKind::Barrier) => recorder.barrier(),
            None => {
                let why = format!("record kind {} is not known", head.kind.get());
                return Err(RecordError::damaged(WHAT, why));
            }
        }
    }
    recorder.finish(tier).map_err(|error| RecordError::damaged(WHAT, error.to_string()))
}

fn scope(reader: &mut Reader<'_>, ranges: u64) -> Option<Vec<(u64, u64)>> {
    let mut scope = Vec::new();
    for _ in 0..usize::try_from(ranges).ok().filter(|&n| n <= SCOPES_MAX)? {
        let range: ScopeRecord = reader.take()?;
        scope.push((range.offset.get(), range.len.get()));
    }
    Some(scope)
}
