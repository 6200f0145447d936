//! The answer to a request of a resident job, checked extent by extent as it comes in.
//!
//! Invariant: extents that get out of here are in guest order, without gap or overlap, cover the request, and
//! name only bytes that the files have.

use instar_abi::extent::{Extent, ExtentKind, MapRequest};
use instar_abi::problem::Problem;

use super::super::error::SandboxError;
use super::files::Files;
use super::violation;

/// Most extents of one answer. A request of 32 MiB in 512-byte clusters has at most 65536.
const EXTENTS_MAX: usize = 1 << 20;
/// A compressed extent is one cluster.
const CLUSTER_BYTES_MAX: u64 = 2 << 20;

/// Extents so far.
#[derive(Debug)]
pub(super) struct Answer {
    from: u64,
    to: u64,
    extents: Vec<Extent>,
}

impl Answer {
    /// An answer to this request, which asks for at least one byte and does not overflow.
    pub(super) fn new(request: &MapRequest) -> Self {
        let from = request.guest_offset;
        Self { from, to: from.saturating_add(request.guest_len), extents: Vec::new() }
    }

    /// Adds extents that continue those before.
    pub(super) fn extend(&mut self, extents: &[Extent], files: &Files) -> Result<(), SandboxError> {
        if self.extents.len() + extents.len() > EXTENTS_MAX {
            return Err(SandboxError::Limit { what: "extents of one answer", limit: EXTENTS_MAX as u64 });
        }
        for extent in extents {
            check_extent(extent, files)?;
            self.check_place(extent)?;
            self.extents.push(*extent);
        }
        Ok(())
    }

    fn check_place(&self, extent: &Extent) -> Result<(), SandboxError> {
        let Extent { guest_offset, guest_len, .. } = *extent;
        let end = guest_offset.checked_add(guest_len).ok_or_else(|| {
            violation(format!("extent at {guest_offset:#x}: length {guest_len:#x} overflows"))
        })?;
        let fits = match self.extents.last() {
            Some(last) => guest_offset == last.guest_offset + last.guest_len,
            None => guest_offset <= self.from,
        };
        if !fits || guest_offset >= self.to || end <= self.from {
            return Err(violation(format!(
                "extent {guest_offset:#x}..{end:#x} does not continue the answer to {:#x}..{:#x}",
                self.from, self.to
            )));
        }
        Ok(())
    }

    /// The whole answer.
    pub(super) fn finish(self) -> Result<Vec<Extent>, SandboxError> {
        let end = self.extents.last().map_or(self.from, |last| last.guest_offset + last.guest_len);
        if end < self.to {
            return Err(violation(format!("the answer ends at {end:#x}, asked was up to {:#x}", self.to)));
        }
        Ok(self.extents)
    }
}

/// What can be said of an extent alone.
pub(super) fn check_extent(extent: &Extent, files: &Files) -> Result<(), SandboxError> {
    let Extent { guest_offset, guest_len, host_offset, host_len, kind, file, problem, reserved } = *extent;
    let refuse = |what: String| Err(violation(format!("extent at {guest_offset:#x}: {what}")));
    let Some(kind) = ExtentKind::from_u32(kind) else {
        return refuse(format!("unknown kind {kind}"));
    };
    if guest_len == 0 || reserved != 0 {
        return refuse(format!("length {guest_len}, reserved word {reserved:#x}"));
    }
    if (kind == ExtentKind::Damaged) != Problem::from_u32(problem).is_some() || !damage_fits(kind, problem) {
        return refuse(format!("problem {problem} on kind {kind:?}"));
    }
    match kind {
        ExtentKind::Zero | ExtentKind::Hole | ExtentKind::Damaged if host_offset != 0 || host_len != 0 => {
            refuse(format!("host range {host_offset:#x} + {host_len:#x} on kind {kind:?}"))
        }
        ExtentKind::Zero | ExtentKind::Hole | ExtentKind::Damaged => Ok(()),
        ExtentKind::Data | ExtentKind::Encrypted if host_len != guest_len => {
            refuse(format!("{host_len:#x} host bytes for {guest_len:#x} guest bytes"))
        }
        ExtentKind::Compressed if guest_len > CLUSTER_BYTES_MAX => {
            refuse(format!("{guest_len:#x} guest bytes in one compressed cluster"))
        }
        ExtentKind::Data | ExtentKind::Encrypted | ExtentKind::Compressed => {
            files.check(file, host_offset, host_len)
        }
    }
}

/// Only damage has a problem.
fn damage_fits(kind: ExtentKind, problem: u32) -> bool {
    kind == ExtentKind::Damaged || problem == 0
}
