//! The roots of an image: everything that is found through the header rather than through an L1 entry.
//!
//! Any of them may be damaged. What is wrong becomes a finding, what is readable is kept, and a pointer that
//! is unaligned or leads out of the file is never followed.

use alloc::vec::Vec;

use instar_abi::boot::{FILE_DATA, FILE_IMAGE};
use instar_abi::finding::{ACTIVE, Finding, NONE, Table};
use instar_abi::problem::{Problem, Severity};

use super::reader::{Bytes, Reader};
use super::report::Report;
use super::shares::{self, Claim, Share};
use super::{bitmaps, snapshots};
use crate::evidence;
use crate::host::Host;
use crate::ondisk::extensions::Extensions;
use crate::ondisk::header::{Crypt, FIXED_BYTES, TableRange};
use crate::ondisk::l2::L2Format;
use crate::ondisk::refcount::RefcountTableEntry;
use crate::ondisk::units::{FileBounds, Position};
use crate::ondisk::{Fault, Header};

/// "LUKS\xba\xbe".
const LUKS_MAGIC: u64 = 0x4c55_4b53_babe;

/// What the image is and how it is measured.
#[derive(Debug, Clone)]
pub struct Image {
    /// The decoded header.
    pub header: Header,
    /// The header extensions.
    pub extensions: Extensions,
    /// The image file's bounds.
    pub bounds: FileBounds,
    /// How L2 entries look.
    pub format: L2Format,
    /// Bytes in the external data file, where it is there.
    pub data_file_len: Option<u64>,
}

/// A disk that is mapped by an L1 table: the active one or a snapshot's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// Snapshot index, or [`ACTIVE`].
    pub snapshot: u32,
    /// Byte offset of the L1 table; within the file.
    pub l1_offset: u64,
    /// Entries of the L1 table that are in the file.
    pub l1_entries: u64,
    /// Size of the disk in bytes.
    pub disk_bytes: u64,
    /// Disks that have this very L1 table, of which this is the first.
    pub weight: u64,
}

/// Clusters that have exactly one user, which is not an L1 or L2 entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// What they hold.
    pub table: Table,
    /// Whose it is: a snapshot index, a bitmap index, or [`ACTIVE`].
    pub snapshot: u32,
    /// First byte, aligned to a cluster.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Byte offset of the field that points here; [`NONE`] for the header itself.
    pub pointer: u64,
    /// Users that claim this very part; 0 where an earlier region stands for this one.
    pub weight: u64,
}

/// What the header leads to.
#[derive(Debug, Default)]
pub struct Roots {
    /// The active disk (if its L1 table can be found) and the snapshots, in the order of their table.
    pub disks: Vec<Disk>,
    /// Metadata regions, refcount blocks and L2 tables aside.
    pub regions: Vec<Region>,
    /// The bitmaps' tables.
    pub bitmaps: Vec<bitmaps::BitmapRoot>,
    /// What the tables took that bitmaps have lost.
    pub lost_bitmap_tables: bitmaps::LostTables,
    /// One past the last entry of the bitmap directory that can be read, as a byte offset in the file.
    pub bitmap_entries_end: u64,
    /// The active disk's L1 table, where there are bitmaps and it is beyond doubt that it is one.
    pub sure_l1_offset: Option<u64>,
    /// The refcount table's entries; empty where it cannot be found.
    pub refcount_table: Vec<u64>,
    /// Indices of entries that point to the block of an earlier entry, in order.
    repeated_blocks: Vec<u32>,
    /// The active disk's L1 table was found.
    pub is_active_found: bool,
}

/// Reads and decodes the header and its extensions. Faults that leave the image readable go to the report.
///
/// # Errors
/// The fault that keeps the image from being looked at.
pub fn open<H: Host>(host: &mut H, reader: &mut Reader, report: &mut Report) -> Result<Image, Fault> {
    let file_len = host.file_len(FILE_IMAGE).unwrap_or(0);
    let (header, faults) = match reader.one(host, 0, FIXED_BYTES) {
        Bytes::Read(bytes) => Header::decode(bytes)?,
        Bytes::Failed(error) => return Err(read_error(Table::Header, 0, FIXED_BYTES as u64, error)),
    };
    let bounds = header.bounds(file_len);
    let is_refused = |problem: Problem| problem.row().severity == Severity::Fatal;
    let is_lost = header.l1_table(&bounds).is_err() || header.refcount_bits() == 0;
    if is_lost || faults.iter().any(|fault| is_refused(fault.problem)) {
        report.keep_root(evidence::find(host, false));
    }
    for fault in &faults {
        report.fault(fault);
    }
    let (extensions, faults) = match reader.one(host, 0, header.cluster.usize()) {
        Bytes::Read(bytes) => Extensions::decode(bytes, &header),
        Bytes::Failed(error) => {
            let fault = read_error(Table::HeaderExtension, 0, header.cluster.bytes(), error);
            (Extensions::default(), alloc::vec![fault])
        }
    };
    for fault in &faults {
        report.fault(fault);
    }
    let data_file_len = host.file_len(FILE_DATA);
    if header.has_data_file() && data_file_len.is_none() {
        report.fault(&Fault::header(Problem::DataFileMissing, 72, 8, header.incompatible, NONE));
    }
    let format = L2Format::of(&header);
    Ok(Image { header, extensions, bounds, format, data_file_len })
}

