//! `FixCopied`: sets or clears COPIED in entries by the counted users of what they lead to.
//!
//! Invariant: nothing but bit 63 of entries is changed, in tables that are tables and nothing else. The flag is set
//! only where the stored count agrees that there is one user, or is made to. Flags of snapshots are let be, except
//! where an entry has nothing to be flagged.

use instar_abi::cure::Cure;
use instar_abi::finding::ACTIVE;
use instar_abi::problem::Problem as P;

use super::diff::Edits;
use super::doubt::Doubt;
use crate::check::Checked;
use crate::check::leaks::ClusterSet;
use crate::check::reader::{Bytes, Reader};
use crate::check::recount::Window;
use crate::check::report::Report;
use crate::check::roots::{Disk, Image};
use crate::check::walk::{TableRef, Visitor, walk};
use crate::host::Host;
use crate::ondisk::l1::{COPIED, L1Entry};
use crate::ondisk::l2::L2Entry;
use crate::ondisk::units::Position;
use instar_abi::call::Phase;

/// The cure, as far as it may be applied.
#[derive(Debug, Clone, Copy)]
pub struct FixCopied {
    may_set_l1: bool,
    may_clear_l1: bool,
    may_set_l2: bool,
    may_clear_l2: bool,
    may_clear_compressed: bool,
}

impl FixCopied {
    /// The cure, `None` where there is nothing for it to do.
    #[must_use]
    pub fn wanted(checked: &Checked, doubt: &Doubt) -> Option<Self> {
        let may =
            |problem| checked.problems.has(problem) && doubt.may_set(problem) && doubt.may_write_tables();
        let cure = Self {
            may_set_l1: may(P::L1CopiedMissing),
            may_clear_l1: may(P::L1CopiedWrong),
            may_set_l2: may(P::L2CopiedMissing),
            may_clear_l2: may(P::L2CopiedWrong),
            may_clear_compressed: may(P::CompressedCopied),
        };
        let any = cure.may_set_l1
            || cure.may_clear_l1
            || cure.may_set_l2
            || cure.may_clear_l2
            || cure.may_clear_compressed;
        any.then_some(cure)
    }

    /// Proposes the flags of the entries that lead to the clusters of a window. `overlaps` are the clusters that are
    /// two things, `unsettled` those whose stored count stays wrong.
    pub fn window<H: Host>(
        self,
        host: &mut H,
        reader: &mut Reader,
        (checked, image): (&Checked, &Image),
        window: &Window<'_>,
        (overlaps, unsettled): (&ClusterSet, &ClusterSet),
    ) {
        let mut report = Report::new(true);
        report.set_muted(true);
        let edits = Edits::default();
        let mut flags = Flags { cure: self, image, window, overlaps, unsettled, edits };
        let phase = (Phase::Planning, window.pass);
        walk(host, reader, &mut report, image, &checked.roots, &mut flags, phase);
        flags.edits.propose(host, Cure::FixCopied);
    }
}

/// The flags of entries under the walk.
struct Flags<'a> {
    cure: FixCopied,
    image: &'a Image,
    window: &'a Window<'a>,
    overlaps: &'a ClusterSet,
    unsettled: &'a ClusterSet,
    edits: Edits,
}

impl Flags<'_> {
    /// Whether the flag of an entry that leads to nothing is this window's to clear.
    const fn is_first(&self) -> bool {
        self.window.pass == 0
    }

    fn is_overlap(&self, offset: u64) -> bool {
        self.overlaps.contains(self.image.header.cluster.index(offset))
    }

    /// Whether a cluster has one user and its stored count says so.
    fn is_single(&self, offset: u64) -> bool {
        let cluster = self.image.header.cluster.index(offset);
        self.window.counts.usage(cluster).count == 1
            && !self.unsettled.is_overfull()
            && !self.unsettled.contains(cluster)
    }

    /// Whether an entry's flag is to be the other way round.
    fn is_wrong(&self, is_copied: bool, offset: u64, (may_set, may_clear): (bool, bool)) -> bool {
        if is_copied {
            may_clear && self.window.counts.usage(self.image.header.cluster.index(offset)).count > 1
        } else {
            may_set && self.is_single(offset)
        }
    }

    fn is_wrong_l1(&self, disk: &Disk, entry: L1Entry) -> bool {
        let offset = entry.l2_offset();
        if offset == 0 {
            return entry.is_copied() && self.cure.may_clear_l1 && self.is_first();
        }
        disk.snapshot == ACTIVE
            && self.image.bounds.position(offset) == Position::Inside
            && !self.is_overlap(offset)
            && self.is_wrong(entry.is_copied(), offset, (self.cure.may_set_l1, self.cure.may_clear_l1))
    }

    fn is_wrong_l2(&self, table: &TableRef, entry: L2Entry) -> bool {
        if entry.is_compressed() {
            return entry.is_copied() && self.cure.may_clear_compressed && self.is_first();
        }
        let offset = entry.host_field();
        if self.image.format.data_file {
            return false;
        }
        if offset == 0 {
            return entry.is_copied() && self.cure.may_clear_l2 && self.is_first();
        }
        table.active > 0
            && self.image.bounds.position(offset) == Position::Inside
            && (entry.is_copied() || !self.is_overlap(offset))
            && self.is_wrong(entry.is_copied(), offset, (self.cure.may_set_l2, self.cure.may_clear_l2))
    }
}

impl Visitor for Flags<'_> {
    fn l1_entry(&mut self, _: &mut Report, disk: &Disk, _: u64, at: u64, entry: L1Entry, sweep: u32) {
        if sweep == 0 && !self.is_overlap(at) && self.is_wrong_l1(disk, entry) {
            self.edits.write(at, &(entry.0 ^ COPIED).to_be_bytes());
        }
    }

    fn l1_unreadable(&mut self, _: &mut Report, _: &Disk, _: u64, _: u64, _: u32) {}

    fn table(&mut self, _: &mut Report, table: &TableRef, bytes: Bytes<'_>) {
        let Bytes::Read(bytes) = bytes else { return };
        if self.is_overlap(table.offset) {
            return;
        }
        let format = &self.image.format;
        let mut after = alloc::vec::Vec::new();
        for index in 0..bytes.len() / format.entry_bytes() {
            let entry = format.entry(bytes, index);
            if entry.raw == 0 || !self.is_wrong_l2(table, entry) {
                continue;
            }
            if after.is_empty() {
                after.extend_from_slice(bytes);
            }
            if let Some(flag) = after.get_mut(index * format.entry_bytes()) {
                *flag ^= 0x80;
            }
        }
        self.edits.table(table.offset, bytes, &after);
    }

    fn batch_end<H: Host>(&mut self, host: &mut H, _: &mut Report) {
        self.edits.propose_many(host, Cure::FixCopied);
    }
}
