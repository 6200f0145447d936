//! The clusters of all windows that call for a second look, kept so that it is taken once, with all of them known.
//!
//! Invariant: judging by the suspects of all windows is judging by the counts of one window that holds everything:
//! of a cluster that is not a suspect there is nothing to be told.
//!
//! What this does not do: it is not asked where one window is enough, nor where there are more suspects than fit.
//! Then every window is judged by its own counts, as a whole.

use alloc::vec::Vec;
use core::ops::Range;

use super::counts::{Chunk, Counts, Usage};
use super::judge::Usages;
use super::leaks::ClusterSet;

/// A cluster that is used as two things, or as what its entries say it is not.
#[derive(Debug, Clone, Copy)]
struct Suspect {
    cluster: u64,
    usage: Usage,
    is_mismatched: bool,
}

/// Suspects in order of their clusters.
#[derive(Debug)]
pub struct Suspects {
    list: Vec<Suspect>,
    most: usize,
}

impl Suspects {
    /// No suspects, and room for as many as `cap_bytes` of memory hold.
    #[must_use]
    pub fn new(cap_bytes: usize) -> Self {
        // A list that grows is there twice for a moment.
        Self { list: Vec::new(), most: cap_bytes / 2 / size_of::<Suspect>() }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Forgets all of them.
    pub fn clear(&mut self) {
        self.list.clear();
    }

    /// Adds those of a window, which is above the ones before; `mismatched` are its clusters whose stored count is
    /// wrong. False, with none of them added, where they do not fit.
    pub fn add(&mut self, counts: &Counts, mismatched: &ClusterSet) -> bool {
        let before = self.list.len();
        for (clusters, chunk) in counts.used_chunks() {
            let Chunk::Wide(wide) = chunk else { continue };
            for (slot, cluster) in clusters.enumerate() {
                let usage = wide.usage(slot);
                if !(usage.is_overlap() || usage.is_copied_wrong()) {
                    continue;
                }
                if self.list.len() >= self.most {
                    self.list.truncate(before);
                    return false;
                }
                let is_mismatched = mismatched.contains(cluster);
                self.list.push(Suspect { cluster, usage, is_mismatched });
            }
        }
        true
    }

    fn find(&self, cluster: u64) -> Option<&Suspect> {
        let found = self.list.binary_search_by_key(&cluster, |suspect| suspect.cluster).ok()?;
        self.list.get(found)
    }
}

impl Usages for Suspects {
    fn usage(&self, cluster: u64) -> Usage {
        self.find(cluster).map_or(Usage { count: 0, flags: 0 }, |suspect| suspect.usage)
    }

    fn is_mismatched(&self, cluster: u64) -> bool {
        self.find(cluster).is_some_and(|suspect| suspect.is_mismatched)
    }

    fn first_overlap(&self, clusters: Range<u64>) -> Option<(u64, Usage)> {
        let from = self.list.partition_point(|suspect| suspect.cluster < clusters.start);
        let within = self.list.get(from..)?.iter().take_while(|suspect| suspect.cluster < clusters.end);
        let mut overlaps = within.filter(|suspect| suspect.usage.is_overlap());
        overlaps.next().map(|suspect| (suspect.cluster, suspect.usage))
    }
}
