//! The undo file: what stood where a repair writes, and marks of what the repair leaves there.
//!
//! Invariant: it is durable before the journal is written, so no image byte ever changes whose old value is
//! not in it. Each range is one write of the plan, and no two overlap. The marks, one for each sector of each
//! range, tell whether the image is still in a state that the repair (or an interruption of it, or of going back)
//! can have left: only then may anything be written from a record. It deliberately holds no new bytes, except for
//! the guard's: going forward needs the journal, but going back too must keep others from writing meanwhile.

use std::io;
use std::sync::Arc;

use instar_abi::to_usize;
use sha2::{Digest, Sha256};
use zerocopy::{FromZeros, IntoBytes};

use super::fingerprint;
use super::guard::{GUARD_BYTES_MAX, Guard};
use super::journal::{Binding, record_version};
use super::plan::{Plan, Span};
use super::record::{
    FileHead, GUARDED_RECORD_VERSION, Reader, SectorMark, UNDO_MAGIC, UndoGuard, UndoRangeHead,
};
use super::side::{RecordError, SIDE_BYTES_MAX, SideWriter, read_record};
use super::site::{Folder, SideFile};
use crate::image::{Backend, Overlay, OverlayError, Write};

const WHAT: &str = "undo file";
/// The part of a file that a disk writes whole or not at all.
const SECTOR_BYTES: u64 = 512;

/// One range of an undo file.
#[derive(Debug)]
struct UndoRange {
    offset: u64,
    len: u64,
    /// What was there before; shorter than `len` where the image ended.
    held: Arc<[u8]>,
    marks: Vec<SectorMark>,
}

/// An undo file.
#[derive(Debug)]
pub(super) struct Undo {
    pub binding: Binding,
    pub digest: [u8; 32],
    guard: Option<UndoneGuard>,
    ranges: Vec<UndoRange>,
}

/// A guard, and what was there before.
#[derive(Debug)]
struct UndoneGuard {
    guard: Guard,
    before: Vec<u8>,
}

/// In what state the written sectors of an image are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trace {
    /// Each is as before the repair or as after it.
    Ours,
    /// This byte of the image (or its length) is neither.
    Foreign {
        /// Where.
        offset: u64,
    },
}

/// Bytes that the undo file takes, rounded up.
pub(super) fn size_estimate(ranges: &[Span]) -> u64 {
    ranges.iter().fold(4096, |sum: u64, &(_, len)| {
        let marks = (len / SECTOR_BYTES + 2) * size_of::<SectorMark>() as u64;
        sum.saturating_add(len).saturating_add(marks).saturating_add(size_of::<UndoRangeHead>() as u64)
    })
}

/// Writes the undo file for landing `overlay`; it is durable when this returns. Gives its digest.
pub(super) fn write(
    folder: &dyn Folder,
    plan: &Plan,
    overlay: &Overlay,
    binding: Binding,
) -> io::Result<[u8; 32]> {
    let ranges = plan.write_ranges().map_err(io::Error::other)?;
    let mut writer = SideWriter::create(folder, SideFile::Undo)?;
    let version = record_version(plan);
    if version == GUARDED_RECORD_VERSION {
        writer.append(guard_record(plan.guard(), overlay.base().as_ref())?.as_bytes());
    }
    for &(offset, len) in &ranges {
        let held = binding.len_before.saturating_sub(offset).min(len);
        writer.append(UndoRangeHead { offset: offset.into(), len: len.into(), held: held.into() }.as_bytes());
        copy(overlay.base().as_ref(), offset, held, &mut |bytes| writer.append(bytes))?;
        for (at, part) in sectors(offset, len) {
            writer.append(&mark(&read(overlay, at, part)?));
        }
    }
    let mut head = FileHead::new_zeroed();
    head.magic = UNDO_MAGIC;
    head.version = version.into();
    head.tier = (plan.tier() as u32).into();
    head.len_before = binding.len_before.into();
    head.len_after = binding.len_after.into();
    head.items = (ranges.len() as u64).into();
    head.fingerprint = binding.fingerprint;
    head.plan_digest = plan.digest();
    writer.finish(head)
}

