//! Which guest bytes are touched by corruptions: the findings' ranges, merged.

use std::collections::BTreeMap;
use std::ops::Range;

use instar_abi::finding::{ACTIVE, NONE};
use instar_abi::problem::Severity;

use super::model::KeptFinding;

/// Guest ranges of each disk, in order, apart from each other.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// By snapshot index; the active disk, which is [`ACTIVE`], comes last.
    disks: BTreeMap<u32, Vec<Range<u64>>>,
}

impl Touched {
    /// What kept findings of corruption touch.
    #[must_use]
    pub fn by(findings: &[KeptFinding]) -> Self {
        let mut touched = Self::default();
        for KeptFinding { problem, finding, .. } in findings {
            if problem.row().severity >= Severity::Corruption && finding.guest_offset != NONE {
                let end = finding.guest_offset.saturating_add(finding.guest_len);
                touched.disks.entry(finding.snapshot).or_default().push(finding.guest_offset..end);
            }
        }
        for ranges in touched.disks.values_mut() {
            merge(ranges);
        }
        touched.disks.retain(|_, ranges| !ranges.is_empty());
        touched
    }

    /// Bytes, of all disks.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.disks.values().flatten().fold(0, |sum: u64, range| sum.saturating_add(range.end - range.start))
    }

    /// The ranges with the disk that they belong to, the active disk first.
    pub fn ranges(&self) -> impl Iterator<Item = (u32, &Range<u64>)> {
        let active = self.disks.get_key_value(&ACTIVE);
        let snapshots = self.disks.iter().filter(|(disk, _)| **disk != ACTIVE);
        active
            .into_iter()
            .chain(snapshots)
            .flat_map(|(disk, ranges)| ranges.iter().map(|range| (*disk, range)))
    }
}

/// Sorts ranges and joins those that overlap or touch; empty ones go.
fn merge(ranges: &mut Vec<Range<u64>>) {
    ranges.retain(|range| range.start < range.end);
    ranges.sort_unstable_by_key(|range| (range.start, range.end));
    ranges.dedup_by(|next, before| {
        let joined = next.start <= before.end;
        if joined {
            before.end = before.end.max(next.end);
        }
        joined
    });
}

#[cfg(test)]
mod tests {
    use instar_abi::finding::Finding;
    use instar_abi::problem::Problem;
    use zerocopy::FromZeros as _;

    use super::*;

    fn finding(problem: Problem, snapshot: u32, guest_offset: u64, guest_len: u64) -> KeptFinding {
        let finding = Finding { snapshot, guest_offset, guest_len, ..Finding::new_zeroed() };
        KeptFinding { problem, finding, owners: Vec::new() }
    }

    #[test]
    fn ranges_are_merged_for_each_disk_and_leaks_touch_nothing() {
        let bad = Problem::L2EntryUnaligned;
        let touched = Touched::by(&[
            finding(bad, 3, 10, 10),
            finding(bad, ACTIVE, 15, 15),
            finding(bad, ACTIVE, 0, 5),
            finding(bad, ACTIVE, 10, 10),
            finding(bad, ACTIVE, 50, 0),
            finding(bad, ACTIVE, NONE, 7),
            finding(Problem::OrphanData, ACTIVE, 100, 10),
        ]);
        let ranges: Vec<_> = touched.ranges().collect();
        assert_eq!(ranges, [(ACTIVE, &(0..5)), (ACTIVE, &(10..30)), (3, &(10..20))]);
        assert_eq!(touched.bytes(), 35);
    }

    #[test]
    fn ranges_at_the_end_of_the_numbers_do_not_overflow() {
        let bad = Problem::L2EntryUnaligned;
        let touched = Touched::by(&[finding(bad, 0, 1, u64::MAX), finding(bad, ACTIVE, 0, u64::MAX - 1)]);
        assert_eq!(touched.bytes(), u64::MAX);
    }
}
