//! Where the L2 tables are.

use instar_abi::call::Phase;
use instar_abi::finding::Table;

use super::judge;
use super::places::{Places, Sharing};
use crate::check::reader::{Bytes, Reader};
use crate::check::report::Report;
use crate::check::roots::Disk;
use crate::check::walk::{TableRef, Visitor, walk};
use crate::host::Host;
use crate::ondisk::l1::L1Entry;

use alloc::vec::Vec;

/// Tells of the L2 tables of the window.
pub fn tell<H: Host>(host: &mut H, reader: &mut Reader, places: &Places<'_>) {
    let mut report = Report::new(true);
    report.set_muted(true);
    let phase = (Phase::Survey, places.window.pass);
    let mut tables = Tables { places, found: Vec::new() };
    walk(host, reader, &mut report, places.image, places.roots, &mut tables, phase);
}

/// Collects the tables of a batch.
struct Tables<'a> {
    places: &'a Places<'a>,
    found: Vec<(u64, Sharing)>,
}

impl Visitor for Tables<'_> {
    fn l1_entry(&mut self, _: &mut Report, _: &Disk, _: u64, _: u64, _: L1Entry, _: u32) {}

    fn l1_unreadable(&mut self, _: &mut Report, _: &Disk, _: u64, _: u64, _: u32) {}

    fn table(&mut self, _: &mut Report, table: &TableRef, bytes: Bytes<'_>) {
        let cluster = self.places.image.header.cluster;
        if !self.places.window.clusters.contains(&cluster.index(table.offset)) {
            return;
        }
        let sharing = match bytes {
            Bytes::Read(bytes) if !judge::is_no_l2(self.places.image, bytes) => Sharing::Metadata,
            Bytes::Read(_) | Bytes::Failed(_) => Sharing::Doubtful,
        };
        self.found.push((table.offset, sharing));
    }

    fn batch_end<H: Host>(&mut self, host: &mut H, _: &mut Report) {
        let cluster = self.places.image.header.cluster;
        for (offset, sharing) in self.found.drain(..) {
            self.places.put_metadata(host, Table::L2, offset..offset + cluster.bytes(), sharing);
        }
    }
}
