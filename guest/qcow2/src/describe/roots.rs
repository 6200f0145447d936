//! What everything else is found through: the header and its extensions.

use alloc::vec;
use alloc::vec::Vec;

use instar_abi::boot::FILE_IMAGE;
use instar_abi::finding::{NONE, Table};
use instar_abi::problem::Problem;
use instar_abi::summary::Summary;
use instar_abi::to_usize;

use super::read;
use crate::facts;
use crate::host::Host;
use crate::ondisk::extensions::Extensions;
use crate::ondisk::header::FIXED_BYTES;
use crate::ondisk::{Fault, Header};

/// Header and extensions of an image, with the bytes that their names are in.
#[derive(Debug)]
pub struct Roots {
    /// The fixed fields.
    pub header: Header,
    /// The extensions.
    pub extensions: Extensions,
    /// The image's first cluster, as far as the file has it.
    pub first_cluster: Vec<u8>,
    /// What is wrong with either and leaves the rest readable.
    pub faults: Vec<Fault>,
}

impl Roots {
    /// Reads and decodes them.
    ///
    /// # Errors
    /// The fault that keeps the image from being looked at.
    pub fn load<H: Host>(host: &mut H) -> Result<Self, Fault> {
        let file_len = host.file_len(FILE_IMAGE).unwrap_or(0);
        let fixed = bytes_at_start(host, file_len.min(FIXED_BYTES as u64))?;
        let (header, faults) = Header::decode(&fixed)?;
        Self::below(host, header, faults)
    }

    /// What there is of them in an image whose header is refused: see [`Header::salvage`]. Its faults are not told
    /// of, since a field that was taken for something else may be their cause.
    #[must_use]
    pub fn salvage<H: Host>(host: &mut H) -> Option<Self> {
        let file_len = host.file_len(FILE_IMAGE).unwrap_or(0);
        let fixed = bytes_at_start(host, file_len.min(FIXED_BYTES as u64)).ok()?;
        let roots = Self::below(host, Header::salvage(&fixed)?, Vec::new()).ok()?;
        Some(Self { faults: Vec::new(), ..roots })
    }

    fn below<H: Host>(host: &mut H, header: Header, mut faults: Vec<Fault>) -> Result<Self, Fault> {
        let file_len = host.file_len(FILE_IMAGE).unwrap_or(0);
        let first_cluster = bytes_at_start(host, file_len.min(header.cluster.bytes()))?;
        let (extensions, more) = Extensions::decode(&first_cluster, &header);
        faults.extend(more);
        Ok(Self { header, extensions, first_cluster, faults })
    }

    /// The facts of the header as a complete summary; nothing is counted.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let bitmaps = self.extensions.bitmaps.map_or(0, |extension| extension.bitmaps);
        facts::of_header(&self.header, bitmaps)
    }
}

fn bytes_at_start<H: Host>(host: &mut H, len: u64) -> Result<Vec<u8>, Fault> {
    let mut bytes = vec![0; to_usize(len)];
    read(host, 0, &mut bytes).map_err(|error| Fault {
        problem: Problem::ReadError,
        table: Table::Header,
        host_offset: 0,
        host_len: len,
        index: NONE,
        stored: error,
        expected: len,
    })?;
    Ok(bytes)
}
