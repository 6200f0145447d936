//! Header extensions (specification: "Header extensions").
//!
//! They follow the fixed fields up to an end marker, the backing file name or the end of the first cluster.

use alloc::vec::Vec;
use core::ops::Range;

use instar_abi::finding::{NONE, Table};
use instar_abi::problem::Problem;

use super::bytes::{be_u32, be_u64};
use super::fault::Fault;
use super::header::{Crypt, Header, autoclear};

/// Backing file format name.
pub const BACKING_FORMAT: u32 = 0xe279_2aca;
/// Feature name table.
pub const FEATURE_TABLE: u32 = 0x6803_f857;
/// Bitmaps.
pub const BITMAPS: u32 = 0x2385_2875;
/// Full disk encryption header pointer.
pub const CRYPTO: u32 = 0x0537_be77;
/// External data file name.
pub const DATA_FILE: u32 = 0x4441_5441;

/// "void": a type that no program knows, and that all of them ignore. What is no longer wanted between two extensions
/// becomes one of these, as moving the ones behind it would take more than one sector.
pub const IGNORED: u32 = 0x766f_6964;

/// Types of extensions of which it is known which clusters are theirs; those of [`IGNORED`] are nobody's.
pub const KNOWN: &[u32] = &[BACKING_FORMAT, FEATURE_TABLE, BITMAPS, CRYPTO, DATA_FILE, IGNORED];

/// Longest backing format name in bytes that QEMU takes.
pub const BACKING_FORMAT_BYTES_MAX: u64 = 15;
/// Bytes of one feature name table entry.
pub const FEATURE_ENTRY_BYTES: usize = 48;
/// Most bitmaps.
pub const BITMAPS_MAX: u32 = 65_535;
/// Largest bitmap directory that QEMU opens, in bytes.
pub const BITMAP_DIRECTORY_BYTES_MAX: u64 = 64 << 20;

/// The bitmaps extension, as stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BitmapsExtension {
    /// Byte offset of the extension's data in the file.
    pub at: u64,
    /// Number of bitmaps.
    pub bitmaps: u32,
    /// Bytes of the bitmap directory.
    pub directory_bytes: u64,
    /// Byte offset of the bitmap directory.
    pub directory_offset: u64,
}

/// The full disk encryption header pointer, as stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CryptoExtension {
    /// Byte offset of the extension's data in the file.
    pub at: u64,
    /// Byte offset of the encryption header.
    pub offset: u64,
    /// Bytes of the encryption header.
    pub len: u64,
}

/// What the header extensions of an image hold. Ranges are positions in the image's first cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extensions {
    /// Backing file format name.
    pub backing_format: Option<Range<usize>>,
    /// External data file name.
    pub data_file: Option<Range<usize>>,
    /// Feature name table.
    pub feature_table: Option<Range<usize>>,
    /// Bitmaps.
    pub bitmaps: Option<BitmapsExtension>,
    /// Encryption header.
    pub crypto: Option<CryptoExtension>,
    /// Types and places of all extensions, known or not, in order.
    pub seen: Vec<(u32, Range<usize>)>,
    /// All extensions were read; what a damaged one held or hid is not known otherwise.
    pub is_complete: bool,
}

/// A fault of the extension whose data is at `at`.
fn fault(problem: Problem, at: usize, len: usize, stored: u64, expected: u64) -> Fault {
    Fault {
        problem,
        table: Table::HeaderExtension,
        host_offset: at as u64,
        host_len: len as u64,
        index: NONE,
        stored,
        expected,
    }
}

impl Extensions {
    /// Decodes the extensions out of the image's first cluster (or what there is of it).
    #[must_use]
    pub fn decode(first_cluster: &[u8], header: &Header) -> (Self, Vec<Fault>) {
        let mut faults = Vec::new();
        let Some(header_bytes) = header.header_bytes else { return (Self::default(), faults) };
        let mut all = Self { is_complete: true, ..Self::default() };
        let start = header_bytes as usize;
        let end = match header.backing_offset {
            name if name >= u64::from(header_bytes) && name < first_cluster.len() as u64 => {
                instar_abi::to_usize(name)
            }
            _ => first_cluster.len(),
        };
        all.walk(first_cluster, start, end, &mut faults);
        all.check_against(header, &mut faults);
        (all, faults)
    }

