//! Guest data that says where it belongs: every sector names its guest offset and a generation, so that a read
//! of the wrong place is seen as what it is.

/// Bytes of a sector.
pub const SECTOR: usize = 512;

const MAGIC: &[u8; 4] = b"INST";

/// `len` bytes of guest data for guest offset `offset`. Compressible data deflates to about a tenth.
pub fn bytes(generation: u32, offset: u64, len: usize, compressible: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(len);
    let mut at = offset;
    while out.len() < len {
        let mut state = (at ^ u64::from(generation) << 48) | 1;
        let start = out.len();
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&generation.to_be_bytes());
        out.extend_from_slice(&at.to_be_bytes());
        while out.len() < start + SECTOR {
            if !compressible {
                // xorshift64: cheap, and no two sectors alike.
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
            }
            out.extend_from_slice(&state.to_be_bytes());
        }
        at += SECTOR as u64;
    }
    out.truncate(len);
    out
}
