//! One plan out of many rounds.
//!
//! Invariant: over the image, the plan that comes out shows the same bytes as all rounds one after the other, and
//! writes no byte twice. Of two writes of a byte the later one counts, and its step is the one that is said to have
//! written it. What is not changed is not written, except to join changes that are near each other. The order is
//! that of [`Phase`], so that what an in-place write may lead to is durable before it.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use instar_abi::choice::Decisions;
use instar_abi::cure::Cure;
use instar_abi::problem::Tier;
use instar_abi::to_usize;

use super::guard::{self, Guard};
use super::plan::{Plan, PlanError, Span, Step};
use crate::image::{Backend, Write};

/// Bytes that are compared and written together: an entry of a table is never torn into changed and unchanged bytes.
const WORD_BYTES: u64 = 8;
/// Unchanged bytes between two changed ones that are written along, to have fewer writes.
const GAP_BYTES_MAX: usize = 512;
/// Longest write that is made of several.
const JOINED_BYTES_MAX: usize = 1 << 20;

/// Where a write goes. A barrier stands between any two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// Entries that lead nowhere are emptied while nothing is there that they could come to lead to.
    Emptied,
    /// Behind the image's end: nothing leads there yet.
    Fresh,
    /// Into the image as it is.
    InPlace,
}

/// The writes of each step to be, in order: by phase, then by which cure came first.
type Sorted = BTreeMap<(Phase, usize), Vec<Write>>;

/// The plan that does in one go what `rounds` do one after the other.
///
/// # Errors
/// Of the storage: while reading `image`. Otherwise those of [`Plan::from_parts`], and `GuardMoved`.
pub(super) fn normalise(
    rounds: &[Plan],
    image: &dyn Backend,
    decisions: Decisions,
) -> io::Result<Result<Plan, PlanError>> {
    let cures = order_of_cures(rounds);
    let mut sorted = Sorted::new();
    for (cure, write) in visible(rounds) {
        let rank = cures.iter().position(|&other| other == cure).unwrap_or(cures.len());
        let in_place = if cure == Cure::Unmap { Phase::Emptied } else { Phase::InPlace };
        sort(write, (in_place, rank), image, &mut sorted)?;
    }
    let steps: Vec<Step> =
        sorted.into_iter().filter_map(|((_, rank), writes)| Some(step(*cures.get(rank)?, writes))).collect();
    let guard = match guard_of(rounds) {
        Ok(guard) => guard,
        Err(error) => return Ok(Err(error)),
    };
    let is_needed = match &guard {
        Some(guard) => !steps.is_empty() || guard::changes(guard, image)?,
        None => false,
    };
    Ok(Plan::from_parts(Tier::All, decisions, guard.filter(|_| is_needed).as_ref(), steps))
}

/// Raised as in the first round that has a guard, lowered as in the last one.
fn guard_of(rounds: &[Plan]) -> Result<Option<Guard>, PlanError> {
    let mut guards = rounds.iter().filter_map(Plan::guard);
    let Some(first) = guards.next() else { return Ok(None) };
    let mut lowered = first.lowered();
    for guard in guards {
        if (guard.offset(), guard.len_bytes()) != (first.offset(), first.len_bytes()) {
            return Err(PlanError::GuardMoved { offset: guard.offset(), earlier: first.offset() });
        }
        lowered = guard.lowered();
    }
    Guard::new(first.offset(), first.raised().to_vec(), lowered.to_vec()).map(Some)
}

fn order_of_cures(rounds: &[Plan]) -> Vec<Cure> {
    let mut cures = Vec::new();
    for step in rounds.iter().flat_map(Plan::steps) {
        if !cures.contains(&step.cure) {
            cures.push(step.cure);
        }
    }
    cures
}

