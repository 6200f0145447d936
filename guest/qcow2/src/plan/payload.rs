//! Compressed entries whose length reaches past the end of the file although their payload does not.
//!
//! Invariant: the shortened payload inflates to the very bytes that the whole one inflates to; one that does not
//! inflate is left alone.

use alloc::vec::Vec;

use crate::check::reader::{Bytes, Reader};
use crate::check::roots::Image;
use crate::host::Host;
use crate::inflate::Inflater;
use crate::ondisk::l2::L2Entry;

/// Bytes of a sector, which lengths are told in.
const SECTOR_BYTES: u64 = 512;

/// What looks at payloads, with its working memory.
#[derive(Debug)]
pub struct Payloads<'i> {
    image: &'i Image,
    inflater: Option<Inflater>,
    cluster: Vec<u8>,
}

impl<'i> Payloads<'i> {
    /// A look at the payloads of an image.
    #[must_use]
    pub fn new(image: &'i Image) -> Self {
        Self { image, inflater: image.header.compression.map(Inflater::new), cluster: Vec::new() }
    }

    /// The entry with the length that its payload at `(first byte, bytes)` takes; `None` where it does not inflate.
    pub fn shortened<H: Host>(
        &mut self,
        host: &mut H,
        reader: &mut Reader,
        entry: L2Entry,
        (first, len): (u64, u64),
    ) -> Option<L2Entry> {
        let inflater = self.inflater.as_mut()?;
        self.cluster.resize(self.image.header.cluster.usize(), 0);
        let cluster = &mut self.cluster;
        let len = self.image.bounds.present(first, len);
        let Bytes::Read(bytes) = reader.one(host, first, instar_abi::to_usize(len)) else { return None };
        // The payload's first sector is counted from that sector's start.
        let within = first % SECTOR_BYTES;
        let sectors = (within + bytes.len() as u64).div_ceil(SECTOR_BYTES);
        let mut inflates = |sectors: u64| {
            let end = instar_abi::to_usize(sectors * SECTOR_BYTES - within).min(bytes.len());
            bytes.get(..end).is_some_and(|payload| inflater.inflate(payload, cluster).is_ok())
        };
        if sectors == 0 || !inflates(sectors) {
            return None;
        }
        // A payload that inflates does so with more bytes behind it too.
        let (mut short, mut enough) = (0, sectors);
        while short + 1 < enough {
            let middle = u64::midpoint(short, enough);
            if inflates(middle) {
                enough = middle;
            } else {
                short = middle;
            }
        }
        Some(entry.with_sectors(enough, &self.image.format))
    }
}
