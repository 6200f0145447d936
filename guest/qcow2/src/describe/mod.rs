//! The job that tells what an image is: the header's facts, and the names in it.
//!
//! Invariant: the texts come in one order: backing file, backing format, data file, then id and name of each
//! snapshot with its size, then the name of each bitmap. They are opaque bytes; nothing here follows a name. A list that is damaged
//! ends at the damage, and the finding that says so comes after the texts before it.
//!
//! What this does not do: it counts nothing and checks no more than what it needs to find the names.

mod roots;
mod snapshots;

use instar_abi::boot::FILE_IMAGE;
use instar_abi::call::{SnapshotRecord, TEXT_BYTES_MAX, TextKind};
use instar_abi::finding::NONE;
use instar_abi::problem::Problem;
use instar_abi::summary::{Outcome, Summary};
use instar_abi::to_usize;

pub use roots::Roots;
pub use snapshots::each_snapshot;

use crate::facts;
use crate::host::{Host, Range};
use crate::ondisk::Fault;
use crate::ondisk::bitmaps::BitmapEntry;
use crate::ondisk::extensions::{BITMAP_DIRECTORY_BYTES_MAX, BITMAPS_MAX, BitmapsExtension};
use crate::ondisk::header::{FIXED_BYTES, PlainFacts};

/// Runs the job.
pub fn run<H: Host>(host: &mut H) -> Summary {
    run_briefly(host, u32::MAX)
}

/// Runs the job, and tells of no more than the first `listed_max` snapshots and bitmaps each. All of them are looked at.
pub fn run_briefly<H: Host>(host: &mut H, listed_max: u32) -> Summary {
    let roots = match Roots::load(host) {
        Ok(roots) => roots,
        Err(fault) => {
            let salvaged = Roots::salvage(host);
            if let Some(roots) = &salvaged {
                chain_names(host, roots);
            }
            let summary = refused(host, &fault);
            return with_plain_facts(host, summary, salvaged.as_ref());
        }
    };
    chain_names(host, &roots);
    let mut faults = 0;
    let snapshots = each_snapshot(host, &roots.header, |host, index, entry, bytes| {
        if index >= listed_max {
            return;
        }
        text(host, TextKind::SnapshotId, index, bytes.get(entry.id.clone()));
        text(host, TextKind::SnapshotName, index, bytes.get(entry.name.clone()));
        // An entry that does not say its size is of the size that the disk has.
        let disk_bytes = entry.disk_bytes.unwrap_or(roots.header.virtual_size);
        host.snapshot(&SnapshotRecord { index, reserved: 0, disk_bytes });
    });
    let bitmaps = match &roots.extensions.bitmaps {
        Some(extension) => bitmap_names(host, extension, listed_max),
        None => Ok(()),
    };
    let bounds = roots.header.bounds(host.file_len(FILE_IMAGE).unwrap_or(0));
    let tables = [roots.header.l1_table(&bounds).err(), roots.header.refcount_table(&bounds).err()];
    let listed = [snapshots.err(), bitmaps.err()];
    for fault in roots.faults.iter().chain(tables.iter().chain(&listed).flatten()) {
        host.finding(&fault.finding());
        faults += 1;
    }
    let outcome = if faults == 0 { Outcome::Complete } else { Outcome::Incomplete };
    Summary { outcome: outcome as u32, findings: faults, ..roots.summary() }
}

/// The summary of an image whose header is refused, with what the header has to tell all the same.
fn with_plain_facts<H: Host>(host: &mut H, summary: Summary, salvaged: Option<&Roots>) -> Summary {
    let len = host.file_len(FILE_IMAGE).unwrap_or(0).min(FIXED_BYTES as u64);
    let mut bytes = alloc::vec![0; to_usize(len)];
    let facts = match read(host, 0, &mut bytes) {
        Ok(()) => PlainFacts::of(&bytes),
        Err(_) => PlainFacts::default(),
    };
    Summary {
        outcome: summary.outcome,
        unsupported: summary.unsupported,
        findings: summary.findings,
        version: facts.version.unwrap_or(0),
        cluster_bits: facts.cluster_bits.unwrap_or(0),
        virtual_size: facts.virtual_size.unwrap_or(0),
        ..salvaged.map_or(summary, Roots::summary)
    }
}

