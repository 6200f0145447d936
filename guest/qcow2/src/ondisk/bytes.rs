//! Big-endian fields out of byte slices. `None` where the slice is too short.

/// The byte at `at`.
#[must_use]
pub fn be_u8(bytes: &[u8], at: usize) -> Option<u8> {
    bytes.get(at).copied()
}

/// The 16-bit field at `at`.
#[must_use]
pub fn be_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The 32-bit field at `at`.
#[must_use]
pub fn be_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The 64-bit field at `at`.
#[must_use]
pub fn be_u64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Whether every byte is zero.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<32>();
    words.iter().all(|word| *word == [0; 32]) && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_past_the_end_is_none() {
        assert_eq!(be_u64(&[0; 7], 0), None);
        assert_eq!(be_u32(&[0, 0, 0, 1], 0), Some(1));
        assert_eq!(be_u16(&[0; 4], usize::MAX), None);
        assert_eq!(be_u8(&[7], 0), Some(7));
    }

    #[test]
    fn is_zero_sees_every_byte() {
        for at in 0..70 {
            let mut bytes = [0_u8; 70];
            assert!(is_zero(&bytes));
            bytes[at] = 1;
            assert!(!is_zero(&bytes), "byte {at}");
        }
    }
}
