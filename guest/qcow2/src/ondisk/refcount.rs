//! Refcount table entries and the entries of refcount blocks (specification: "Host cluster management").

use super::units::ClusterSize;

/// Largest `refcount_order` (64-bit counts).
pub const REFCOUNT_ORDER_MAX: u32 = 6;
/// Largest refcount table that QEMU opens, in bytes.
pub const REFCOUNT_TABLE_BYTES_MAX: u64 = 8 << 20;

/// The width of a reference count: 1, 2, 4 .. 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RefcountWidth {
    order: u32,
}

impl RefcountWidth {
    /// Version 2: always 16 bits.
    pub const V2: Self = Self { order: 4 };

    /// The width with this `refcount_order`, `None` if it is out of range.
    #[must_use]
    pub const fn new(order: u32) -> Option<Self> {
        if order <= REFCOUNT_ORDER_MAX { Some(Self { order }) } else { None }
    }

    /// Bits in one count.
    #[must_use]
    pub const fn bits(self) -> u32 {
        1 << self.order
    }

    /// The largest count that fits.
    #[must_use]
    pub const fn max(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }

    /// Counts in one refcount block.
    #[must_use]
    pub const fn per_block(self, cluster: ClusterSize) -> u64 {
        (cluster.bytes() << 3) >> self.order
    }

    /// The count at `index` of a block; `None` past the end of `block`. Counts narrower than a byte fill each
    /// byte from its least significant bits up.
    #[must_use]
    pub fn get(self, block: &[u8], index: usize) -> Option<u64> {
        if self.order < 3 {
            let (byte, shift) = self.sub_byte(index);
            return Some(u64::from(block.get(byte)? >> shift) & self.max());
        }
        let bytes = 1_usize << (self.order - 3);
        let start = index.checked_mul(bytes)?;
        let field = block.get(start..start.checked_add(bytes)?)?;
        Some(field.iter().fold(0, |value, byte| (value << 8) | u64::from(*byte)))
    }

    /// Writes the count at `index` of a block. Says whether it did: not past the end of `block`, and not a
    /// value over [`Self::max`].
    #[must_use]
    pub fn set(self, block: &mut [u8], index: usize, value: u64) -> bool {
        if value > self.max() {
            return false;
        }
        let bytes = value.to_be_bytes();
        if self.order < 3 {
            let (byte, shift) = self.sub_byte(index);
            let Some(place) = block.get_mut(byte) else { return false };
            let mask = u8::MAX >> (8 - self.bits());
            *place = (*place & !(mask << shift)) | (bytes[7] << shift);
            return true;
        }
        let len = 1_usize << (self.order - 3);
        let Some(start) = index.checked_mul(len) else { return false };
        let Some(place) = start.checked_add(len).and_then(|end| block.get_mut(start..end)) else {
            return false;
        };
        place.copy_from_slice(&bytes[8 - len..]);
        true
    }

    /// Byte and bit position of a count narrower than a byte.
    const fn sub_byte(self, index: usize) -> (usize, u32) {
        let per_byte_bits = 3 - self.order;
        #[expect(clippy::cast_possible_truncation, reason = "masked to at most 7")]
        let slot = (index & ((1 << per_byte_bits) - 1)) as u32;
        (index >> per_byte_bits, slot << self.order)
    }
}

/// One entry of the refcount table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RefcountTableEntry(pub u64);

impl RefcountTableEntry {
    /// Bits 0 to 8, which must be zero.
    pub const RESERVED: u64 = 0x1ff;

    /// Byte offset of the refcount block; 0 if there is none.
    #[must_use]
    pub const fn block_offset(self) -> u64 {
        self.0 & !Self::RESERVED
    }

    /// The reserved bits that are set.
    #[must_use]
    pub const fn reserved(self) -> u64 {
        self.0 & Self::RESERVED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_narrower_than_a_byte_start_at_the_least_significant_bits() {
        let one = RefcountWidth::new(0).unwrap();
        assert_eq!((0..8).map(|at| one.get(&[0b0000_0101], at).unwrap()).sum::<u64>(), 2);
        assert_eq!(one.get(&[0b0000_0001], 0), Some(1));
        let four = RefcountWidth::new(2).unwrap();
        assert_eq!(four.get(&[0x21], 0), Some(1));
        assert_eq!(four.get(&[0x21], 1), Some(2));
        assert_eq!(four.get(&[0x21], 2), None);
    }

    #[test]
    fn set_then_get_gives_the_value_and_leaves_the_neighbours() {
        for order in 0..=REFCOUNT_ORDER_MAX {
            let width = RefcountWidth::new(order).unwrap();
            let per = width.per_block(ClusterSize::new(9).unwrap());
            let mut block = [0xa5_u8; 512];
            let before = block;
            for index in [0, 1, 7, per - 1] {
                let index = instar_abi::to_usize(index);
                for value in [0, 1, width.max()] {
                    block = before;
                    assert!(width.set(&mut block, index, value));
                    assert_eq!(width.get(&block, index), Some(value));
                    let others = (0..instar_abi::to_usize(per)).filter(|at| *at != index);
                    assert!(others.into_iter().all(|at| width.get(&block, at) == width.get(&before, at)));
                }
            }
            assert!(!width.set(&mut block, instar_abi::to_usize(per), 0));
        }
    }

    #[test]
    fn value_over_the_width_is_not_written() {
        let width = RefcountWidth::new(1).unwrap();
        let mut block = [0_u8; 4];
        assert!(!width.set(&mut block, 0, 4));
        assert_eq!(block, [0; 4]);
        assert_eq!(RefcountWidth::new(6).unwrap().max(), u64::MAX);
    }
}