/// Reports why nothing can be said about an image, and the summary that goes with it.
pub(crate) fn refused<H: Host>(host: &mut H, fault: &Fault) -> Summary {
    host.finding(&fault.finding());
    facts::of_refusal(fault, 1)
}

fn text<H: Host>(host: &mut H, kind: TextKind, index: u32, bytes: Option<&[u8]>) {
    if let Some(bytes) = bytes {
        host.text(kind, index, bytes.get(..TEXT_BYTES_MAX).unwrap_or(bytes));
    }
}

fn chain_names<H: Host>(host: &mut H, roots: &Roots) {
    let (header, cluster) = (&roots.header, &roots.first_cluster);
    if header.backing_offset != 0 {
        let start = to_usize(header.backing_offset);
        let name = start..start.saturating_add(to_usize(u64::from(header.backing_len)));
        text(host, TextKind::BackingFile, 0, cluster.get(name));
    }
    for (kind, place) in [
        (TextKind::BackingFormat, &roots.extensions.backing_format),
        (TextKind::DataFile, &roots.extensions.data_file),
    ] {
        text(host, kind, 0, place.clone().and_then(|place| cluster.get(place)));
    }
}

/// The directory is one run of entries, at most [`BITMAP_DIRECTORY_BYTES_MAX`] bytes; it is read as one.
fn bitmap_names<H: Host>(host: &mut H, extension: &BitmapsExtension, listed_max: u32) -> Result<(), Fault> {
    let BitmapsExtension { at, bitmaps, directory_bytes, directory_offset } = *extension;
    let fault = |field: u64, stored, expected| Fault {
        problem: Problem::ExtensionBitmaps,
        table: instar_abi::finding::Table::HeaderExtension,
        host_offset: at,
        host_len: 24,
        index: field,
        stored,
        expected,
    };
    if bitmaps > BITMAPS_MAX {
        return Err(fault(0, u64::from(bitmaps), u64::from(BITMAPS_MAX)));
    }
    let file_len = host.file_len(FILE_IMAGE).unwrap_or(0);
    let in_file = directory_offset.checked_add(directory_bytes).is_some_and(|end| end <= file_len);
    if directory_bytes > BITMAP_DIRECTORY_BYTES_MAX || !in_file {
        return Err(fault(2, directory_bytes, BITMAP_DIRECTORY_BYTES_MAX.min(file_len)));
    }
    let mut bytes = alloc::vec![0; to_usize(directory_bytes)];
    if let Err(error) = read(host, directory_offset, &mut bytes) {
        return Err(Fault { problem: Problem::ReadError, ..fault(NONE, error, directory_bytes) });
    }
    let mut rest = bytes.as_slice();
    for index in 0..bitmaps {
        let Some(entry) = BitmapEntry::decode(rest) else {
            return Err(fault(0, u64::from(bitmaps), u64::from(index)));
        };
        if index < listed_max {
            text(host, TextKind::BitmapName, index, rest.get(entry.name));
        }
        rest = rest.get(entry.len..).unwrap_or(&[]);
    }
    Ok(())
}

/// Reads bytes of the image that are within it; the errno where that fails.
fn read<H: Host>(host: &mut H, offset: u64, into: &mut [u8]) -> Result<(), u64> {
    if into.is_empty() {
        return Ok(());
    }
    let mut ranges = [Range { offset, len: into.len(), file: FILE_IMAGE, error: 0 }];
    host.read(&mut ranges, into);
    if ranges[0].error == 0 { Ok(()) } else { Err(u64::from(ranges[0].error)) }
}
