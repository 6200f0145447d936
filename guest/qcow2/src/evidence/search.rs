//! Looks for the L1 table of the active disk, where the header leads to another place.
//!
//! A candidate is a cluster that reads as an L1 table from end to end, and whose entries lead to clusters that read
//! as L2 tables, at least one of them with something in it. Tables that are known to be something else are none.
//!
//! Invariant: the whole file is looked at or nothing is proposed; a table of several clusters is not looked for, as
//! it could not be told where it begins.

use alloc::vec::Vec;

use instar_abi::boot::FILE_IMAGE;
use instar_abi::call::DataRange;

use super::layout::{Layout, Read};
use crate::check::reader::{Bytes, Reader};
use crate::check::roots::words;
use crate::host::Host;
use crate::ondisk::Header;
use crate::ondisk::l1::L1Entry;

/// Clusters with data that are looked at.
const CLUSTERS_MAX: u64 = 1 << 20;
/// Bytes of each that are looked at first.
const HEAD_BYTES: usize = 512;
/// Bytes of the file whose holes are asked for at once; where there are no data, twice as many the next time.
const STRETCH_BYTES: u64 = 1 << 30;
/// Clusters that are named to the reader at once.
const PIECE_CLUSTERS: usize = 4096;
/// Clusters that begin like an L1 table and are read whole.
const LIKELY_MAX: usize = 1 << 14;
/// L2 tables of a candidate that are read.
const TABLES_MAX: usize = 16;
/// Candidates that are handed back.
const FOUND_MAX: usize = 8;

/// The offsets of tables that may be the active disk's L1 table; none where they are too many.
pub fn l1_tables<H: Host>(host: &mut H, reader: &mut Reader, head: &[u8]) -> Vec<u64> {
    let Ok((header, _)) = Header::decode(head) else { return Vec::new() };
    let entries = u64::from(header.l1_entries);
    let is_one_cluster = (1..=header.cluster.bytes() / 8).contains(&entries);
    if !is_one_cluster || entries < header.l1_entries_needed() {
        return Vec::new();
    }
    let search = Search(Layout::of(host, reader, header));
    let Some(snapshots) = &search.0.snapshots else { return Vec::new() };
    let known: Vec<u64> = snapshots.iter().map(|snapshot| snapshot.l1_offset).collect();
    let Some(likely) = search.likely(host, reader) else { return Vec::new() };
    let is_table = |offset: &u64| !known.contains(offset) && search.is_l1(host, reader, *offset);
    let found: Vec<u64> = likely.into_iter().filter(is_table).take(FOUND_MAX + 1).collect();
    if found.len() > FOUND_MAX { Vec::new() } else { found }
}

struct Search(Layout);

impl Search {
    /// Clusters that begin like an L1 table, `None` where there are too many of whatever is to be looked at.
    fn likely<H: Host>(&self, host: &mut H, reader: &mut Reader) -> Option<Vec<u64>> {
        let cluster = self.0.header.cluster;
        let head = (self.0.header.l1_entries as usize * 8).min(HEAD_BYTES);
        let (mut likely, mut ranges) = (Vec::new(), Vec::new());
        let (mut at, mut looked_at, mut next) = (0, 0_u64, 1);
        let mut stretch = STRETCH_BYTES;
        while at < self.0.bounds.len {
            ranges.clear();
            let asked = self.0.bounds.present(at, stretch);
            host.data_ranges(FILE_IMAGE, at, asked, &mut ranges);
            at += asked;
            stretch = if ranges.is_empty() { stretch.saturating_mul(2) } else { STRETCH_BYTES };
            for DataRange { offset, len } in &ranges {
                let first = cluster.index(*offset).max(next);
                let end = cluster.count(offset.saturating_add(*len)).max(first);
                next = end;
                looked_at = looked_at.saturating_add(end - first);
                if looked_at > CLUSTERS_MAX {
                    return None;
                }
                let mut clusters: Vec<u64> = Vec::new();
                for piece in first..end {
                    clusters.push(cluster.offset(piece));
                    if clusters.len() == PIECE_CLUSTERS || piece + 1 == end {
                        self.heads(host, reader, &clusters, head, &mut likely);
                        clusters.clear();
                    }
                }
                if likely.len() > LIKELY_MAX {
                    return None;
                }
            }
        }
        Some(likely)
    }

    fn heads<H: Host>(
        &self,
        host: &mut H,
        reader: &mut Reader,
        clusters: &[u64],
        head: usize,
        likely: &mut Vec<u64>,
    ) {
        let mut rest = clusters;
        while !rest.is_empty() {
            let places = rest.iter().map(|offset| (*offset, head));
            let taken = reader.batch(host, places, |position, bytes| {
                let (Some(offset), Bytes::Read(bytes)) = (rest.get(position), bytes) else { return };
                if self.reads_as_l1(bytes) {
                    likely.push(*offset);
                }
            });
            rest = rest.get(taken.max(1)..).unwrap_or(&[]);
        }
    }

    fn reads_as_l1(&self, bytes: &[u8]) -> bool {
        words(bytes).all(|word| word == 0 || self.0.is_usable(L1Entry(word)))
    }

    /// Whether a cluster is an L1 table from end to end, with L2 tables behind it.
    fn is_l1<H: Host>(&self, host: &mut H, reader: &mut Reader, offset: u64) -> bool {
        let len = self.0.header.l1_entries as usize * 8;
        let Bytes::Read(bytes) = reader.one(host, offset, len) else { return false };
        if bytes.len() < len || !self.reads_as_l1(bytes) {
            return false;
        }
        let used = (0_u64..).zip(words(bytes)).filter(|(_, word)| *word != 0);
        let tables: Vec<(u64, u64)> =
            used.map(|(index, word)| (index, L1Entry(word).l2_offset())).take(TABLES_MAX).collect();
        let mut is_used = false;
        for (index, table) in tables {
            let Bytes::Read(bytes) = reader.one(host, table, self.0.header.cluster.usize()) else {
                return false;
            };
            match self.0.read_table(index, bytes) {
                Read::Bad => return false,
                Read::Good(_) => is_used = true,
                Read::Empty => {}
            }
        }
        is_used
    }
}
