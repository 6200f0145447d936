//! Names that a job found inside an image, already escaped.
//!
//! Invariant: bounded. Names beyond [`NAMES_MAX`] are counted, not kept.

use std::collections::BTreeMap;

use instar_abi::call::TextKind;

use super::escape::escape_bytes;

/// Most names kept of one image.
pub const NAMES_MAX: usize = 4096;

/// Names by what they name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    texts: BTreeMap<(u32, u32), String>,
    dropped: u64,
}

impl Names {
    /// Keeps `bytes` as the name of `kind` number `index`. The first name given stays.
    pub fn insert(&mut self, kind: TextKind, index: u32, bytes: &[u8]) {
        if self.texts.len() < NAMES_MAX {
            self.texts.entry((kind as u32, index)).or_insert_with(|| escape_bytes(bytes));
        } else {
            self.dropped = self.dropped.saturating_add(1);
        }
    }

    /// The name of `kind` number `index`, where the image has one.
    #[must_use]
    pub fn get(&self, kind: TextKind, index: u32) -> Option<&str> {
        self.texts.get(&(kind as u32, index)).map(String::as_str)
    }

    /// All names of one kind with their indexes, in order.
    pub fn of(&self, kind: TextKind) -> impl Iterator<Item = (u32, &str)> {
        let number = kind as u32;
        self.texts.range((number, 0)..=(number, u32::MAX)).map(|((_, index), text)| (*index, text.as_str()))
    }

    /// Names that were not kept.
    #[must_use]
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }
}
