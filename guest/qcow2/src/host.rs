//! What the code in the cage may ask of its host, as a trait.
//!
//! Inside the cage it is the gate to the doorbell; in tests and fuzz targets it is a file or a byte vector. No
//! other input reaches this crate: that is what makes a job deterministic.

use instar_abi::{
    call::{DataRange, Phase, ReadRange, SnapshotRecord, TextKind},
    cure::Cure,
    extent::{Extent, MapRequest},
    finding::{Finding, Owner},
    problem::Problem,
    region::Region,
};

/// One range of a vectored read, as the crate sees it: the bytes land one after the other in one buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// Byte offset in the file.
    pub offset: u64,
    /// Bytes, at least 1.
    pub len: usize,
    /// File index (`instar_abi::boot::FILE_*`).
    pub file: u32,
    /// Set by the read: 0, or the errno that this range failed with. Its bytes are zero then.
    pub error: u32,
}

/// The host's side of a job. Calls cannot fail in a way that the inmate would have to handle: a host that
/// refuses a call ends the job.
pub trait Host {
    /// Length in bytes of a file, `None` where there is none.
    fn file_len(&self, file: u32) -> Option<u64>;

    /// Reads all ranges into `into`, which is exactly as long as their sum. Ranges end at the end of their file
    /// or before.
    fn read(&mut self, ranges: &mut [Range], into: &mut [u8]);

    /// Which parts of a range are not holes, in order; everything else reads as zeros.
    fn data_ranges(&mut self, file: u32, offset: u64, len: u64, found: &mut alloc::vec::Vec<DataRange>);

    /// Reports a finding.
    fn finding(&mut self, finding: &Finding);

    /// Names a user of the place of a finding that was reported before.
    fn owner(&mut self, owner: &Owner);

    /// Hands over opaque bytes found in the image.
    fn text(&mut self, kind: TextKind, index: u32, bytes: &[u8]);

    /// Tells of an internal snapshot.
    fn snapshot(&mut self, record: &SnapshotRecord);

    /// Says how far the job is.
    fn progress(&mut self, phase: Phase, pass: u32, done: u64, total: u64);

    /// Opens a step of a cure: what is staged from now on lies within these (offset, len) ranges.
    fn scope(&mut self, cure: Cure, ranges: &[(u64, u64)]);

    /// Proposes a write to the image.
    fn stage(&mut self, offset: u64, bytes: &[u8]);

    /// What was staged before must be durable before what is staged after.
    fn barrier(&mut self);

    /// Reports an extent of the range under way, or of the active disk.
    fn extent(&mut self, extent: &Extent);

    /// Tells who uses a part of the image.
    fn region(&mut self, region: &Region);

    /// Says what a copy without guest data holds in place of the image's bytes.
    fn replace(&mut self, offset: u64, bytes: &[u8]);

    /// Hands over the clusters that the requests under way asked for, all of them and in their order; for what cannot
    /// be inflated, the reason. What comes after it is [`Host::next`].
    fn inflated(&mut self, clusters: &[Result<&[u8], Problem>]);

    /// Waits for the next requests of a resident job: one, or several that all are to inflate.
    fn next(&mut self, requests: &mut alloc::vec::Vec<MapRequest>);

    /// The payload of one of the requests that [`Host::next`] gave last, where it came along with it.
    fn payload(&self, _request: &MapRequest) -> Option<&[u8]> {
        None
    }

    /// Bytes that the job may allocate in all; what it must stay below to get an answer.
    fn memory_budget(&self) -> usize;
}

const _: () = assert!(size_of::<ReadRange>() == 32);