/// Reads an undo file under one of its names, `None` if there is none.
pub(super) fn read_file(folder: &dyn Folder, name: SideFile) -> Result<Option<Undo>, RecordError> {
    let Some((head, body)) = read_record(folder, name, UNDO_MAGIC, WHAT)? else { return Ok(None) };
    let (len_before, len_after) = (head.len_before.get(), head.len_after.get());
    if len_after < len_before {
        let why = format!("the repair would have shrunk the image from {len_before} to {len_after} bytes");
        return Err(RecordError::damaged(WHAT, why));
    }
    let mut reader = Reader::new(&body);
    let guard = if head.version.get() == GUARDED_RECORD_VERSION {
        read_guard(&mut reader, len_before)
            .ok_or_else(|| RecordError::damaged(WHAT, "its guard is not within the image"))?
    } else {
        None
    };
    let mut ranges: Vec<UndoRange> = Vec::new();
    while !reader.is_at_end() {
        let from = ranges.last().map_or(0, |range| range.offset.saturating_add(range.len));
        let range = read_range(&mut reader, from, len_before, len_after)
            .ok_or_else(|| RecordError::damaged(WHAT, format!("range {} is out of order", ranges.len())))?;
        ranges.push(range);
    }
    if ranges.len() as u64 != head.items.get() {
        let why = format!("{} ranges, its head says {}", ranges.len(), head.items.get());
        return Err(RecordError::damaged(WHAT, why));
    }
    if ranges.iter().any(|range| guard.as_ref().is_some_and(|g| g.guard.touches(range.offset, range.len))) {
        return Err(RecordError::damaged(WHAT, "a range touches the guard"));
    }
    let binding = Binding { fingerprint: head.fingerprint, len_before, len_after };
    Ok(Some(Undo { binding, digest: head.head_digest, guard, ranges }))
}

/// The record of a guard, with what stands there in `before`.
fn guard_record(guard: Option<&Guard>, before: &dyn Backend) -> io::Result<UndoGuard> {
    let mut record = UndoGuard::new_zeroed();
    if let Some(guard) = guard {
        let len = guard.raised().len();
        record.offset = guard.offset().into();
        record.len = guard.len_bytes().into();
        before.read_at(&mut record.before[..len], guard.offset())?;
        record.raised[..len].copy_from_slice(guard.raised());
        record.lowered[..len].copy_from_slice(guard.lowered());
    }
    Ok(record)
}

/// The guard at the start of an undo file's body, the inner `None` if the repair had none.
#[expect(clippy::option_option, reason = "a broken record is not one that says there is no guard")]
fn read_guard(reader: &mut Reader<'_>, len_before: u64) -> Option<Option<UndoneGuard>> {
    let record: UndoGuard = reader.take()?;
    let (offset, len) = (record.offset.get(), usize::try_from(record.len.get()).ok()?);
    if len == 0 {
        return Some(None);
    }
    if len > GUARD_BYTES_MAX || offset.checked_add(record.len.get()).is_none_or(|end| end > len_before) {
        return None;
    }
    let guard = Guard::new(offset, record.raised[..len].to_vec(), record.lowered[..len].to_vec()).ok()?;
    Some(Some(UndoneGuard { guard, before: record.before[..len].to_vec() }))
}

fn read_range(reader: &mut Reader<'_>, from: u64, len_before: u64, len_after: u64) -> Option<UndoRange> {
    let head: UndoRangeHead = reader.take()?;
    let (offset, len) = (head.offset.get(), head.len.get());
    let end = offset.checked_add(len)?;
    if offset < from || len == 0 || end > len_after {
        return None;
    }
    if head.held.get() != len_before.saturating_sub(offset).min(len) {
        return None;
    }
    let held = reader.bytes(head.held.get())?.into();
    // As many marks as sectors, each of which takes bytes of the file: a forged length ends the loop early.
    let marks = sectors(offset, len).map(|_| reader.take()).collect::<Option<Vec<SectorMark>>>()?;
    Some(UndoRange { offset, len, held, marks })
}

impl Undo {
    /// The ranges that the repair writes, the guard's among them, sorted.
    pub(super) fn touched_ranges(&self) -> Vec<Span> {
        let guard = self.guard.iter().map(|undone| (undone.guard.offset(), undone.guard.len_bytes()));
        let ranges = self.ranges.iter().map(|range| (range.offset, range.len));
        let mut touched: Vec<Span> = ranges.chain(guard).collect();
        touched.sort_unstable();
        touched
    }

    /// Whether it is the undo file of a landing of `plan`, going by what that writes where.
    pub(super) fn is_of(&self, plan: &Plan) -> bool {
        plan.guard() == self.guard.as_ref().map(|undone| &undone.guard)
            && plan.touched_ranges().is_ok_and(|ranges| ranges == self.touched_ranges())
    }