/// The fault of bytes that the storage does not give.
#[must_use]
pub fn read_error(table: Table, offset: u64, len: u64, errno: u32) -> Fault {
    Fault {
        problem: Problem::ReadError,
        table,
        host_offset: offset,
        host_len: len,
        index: NONE,
        stored: u64::from(errno),
        expected: len,
    }
}

impl Roots {
    /// Finds everything that the header leads to.
    #[must_use]
    pub fn find<H: Host>(host: &mut H, reader: &mut Reader, report: &mut Report, image: &Image) -> Self {
        let mut roots = Self::default();
        let header_len = image.header.cluster.bytes().min(image.bounds.len);
        roots.region(Table::Header, ACTIVE, 0, header_len, NONE);
        roots.find_active(report, image);
        roots.find_refcount_table(host, reader, report, image);
        snapshots::find(host, reader, report, image, &mut roots);
        roots.find_crypto(host, reader, report, image);
        bitmaps::find(host, reader, report, image, &mut roots);
        roots.share(image);
        roots.find_repeated_blocks();
        roots
    }

    /// Notes a region that is aligned and starts within the file.
    pub fn region(&mut self, table: Table, snapshot: u32, offset: u64, len: u64, pointer: u64) {
        if len > 0 {
            self.regions.push(Region { table, snapshot, offset, len, pointer, weight: 1 });
        }
    }

    /// Notes that a bitmap has lost its table of so many entries.
    pub fn lost_bitmap_table(&mut self, image: &Image, entries: u64) {
        let lost = &mut self.lost_bitmap_tables;
        let clusters = image.header.cluster.count(entries.saturating_mul(8));
        lost.clusters = lost.clusters.saturating_add(clusters);
        lost.entries_max = lost.entries_max.max(entries);
    }

    fn find_repeated_blocks(&mut self) {
        let offsets = self.refcount_table.iter().map(|entry| RefcountTableEntry(*entry).block_offset());
        let mut order: Vec<(u64, u32)> = offsets.zip(0..).filter(|(offset, _)| *offset != 0).collect();
        order.sort_unstable();
        let pairs = order.windows(2).filter_map(|pair| match pair {
            [before, next] if before.0 == next.0 => Some(next.1),
            _ => None,
        });
        self.repeated_blocks = pairs.collect();
        self.repeated_blocks.sort_unstable();
    }

    /// The same with another refcount table; where its place is not `kept`, the table takes no cluster.
    #[must_use]
    pub fn with_refcount_table(&self, entries: Vec<u64>, kept: bool) -> Self {
        let is_kept = |region: &&Region| kept || region.table != Table::RefcountTable;
        let mut roots = Self {
            disks: self.disks.clone(),
            regions: self.regions.iter().filter(is_kept).copied().collect(),
            bitmaps: self.bitmaps.clone(),
            lost_bitmap_tables: self.lost_bitmap_tables,
            bitmap_entries_end: self.bitmap_entries_end,
            sure_l1_offset: self.sure_l1_offset,
            refcount_table: entries,
            repeated_blocks: Vec::new(),
            is_active_found: self.is_active_found,
        };
        roots.find_repeated_blocks();
        roots
    }

    /// Whether an earlier entry of the refcount table points to the block of this one.
    #[must_use]
    pub fn is_block_repeated(&self, index: u64) -> bool {
        u32::try_from(index).is_ok_and(|index| self.repeated_blocks.binary_search(&index).is_ok())
    }

    /// Makes one of what is claimed again and again, so that no table is walked more often than it must be.
    fn share(&mut self, image: &Image) {
        let claims = self.disks.iter().map(|disk| Claim {
            offset: disk.l1_offset,
            len: disk.l1_entries * 8,
            kind: disk.disk_bytes,
        });
        let mut shares = shares::decide(claims).into_iter();
        self.disks.retain_mut(|disk| match shares.next() {
            Some(Share::Whole(weight)) => {
                disk.weight = weight;
                true
            }
            // The active disk is the first of its equals, and looked at whatever it overlaps.
            _ => disk.snapshot == ACTIVE,
        });
        let claims = self.bitmaps.iter().map(|bitmap| Claim {
            offset: bitmap.table_offset,
            len: bitmap.table_entries * 8,
            kind: 0,
        });
        let mut shares = shares::decide(claims).into_iter();
        self.bitmaps.retain_mut(|bitmap| match shares.next() {
            Some(Share::Whole(weight)) => {
                bitmap.weight = weight;
                true
            }
            _ => false,
        });
        let claims = self.regions.iter().map(|region| Claim {
            offset: region.offset,
            len: region.len,
            kind: region.table as u64,
        });
        let shares = shares::decide(claims);
        for (region, share) in self.regions.iter_mut().zip(shares) {
            match share {
                Share::Whole(weight) => region.weight = weight,
                Share::Same => region.weight = 0,
                // Its first cluster shows that it overlaps.
                Share::Refused => region.len = region.len.min(image.header.cluster.bytes()),
            }
        }
    }

