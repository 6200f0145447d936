//! The plan: proposes the writes that cure what a tier promises to cure.
//!
//! Invariant: every plan begins with a whole check of its own, and proposes nothing unless that was complete;
//! each step names its write scope before its first write; the same bytes give the same plan. A cure is a
//! module. What this does not do: write, or decide whether what it proposes is done; the host proves every
//! plan with another cage first.

mod leaks;

use instar_abi::choice::Decisions;
use instar_abi::problem::Tier;
use instar_abi::summary::{Outcome, Summary};

use crate::check;
use crate::host::Host;

/// What to plan for.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// What is to be cured.
    pub tier: Tier,
    /// What the user has decided.
    pub decisions: Decisions,
}

/// Proposes a plan. The summary is that of the check it begins with; for a tier that is not built its outcome is
/// [`Outcome::Unsupported`], and nothing is proposed.
pub fn run<H: Host>(host: &mut H, options: &Options) -> Summary {
    if options.tier == Tier::All {
        return Summary { outcome: Outcome::Unsupported as u32, ..Summary::default() };
    }
    let options = check::Options { silent: true, ..check::Options::default() };
    let checked = check::inspect(host, &options);
    if checked.summary.outcome == Outcome::Complete as u32 {
        leaks::propose(host, &checked);
    }
    checked.summary
}
