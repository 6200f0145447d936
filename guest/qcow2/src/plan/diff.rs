//! What has to be written to turn bytes of the file into others.
//!
//! Invariant: the writes of a step lie within the tables that its scope names, whole.

use alloc::vec::Vec;
use core::ops::Range;

use instar_abi::cure::Cure;

use super::round::{Proposal, step};
use crate::host::Host;

/// Unchanged bytes between two changed ones that are written along, to have fewer writes.
const GAP_BYTES_MAX: usize = 512;

/// What edits may take before they are proposed as a step.
const STEP_BYTES_MAX: usize = 2 << 20;

/// Writes to tables on their way to become a step, with the tables as their scope.
#[derive(Debug, Default)]
pub struct Edits {
    scope: Vec<(u64, u64)>,
    writes: Vec<Proposal>,
    /// Bytes that the writes take, with what it takes to keep each.
    held_bytes: usize,
}

impl Edits {
    /// Adds what turns a table's bytes in the file into others.
    pub fn table(&mut self, offset: u64, before: &[u8], after: &[u8]) {
        let changed = writes(offset, before, after);
        if !changed.is_empty() {
            self.allow(offset, before.len() as u64);
            self.held_bytes += changed.iter().map(held_bytes).sum::<usize>();
            self.writes.extend(changed);
        }
    }

    /// Adds a write that is its scope itself; one right behind the last becomes part of it.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.allow(offset, bytes.len() as u64);
        match self.writes.last_mut() {
            Some((at, before)) if at.checked_add(before.len() as u64) == Some(offset) => {
                before.extend_from_slice(bytes);
                self.held_bytes += bytes.len();
            }
            _ => {
                let write = (offset, bytes.to_vec());
                self.held_bytes += held_bytes(&write);
                self.writes.push(write);
            }
        }
    }

    fn allow(&mut self, offset: u64, len: u64) {
        match self.scope.last_mut() {
            Some((at, scope)) if at.checked_add(*scope) == Some(offset) => *scope += len,
            _ => self.scope.push((offset, len)),
        }
    }

    /// Proposes them as one step once they are many.
    pub fn propose_many<H: Host>(&mut self, host: &mut H, cure: Cure) {
        if self.held_bytes >= STEP_BYTES_MAX {
            self.propose(host, cure);
        }
    }

    /// Proposes them as one step, and begins anew.
    pub fn propose<H: Host>(&mut self, host: &mut H, cure: Cure) {
        step(host, cure, &self.scope, &self.writes);
        *self = Self::default();
    }
}

/// Bytes that a write takes in memory.
const fn held_bytes((_, bytes): &Proposal) -> usize {
    size_of::<Proposal>() + bytes.len()
}

/// The writes that turn bytes at `offset` into others of the same length.
fn writes(offset: u64, before: &[u8], after: &[u8]) -> Vec<Proposal> {
    let write = |range: Range<usize>| {
        let at = offset.checked_add(range.start as u64)?;
        Some((at, after.get(range)?.to_vec()))
    };
    changes(before, after).into_iter().filter_map(write).collect()
}

/// The ranges in which two strings of the same length differ, near ones joined.
fn changes(before: &[u8], after: &[u8]) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for (at, (old, new)) in before.iter().zip(after).enumerate() {
        if old == new {
            continue;
        }
        match ranges.last_mut() {
            Some(range) if at - range.end <= GAP_BYTES_MAX => range.end = at + 1,
            _ => ranges.push(at..at + 1),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_near_each_other_become_one_write() {
        let before = [1_u8; 4000];
        let mut after = before;
        for at in [0, 100, 612, 2000] {
            after[at] = 0;
        }
        assert_eq!(changes(&before, &after), [0..613, 2000..2001]);
        assert!(changes(&before, &before).is_empty());
    }
}
