//! The journal: a plan that has been proven and is being written, so that any interruption can be finished.
//!
//! Invariant: it is durable under its name before the first byte of the image changes, and is removed only
//! against an attestation of the live image (or after the image has been put back). Reading one back goes
//! through the same rules as recording a plan: scopes, bounds, no overlaps.

use std::io;

use instar_abi::choice::Decisions;
use instar_abi::cure::Cure;
use instar_abi::problem::Tier;
use zerocopy::FromZeros;

use super::guard::{self, Guard};
use super::plan::{Plan, SCOPES_MAX, Span};
use super::record::{
    FileHead, GUARDED_RECORD_VERSION, JOURNAL_MAGIC, RECORD_VERSION, Reader, RecordHead, RecordKind,
    ScopeRecord,
};
use super::recorder::Recorder;
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

/// What binds a plan, and both records of its landing, to one image in one state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    /// Over what the image was before the repair (`docs/adr/0002-image-fingerprint.md`).
    pub fingerprint: [u8; 32],
    /// Length of the image before it, in bytes.
    pub len_before: u64,
    /// Length of the image after it, not less.
    pub len_after: u64,
}

/// The version of the records of a plan.
pub(super) fn record_version(plan: &Plan) -> u32 {
    if plan.guard().is_some() || plan.decisions() != Decisions::default() {
        GUARDED_RECORD_VERSION
    } else {
        RECORD_VERSION
    }
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
    head.version = record_version(plan).into();
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
    if let Some(guard) = plan.guard().filter(|guard| guard.touches(len_before, u64::MAX)) {
        let why = format!("its guard at {:#x} is not within the image", guard.offset());
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
    let mut decisions = Decisions::default();
    let mut guard = None;
    while !reader.is_at_end() {
        let head: RecordHead = reader.take().ok_or_else(short)?;
        let (offset, len) = (head.offset.get(), head.len.get());
        match RecordKind::from_u32(head.kind.get()) {
            Some(RecordKind::Step) => {
                let number = head.cure.get();
                let cure = Cure::from_u32(number)
                    .filter(|&cure| !guard::is_guards(cure))
                    .ok_or_else(|| RecordError::damaged(WHAT, format!("cure {number} is not known")))?;
                recorder.scope(cure, &scope(&mut reader, len).ok_or_else(short)?);
            }
            Some(RecordKind::Write) => {
                recorder.stage(offset, reader.bytes(len).ok_or_else(short)?.to_vec());
            }
            Some(RecordKind::Barrier) => recorder.barrier(),
            Some(RecordKind::Guard) => {
                let mut value = || reader.bytes(len).map(<[u8]>::to_vec).ok_or_else(short);
                let found = Guard::new(offset, value()?, value()?);
                let found = found.map_err(|error| RecordError::damaged(WHAT, error.to_string()))?;
                recorder.raise(&found);
                guard = Some(found);
            }
            Some(RecordKind::Decisions) => decisions = Decisions(offset),
            None => {
                let why = format!("record kind {} is not known", head.kind.get());
                return Err(RecordError::damaged(WHAT, why));
            }
        }
    }
    if let Some(guard) = &guard {
        recorder.lower(guard);
    }
    recorder.finish(tier, decisions).map_err(|error| RecordError::damaged(WHAT, error.to_string()))
}

fn scope(reader: &mut Reader<'_>, ranges: u64) -> Option<Vec<Span>> {
    let mut scope = Vec::new();
    for _ in 0..usize::try_from(ranges).ok().filter(|&n| n <= SCOPES_MAX)? {
        let range: ScopeRecord = reader.take()?;
        scope.push((range.offset.get(), range.len.get()));
    }
    Some(scope)
}
