//! An image as it reads with a damaged header field restored.
//!
//! What the check has found of a damaged field, it has found in the tables that the field leads to with the value that
//! the rest of the file asks for. A copy that is to say the same has to hold them.
//!
//! Invariant: only the bytes of the one field are others than the image's, and nothing is told but regions and
//! stand-ins.

use alloc::vec::Vec;

use instar_abi::boot::FILE_IMAGE;
use instar_abi::call::{DataRange, Phase, SnapshotRecord, TextKind};
use instar_abi::cure::Cure;
use instar_abi::extent::{Extent, MapRequest};
use instar_abi::finding::{Finding, Owner};
use instar_abi::problem::Problem;
use instar_abi::region::Region;
use instar_abi::to_usize;

use crate::host::{Host, Range};

/// The image with the field in place.
pub struct Restored<'a, H> {
    host: &'a mut H,
    /// Byte offset of the field in the file.
    at: u64,
    value: Vec<u8>,
}

impl<'a, H: Host> Restored<'a, H> {
    /// The image behind `host` with the field that the finding tells of as it is to be; `None` for a finding that
    /// nothing bears out.
    pub fn new(host: &'a mut H, field: &Finding) -> Option<Self> {
        let bytes = field.expected.to_be_bytes();
        let skip = bytes.len().checked_sub(to_usize(field.host_len))?;
        let value = bytes.get(skip..).filter(|_| field.witnesses > 0)?.to_vec();
        Some(Self { host, at: field.host_offset, value })
    }

    /// Puts the field's bytes where `bytes`, read from `offset`, holds their places.
    fn put(&self, offset: u64, bytes: &mut [u8]) {
        for (place, value) in (self.at..).zip(&self.value) {
            let index = place.checked_sub(offset).map(to_usize);
            if let Some(byte) = index.and_then(|index| bytes.get_mut(index)) {
                *byte = *value;
            }
        }
    }
}

impl<H: Host> Host for Restored<'_, H> {
    fn file_len(&self, file: u32) -> Option<u64> {
        self.host.file_len(file)
    }

    fn read(&mut self, ranges: &mut [Range], into: &mut [u8]) {
        self.host.read(ranges, into);
        let mut rest = into;
        for range in ranges {
            let Some((bytes, behind)) = rest.split_at_mut_checked(range.len) else { return };
            if range.file == FILE_IMAGE && range.error == 0 {
                self.put(range.offset, bytes);
            }
            rest = behind;
        }
    }

    fn data_ranges(&mut self, file: u32, offset: u64, len: u64, found: &mut Vec<DataRange>) {
        self.host.data_ranges(file, offset, len, found);
    }

    fn finding(&mut self, _: &Finding) {}

    fn owner(&mut self, _: &Owner) {}

    fn text(&mut self, _: TextKind, _: u32, _: &[u8]) {}

    fn snapshot(&mut self, _: &SnapshotRecord) {}

    fn progress(&mut self, phase: Phase, pass: u32, done: u64, total: u64) {
        self.host.progress(phase, pass, done, total);
    }

    fn scope(&mut self, _: Cure, _: &[(u64, u64)]) {}

    fn stage(&mut self, _: u64, _: &[u8]) {}

    fn barrier(&mut self) {}

    fn extent(&mut self, _: &Extent) {}

    fn region(&mut self, region: &Region) {
        self.host.region(region);
    }

    fn replace(&mut self, offset: u64, bytes: &[u8]) {
        self.host.replace(offset, bytes);
    }

    fn inflated(&mut self, _: &[Result<&[u8], Problem>]) {}

    fn next(&mut self, _: &mut Vec<MapRequest>) {}

    fn memory_budget(&self) -> usize {
        self.host.memory_budget()
    }
}
