//! The proof that nothing uses what is to be given back.
//!
//! Two fresh cages look at a view of the image in which all of it reads as zeros. The first checks it: it must find
//! nothing, and tell the same facts as before. That speaks for metadata only, as a check reads no guest data. So the
//! second one tells who uses which part of the file, and, by the code that serves a mount, what the active disk is made
//! of: nothing of that may lie in what is to be given back.
//!
//! Invariant: a [`Proof`] is made by [`prove`] alone, and gives up its list only by being used up.

use std::sync::Arc;

use instar_abi::boot::FILE_IMAGE;
use instar_abi::extent::{Extent, ExtentKind};
use instar_abi::finding::{Finding, Table};
use instar_abi::problem::{Problem, Tier};
use instar_abi::region::Region;
use instar_abi::summary::{Outcome, Summary};
use thiserror::Error;

use super::super::error::HealError;
use super::super::inspector::{Inspection, Surveyor, Tally};
use super::cage;
use super::list::Listed;
use crate::image::{Backend, Zeroed};
use crate::sandbox::observer::Observer;

/// Why what a cage tells as free is not believed to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Mistrust {
    /// A range that cannot be.
    #[error(
        "{len} bytes at {offset:#x} are told as free: no clusters of {cluster_bytes} bytes behind {told:#x} in a file of \
         {file_bytes} bytes"
    )]
    Range {
        /// Where.
        offset: u64,
        /// How many bytes.
        len: u64,
        /// Bytes of a cluster.
        cluster_bytes: u64,
        /// Where the range before it ends.
        told: u64,
        /// Bytes in the file.
        file_bytes: u64,
    },
    /// One job has found something where another had not.
    #[error("{} was found, where the check before had found nothing", .0.row().id)]
    Found(Problem),
    /// Not everything could be looked at.
    #[error("not everything could be looked at, where the check before could")]
    NotComplete,
    /// A fact is not what it was.
    #[error("{name}: {before} in the check before, then {after}")]
    Fact {
        /// Which fact.
        name: &'static str,
        /// Its value in the check before.
        before: u64,
        /// Its value in another job.
        after: u64,
    },
    /// Something uses it.
    #[error("{len} bytes at {offset:#x} are in use, and told as free")]
    Used {
        /// First byte of what is used.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// A part of the disk could not be told.
    #[error("the disk's bytes from {guest_offset:#x} on are damaged, which the check before has not found")]
    Damaged {
        /// First guest byte.
        guest_offset: u64,
    },
}

/// Nothing uses what is listed.
#[derive(Debug)]
pub(super) struct Proof(Listed);

impl Proof {
    /// What it was given for.
    pub(super) fn into_listed(self) -> Listed {
        self.0
    }
}

/// Has fresh cages look at `image` without what is listed.
pub(super) fn prove(
    image: Arc<dyn Backend>,
    before: &Inspection,
    listed: Listed,
    inspector: &mut dyn Surveyor,
    observer: &mut dyn Observer,
) -> Result<Proof, HealError> {
    let view = Zeroed::new(image, Arc::clone(listed.ranges())).map_err(HealError::BadList)?;
    let view: Arc<dyn Backend> = Arc::new(view);
    let mut tally = Tally::new(observer, Tier::All);
    let ran = inspector.check(Arc::clone(&view), &mut tally).map_err(cage("the proof"))?;
    let after = tally.finish(ran);
    if let Some((&problem, _)) = after.counts.iter().next() {
        return Err(HealError::Unproven(Mistrust::Found(problem)));
    }
    compare(before, &after.summary).map_err(HealError::Unproven)?;
    let mut used = Used { ranges: listed.ranges(), mistrust: None };
    let ran = inspector.survey(view, &mut used).map_err(cage("the proof"))?;
    match used.mistrust {
        Some(mistrust) => Err(HealError::Unproven(mistrust)),
        None if ran.summary.outcome != Outcome::Complete as u32 => {
            Err(HealError::Unproven(Mistrust::NotComplete))
        }
        None => Ok(Proof(listed)),
    }
}

