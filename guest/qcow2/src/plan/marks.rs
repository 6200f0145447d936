//! Writes that mark parts of bitmaps as dirty, proposed in steps as they come up.
//!
//! Invariant: no more than a step's worth of them is held at once, however large the bitmaps are. What one plan may hold is
//! the host's to refuse, by name; once that is exceeded, nothing more is proposed, as nothing of it will be carried out.

use alloc::vec::Vec;

use instar_abi::cure::{Cure, PLAN_BYTES_MAX, PLAN_WRITES_MAX};

use super::round::{Proposal, Round, push};
use crate::host::Host;

/// Bytes that are held before they are proposed.
const STEP_BYTES_MAX: u64 = 2 << 20;
/// What a write counts as at least in this: it takes memory of its own.
const WRITE_BYTES_MIN: u64 = 64;

/// One write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// A data cluster becomes ones, as far as the bitmap has bits.
    Ones {
        /// Byte offset in the file.
        at: u64,
        /// Bytes of the cluster.
        len: usize,
        /// Bits from its first one on.
        bits: u64,
    },
    /// Another table entry.
    Entry {
        /// Byte offset in the file.
        at: u64,
        /// The entry.
        raw: u64,
    },
    /// Other flags of a bitmap.
    Flags {
        /// Byte offset in the file.
        at: u64,
        /// The flags.
        flags: u32,
    },
    /// Entries of a new table, and zeros behind them.
    Table {
        /// Byte offset in the file.
        at: u64,
        /// The entry that all of them are.
        raw: u64,
        /// How many.
        entries: usize,
        /// Bytes with the zeros.
        len: usize,
    },
}

impl Mark {
    /// Bytes that it writes.
    const fn len(self) -> u64 {
        match self {
            Self::Ones { len, .. } | Self::Table { len, .. } => len as u64,
            Self::Entry { .. } => 8,
            Self::Flags { .. } => 4,
        }
    }

    fn proposal(self) -> Proposal {
        match self {
            Self::Ones { at, len, bits } => (at, ones(len, bits)),
            Self::Entry { at, raw } => (at, raw.to_be_bytes().to_vec()),
            Self::Flags { at, flags } => (at, flags.to_be_bytes().to_vec()),
            Self::Table { at, raw, entries, len } => {
                let mut table = raw.to_be_bytes().repeat(entries);
                table.resize(len, 0);
                (at, table)
            }
        }
    }
}

/// How much was looked at and not proposed.
#[derive(Debug, Default)]
pub struct Budget {
    bytes: u64,
}

impl Budget {
    /// Counts a write. False where there is more than one plan may hold.
    pub const fn take(&mut self, mark: Mark) -> bool {
        self.bytes = self.bytes.saturating_add(mark.len());
        self.bytes <= PLAN_BYTES_MAX
    }
}

/// Marks that are being proposed.
#[derive(Debug, Default)]
pub struct Marks {
    writes: Vec<Proposal>,
    held_bytes: u64,
    bytes: u64,
    proposed: usize,
}

impl Marks {
    /// Adds a write. False where there is more than one plan may hold.
    pub fn put<H: Host>(&mut self, round: &mut Round<'_, H>, mark: Mark) -> bool {
        if self.is_too_much() {
            return false;
        }
        self.bytes = self.bytes.saturating_add(mark.len());
        self.held_bytes = self.held_bytes.saturating_add(mark.len().max(WRITE_BYTES_MIN));
        push(&mut self.writes, mark.proposal());
        if self.held_bytes >= STEP_BYTES_MAX {
            self.flush(round);
        }
        !self.is_too_much()
    }

    const fn is_too_much(&self) -> bool {
        self.bytes > PLAN_BYTES_MAX || self.proposed > PLAN_WRITES_MAX
    }

    /// Proposes what is held, as a step of its own.
    pub fn flush<H: Host>(&mut self, round: &mut Round<'_, H>) {
        self.proposed = self.proposed.saturating_add(self.writes.len());
        round.writes(Cure::DirtyBitmaps, &self.writes);
        self.writes = Vec::new();
        self.held_bytes = 0;
    }
}

/// `len` bytes of which the first `bits` bits are ones, from the least significant of each byte up.
fn ones(len: usize, bits: u64) -> Vec<u8> {
    let mut bytes = alloc::vec![0_u8; len];
    let whole = instar_abi::to_usize((bits / 8).min(len as u64));
    if let Some(full) = bytes.get_mut(..whole) {
        full.fill(0xff);
    }
    if let Some(last) = bytes.get_mut(whole) {
        *last = (1 << (bits % 8)) - 1;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ones_end_with_the_last_bit() {
        assert_eq!(ones(4, 11), [0xff, 0x07, 0, 0]);
        assert_eq!(ones(2, 16), [0xff, 0xff]);
        assert_eq!(ones(2, 1 << 40), [0xff, 0xff]);
        assert_eq!(ones(2, 0), [0, 0]);
    }

    #[test]
    fn mark_writes_as_many_bytes_as_it_counts() {
        for mark in [
            Mark::Ones { at: 512, len: 512, bits: 9 },
            Mark::Entry { at: 8, raw: 1 },
            Mark::Flags { at: 4, flags: 2 },
            Mark::Table { at: 1024, raw: 1, entries: 3, len: 512 },
        ] {
            assert_eq!(mark.proposal().1.len() as u64, mark.len(), "{mark:?}");
        }
        assert_eq!(
            Mark::Table { at: 0, raw: 1, entries: 1, len: 10 }.proposal().1,
            [0, 0, 0, 0, 0, 0, 0, 1, 0, 0]
        );
    }
}