    fn walk(&mut self, bytes: &[u8], mut at: usize, end: usize, faults: &mut Vec<Fault>) {
        while at.saturating_add(8) <= end {
            let (Some(kind), Some(len)) = (be_u32(bytes, at), be_u32(bytes, at + 4)) else { return };
            let data = at + 8;
            let room = end - data;
            if kind == 0 && len as usize <= room {
                return;
            }
            if len as usize > room {
                faults.push(fault(Problem::ExtensionLength, at, 8, u64::from(len), room as u64));
                self.is_complete = false;
                return;
            }
            let place = data..data + len as usize;
            if kind != IGNORED && self.seen.iter().any(|(other, _)| *other == kind) {
                faults.push(fault(Problem::ExtensionDuplicate, at, 8, u64::from(kind), NONE));
            } else {
                self.take(kind, bytes, place.clone(), faults);
            }
            self.seen.push((kind, place));
            at = data.saturating_add((len as usize).next_multiple_of(8));
        }
        if at < end {
            // Neither an extension nor the mark that ends them fits before the name.
            let room = (end - at) as u64;
            faults.push(fault(Problem::ExtensionLength, at, end - at, 8, room));
        }
    }

    fn take(&mut self, kind: u32, bytes: &[u8], place: Range<usize>, faults: &mut Vec<Fault>) {
        let len = place.len();
        match kind {
            BACKING_FORMAT if len as u64 > BACKING_FORMAT_BYTES_MAX => {
                let (stored, most) = (len as u64, BACKING_FORMAT_BYTES_MAX);
                faults.push(fault(Problem::ExtensionBackingFormat, place.start, len, stored, most));
            }
            BACKING_FORMAT => self.backing_format = Some(place),
            DATA_FILE => self.data_file = Some(place),
            FEATURE_TABLE => {
                if !len.is_multiple_of(FEATURE_ENTRY_BYTES) {
                    let problem = Problem::ExtensionFeatureTable;
                    faults.push(fault(problem, place.start, len, len as u64, FEATURE_ENTRY_BYTES as u64));
                }
                self.feature_table = Some(place);
            }
            BITMAPS => self.take_bitmaps(bytes, &place, faults),
            CRYPTO => self.take_crypto(bytes, &place, faults),
            _ => {}
        }
    }

    /// Number, reserved word, directory size, directory offset: 24 bytes.
    fn take_bitmaps(&mut self, bytes: &[u8], place: &Range<usize>, faults: &mut Vec<Fault>) {
        let at = place.start;
        if place.len() != 24 {
            self.is_complete = false;
            faults.push(fault(Problem::ExtensionBitmaps, at - 4, 4, place.len() as u64, 24));
            return;
        }
        let reserved = be_u32(bytes, at + 4).unwrap_or(0);
        if reserved != 0 {
            faults.push(fault(Problem::ExtensionBitmaps, at + 4, 4, u64::from(reserved), 0).at_index(1));
        }
        self.bitmaps = Some(BitmapsExtension {
            at: at as u64,
            bitmaps: be_u32(bytes, at).unwrap_or(0),
            directory_bytes: be_u64(bytes, at + 8).unwrap_or(0),
            directory_offset: be_u64(bytes, at + 16).unwrap_or(0),
        });
    }

    /// Offset and length: 16 bytes.
    fn take_crypto(&mut self, bytes: &[u8], place: &Range<usize>, faults: &mut Vec<Fault>) {
        let at = place.start;
        if place.len() != 16 {
            self.is_complete = false;
            faults.push(fault(Problem::ExtensionCrypto, at - 4, 4, place.len() as u64, 16));
            return;
        }
        self.crypto = Some(CryptoExtension {
            at: at as u64,
            offset: be_u64(bytes, at).unwrap_or(0),
            len: be_u64(bytes, at + 8).unwrap_or(0),
        });
    }

