//! What a decoder found wrong, with place and values: a finding that does not know yet whose table it is in.

use instar_abi::finding::{ACTIVE, Finding, NONE, Table};
use instar_abi::problem::Problem;

/// A fault of one field or entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Which row of the problem table.
    pub problem: Problem,
    /// The structure that holds the field.
    pub table: Table,
    /// Byte offset in the file of the field; [`NONE`] if it has none.
    pub host_offset: u64,
    /// Bytes of the field.
    pub host_len: u64,
    /// Index of the item in its table; [`NONE`] if it has none.
    pub index: u64,
    /// The value as stored.
    pub stored: u64,
    /// The value or bound that was asked for; [`NONE`] if unknown.
    pub expected: u64,
}

impl Fault {
    /// A fault of the header field at `offset` that is `len` bytes long.
    #[must_use]
    pub const fn header(problem: Problem, offset: u64, len: u64, stored: u64, expected: u64) -> Self {
        Self {
            problem,
            table: Table::Header,
            host_offset: offset,
            host_len: len,
            index: NONE,
            stored,
            expected,
        }
    }

    /// The same fault, of the item with this index.
    #[must_use]
    pub const fn at_index(mut self, index: u64) -> Self {
        self.index = index;
        self
    }

    /// The finding that tells this fault: one item, no guest range, nobody's table.
    #[must_use]
    pub const fn finding(&self) -> Finding {
        Finding {
            problem: self.problem as u32,
            table: self.table as u32,
            snapshot: ACTIVE,
            witnesses: 0,
            host_offset: self.host_offset,
            host_len: self.host_len,
            index: self.index,
            count: 1,
            guest_offset: NONE,
            guest_len: 0,
            stored: self.stored,
            expected: self.expected,
        }
    }
}
