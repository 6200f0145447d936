//! What tells an image from the same image after somebody has changed its bytes, without reading all of it.
//!
//! A hash over the length, the first bytes, and the time of the last write. The node of a block device has no such
//! time, so more of the device is read. Our own repairs change it too, which is why an attempt is remembered with
//! the fingerprint before it and the one after it.

use std::io;

use sha2::{Digest, Sha256};

use crate::heal::fingerprint as of_ranges;
use crate::image::ImageFile;

/// Bytes from the start of a block device that count.
const DEVICE_BYTES: u64 = 16 << 20;

/// The fingerprint of an image as it is now.
///
/// # Errors
/// Those of the storage.
pub fn of(image: &ImageFile) -> io::Result<[u8; 32]> {
    // The length may have changed since the image was opened.
    let now = image.reopen_read_only().map_err(io::Error::other)?;
    let ranges: &[(u64, u64)] = if now.is_block_device() { &[(0, DEVICE_BYTES)] } else { &[] };
    let mut hash = Sha256::new();
    hash.update(of_ranges(&now, ranges)?);
    if !now.is_block_device() {
        let (seconds, nanoseconds) = now.state()?.modified;
        hash.update(seconds.to_le_bytes());
        hash.update(nanoseconds.to_le_bytes());
    }
    Ok(hash.finalize().into())
}
