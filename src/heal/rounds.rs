//! Planning in rounds: for the `all` tier the caged planner is run again and again, each time on the image with the
//! writes of the rounds before in place, until it has nothing left to propose.
//!
//! Invariant: a round sees only bytes, never what an earlier round meant by them; nothing is written between
//! rounds; all rounds together stay within the bounds of one plan. What comes out is one plan (see [`super::normal`]),
//! and nothing is known of it but that it follows the rules: whether it is better is for the proof to say.

use std::sync::Arc;

use instar_abi::problem::Tier;

use super::Stage;
use super::error::HealError;
use super::guard::GUARD_BYTES_MAX;
use super::normal;
use super::plan::{Plan, PlanError, WRITE_BYTES_MAX};
use super::state::Context;
use super::verify::Doubt;
use crate::image::{Backend, Overlay};

/// Most rounds in which something may be proposed.
pub const ROUNDS_MAX: u32 = 12;

/// The plan for an image; `None` if a walk that was to begin with could not look at all of it. Where a round brings to
/// light that a header field is damaged, everything was planned by the wrong field: nothing is proposed then.
///
/// # Errors
/// `Cage`, `Storage`; `BadPlan`, also if the rounds come to no end; `Quarantined` if a round leaves what the next
/// one cannot look at.
pub(super) fn plan(context: &mut Context<'_>) -> Result<Option<Plan>, HealError> {
    let image = context.site.image();
    if context.tier == Tier::Leaks {
        return context.propose(image);
    }
    let bad = |error: PlanError| HealError::BadPlan(error);
    let mut rounds: Vec<Plan> = Vec::new();
    let limit_bytes = WRITE_BYTES_MAX.saturating_add(u64::from(ROUNDS_MAX) * GUARD_BYTES_MAX as u64);
    let mut seen = Arc::new(Overlay::new(Arc::clone(&image), limit_bytes));
    for round in 0..=ROUNDS_MAX {
        context.observer.round_begins(round);
        let Some(plan) = context.propose(Arc::clone(&seen) as Arc<dyn Backend>)? else {
            if rounds.is_empty() {
                return Ok(None);
            }
            let inspection = context.check(seen, Stage::Prove);
            let inspection = inspection.map_err(|source| HealError::Cage { stage: "the proof", source })?;
            if inspection.fields.is_empty() {
                return Err(HealError::Quarantined(Doubt::NotComplete));
            }
            return normalised(&[], context);
        };
        if plan.is_empty() {
            return normalised(&rounds, context);
        }
        let mut next = Arc::unwrap_or_clone(seen);
        plan.stage_into(&mut next).map_err(|error| bad(error.into()))?;
        seen = Arc::new(next);
        rounds.push(plan);
    }
    Err(bad(PlanError::Endless { limit: ROUNDS_MAX }))
}

/// One plan of all rounds.
fn normalised(rounds: &[Plan], context: &Context<'_>) -> Result<Option<Plan>, HealError> {
    let plan = normal::normalise(rounds, context.site.image().as_ref(), context.decisions);
    plan.map_err(context.storage("read"))?.map(Some).map_err(HealError::BadPlan)
}
