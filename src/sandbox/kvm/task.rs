//! The task state segment: all that it holds is which I/O ports CPL 3 may use, and that is the doorbell.
//!
//! It lies in a supervisor page, so the processor can look the permission up and the inmate cannot.

use instar_abi::layout::DOORBELL_PORT;

/// Bytes of the segment before the permission bitmap.
const HEAD_BYTES: usize = 0x68;
/// Where the segment says at which offset the bitmap starts.
const BITMAP_OFFSET_FIELD: usize = 0x66;
/// Bytes of the segment. Ports whose bit would lie behind it are denied.
const BYTES: usize = 0x100;
/// Offset of its last byte.
pub(super) const LIMIT: u32 = 0xff;

/// A 64-bit task state segment. A set bit denies its port.
pub(super) fn image() -> [u8; BYTES] {
    let mut image = [0; BYTES];
    image[BITMAP_OFFSET_FIELD] = 0x68;
    image[HEAD_BYTES..].fill(0xff);
    let port = usize::from(DOORBELL_PORT);
    image[HEAD_BYTES + port / 8] &= !(1 << (port % 8));
    image
}

const _: () = assert!(LIMIT as usize + 1 == BYTES);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn task_state_allows_the_doorbell_and_nothing_else() {
        let image = image();
        assert_eq!(usize::from(image[BITMAP_OFFSET_FIELD]), HEAD_BYTES);
        let allowed: Vec<usize> = (0..(BYTES - HEAD_BYTES) * 8)
            .filter(|port| image[HEAD_BYTES + port / 8] >> (port % 8) & 1 == 0)
            .collect();
        assert_eq!(allowed, [usize::from(DOORBELL_PORT)]);
        assert_eq!(image[BYTES - 1], 0xff);
    }
}
