//! The list of what is to be given back, as a cage tells it and as far as the host believes it.
//!
//! Invariant: what is listed are ranges of whole clusters behind the header and within the file, in ascending order,
//! that storage is held for as far as it tells; cut to what the storage can give back. The list is bounded, and what does
//! not fit is left for the next time.

use std::io;
use std::sync::Arc;

use instar_abi::finding::{Finding, Table};
use instar_abi::problem::Problem;
use instar_abi::region::Region;
use instar_abi::summary::Summary;

use super::proof::Mistrust;
use crate::image::{Backend, Storage};
use crate::sandbox::observer::Observer;

/// Most ranges of one list: 64 MiB of them.
const RANGES_MAX: usize = 1 << 22;

/// Ranges to be given back.
#[derive(Debug, Clone, Default)]
pub struct Listed {
    ranges: Arc<[(u64, u64)]>,
    bytes: u64,
    is_partial: bool,
}

impl Listed {
    /// The ranges as (offset, length), ascending, no two touching the same byte.
    #[must_use]
    pub fn ranges(&self) -> &Arc<[(u64, u64)]> {
        &self.ranges
    }

    /// Bytes in them.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// There are more than a list holds.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        self.is_partial
    }

    /// Whether there is nothing to give back.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }
}

/// Why there is no list.
#[derive(Debug)]
pub(super) enum ListError {
    /// The storage did not tell where the file's holes are.
    Storage(io::Error),
    /// What the cage told cannot be believed.
    Mistrust(Mistrust),
}

/// Takes what a cage tells as free.
#[derive(Debug)]
pub(super) struct Lister<'a> {
    image: &'a dyn Backend,
    cluster_bytes: u64,
    unit_bytes: u64,
    /// One past the last byte that may be given back.
    limit: u64,
    /// One past the last byte that was told.
    told: u64,
    ranges: Vec<(u64, u64)>,
    bytes: u64,
    is_partial: bool,
    error: Option<ListError>,
}

impl<'a> Lister<'a> {
    /// A list for an image that a check has told this of. Behind the end of an image on a block device may be
    /// something else.
    pub(super) fn new(image: &'a dyn Backend, summary: &Summary, storage: Storage) -> Self {
        let is_file = storage.held_bytes.is_some();
        Self {
            image,
            // Of no whole cluster, where the check has told no size that there is.
            cluster_bytes: if (9..=21).contains(&summary.cluster_bits) {
                1 << summary.cluster_bits
            } else {
                0
            },
            unit_bytes: storage.unit_bytes,
            limit: if is_file { image.len() } else { image.len().min(summary.image_end_offset) },
            told: 0,
            ranges: Vec::new(),
            bytes: 0,
            is_partial: false,
            error: None,
        }
    }

    pub(super) fn finish(self) -> Result<Listed, ListError> {
        match self.error {
            Some(error) => Err(error),
            None => Ok(Listed { ranges: self.ranges.into(), bytes: self.bytes, is_partial: self.is_partial }),
        }
    }

    fn take(&mut self, offset: u64, len: u64) -> Result<(), ListError> {
        let cluster_bytes = self.cluster_bytes;
        let is_whole = |bytes: u64| bytes.is_multiple_of(cluster_bytes);
        let end = offset.checked_add(len).filter(|end| *end <= self.image.len());
        // The header's cluster is never free, and what touches the range before would be part of it.
        let is_behind = offset > self.told && offset >= cluster_bytes;
        let Some(end) = end.filter(|_| len > 0 && is_whole(offset) && is_whole(len) && is_behind) else {
            let (file_bytes, told) = (self.image.len(), self.told);
            let mistrust = Mistrust::Range { offset, len, cluster_bytes, told, file_bytes };
            return Err(ListError::Mistrust(mistrust));
        };
        self.told = end;
        self.add_held(offset.next_multiple_of(self.unit_bytes), end.min(self.limit))
    }

    /// Adds what of a range storage is held for, from its first to its last byte.
    fn add_held(&mut self, start: u64, end: u64) -> Result<(), ListError> {
        let end = end - end % self.unit_bytes;
        if start >= end {
            return Ok(());
        }
        let held = self.image.data_ranges(start, end - start).map_err(ListError::Storage)?;
        let (Some(&(first, _)), Some(&(last, last_len))) = (held.first(), held.last()) else { return Ok(()) };
        let offset = (first - first % self.unit_bytes).max(start);
        let stop = last.saturating_add(last_len).next_multiple_of(self.unit_bytes).min(end);
        if self.ranges.len() >= RANGES_MAX {
            self.is_partial = true;
        } else if offset < stop {
            self.ranges.push((offset, stop - offset));
            let held_bytes = held.iter().fold(0_u64, |sum, (_, len)| sum.saturating_add(*len));
            self.bytes = self.bytes.saturating_add(held_bytes);
        }
        Ok(())
    }
}

impl Observer for Lister<'_> {
    fn finding(&mut self, problem: Problem, _: &Finding) {
        self.error.get_or_insert(ListError::Mistrust(Mistrust::Found(problem)));
    }

    fn finding_dropped(&mut self, problem: Problem, finding: &Finding) {
        self.finding(problem, finding);
    }

    fn region(&mut self, _: Table, region: &Region) {
        if self.error.is_none()
            && let Err(error) = self.take(region.offset, region.len)
        {
            self.error = Some(error);
        }
    }
}

#[cfg(test)]
#[path = "list_tests.rs"]
mod tests;