type Fact = (&'static str, fn(&Summary) -> u64);

/// What a check tells of an image, but for what it cost.
const FACTS: &[Fact] = &[
    ("version", |summary| summary.version.into()),
    ("feature bits", |summary| summary.features),
    ("cluster bits", |summary| summary.cluster_bits.into()),
    ("refcount width", |summary| summary.refcount_bits.into()),
    ("snapshots", |summary| summary.snapshots.into()),
    ("bitmaps", |summary| summary.bitmaps.into()),
    ("virtual size", |summary| summary.virtual_size),
    ("findings", |summary| summary.findings),
    ("total clusters", |summary| summary.total_clusters),
    ("allocated clusters", |summary| summary.allocated_clusters),
    ("fragmented clusters", |summary| summary.fragmented_clusters),
    ("compressed clusters", |summary| summary.compressed_clusters),
    ("end of the image", |summary| summary.image_end_offset),
];

/// Refuses a job that tells another story than the check before.
pub(super) fn compare(before: &Inspection, after: &Summary) -> Result<(), Mistrust> {
    if after.outcome != Outcome::Complete as u32 {
        return Err(Mistrust::NotComplete);
    }
    for (name, fact) in FACTS {
        let (before, after) = (fact(&before.summary), fact(after));
        if before != after {
            return Err(Mistrust::Fact { name, before, after });
        }
    }
    Ok(())
}

/// Looks for a user of what is listed.
struct Used<'a> {
    ranges: &'a [(u64, u64)],
    mistrust: Option<Mistrust>,
}

impl Used<'_> {
    fn look(&mut self, offset: u64, len: u64) {
        let end = offset.saturating_add(len);
        let next = self.ranges.partition_point(|(start, len)| start + len <= offset);
        if self.ranges.get(next).is_some_and(|(start, _)| *start < end) {
            self.mistrust.get_or_insert(Mistrust::Used { offset, len });
        }
    }
}

impl Observer for Used<'_> {
    fn finding(&mut self, problem: Problem, _: &Finding) {
        self.mistrust.get_or_insert(Mistrust::Found(problem));
    }

    fn region(&mut self, _: Table, region: &Region) {
        self.look(region.offset, region.len);
    }

    fn extent(&mut self, kind: ExtentKind, extent: &Extent) {
        match kind {
            ExtentKind::Data | ExtentKind::Compressed | ExtentKind::Encrypted => {
                if extent.file == FILE_IMAGE {
                    self.look(extent.host_offset, extent.host_len);
                }
            }
            ExtentKind::Zero | ExtentKind::Hole => {}
            ExtentKind::Damaged => {
                self.mistrust.get_or_insert(Mistrust::Damaged { guest_offset: extent.guest_offset });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use instar_abi::finding::ACTIVE;

    use super::*;

    const FREE: &[(u64, u64)] = &[(4096, 4096), (16384, 8192)];

    fn used(look: impl FnOnce(&mut Used<'_>)) -> Option<Mistrust> {
        let mut used = Used { ranges: FREE, mistrust: None };
        look(&mut used);
        used.mistrust
    }

    fn extent(kind: ExtentKind, host_offset: u64, host_len: u64, file: u32) -> Extent {
        let (kind, problem, reserved) = (kind as u32, 0, 0);
        Extent { guest_offset: 7, guest_len: 1, host_offset, host_len, kind, file, problem, reserved }
    }

    #[test]
    fn region_that_touches_a_free_range_is_seen_and_neighbours_are_not() {
        for (offset, len, is_used) in [
            (0, 4096, false),
            (8192, 8192, false),
            (24576, u64::MAX, false),
            (0, 4097, true),
            (8191, 1, true),
            (4096, 1, true),
            (0, u64::MAX, true),
            (20000, 10, true),
            (10000, 6385, true),
        ] {
            let mistrust = used(|used| {
                used.region(Table::L2, &Region { offset, len, table: ACTIVE, flags: 0 });
            });
            assert_eq!(mistrust, is_used.then_some(Mistrust::Used { offset, len }), "{offset} + {len}");
        }
    }

    #[test]
    fn extents_of_every_kind_with_bytes_in_the_image_count_as_users() {
        use ExtentKind::{Compressed, Damaged, Data, Encrypted, Hole, Zero};
        for kind in [Data, Compressed, Encrypted] {
            let extents = |file| used(|used| used.extent(kind, &extent(kind, 5000, 100, file)));
            assert_eq!(extents(FILE_IMAGE), Some(Mistrust::Used { offset: 5000, len: 100 }));
            assert_eq!(extents(FILE_IMAGE + 1), None);
        }
        for kind in [Zero, Hole] {
            assert_eq!(used(|used| used.extent(kind, &extent(kind, 0, 0, 0))), None);
        }
        let damaged = used(|used| used.extent(Damaged, &extent(Damaged, 0, 0, 0)));
        assert_eq!(damaged, Some(Mistrust::Damaged { guest_offset: 7 }));
    }
}