    fn find_active(&mut self, report: &mut Report, image: &Image) {
        match image.header.l1_table(&image.bounds) {
            Err(fault) => report.fault(&fault),
            Ok(range) => {
                self.is_active_found = true;
                self.region(Table::L1, ACTIVE, range.offset, range.len, 40);
                let l1_entries = l1_entries_present(report, image, ACTIVE, range);
                let disk_bytes = image.header.virtual_size;
                self.disks.push(Disk {
                    snapshot: ACTIVE,
                    l1_offset: range.offset,
                    l1_entries,
                    disk_bytes,
                    weight: 1,
                });
            }
        }
    }

    fn find_refcount_table<H: Host>(
        &mut self,
        host: &mut H,
        reader: &mut Reader,
        report: &mut Report,
        image: &Image,
    ) {
        let range = match image.header.refcount_table(&image.bounds) {
            Err(fault) => return report.fault(&fault),
            Ok(range) => range,
        };
        let whole = image.bounds.clusters() - image.header.cluster.index(range.offset);
        let clusters = u64::from(image.header.refcount_table_clusters);
        if clusters > whole {
            report.fault(&Fault::header(Problem::HeaderRefcountTableSize, 56, 4, clusters, whole));
        }
        self.region(Table::RefcountTable, ACTIVE, range.offset, range.len, 48);
        let cluster = image.header.cluster.usize();
        let mut at = 0;
        while at < range.len {
            let offset = range.offset + at;
            match reader.one(host, offset, cluster) {
                Bytes::Read(bytes) => {
                    self.refcount_table.extend(words(bytes));
                }
                Bytes::Failed(error) => {
                    report.fault(&read_error(Table::RefcountTable, offset, cluster as u64, error));
                }
            }
            at += cluster as u64;
            // Entries that cannot be read, or are past the end of the file, name no block.
            self.refcount_table.resize(instar_abi::to_usize(at / 8), 0);
        }
    }

    fn find_crypto<H: Host>(
        &mut self,
        host: &mut H,
        reader: &mut Reader,
        report: &mut Report,
        image: &Image,
    ) {
        let Some(crypto) = image.extensions.crypto else { return };
        let fault = |problem, at: u64, stored, expected, index| Fault {
            problem,
            table: Table::HeaderExtension,
            host_offset: at,
            host_len: 8,
            index,
            stored,
            expected,
        };
        if image.header.crypt != Crypt::Luks {
            report.fault(&fault(Problem::ExtensionCrypto, crypto.at, crypto.offset, 0, 0));
            return;
        }
        if crypto.offset == 0 || image.bounds.position(crypto.offset) != Position::Inside {
            report.fault(&fault(Problem::ExtensionCrypto, crypto.at, crypto.offset, image.bounds.len, 0));
            return;
        }
        let present = image.bounds.present(crypto.offset, crypto.len);
        let whole = image.bounds.clusters().saturating_mul(image.header.cluster.bytes());
        if crypto.len == 0 || crypto.len > whole.saturating_sub(crypto.offset) {
            let mut found =
                fault(Problem::CryptoHeaderRange, crypto.offset, crypto.len, image.bounds.len, NONE);
            (found.table, found.host_len) = (Table::CryptoHeader, present);
            report.fault(&found);
        } else {
            self.region(Table::CryptoHeader, ACTIVE, crypto.offset, crypto.len, crypto.at);
        }
        match reader.one(host, crypto.offset, 8) {
            Bytes::Failed(error) => report.fault(&read_error(Table::CryptoHeader, crypto.offset, 8, error)),
            Bytes::Read(bytes) => {
                let magic = words(bytes).next().unwrap_or(0) >> 16;
                if magic != LUKS_MAGIC {
                    let mut found = fault(Problem::CryptoHeaderMagic, crypto.offset, magic, LUKS_MAGIC, NONE);
                    (found.table, found.host_len) = (Table::CryptoHeader, 6);
                    report.fault(&found);
                }
            }
        }
    }
}

/// The big-endian words of a table.
pub fn words(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word))
}

/// How many entries of an L1 table are in the file; says so where it is cut.
pub fn l1_entries_present(report: &mut Report, image: &Image, snapshot: u32, range: TableRange) -> u64 {
    let present = image.bounds.present(range.offset, range.len);
    if present < range.len {
        let finding = Finding {
            snapshot,
            ..Fault {
                problem: Problem::L1TableTruncated,
                table: Table::L1,
                host_offset: range.offset,
                host_len: range.len,
                index: NONE,
                stored: present,
                expected: range.len,
            }
            .finding()
        };
        report.put(Problem::L1TableTruncated, finding);
    }
    present / 8
}
