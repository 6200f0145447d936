//! The byte ranges that a step of a plan may write.
//!
//! Invariant: ranges in order, with a gap between any two, so that a write is looked up once and may go across two
//! ranges that touch each other. What a range is for is not known here.

/// See the module's documentation.
#[derive(Debug, Clone, Default)]
pub struct Scope(Vec<(u64, u64)>);

impl Scope {
    /// The scope of these ranges, each an offset and a length in bytes, in any order.
    #[must_use]
    pub fn of(ranges: &[(u64, u64)]) -> Self {
        let end_of = |&(offset, len): &(u64, u64)| (offset, offset.saturating_add(len));
        let mut sorted: Vec<_> = ranges.iter().map(end_of).collect();
        sorted.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for (start, end) in sorted {
            match merged.last_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ => merged.push((start, end)),
            }
        }
        Self(merged)
    }

    /// Whether all of `len` bytes from `offset` on may be written.
    #[must_use]
    pub fn holds(&self, offset: u64, len: u64) -> bool {
        let Some(end) = offset.checked_add(len) else { return false };
        let behind = self.0.partition_point(|&(start, _)| start <= offset);
        behind.checked_sub(1).and_then(|at| self.0.get(at)).is_some_and(|range| end <= range.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_is_held_by_ranges_that_touch_or_overlap_and_by_no_gap() {
        let scope = Scope::of(&[(200, 10), (100, 10), (110, 5), (102, 2)]);
        assert!(scope.holds(100, 15) && scope.holds(105, 10) && scope.holds(200, 10));
        assert!(!scope.holds(99, 2) && !scope.holds(105, 11) && !scope.holds(100, 110));
    }

    #[test]
    fn write_past_the_last_offset_is_held_by_nothing() {
        assert!(!Scope::of(&[(0, u64::MAX)]).holds(u64::MAX, 2));
        assert!(!Scope::default().holds(0, 1));
    }
}
