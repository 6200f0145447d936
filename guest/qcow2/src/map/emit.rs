//! Extents on their way out: neighbours that are one become one.

use core::ops::Range;

use instar_abi::extent::{Extent, ExtentKind};
use instar_abi::problem::Problem;

use crate::host::Host;

/// Guest bytes without a place in a file.
#[derive(Debug, Clone, Copy)]
pub(super) enum Plain {
    Hole,
    Zero,
    Damaged(Problem),
}

/// Holds back the extent that may still grow.
#[derive(Debug, Default)]
pub(super) struct Emitter {
    pending: Option<Extent>,
}

impl Emitter {
    /// Bytes without a place in a file.
    pub fn put<H: Host>(&mut self, host: &mut H, guest: Range<u64>, plain: Plain) {
        let (kind, problem) = match plain {
            Plain::Hole => (ExtentKind::Hole, 0),
            Plain::Zero => (ExtentKind::Zero, 0),
            Plain::Damaged(problem) => (ExtentKind::Damaged, problem as u32),
        };
        self.push(host, Extent { kind: kind as u32, problem, ..empty(guest) });
    }

    /// Bytes of a file, plain or encrypted.
    pub fn put_bytes<H: Host>(
        &mut self,
        host: &mut H,
        guest: Range<u64>,
        kind: ExtentKind,
        file: u32,
        at: u64,
    ) {
        let extent = empty(guest);
        let (kind, host_len) = (kind as u32, extent.guest_len);
        self.push(host, Extent { kind, file, host_offset: at, host_len, ..extent });
    }

    /// One compressed cluster.
    pub fn put_compressed<H: Host>(&mut self, host: &mut H, guest: Range<u64>, at: u64, len: u64) {
        let kind = ExtentKind::Compressed as u32;
        self.push(host, Extent { kind, host_offset: at, host_len: len, ..empty(guest) });
    }

    fn push<H: Host>(&mut self, host: &mut H, next: Extent) {
        if next.guest_len == 0 {
            return;
        }
        match &mut self.pending {
            Some(last) if is_one(last, &next) => {
                last.guest_len = last.guest_len.saturating_add(next.guest_len);
                last.host_len = last.host_len.saturating_add(next.host_len);
            }
            pending => {
                if let Some(done) = pending.replace(next) {
                    host.extent(&done);
                }
            }
        }
    }

    /// Lets the last extent out.
    pub fn finish<H: Host>(self, host: &mut H) {
        if let Some(last) = self.pending {
            host.extent(&last);
        }
    }
}

fn empty(guest: Range<u64>) -> Extent {
    Extent {
        guest_offset: guest.start,
        guest_len: guest.end.saturating_sub(guest.start),
        host_offset: 0,
        host_len: 0,
        kind: 0,
        file: 0,
        problem: 0,
        reserved: 0,
    }
}

/// Whether `next`, which lies right behind `last` in the guest, goes on with it in the file too.
fn is_one(last: &Extent, next: &Extent) -> bool {
    let same = last.kind == next.kind && last.file == next.file && last.problem == next.problem;
    let in_file = |kind| last.kind == kind as u32;
    same && !in_file(ExtentKind::Compressed)
        && (!(in_file(ExtentKind::Data) || in_file(ExtentKind::Encrypted))
            || last.host_offset.checked_add(last.host_len) == Some(next.host_offset))
}
