//! What follows from past attempts. Pure: attempts in, judgement out.

use super::store::{Attempt, Counts};
use crate::heal::{Ending, HealError};
use crate::sandbox::error::SandboxError;

/// So many failures in a row, in the same state and with the same request, are enough.
pub const FAILURES_MAX: u32 = 3;
/// So often must the same problem have been repaired before for it to be called recurring.
pub const REPAIRS_MIN: u32 = 2;

/// A problem that comes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recurring {
    /// Its id.
    pub problem: String,
    /// How often it was repaired before.
    pub repairs: u32,
}

/// Whether the same attempt at the same bytes would fail in the same way. What the machine lacks (a cage, room, a
/// right) is not the image's fault.
#[must_use]
pub const fn is_failure(error: &HealError) -> bool {
    match error {
        HealError::Cage { source, .. } => {
            !matches!(source, SandboxError::Unavailable { .. } | SandboxError::Host { .. })
        }
        HealError::Quarantined(_)
        | HealError::BadPlan(_)
        | HealError::RolledBack(_)
        | HealError::Unproven(_)
        | HealError::BadList(_) => true,
        _ => false,
    }
}

/// How often the same `request` has failed since the image last changed to what it is now, and how the last of these
/// attempts ended. `attempts` come newest first; `fingerprint` is the image's as it is now. An attempt may change the
/// image and put it back, so each one is tied to the next by its own two fingerprints.
#[must_use]
pub fn failures_in_a_row<'a>(
    attempts: &'a [Attempt],
    request: &str,
    fingerprint: &[u8; 32],
) -> Option<(u32, &'a str)> {
    let mut state = fingerprint;
    let mut failures = 0;
    let mut last = None;
    for attempt in attempts {
        if attempt.fingerprint_after != *state {
            break;
        }
        state = &attempt.fingerprint_before;
        if attempt.failed && attempt.request == request {
            failures += 1;
            last.get_or_insert(attempt.outcome.as_str());
        }
    }
    last.map(|last| (failures, last))
}

/// Which of the problems found `now` have been repaired [`REPAIRS_MIN`] times or more. A repair that was undone is
/// none. `attempts` come newest first.
#[must_use]
pub fn recurring(attempts: &[Attempt], now: &Counts) -> Vec<Recurring> {
    let mut repairs: Vec<&Attempt> = Vec::new();
    for attempt in attempts.iter().rev() {
        if attempt.outcome == Ending::Undone.id() {
            repairs.pop();
        } else if attempt.attestation.is_some() {
            repairs.push(attempt);
        }
    }
    let times = |problem: &str| {
        let cured = repairs.iter().filter(|repair| repair.cured(problem)).count();
        u32::try_from(cured).unwrap_or(u32::MAX)
    };
    now.keys()
        .map(|problem| Recurring { problem: problem.clone(), repairs: times(problem) })
        .filter(|recurring| recurring.repairs >= REPAIRS_MIN)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;
    use crate::heal::Doubt;

    fn attempt(outcome: Ending, before: u8, after: u8) -> Attempt {
        Attempt {
            failed: outcome != Ending::NoSpace,
            fingerprint_before: [before; 32],
            fingerprint_after: [after; 32],
            ..Attempt::of(outcome.id(), "r")
        }
    }

    fn failures(attempts: &[Attempt], now: u8) -> u32 {
        failures_in_a_row(attempts, "r", &[now; 32]).map_or(0, |(failures, _)| failures)
    }

    #[test]
    fn failures_of_the_same_state_and_request_add_up() {
        // The image was written and put back each time: its fingerprint moves on.
        let attempts = [
            attempt(Ending::RolledBack, 2, 3),
            attempt(Ending::NoSpace, 2, 2),
            attempt(Ending::Quarantined, 2, 2),
            attempt(Ending::RolledBack, 1, 2),
        ];
        assert_eq!(failures(&attempts, 3), 3);
        assert_eq!(failures(&attempts, 4), 0, "the image has changed");
        assert_eq!(failures_in_a_row(&attempts, "other", &[3; 32]), None);
    }

    #[test]
    fn failures_before_a_change_of_the_image_do_not_count() {
        let attempts = [attempt(Ending::BadPlan, 5, 5), attempt(Ending::BadPlan, 1, 1)];
        assert_eq!(failures(&attempts, 5), 1);
    }

    #[test]
    fn cage_that_the_machine_lacks_is_no_failure_of_the_repair() {
        let cage = |source| HealError::Cage { stage: "the check", source };
        let unavailable =
            SandboxError::Unavailable { action: "open /dev/kvm".into(), source: ErrorKind::NotFound.into() };
        assert!(!is_failure(&cage(unavailable)));
        assert!(is_failure(&cage(SandboxError::Fault { what: "it wrote to its code".into() })));
        assert!(is_failure(&HealError::Quarantined(Doubt::NotBetter)));
        assert!(!is_failure(&HealError::NoJournal("j".into())));
    }

    fn repair(problem: &str) -> Attempt {
        let before = Counts::from([(problem.to_owned(), 1)]);
        Attempt {
            before,
            after: Some(Counts::new()),
            attestation: Some([1; 32]),
            ..Attempt::of("repaired", "r")
        }
    }

    #[test]
    fn problem_that_was_repaired_twice_recurs_and_another_does_not() {
        let attempts = [repair("a"), repair("b"), repair("a")];
        let now = Counts::from([("a".to_owned(), 3), ("b".to_owned(), 1), ("c".to_owned(), 1)]);
        assert_eq!(recurring(&attempts, &now), [Recurring { problem: "a".to_owned(), repairs: 2 }]);
    }

    #[test]
    fn repair_that_was_undone_is_none() {
        let now = Counts::from([("a".to_owned(), 1)]);
        let attempts = [Attempt::of("undone", "r"), repair("a"), repair("a")];
        assert!(recurring(&attempts, &now).is_empty());
        assert_eq!(recurring(&[repair("a"), repair("a")], &now).len(), 1);
    }

    #[test]
    fn problem_that_was_left_was_not_repaired() {
        let left = Attempt { after: Some(Counts::from([("a".to_owned(), 1)])), ..repair("a") };
        let now = Counts::from([("a".to_owned(), 1)]);
        assert!(recurring(&[left.clone(), left], &now).is_empty());
    }
}