/// The parts of all writes that no later write hides.
fn visible(rounds: &[Plan]) -> Vec<(Cure, Write)> {
    let steps = rounds.iter().flat_map(Plan::steps);
    let writes: Vec<(Cure, &Write)> =
        steps.flat_map(|step| step.groups.iter().flatten().map(|write| (step.cure, write))).collect();
    let mut covered: BTreeMap<u64, u64> = BTreeMap::new();
    let mut parts = Vec::new();
    for (cure, write) in writes.into_iter().rev() {
        for (start, end) in uncovered(&covered, write.offset, write.end()) {
            let bytes = &write.bytes[to_usize(start - write.offset)..to_usize(end - write.offset)];
            let is_whole = bytes.len() == write.bytes.len();
            let part = if is_whole { write.clone() } else { Write { offset: start, bytes: bytes.into() } };
            parts.push((cure, part));
        }
        cover(&mut covered, write.offset, write.end());
    }
    parts
}

/// The parts of `start..end` that are not covered, as (start, end).
fn uncovered(covered: &BTreeMap<u64, u64>, start: u64, end: u64) -> Vec<(u64, u64)> {
    let mut parts = Vec::new();
    let before = covered.range(..=start).next_back().map_or(start, |(_, &end)| end.max(start));
    let mut at = before;
    for (&from, &to) in covered.range(start..end) {
        if from > at {
            parts.push((at, from));
        }
        at = at.max(to);
    }
    if at < end {
        parts.push((at, end));
    }
    parts
}

/// Adds `start..end`, joined with what it touches.
fn cover(covered: &mut BTreeMap<u64, u64>, start: u64, end: u64) {
    let (mut first, mut last) = (start, end);
    while let Some((&from, &to)) = covered.range(..=last).next_back().filter(|&(_, &to)| to >= first) {
        covered.remove(&from);
        (first, last) = (first.min(from), last.max(to));
    }
    covered.insert(first, last);
}

/// Puts the parts of a write that change something where they belong.
fn sort(
    write: Write,
    (phase, rank): (Phase, usize),
    image: &dyn Backend,
    into: &mut Sorted,
) -> io::Result<()> {
    let in_place = to_usize(image.len().saturating_sub(write.offset)).min(write.bytes.len());
    let mut old = vec![0; in_place];
    if in_place > 0 {
        image.read_at(&mut old, write.offset)?;
    }
    for range in changes(write.offset, &old, &write.bytes[..in_place]) {
        let part = Write {
            offset: write.offset + range.start as u64,
            bytes: if range.len() == write.bytes.len() {
                write.bytes.clone()
            } else {
                write.bytes[range].into()
            },
        };
        into.entry((phase, rank)).or_default().push(part);
    }
    if in_place < write.bytes.len() {
        let offset = write.offset + in_place as u64;
        let bytes = if in_place == 0 { write.bytes } else { write.bytes[in_place..].into() };
        into.entry((Phase::Fresh, rank)).or_default().push(Write { offset, bytes });
    }
    Ok(())
}

/// Where two strings of the same length differ, in whole words of the file, near ones joined.
fn changes(offset: u64, before: &[u8], after: &[u8]) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    let mut at = 0;
    while at < after.len() {
        let word = to_usize(WORD_BYTES - (offset + at as u64) % WORD_BYTES);
        let next = (at + word).min(after.len());
        if before[at..next] != after[at..next] {
            match ranges.last_mut() {
                Some(range) if at - range.end <= GAP_BYTES_MAX => range.end = next,
                _ => ranges.push(at..next),
            }
        }
        at = next;
    }
    ranges
}

/// A step of these writes, in order of their place, neighbours joined. Its scope is what it writes: the wider one
/// that a cage named has been held against each of its proposals.
fn step(cure: Cure, mut writes: Vec<Write>) -> Step {
    writes.sort_unstable_by_key(|write| write.offset);
    let neighbours = writes.chunk_by(|write, next| write.end() == next.offset);
    let joined: Vec<Write> = neighbours.flat_map(joined).collect();
    let scope: Vec<Span> = joined.iter().map(|write| (write.offset, write.bytes.len() as u64)).collect();
    Step { cure, scope, groups: vec![joined] }
}

