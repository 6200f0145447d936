//! Compressed clusters on their way out: one vectored read for all payloads of a batch that did not come with it, one
//! call for all clusters.
//!
//! Invariant: each request is answered, in order; a payload that does not inflate costs its own cluster and no other.

use alloc::vec;
use alloc::vec::Vec;

use instar_abi::boot::FILE_IMAGE;
use instar_abi::extent::{INFLATED_BYTES_MAX, MapRequest, REQUESTS_MAX};
use instar_abi::problem::Problem;
use instar_abi::to_usize;

use crate::host::{Host, Range};
use crate::inflate::Inflater;
use crate::ondisk::Header;
use crate::ondisk::units::FileBounds;

/// Inflates batches with the same working memory.
#[derive(Debug)]
pub(super) struct Clusters<'a> {
    header: &'a Header,
    inflater: Inflater,
    clusters: Vec<u8>,
}

impl<'a> Clusters<'a> {
    pub fn new(header: &'a Header) -> Self {
        let inflater = header.compression.map_or_else(Inflater::by_payload, Inflater::new);
        Self { header, inflater, clusters: Vec::new() }
    }

    /// Answers requests that all ask for one cluster each.
    pub fn inflate<H: Host>(&mut self, host: &mut H, requests: &[MapRequest]) {
        let bounds = self.header.bounds(host.file_len(FILE_IMAGE).unwrap_or(0));
        let cluster = self.header.cluster.usize();
        // A host that asks for more than it may ask for gets no memory for it, and an answer that it refuses.
        let most = to_usize(INFLATED_BYTES_MAX).div_euclid(cluster).clamp(1, REQUESTS_MAX);
        let requests = requests.get(..most).unwrap_or(requests);
        let plan: Vec<Result<Range, Problem>> =
            requests.iter().map(|request| self.plan(&bounds, request)).collect();
        let missing = |request| host.payload(request).is_none();
        let mut reads: Vec<Range> = (requests.iter().zip(&plan))
            .filter_map(|(request, range)| range.ok().filter(|_| missing(request)))
            .collect();
        let mut payloads = vec![0; reads.iter().map(|range| range.len).sum()];
        if !reads.is_empty() {
            host.read(&mut reads, &mut payloads);
        }
        self.clusters.resize(cluster * requests.len(), 0);
        let mut reads = reads.iter();
        let mut rest = payloads.as_slice();
        let mut outcomes: Vec<Result<&[u8], Problem>> = Vec::with_capacity(requests.len());
        let clusters = self.clusters.chunks_exact_mut(cluster);
        for ((request, plan), into) in requests.iter().zip(&plan).zip(clusters) {
            let payload = plan.and_then(|_| {
                if let Some(payload) = host.payload(request) {
                    return Ok(payload);
                }
                let read = reads.next().ok_or(Problem::CompressedDamaged)?;
                let (payload, behind) = rest.split_at_checked(read.len).ok_or(Problem::CompressedDamaged)?;
                rest = behind;
                if read.error != 0 {
                    return Err(Problem::ReadError);
                }
                Ok(payload)
            });
            let outcome = payload.and_then(|payload| {
                self.inflater.inflate(payload, into).map_err(|_| Problem::CompressedDamaged)
            });
            outcomes.push(outcome.map(|()| &*into));
        }
        host.inflated(&outcomes);
    }

    /// The payload of a request, as a read.
    fn plan(&self, bounds: &FileBounds, request: &MapRequest) -> Result<Range, Problem> {
        let MapRequest { guest_len, host_offset: offset, host_len: len, .. } = *request;
        if len == 0 || bounds.present(offset, len) != len {
            return Err(Problem::CompressedPastEof);
        }
        let cluster = self.header.cluster.bytes();
        if guest_len != cluster || len > 2 * cluster {
            return Err(Problem::CompressedDamaged);
        }
        Ok(Range { offset, len: to_usize(len), file: FILE_IMAGE, error: 0 })
    }
}
