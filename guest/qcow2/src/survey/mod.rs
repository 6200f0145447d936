//! The survey: who uses which part of the file, and either what the active disk is made of, or what a copy without
//! guest data holds.
//!
//! ```text
//! regions    every use of every cluster, from the counts of the check            places, tables
//! picture    the extents of the active disk                                      crate::map
//! dump       lost tables, stand-ins, names, what a damaged field led to           orphans, names, restored
//! ```
//!
//! Invariant: a part of the file is marked as one that may be copied only where nothing refers to it as guest data
//! and where it reads like what it is said to be; every other part that a check reads is marked as left out.
//!
//! What this does not do: it judges nothing, tells no findings but the one that keeps it from looking at all, and
//! hands over no byte of the image but those of [`Host::replace`].

mod judge;
mod names;
mod orphans;
mod places;
mod restored;
mod tables;

use instar_abi::boot::FILE_IMAGE;
use instar_abi::call::Phase;
use instar_abi::finding::Table;
use instar_abi::problem::Problem;
use instar_abi::region::{COPIED, LEFT_OUT, Region};
use instar_abi::summary::Summary;

use crate::check::reader::Reader;
use crate::check::recount::recount_during;
use crate::check::report::{Faults, Report};
use crate::check::roots::{self, Image, Roots};
use crate::check::{Options, inspect};
use crate::facts;
use crate::host::Host;
use crate::map;
use crate::ondisk::Fault;
use crate::ondisk::header::FIXED_BYTES;
use places::Places;
use restored::Restored;

/// Tells who uses which part of the file, then what the active disk is made of.
pub fn picture<H: Host>(host: &mut H) -> Summary {
    match regions(host) {
        Ok((.., summary)) => {
            map::active_disk(host);
            summary
        }
        Err(fault) => refused(host, &fault),
    }
}

/// Tells what a copy of the image without guest data holds; with `mask_names`, without names too.
///
/// Of an image with a damaged header field that the rest of it determines, this is what the header leads to as it is,
/// and what it leads to with the field restored.
pub fn dump<H: Host>(host: &mut H, mask_names: bool) -> Summary {
    let checked = inspect(host, &Options { silent: true, ..Options::default() });
    let field = checked.faults.determined();
    let summary = match all(host, &checked.faults, mask_names) {
        Ok(summary) => summary,
        Err(fault) => {
            if fault.problem != Problem::NotQcow2 && field.is_none() {
                tell_header_alone(host);
            }
            refused(host, &fault)
        }
    };
    let restored = field.and_then(|field| Restored::new(host, field));
    if let Some(Err(_)) = restored.map(|mut image| all(&mut image, &Faults::default(), mask_names)) {
        tell_header_alone(host);
    }
    summary
}

/// Tells of everything that a copy holds of an image as its header is.
fn all<H: Host>(host: &mut H, found: &Faults, mask_names: bool) -> Result<Summary, Fault> {
    let (mut reader, image, roots, summary) = regions(host)?;
    orphans::tell(host, &mut reader, &image, found);
    if let Some(crypto) = image.extensions.crypto {
        names::keep_crypto_magic(host, &mut reader, &image, crypto.offset);
    }
    if mask_names {
        names::mask(host, &mut reader, &image, &roots);
    }
    Ok(summary)
}

/// Tells of an image whose header leads to nothing, and of which nothing else says where it should. What a check looks
/// for evidence in is left out.
fn tell_header_alone<H: Host>(host: &mut H) {
    let end = host.file_len(FILE_IMAGE).unwrap_or(0);
    let header_end = end.min(FIXED_BYTES as u64);
    for (bytes, flags) in [(0..header_end, COPIED), (header_end..end, LEFT_OUT)] {
        if !bytes.is_empty() {
            let (offset, len) = (bytes.start, bytes.end - bytes.start);
            host.region(&Region { offset, len, table: Table::Header as u32, flags });
        }
    }
}

/// Tells of all regions.
fn regions<H: Host>(host: &mut H) -> Result<(Reader, Image, Roots, Summary), Fault> {
    let mut reader = Reader::new(host.file_len(FILE_IMAGE).unwrap_or(0));
    let mut report = Report::new(true);
    let image = roots::open(host, &mut reader, &mut report)?;
    let roots = Roots::find(host, &mut reader, &mut report, &image);
    let has_cut_snapshots = report.seen().has(Problem::SnapshotTableTruncated);
    recount_during(Phase::Survey, host, &mut reader, &image, &roots, |host, reader, window| {
        let places = Places { image: &image, roots: &roots, window };
        places.tell_data(host);
        places.tell_header(host);
        places.tell_regions(host, reader, has_cut_snapshots);
        places.tell_blocks(host, reader);
        places.tell_bitmap_data(host, reader);
        tables::tell(host, reader, &places);
    });
    let bitmaps = image.extensions.bitmaps.map_or(0, |extension| extension.bitmaps);
    let summary = facts::of_header(&image.header, bitmaps);
    Ok((reader, image, roots, summary))
}

fn refused<H: Host>(host: &mut H, fault: &Fault) -> Summary {
    host.finding(&fault.finding());
    facts::of_refusal(fault, 1)
}