/// Writes that follow one another, as few as the bound allows.
fn joined(writes: &[Write]) -> Vec<Write> {
    let mut out = Vec::new();
    let mut rest = writes;
    while let Some(first) = rest.first() {
        let mut len = 0;
        let fits = |write: &&Write| {
            len += write.bytes.len();
            len <= JOINED_BYTES_MAX
        };
        let count = rest.iter().take_while(fits).count().max(1);
        let (run, after) = rest.split_at(count);
        rest = after;
        out.push(match run {
            [write] => write.clone(),
            _ => {
                let bytes: Vec<u8> = run.iter().flat_map(|write| write.bytes.iter().copied()).collect();
                Write { offset: first.offset, bytes: bytes.into() }
            }
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Overlay;
    use proptest::prelude::*;
    use std::sync::Arc;

    #[derive(Debug)]
    struct Bytes(Vec<u8>);

    impl Backend for Bytes {
        fn len(&self) -> u64 {
            self.0.len() as u64
        }
        fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
            let from = to_usize(offset);
            into.copy_from_slice(self.0.get(from..from + into.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        }
        fn write_at(&self, _bytes: &[u8], _offset: u64) -> io::Result<()> {
            panic!("normalising wrote")
        }
        fn set_len(&self, _len: u64) -> io::Result<()> {
            panic!("normalising resized")
        }
        fn sync(&self) -> io::Result<()> {
            Ok(())
        }
    }

    const GUARD: u64 = 72;

    fn round(writes: &[(Cure, u64, Vec<u8>)], guard: Option<[u8; 8]>) -> Plan {
        let steps = writes.iter().map(|(cure, offset, bytes)| {
            let write = Write { offset: *offset, bytes: bytes.as_slice().into() };
            Step { cure: *cure, scope: vec![(*offset, bytes.len() as u64)], groups: vec![vec![write]] }
        });
        let guard = guard.map(|lowered| Guard::new(GUARD, vec![0xff; 8], lowered.to_vec()).unwrap());
        Plan::from_parts(Tier::All, Decisions::default(), guard.as_ref(), steps.collect()).unwrap()
    }

    fn all(rounds: &[Plan], image: &Arc<Bytes>) -> Vec<u8> {
        let mut view = Overlay::new(Arc::clone(image) as Arc<dyn Backend>, 1 << 20);
        for round in rounds {
            round.stage_into(&mut view).unwrap();
        }
        let mut bytes = vec![0; to_usize(view.len())];
        view.read_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn normal(rounds: &[Plan], image: &Arc<Bytes>) -> Plan {
        normalise(rounds, image.as_ref(), Decisions::default()).unwrap().unwrap()
    }

    #[test]
    fn later_round_wins_fresh_comes_first_and_what_ends_as_it_was_is_not_written() {
        let image = Arc::new(Bytes(vec![1; 4096]));
        let rounds = [
            round(
                &[
                    (Cure::ClearReserved, 512, vec![2; 8]),
                    (Cure::ClearReserved, 2048, vec![9; 8]),
                    (Cure::CopyShared, 4096, vec![3; 512]),
                ],
                Some([7; 8]),
            ),
            round(&[(Cure::FixCounts, 516, vec![4; 4]), (Cure::FixCounts, 2048, vec![1; 8])], Some([1; 8])),
            round(&[(Cure::FreeLeaks, 4100, vec![5; 4])], None),
        ];
        let plan = normal(&rounds, &image);
        let told: Vec<_> = plan.steps().iter().map(|step| (step.cure, step.scope.clone())).collect();
        assert_eq!(
            told,
            [
                (Cure::CopyShared, vec![(4096, 4), (4104, 504)]),
                (Cure::FreeLeaks, vec![(4100, 4)]),
                (Cure::ClearReserved, vec![(512, 4)]),
                (Cure::FixCounts, vec![(516, 4)]),
            ]
        );
        let guard = plan.guard().unwrap();
        assert_eq!((guard.raised(), guard.lowered()), (&[0xff; 8][..], &[1; 8][..]));
        assert_eq!(all(std::slice::from_ref(&plan), &image), all(&rounds, &image));
    }

    #[test]
    fn entries_are_emptied_before_the_file_grows_and_all_else_follows() {
        let image = Arc::new(Bytes(vec![0; 2048]));
        let rounds = [
            round(&[(Cure::Unmap, 512, vec![1; 8])], Some([9; 8])),
            round(
                &[(Cure::CopyShared, 2048, vec![2; 64]), (Cure::FixCounts, 1024, vec![3; 8])],
                Some([9; 8]),
            ),
        ];
        let order: Vec<u64> = normal(&rounds, &image).writes().map(|write| write.offset).collect();
        assert_eq!(order, [512, 2048, 1024]);
    }

    #[test]
    fn guard_alone_is_kept_only_where_it_changes_something() {
        let image = Arc::new(Bytes(vec![1; 4096]));
        let lone = |lowered| normal(&[round(&[], Some(lowered))], &image);
        assert!(lone([1; 8]).is_empty());
        assert!(!lone([2; 8]).is_empty());
        let undone = [
            round(&[(Cure::FixCounts, 512, vec![2; 8])], Some([1; 8])),
            round(&[(Cure::FixCounts, 512, vec![1; 8])], Some([1; 8])),
        ];
        assert!(normal(&undone, &image).is_empty());
    }

    #[test]
    fn guard_that_moves_is_refused() {
        let image = Bytes(vec![1; 4096]);
        let other = Guard::new(GUARD + 8, vec![0; 8], vec![1; 8]).unwrap();
        let other = Plan::from_parts(Tier::All, Decisions::default(), Some(&other), Vec::new()).unwrap();
        let result = normalise(&[round(&[], Some([2; 8])), other], &image, Decisions::default()).unwrap();
        assert_eq!(result.unwrap_err(), PlanError::GuardMoved { offset: GUARD + 8, earlier: GUARD });
    }

    proptest! {
        #[test]
        fn one_plan_shows_what_all_rounds_show_and_writes_no_byte_twice(
            base in proptest::collection::vec(0_u8..4, 200..900),
            writes in proptest::collection::vec(
                proptest::collection::vec((0_usize..3, 80_u64..1200, proptest::collection::vec(0_u8..4, 1..90)), 0..6),
                1..5,
            ),
        ) {
            const CURES: [Cure; 3] = [Cure::CopyShared, Cure::FixCounts, Cure::FreeLeaks];
            let image = Arc::new(Bytes(base));
            let rounds: Vec<Plan> = writes
                .iter()
                .map(|round_writes| {
                    let writes: Vec<_> =
                        round_writes.iter().map(|(cure, at, bytes)| (CURES[*cure], *at, bytes.clone())).collect();
                    round(&writes, Some([9; 8]))
                })
                .collect();
            let plan = normal(&rounds, &image);
            prop_assert!(plan.write_ranges().is_ok());
            let (mut ours, theirs) = (all(std::slice::from_ref(&plan), &image), all(&rounds, &image));
            // Both show the guard lowered, unless nothing at all is left to write.
            prop_assert!(ours.len() == theirs.len());
            if plan.is_empty() {
                ours[to_usize(GUARD)..to_usize(GUARD) + 8].copy_from_slice(&[9; 8]);
            }
            prop_assert_eq!(ours, theirs);
            let first_in_place = plan.writes().position(|write| write.offset < image.len());
            let fresh_after = plan.writes().skip(first_in_place.unwrap_or(usize::MAX)).any(|w| w.offset >= image.len());
            prop_assert!(!fresh_after);
        }
    }
}
