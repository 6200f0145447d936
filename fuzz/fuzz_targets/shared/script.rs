//! An input as a list of decisions: numbers that are near something that matters more often than not.
#![allow(dead_code, reason = "each target uses its own part of this")]

/// What is left of an input. Behind its end there are zeros.
#[derive(Debug, Clone)]
pub struct Script<'a>(pub &'a [u8]);

impl Script<'_> {
    pub fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// A number below `end`, which is at least 1.
    pub fn below(&mut self, end: u64) -> u64 {
        let mut number = 0;
        let mut most = 1;
        while most < end {
            number = number << 8 | u64::from(self.byte());
            most = most << 8;
        }
        number % end
    }

    /// Whether one of so many cases is this one.
    pub fn one_in(&mut self, cases: u8) -> bool {
        self.byte() % cases == cases - 1
    }

    pub fn word(&mut self) -> u64 {
        (0..8).fold(0, |number, _| number << 8 | u64::from(self.byte()))
    }
}
