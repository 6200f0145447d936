//! What may be done about what was found. The problem table decides; this only reads it.
//!
//! Invariant: nothing is planned unless the walk was complete: what was not looked at is not unreferenced.

use instar_abi::problem::Tier;
use instar_abi::summary::Outcome;

use super::ending::Ending;
use super::inspector::Inspection;

/// Why no plan is made for an image in this state, `None` if there is something to cure.
pub(super) fn reason_to_stop(found: &Inspection, tier: Tier) -> Option<Ending> {
    match found.outcome() {
        Outcome::NotQcow2 => return Some(Ending::NotAnImage),
        Outcome::Unsupported => return Some(Ending::Unsupported),
        Outcome::Incomplete => return Some(Ending::IncompleteWalk),
        Outcome::Complete => {}
    }
    if found.total() == 0 && found.stats.findings_dropped == 0 {
        Some(Ending::Clean)
    } else if found.curable(tier) == 0 {
        Some(Ending::NothingToCure)
    } else {
        None
    }
}