    /// Feature bits against the extensions that they ask for.
    fn check_against(&mut self, header: &Header, faults: &mut Vec<Fault>) {
        if !self.is_complete {
            return;
        }
        if header.crypt == Crypt::Luks && self.crypto.is_none() {
            self.is_complete = false;
            faults.push(Fault::header(Problem::ExtensionMissing, 32, 4, 2, u64::from(CRYPTO)));
        }
        let consistent = header.autoclear & autoclear::BITMAPS != 0;
        if consistent != self.bitmaps.is_some() {
            // A bit without its extension may mean that the extension's type word was hit.
            self.is_complete &= !consistent;
            let (stored, expected) = (header.autoclear, header.autoclear ^ autoclear::BITMAPS);
            faults.push(Fault::header(Problem::AutoclearBitmaps, 88, 8, stored, expected));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ondisk::header::{FIXED_BYTES, MAGIC};

    fn image(extensions: &[(u32, &[u8])]) -> (Vec<u8>, Header) {
        let mut bytes = alloc::vec![0_u8; 512];
        bytes[..4].copy_from_slice(&MAGIC.to_be_bytes());
        bytes[7] = 2;
        bytes[23] = 9;
        let mut at = 72;
        for (kind, data) in extensions {
            bytes[at..at + 4].copy_from_slice(&kind.to_be_bytes());
            bytes[at + 4..at + 8].copy_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes());
            bytes[at + 8..at + 8 + data.len()].copy_from_slice(data);
            at += 8 + data.len().next_multiple_of(8);
        }
        let (header, _) = Header::decode(&bytes[..FIXED_BYTES]).unwrap();
        (bytes, header)
    }

    fn problems(extensions: &[(u32, &[u8])]) -> Vec<Problem> {
        let (bytes, header) = image(extensions);
        Extensions::decode(&bytes, &header).1.iter().map(|fault| fault.problem).collect()
    }

    #[test]
    fn version_2_extensions_begin_at_byte_72() {
        let (bytes, header) = image(&[(BACKING_FORMAT, b"qcow2"), (DATA_FILE, b"file.raw")]);
        let (all, faults) = Extensions::decode(&bytes, &header);
        assert_eq!(faults, []);
        assert_eq!(&bytes[all.backing_format.unwrap()], b"qcow2");
        assert_eq!(&bytes[all.data_file.unwrap()], b"file.raw");
    }

    #[test]
    fn each_bad_extension_is_told_by_its_own_problem() {
        assert_eq!(problems(&[(7, b"x"), (7, b"y")]), [Problem::ExtensionDuplicate]);
        assert_eq!(problems(&[(IGNORED, b"x"), (IGNORED, b"")]), []);
        assert_eq!(problems(&[(FEATURE_TABLE, &[0; 47])]), [Problem::ExtensionFeatureTable]);
        assert_eq!(problems(&[(BACKING_FORMAT, &[b'q'; 20])]), [Problem::ExtensionBackingFormat]);
        assert_eq!(problems(&[(CRYPTO, &[0; 15])]), [Problem::ExtensionCrypto]);
        assert_eq!(problems(&[(BITMAPS, &[0; 24])]), [Problem::AutoclearBitmaps]);
        assert_eq!(problems(&[(BITMAPS, &[0; 8])]), [Problem::ExtensionBitmaps]);
    }

    #[test]
    fn length_past_the_header_cluster_ends_the_walk() {
        let (mut bytes, header) = image(&[(7, b"x")]);
        bytes[76..80].fill(0xff);
        let (all, faults) = Extensions::decode(&bytes, &header);
        assert_eq!(faults[0].problem, Problem::ExtensionLength);
        assert!(!all.is_complete);
    }

    #[test]
    fn short_first_cluster_is_read_as_far_as_it_goes() {
        let (bytes, header) = image(&[(7, b"12345678")]);
        for len in 0..bytes.len() {
            let (all, _) = Extensions::decode(&bytes[..len], &header);
            assert!(all.seen.len() <= 1);
        }
    }
}