    /// The image as it was before the repair, seen through the undo file.
    pub(super) fn before(&self, image: Arc<dyn Backend>) -> Result<Overlay, OverlayError> {
        let mut view = Overlay::with_len(image, self.binding.len_before, SIDE_BYTES_MAX);
        for range in self.ranges.iter().filter(|range| !range.held.is_empty()) {
            view.stage(Write { offset: range.offset, bytes: Arc::clone(&range.held) })?;
        }
        if let Some(UndoneGuard { guard, before }) = &self.guard {
            view.stage(Write { offset: guard.offset(), bytes: before.as_slice().into() })?;
        }
        Ok(view)
    }

    /// Looks for anything that neither the repair nor going back can have left.
    pub(super) fn trace(&self, image: &dyn Backend) -> io::Result<Trace> {
        let Binding { len_before, len_after, .. } = self.binding;
        if !(len_before..=len_after).contains(&image.len()) {
            return Ok(Trace::Foreign { offset: image.len() });
        }
        if let Some(UndoneGuard { guard, before }) = &self.guard {
            let now = read_padded(image, guard.offset(), guard.len_bytes())?;
            if ![before.as_slice(), guard.raised(), guard.lowered()].contains(&now.as_slice()) {
                return Ok(Trace::Foreign { offset: guard.offset() });
            }
        }
        for range in &self.ranges {
            for ((at, part), expected) in sectors(range.offset, range.len).zip(&range.marks) {
                let now = read_padded(image, at, part)?;
                let from = to_usize(at - range.offset);
                let mut before = vec![0; now.len()];
                if let Some(held) = range.held.get(from..) {
                    let len = held.len().min(before.len());
                    before[..len].copy_from_slice(&held[..len]);
                }
                if now != before && mark(&now) != *expected {
                    return Ok(Trace::Foreign { offset: at });
                }
            }
        }
        Ok(Trace::Ours)
    }

    /// Whether the image, seen as it was before the repair, has the fingerprint that was taken then.
    pub(super) fn fits(&self, image: Arc<dyn Backend>) -> io::Result<bool> {
        let view = self.before(image).map_err(io::Error::other)?;
        Ok(fingerprint::of(&view, &self.touched_ranges())? == self.binding.fingerprint)
    }

    /// Puts every byte and the length back, the guard raised meanwhile; durable when this returns.
    pub(super) fn put_back(&self, image: &dyn Backend) -> io::Result<()> {
        if let Some(UndoneGuard { guard, .. }) = &self.guard {
            image.write_at(guard.raised(), guard.offset())?;
            image.sync()?;
        }
        for range in self.ranges.iter().filter(|range| !range.held.is_empty()) {
            image.write_at(&range.held, range.offset)?;
        }
        if image.len() != self.binding.len_before {
            image.set_len(self.binding.len_before)?;
        }
        image.sync()?;
        if let Some(UndoneGuard { guard, before }) = &self.guard {
            image.write_at(before, guard.offset())?;
            image.sync()?;
        }
        Ok(())
    }
}

/// A range cut at the sector boundaries of the file.
fn sectors(offset: u64, len: u64) -> impl Iterator<Item = (u64, u64)> {
    let end = offset.saturating_add(len);
    let mut at = offset;
    std::iter::from_fn(move || {
        (at < end).then(|| {
            let next = (at / SECTOR_BYTES + 1).saturating_mul(SECTOR_BYTES).min(end);
            let part = (at, next - at);
            at = next;
            part
        })
    })
}

fn mark(bytes: &[u8]) -> SectorMark {
    let digest: [u8; 32] = Sha256::digest(bytes).into();
    let mut mark = [0; size_of::<SectorMark>()];
    mark.copy_from_slice(&digest[..size_of::<SectorMark>()]);
    mark
}

fn read(image: &dyn Backend, offset: u64, len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; to_usize(len)];
    image.read_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// As [`read`]; what lies past the end of the image reads as zeros.
fn read_padded(image: &dyn Backend, offset: u64, len: u64) -> io::Result<Vec<u8>> {
    let present = image.len().saturating_sub(offset).min(len);
    let mut bytes = if present > 0 { read(image, offset, present)? } else { Vec::new() };
    bytes.resize(to_usize(len), 0);
    Ok(bytes)
}

fn copy(image: &dyn Backend, offset: u64, len: u64, out: &mut dyn FnMut(&[u8])) -> io::Result<()> {
    const CHUNK_BYTES: u64 = 1 << 20;
    let end = offset.saturating_add(len);
    let mut at = offset;
    while at < end {
        let chunk = (end - at).min(CHUNK_BYTES);
        out(&read(image, at, chunk)?);
        at += chunk;
    }
    Ok(())
}
