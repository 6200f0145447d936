//! What a survey tells: who uses which part of the file, what a copy holds instead, what the active disk is made of; and
//! which parts nothing uses, which a job of its own tells.
//!
//! Invariant: what gets out of here names only bytes that the files have, and extents in guest order without a gap. No
//! part is told as used and as free by the same job.

use instar_abi::boot::{FILE_IMAGE, JobKind};
use instar_abi::call::StageRange;
use instar_abi::extent::{Extent, ExtentKind};
use instar_abi::finding::Table;
use instar_abi::region::{FLAGS_KNOWN, FREE, Region};

use super::super::error::SandboxError;
use super::super::limits::Limits;
use super::super::observer::Observer;
use super::answer::check_extent;
use super::files::Files;
use super::{charge, violation};

/// What a survey has told so far.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// One past the last guest byte.
    mapped: u64,
    bytes_replaced: u64,
}

impl Survey {
    /// Passes on extents that continue those before.
    pub(super) fn extents(
        &mut self,
        extents: &[Extent],
        files: &Files,
        observer: &mut dyn Observer,
    ) -> Result<(), SandboxError> {
        for extent in extents {
            check_extent(extent, files)?;
            let Extent { guest_offset, guest_len, .. } = *extent;
            let end = guest_offset.checked_add(guest_len).filter(|_| guest_offset == self.mapped);
            self.mapped = end.ok_or_else(|| {
                violation(format!(
                    "extent {guest_offset:#x} + {guest_len:#x} does not continue those to {:#x}",
                    self.mapped
                ))
            })?;
            if let Some(kind) = ExtentKind::from_u32(extent.kind) {
                observer.extent(kind, extent);
            }
        }
        Ok(())
    }

    /// Refuses bytes for a place that the file does not have, and too many of them.
    pub(super) fn charge(
        &mut self,
        range: &StageRange,
        files: &Files,
        limits: &Limits,
    ) -> Result<(), SandboxError> {
        files.check(FILE_IMAGE, range.offset, range.len)?;
        charge(&mut self.bytes_replaced, range.len, limits.bytes_staged, "bytes replaced")
    }
}

/// Whether a job of this kind may tell of a region so.
fn is_known(kind: JobKind, table: Table, flags: u32) -> bool {
    match kind {
        JobKind::Free => table == Table::File && flags == FREE,
        _ => flags & !FLAGS_KNOWN == 0,
    }
}

/// Passes on the regions that a job of this kind tells of.
pub(super) fn regions(
    kind: JobKind,
    regions: &[Region],
    files: &Files,
    observer: &mut dyn Observer,
) -> Result<(), SandboxError> {
    for region in regions {
        let Region { offset, len, table, flags } = *region;
        files.check(FILE_IMAGE, offset, len)?;
        let known = Table::from_u32(table).filter(|table| is_known(kind, *table, flags));
        let table = known.ok_or_else(|| {
            violation(format!("region at {offset:#x}: table {table}, flags {flags:#x}, must be known"))
        })?;
        observer.region(table, region);
    }
    Ok(())
}
