//! What a check learns from clusters that nothing refers to, kept without what they hold.
//!
//! A check asks of a leaked cluster whether it reads like a lost table, and whether it holds anything at all. Tables
//! are copied, as they hold pointers into the file and nothing else; of the others, a mark stands for the content.

use instar_abi::finding::Table;
use instar_abi::problem::Problem;
use instar_abi::region::{COPIED, Region};

use crate::check::reader::{Bytes, Reader};
use crate::check::report::Faults;
use crate::check::roots::Image;
use crate::host::Host;
use crate::ondisk::bytes::is_zero;

/// Bytes of a leaked cluster that a check looks at first.
const HEAD_BYTES: usize = 512;
/// Stands for content: as an entry of any table it is impossible.
const MARK: [u8; 8] = [0xff; 8];

/// Tells of lost tables, and marks the other leaked clusters that may be data, by what a check has found.
pub fn tell<H: Host>(host: &mut H, reader: &mut Reader, image: &Image, found: &Faults) {
    for table in found.of(Problem::OrphanTable) {
        let len = image.bounds.present(table.host_offset, table.host_len);
        if len > 0 {
            let table = Region { offset: table.host_offset, len, table: Table::L2 as u32, flags: COPIED };
            host.region(&table);
        }
    }
    let cluster = image.header.cluster;
    for run in found.of(Problem::OrphanData) {
        let mut next = cluster.index(run.host_offset);
        let end = next.saturating_add(run.count);
        while next < end {
            let places = (next..end).map(|index| (cluster.offset(index), HEAD_BYTES));
            let taken = reader.batch_in_turn(host, places, |host, position, bytes| {
                let Bytes::Read(bytes) = bytes else { return };
                if bytes.len() >= MARK.len() && !is_zero(bytes) {
                    host.replace(cluster.offset(next + position as u64), &MARK);
                }
            });
            next += taken.max(1) as u64;
        }
    }
}
