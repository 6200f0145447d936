//! What may be done about what was found. The problem table decides; this only reads it.
//!
//! Invariant: nothing is planned unless the walk was complete: what was not looked at is not unreferenced. A header field
//! that the rest of the file determines comes before everything else: it is restored where the user has decided so. Nothing
//! is ever decided for the user: what only the user can decide is named as such.

use instar_abi::choice::Decisions;
use instar_abi::problem::Tier;
use instar_abi::summary::Outcome;

use super::ending::Ending;
use super::inspector::Inspection;

/// Why no plan is made for an image in this state, `None` if there is something to cure.
pub(super) fn reason_to_stop(found: &Inspection, tier: Tier, decisions: Decisions) -> Option<Ending> {
    if tier == Tier::All && found.restores(decisions) {
        return None;
    }
    if tier == Tier::All && !found.fields.is_empty() && found.outcome() != Outcome::Complete {
        return Some(Ending::NeedsDecision);
    }
    match found.outcome() {
        Outcome::NotQcow2 => return Some(Ending::NotAnImage),
        Outcome::Unsupported => return Some(Ending::Unsupported),
        Outcome::Incomplete => return Some(Ending::IncompleteWalk),
        Outcome::Complete => {}
    }
    if found.total() == 0 && found.stats.findings_dropped == 0 {
        Some(Ending::Clean)
    } else if found.mendable(tier, decisions) > 0 {
        None
    } else if tier == Tier::All && found.undecided() > 0 {
        Some(Ending::NeedsDecision)
    } else {
        Some(Ending::NothingToCure)
    }
}

/// How a repair ends for which nothing was proposed although there is something to cure: the planner withholds what
/// would destroy the traces of something that is not decided. `None` for a tier that withholds nothing.
pub(super) fn withheld(found: &Inspection, tier: Tier) -> Option<Ending> {
    match tier {
        Tier::Leaks => None,
        Tier::All if found.undecided() > 0 => Some(Ending::NeedsDecision),
        Tier::All => Some(Ending::Withheld),
    }
}
