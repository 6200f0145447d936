//! Where a check found what, in a form that two checks can be compared in.
//!
//! The places of a problem in one table are its items (indexes), or bytes of the file where it has no index. Runs
//! join, so that a million neighbours take no more room than one. Invariant: what does not fit into the bound is
//! not dropped silently: [`Places::put`] says so.

use std::collections::BTreeMap;

use instar_abi::finding::{Finding, NONE};
use instar_abi::problem::Problem;

/// Most runs that are kept.
const RUNS_MAX: usize = 1 << 21;

/// What the numbers of a run count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Space {
    Items,
    Bytes,
    /// The finding is about no place in particular.
    Whole,
}

/// Places of one kind: those of a problem in one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    problem: Problem,
    table: u32,
    snapshot: u32,
    space: Space,
}

#[derive(Debug, Clone, Copy)]
struct Run {
    start: u64,
    end: u64,
    /// Of its first finding, for messages.
    host_offset: u64,
}

/// All places of one check.
#[derive(Debug, Clone, Default)]
pub(super) struct Places {
    runs: BTreeMap<Key, Vec<Run>>,
    kept: usize,
}

/// Clusters that nothing refers to. A check tells them as one or another of these by what else it found, so that
/// one of them may stand where another stood.
const UNREFERENCED: &[Problem] =
    &[Problem::RefcountLeak, Problem::OrphanData, Problem::OrphanTable, Problem::OrphanBitmap];

impl Places {
    /// Keeps the place of a finding; false if there is no room left.
    pub(super) fn put(&mut self, problem: Problem, finding: &Finding) -> bool {
        let (space, start, len) = match (finding.index, finding.host_offset) {
            (NONE, NONE) => (Space::Whole, 0, 1),
            (NONE, offset) => (Space::Bytes, offset, finding.host_len),
            (index, _) => (Space::Items, index, finding.count),
        };
        let key = Key { problem, table: finding.table, snapshot: finding.snapshot, space };
        let end = start.saturating_add(len.max(1));
        let runs = self.runs.entry(key).or_default();
        if let Some(last) = runs.last_mut().filter(|last| last.start <= start && start <= last.end) {
            last.end = last.end.max(end);
            return true;
        }
        if self.kept == RUNS_MAX {
            return false;
        }
        self.kept += 1;
        runs.push(Run { start, end, host_offset: finding.host_offset });
        true
    }

    /// A place of `self` at which `before` has nothing of the kind: its problem, which is none of `except`, and where it
    /// is in the file.
    pub(super) fn new_since(&self, before: &Self, except: &[Problem]) -> Option<(Problem, u64)> {
        self.runs.keys().filter(|key| !except.contains(&key.problem)).find_map(|&key| {
            let kinds = if UNREFERENCED.contains(&key.problem) { UNREFERENCED } else { &[key.problem] };
            let run = outside(&self.of(&[key.problem], key), &before.of(kinds, key))?;
            Some((key.problem, run.host_offset))
        })
    }

    /// A place where `self` has `problem`, and `after` has none of `instead`.
    pub(super) fn gone_since(&self, after: &Self, problem: Problem, instead: &[Problem]) -> Option<u64> {
        self.runs.keys().filter(|key| key.problem == problem).find_map(|&key| {
            outside(&self.of(&[problem], key), &after.of(instead, key)).map(|run| run.host_offset)
        })
    }

    /// The runs of some problems in the table of `key`, sorted, none touching another.
    fn of(&self, problems: &[Problem], key: Key) -> Vec<Run> {
        let lists = problems.iter().filter_map(|&problem| self.runs.get(&Key { problem, ..key }));
        let mut runs: Vec<Run> = lists.flatten().copied().collect();
        runs.sort_unstable_by_key(|run| run.start);
        let mut merged: Vec<Run> = Vec::new();
        for run in runs {
            match merged.last_mut() {
                Some(last) if run.start <= last.end => last.end = last.end.max(run.end),
                _ => merged.push(run),
            }
        }
        merged
    }
}

/// The first of `runs` that does not lie within one of `cover`, both sorted and without overlap.
fn outside(runs: &[Run], cover: &[Run]) -> Option<Run> {
    runs.iter().copied().find(|run| {
        let at = cover.partition_point(|other| other.start <= run.start);
        cover[..at].last().is_none_or(|other| other.end < run.end)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use instar_abi::finding::{ACTIVE, Table};

    fn finding(index: u64, count: u64) -> Finding {
        Finding {
            problem: 0,
            table: Table::L2 as u32,
            snapshot: ACTIVE,
            witnesses: 0,
            host_offset: index * 8,
            host_len: count * 8,
            index,
            count,
            guest_offset: NONE,
            guest_len: 0,
            stored: 1,
            expected: 0,
        }
    }

    fn places(found: &[(Problem, u64, u64)]) -> Places {
        let mut places = Places::default();
        for &(problem, index, count) in found {
            assert!(places.put(problem, &finding(index, count)));
        }
        places
    }

    #[test]
    fn finding_at_a_place_of_its_kind_is_not_new_and_any_other_is() {
        let before = places(&[(Problem::L2EntryShared, 10, 5), (Problem::L2EntryShared, 15, 5)]);
        for (at, count) in [(10, 10), (10, 1), (19, 1)] {
            let after = places(&[(Problem::L2EntryShared, at, count)]);
            assert_eq!(after.new_since(&before, &[]), None, "{at}, {count}");
        }
        for (at, count) in [(9, 1), (20, 1), (12, 9)] {
            let after = places(&[(Problem::L2EntryShared, at, count)]);
            assert_eq!(
                after.new_since(&before, &[]),
                Some((Problem::L2EntryShared, at * 8)),
                "{at}, {count}"
            );
        }
        let other = places(&[(Problem::L2EntryPastEof, 10, 1)]);
        assert_eq!(other.new_since(&before, &[]), Some((Problem::L2EntryPastEof, 80)));
    }

    #[test]
    fn finding_of_another_snapshot_or_without_a_place_is_told_apart() {
        let before = places(&[(Problem::L2EntryShared, 10, 5)]);
        for (snapshot, index, host_offset) in [(0, 10, 80), (ACTIVE, NONE, 80), (ACTIVE, NONE, NONE)] {
            let mut after = Places::default();
            let finding = Finding { snapshot, index, host_offset, ..finding(10, 1) };
            assert!(after.put(Problem::L2EntryShared, &finding));
            assert!(after.new_since(&before, &[]).is_some(), "{snapshot:#x}, {index:#x}");
            assert_eq!(after.new_since(&after, &[]), None);
        }
    }

    #[test]
    fn unreferenced_clusters_may_be_told_by_another_name_but_not_vanish() {
        let before = places(&[(Problem::OrphanTable, 3, 1), (Problem::OrphanData, 4, 2)]);
        let after = places(&[(Problem::OrphanData, 3, 2), (Problem::RefcountLeak, 5, 1)]);
        assert_eq!(after.new_since(&before, &[]), None);
        let orphans = [Problem::OrphanData, Problem::OrphanTable];
        assert_eq!(before.gone_since(&after, Problem::OrphanTable, &orphans), None);
        assert_eq!(before.gone_since(&after, Problem::OrphanData, &orphans), Some(32));
        assert!(before.gone_since(&Places::default(), Problem::OrphanTable, &orphans).is_some());
    }
}
