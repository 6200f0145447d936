//! L1 table entries (specification: "Cluster mapping").

/// Largest L1 table that QEMU opens, in bytes.
pub const L1_TABLE_BYTES_MAX: u64 = 32 << 20;

/// Bit 63 of L1 and L2 entries: the refcount of what it points at is exactly one.
pub const COPIED: u64 = 1 << 63;

/// Bits 9 to 55 of L1 and L2 entries: a host offset.
pub const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;

/// One entry of an L1 table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct L1Entry(pub u64);

impl L1Entry {
    /// Bits 0 to 8 and 56 to 62, which must be zero.
    pub const RESERVED: u64 = 0x7f00_0000_0000_01ff;

    /// Byte offset of the L2 table; 0 if there is none.
    #[must_use]
    pub const fn l2_offset(self) -> u64 {
        self.0 & OFFSET_MASK
    }

    /// Whether the entry says that its L2 table has one user.
    #[must_use]
    pub const fn is_copied(self) -> bool {
        self.0 & COPIED != 0
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
    fn fields_of_an_entry_do_not_overlap_and_cover_it() {
        assert_eq!(OFFSET_MASK ^ COPIED ^ L1Entry::RESERVED, u64::MAX);
        let entry = L1Entry(COPIED | 0x5_0000 | 1);
        assert_eq!((entry.l2_offset(), entry.is_copied(), entry.reserved()), (0x5_0000, true, 1));
    }
}
