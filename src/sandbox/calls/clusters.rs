//! The answer to requests to inflate, copied out and checked cluster by cluster as it comes in.
//!
//! Invariant: what gets out of here is one outcome for each request, in order; a cluster is exactly as long as was
//! asked for, and its bytes were copied once, so that the inmate cannot change them any more.

use instar_abi::call::InflatedRange;
use instar_abi::extent::MapRequest;
use instar_abi::problem::Problem;
use instar_abi::to_usize;

use super::super::error::SandboxError;
use super::super::memory::InmateMemory;
use super::violation;
use crate::disk::Inflated;

/// Clusters so far.
#[derive(Debug)]
pub(super) struct Clusters {
    /// Bytes that each request asks for.
    wanted: Vec<u64>,
    clusters: Vec<Inflated>,
}

impl Clusters {
    /// An answer to these requests.
    pub(super) fn new(requests: &[MapRequest]) -> Self {
        Self { wanted: requests.iter().map(|request| request.guest_len).collect(), clusters: Vec::new() }
    }

    /// Adds clusters that continue those before.
    pub(super) fn extend(
        &mut self,
        ranges: &[InflatedRange],
        memory: &InmateMemory,
    ) -> Result<(), SandboxError> {
        for range in ranges {
            let at = self.clusters.len();
            let wanted = *self.wanted.get(at).ok_or_else(|| {
                violation(format!("inflated: cluster {at}, asked were {}", self.wanted.len()))
            })?;
            self.clusters.push(copy_out(range, wanted, memory)?);
        }
        Ok(())
    }

    /// The whole answer.
    pub(super) fn finish(self) -> Result<Vec<Inflated>, SandboxError> {
        let (got, wanted) = (self.clusters.len(), self.wanted.len());
        if got != wanted {
            return Err(violation(format!("inflated: {got} clusters, asked were {wanted}")));
        }
        Ok(self.clusters)
    }
}

fn copy_out(range: &InflatedRange, wanted: u64, memory: &InmateMemory) -> Result<Inflated, SandboxError> {
    let InflatedRange { src, len, problem, reserved } = *range;
    if reserved != 0 {
        return Err(violation(format!("inflated: reserved word {reserved:#x}, must be zero")));
    }
    if problem != 0 {
        let known = Problem::from_u32(problem).filter(|_| (src, len) == (0, 0));
        return known.map(Err).ok_or_else(|| {
            violation(format!("inflated: problem {problem} with {len:#x} bytes from {src:#x}"))
        });
    }
    if len != wanted {
        return Err(violation(format!("inflated: {len:#x} bytes, asked were {wanted:#x}")));
    }
    let bytes = memory
        .arena(src, len)
        .ok_or_else(|| violation(format!("inflated: {len:#x} bytes from {src:#x} are not in the arena")))?;
    let mut cluster = vec![0; to_usize(len)];
    bytes.copy_to(&mut cluster);
    Ok(Ok(cluster.into_boxed_slice()))
}
