//! Inflates every compressed cluster: the only look at guest data that a check takes, and only if asked to.
//!
//! Payloads are read in batches as large as those of the tables, cluster after cluster in host order of their
//! tables; what does not inflate to exactly one cluster is [`Problem::CompressedDamaged`]. Payloads that reach
//! out of the file are left to the first look.

use alloc::vec::Vec;

use instar_abi::call::Phase;
use instar_abi::finding::NONE;
use instar_abi::problem::Problem;

use super::reader::{Bytes, Reader};
use super::report::Report;
use super::roots::{Disk, Image};
use super::tally::entry_finding;
use super::walk::{TableRef, Visitor};
use crate::host::Host;
use crate::inflate::{Compression, Inflater};
use crate::ondisk::l1::L1Entry;
use crate::ondisk::l2::Mapping;

/// A payload that waits for being read.
#[derive(Debug, Clone, Copy)]
struct Payload {
    table: TableRef,
    index: usize,
    host: u64,
    len: usize,
}

/// Inflates what the walk comes by.
#[derive(Debug)]
pub struct Deep<'a> {
    image: &'a Image,
    inflater: Inflater,
    cluster: Vec<u8>,
    payloads: Vec<Payload>,
    reader: Reader,
    done: u64,
}

impl<'a> Deep<'a> {
    /// A look at the compressed clusters of an image that packs them like this.
    #[must_use]
    pub fn new(image: &'a Image, compression: Compression) -> Self {
        Self {
            image,
            inflater: Inflater::new(compression),
            cluster: alloc::vec![0; image.header.cluster.usize()],
            payloads: Vec::new(),
            reader: Reader::new(image.bounds.len),
            done: 0,
        }
    }
}

impl Visitor for Deep<'_> {
    fn l1_entry(&mut self, _: &mut Report, _: &Disk, _: u64, _: u64, _: L1Entry, _: u32) {}

    fn l1_unreadable(&mut self, _: &mut Report, _: &Disk, _: u64, _: u64, _: u32) {}

    fn table(&mut self, _: &mut Report, table: &TableRef, bytes: Bytes<'_>) {
        let Bytes::Read(bytes) = bytes else { return };
        let format = &self.image.format;
        for index in 0..bytes.len() / format.entry_bytes() {
            let entry = format.entry(bytes, index);
            if !entry.is_compressed() {
                continue;
            }
            let (Mapping::Compressed { host, len }, _) = entry.decode(format) else { continue };
            // The last sector of the file may be short.
            let end = host.saturating_add(len);
            if host < self.image.bounds.len && end <= self.image.bounds.len.saturating_add(511) {
                self.payloads.push(Payload { table: *table, index, host, len: instar_abi::to_usize(len) });
            }
        }
    }

    fn batch_end<H: Host>(&mut self, host: &mut H, report: &mut Report) {
        let Self { image, inflater, cluster, payloads, reader, done } = self;
        let mut rest = payloads.as_slice();
        while !rest.is_empty() {
            host.progress(Phase::Inflate, 0, *done, 0);
            let places = rest.iter().map(|payload| (payload.host, payload.len));
            let taken = reader.batch(host, places, |position, bytes| {
                let Some(payload) = rest.get(position) else { return };
                let is_good = match bytes {
                    Bytes::Read(bytes) => inflater.inflate(bytes, cluster).is_ok(),
                    Bytes::Failed(_) => false,
                };
                if !is_good {
                    let (problem, at) = (Problem::CompressedDamaged, payload.host);
                    let finding = entry_finding(image, &payload.table, payload.index, problem, at, NONE);
                    report.put(problem, finding);
                }
            });
            report.flush_some(host);
            *done += taken as u64;
            rest = rest.get(taken.max(1)..).unwrap_or(&[]);
        }
        payloads.clear();
    }
}
