//! An L1 table in memory, with what of it could not be read.

use alloc::vec;
use alloc::vec::Vec;
use core::ops;

use instar_abi::boot::FILE_IMAGE;
use instar_abi::problem::Problem;
use instar_abi::to_usize;

use crate::host::{Host, Range};
use crate::ondisk::bytes::be_u64;
use crate::ondisk::header::TableRange;
use crate::ondisk::l1::{L1_TABLE_BYTES_MAX, L1Entry};
use crate::ondisk::units::Position;
use crate::ondisk::{Fault, Header};

/// Bytes of one read: an I/O error costs no more of the table than this.
const PIECE_BYTES: u64 = 64 << 10;

/// The table of one disk.
#[derive(Debug)]
pub(super) struct L1Table {
    /// Where it lies in the image.
    pub place: ops::Range<u64>,
    /// Its bytes, as far as the file has them.
    bytes: Vec<u8>,
    /// Entries that it ought to have.
    entries: u64,
    /// Pieces of [`PIECE_BYTES`] that could not be read.
    unreadable: Vec<u64>,
    /// Why there is nothing behind its end.
    behind_end: Problem,
}

impl L1Table {
    /// The table of the active disk.
    ///
    /// # Errors
    /// [`Problem::HeaderL1Offset`].
    pub fn active<H: Host>(host: &mut H, header: &Header) -> Result<Self, Fault> {
        let bounds = header.bounds(host.file_len(FILE_IMAGE).unwrap_or(0));
        let place = header.l1_table(&bounds)?;
        Ok(Self::read(host, place, bounds.present(place.offset, place.len), Problem::HeaderL1Size))
    }

    /// The table of a disk whose own is lost, for this reason.
    pub const fn lost(problem: Problem) -> Self {
        Self { place: 0..0, bytes: Vec::new(), entries: 0, unreadable: Vec::new(), behind_end: problem }
    }

    /// The table of a snapshot.
    ///
    /// # Errors
    /// [`Problem::SnapshotL1Offset`].
    pub fn snapshot<H: Host>(
        host: &mut H,
        header: &Header,
        offset: u64,
        entries: u32,
    ) -> Result<Self, Problem> {
        let bounds = header.bounds(host.file_len(FILE_IMAGE).unwrap_or(0));
        let len = (u64::from(entries) * 8).min(L1_TABLE_BYTES_MAX);
        if len > 0 && (offset == 0 || bounds.position(offset) != Position::Inside) {
            return Err(Problem::SnapshotL1Offset);
        }
        let place = TableRange { offset, len };
        Ok(Self::read(host, place, bounds.present(offset, len), Problem::SnapshotL1Size))
    }

    fn read<H: Host>(host: &mut H, place: TableRange, present: u64, behind_end: Problem) -> Self {
        let mut bytes = vec![0; to_usize(present)];
        let mut ranges: Vec<Range> = (0..present.div_ceil(PIECE_BYTES))
            .map(|piece| {
                let at = piece * PIECE_BYTES;
                let len = to_usize(PIECE_BYTES.min(present - at));
                Range { offset: place.offset + at, len, file: FILE_IMAGE, error: 0 }
            })
            .collect();
        if !ranges.is_empty() {
            host.read(&mut ranges, &mut bytes);
        }
        let failed = (0..).zip(&ranges).filter(|(_, range)| range.error != 0);
        Self {
            place: place.offset..place.offset.saturating_add(place.len),
            bytes,
            entries: place.len / 8,
            unreadable: failed.map(|(piece, _)| piece).collect(),
            behind_end,
        }
    }

    /// Entries that the table ought to have.
    pub const fn entries(&self) -> u64 {
        self.entries
    }

    /// Why there is nothing behind the last entry.
    pub const fn behind_end(&self) -> Problem {
        self.behind_end
    }

    /// Entry `index`, or why it is not known.
    pub fn entry(&self, index: u64) -> Result<L1Entry, Problem> {
        if index >= self.entries {
            return Err(self.behind_end);
        }
        let at = index * 8;
        if self.unreadable.binary_search(&(at / PIECE_BYTES)).is_ok() {
            return Err(Problem::L1TableUnreadable);
        }
        be_u64(&self.bytes, to_usize(at)).map(L1Entry).ok_or(Problem::L1TableTruncated)
    }
}
