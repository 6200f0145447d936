//! What binds journal and undo file to one image in one state (`docs/adr/0002-image-fingerprint.md`).
//!
//! SHA-256 over the image's length, its first bytes, and the bytes that stood where the repair writes, all as
//! they were before the repair. Its cost follows from the size of the repair, never from that of the image.

use std::io;

use sha2::{Digest, Sha256};

use crate::image::Backend;

/// Bytes from the start of the image that count: the whole header cluster of most images.
const HEAD_BYTES: u64 = 64 << 10;
/// Bytes read at once.
const CHUNK_BYTES: u64 = 1 << 20;

/// The fingerprint of `before`, an image (or a view of one) as it was before a repair of `ranges`.
///
/// # Errors
/// Those of the storage.
pub(crate) fn of(before: &dyn Backend, ranges: &[(u64, u64)]) -> io::Result<[u8; 32]> {
    let mut hash = Sha256::new();
    hash.update(b"instar fingerprint 1\n");
    hash.update(before.len().to_le_bytes());
    add(&mut hash, before, 0, HEAD_BYTES)?;
    for &(offset, len) in ranges {
        hash.update(offset.to_le_bytes());
        hash.update(len.to_le_bytes());
        add(&mut hash, before, offset, len)?;
    }
    Ok(hash.finalize().into())
}

/// Adds the part of a range that lies before the end of the image.
fn add(hash: &mut Sha256, image: &dyn Backend, offset: u64, len: u64) -> io::Result<()> {
    let end = offset.saturating_add(len).min(image.len());
    let mut at = offset;
    let mut buffer = Vec::new();
    while at < end {
        let chunk = (end - at).min(CHUNK_BYTES);
        buffer.resize(instar_abi::to_usize(chunk), 0);
        image.read_at(&mut buffer, at)?;
        hash.update(&buffer);
        at += chunk;
    }
    Ok(())
}
