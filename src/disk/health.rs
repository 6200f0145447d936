//! Counters of what went wrong while a disk was served, and of what its caches hold.
//!
//! Invariant: a counter only ever rises, and an event is counted once, however many bytes it touched. What the caches had
//! when they were asked is not counted: that is the way of every read.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::Serialize;

/// Live counters of one disk.
#[derive(Debug, Default)]
pub struct Health {
    damaged_reads: AtomicU64,
    io_errors: AtomicU64,
    unsupported_reads: AtomicU64,
    source_errors: AtomicU64,
    bad: Mutex<BTreeSet<u64>>,
}

/// Clusters that are remembered as bad.
const BAD_MAX: usize = 1 << 16;

/// Values of the counters at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct HealthCounts {
    /// Reads that touched a damaged range.
    pub damaged_reads: u64,
    /// Reads that the file below failed, or that it was too short for.
    pub io_errors: u64,
    /// Reads that touched encrypted clusters, which are not served.
    pub unsupported_reads: u64,
    /// Times the cage gave no answer, or one that broke the rules.
    pub source_errors: u64,
}

impl std::iter::Sum for HealthCounts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |sum, next| Self {
            damaged_reads: sum.damaged_reads.saturating_add(next.damaged_reads),
            io_errors: sum.io_errors.saturating_add(next.io_errors),
            unsupported_reads: sum.unsupported_reads.saturating_add(next.unsupported_reads),
            source_errors: sum.source_errors.saturating_add(next.source_errors),
        })
    }
}

/// What a bounded cache holds and did at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CacheCounts {
    /// Bytes of memory that it holds, about.
    pub bytes: u64,
    /// Times that something was put in: a window of extents, a cluster.
    pub added: u64,
    /// Times that something was dropped for want of room, or of readers.
    pub dropped: u64,
}

impl std::iter::Sum for CacheCounts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |sum, next| Self {
            bytes: sum.bytes.saturating_add(next.bytes),
            added: sum.added.saturating_add(next.added),
            dropped: sum.dropped.saturating_add(next.dropped),
        })
    }
}

/// One kind of event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    DamagedRead,
    IoError,
    UnsupportedRead,
    SourceError,
}

impl Health {
    /// Counts an event.
    pub(crate) fn count(&self, event: Event) {
        let counter = match event {
            Event::DamagedRead => &self.damaged_reads,
            Event::IoError => &self.io_errors,
            Event::UnsupportedRead => &self.unsupported_reads,
            Event::SourceError => &self.source_errors,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Remembers that a read found the cluster at this guest offset to be bad. Nothing is remembered of those after
    /// the first [`BAD_MAX`].
    pub(crate) fn note_bad(&self, cluster_offset: u64) {
        let mut bad = self.bad.lock();
        if bad.len() < BAD_MAX {
            bad.insert(cluster_offset);
        }
    }

    /// Whether reads have found any.
    #[must_use]
    pub fn has_bad_clusters(&self) -> bool {
        !self.bad.lock().is_empty()
    }

    /// Guest offsets of the clusters that reads have found to be bad, in order.
    #[must_use]
    pub fn bad_clusters(&self) -> Vec<u64> {
        self.bad.lock().iter().copied().collect()
    }

    /// The counters as they are now.
    #[must_use]
    pub fn counts(&self) -> HealthCounts {
        HealthCounts {
            damaged_reads: self.damaged_reads.load(Ordering::Relaxed),
            io_errors: self.io_errors.load(Ordering::Relaxed),
            unsupported_reads: self.unsupported_reads.load(Ordering::Relaxed),
            source_errors: self.source_errors.load(Ordering::Relaxed),
        }
    }
}
