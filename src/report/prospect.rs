//! What a repair could do about what was found, and at what price: read off the problem table.
//!
//! Not a promise: what is withheld for the sake of the rest, and whether a cure holds, is for the healing engine to say.

use std::fmt;

use instar_abi::choice::is_open;
use instar_abi::problem::{Cost, Disposition, Problem, Tier};

use super::model::CheckReport;
use super::units::{bytes, counted};

/// What one tier could do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prospect {
    /// The tier.
    pub tier: Tier,
    /// Items that it could cure.
    pub cured: u64,
    /// Bytes of the file that it would free.
    pub freed_bytes: u64,
    /// Of the items cured, those whose cure drops what could not be read before.
    pub dropping: u64,
    /// Guest bytes that those cures would drop.
    pub dropped_bytes: u64,
    /// Items that somebody has to decide about.
    pub choices: u64,
    /// Items that no repair touches.
    pub refused: u64,
}

impl Prospect {
    /// What `tier` could do about what `report` found.
    #[must_use]
    pub fn of(report: &CheckReport, tier: Tier) -> Self {
        let mut prospect =
            Self { tier, cured: 0, freed_bytes: 0, dropping: 0, dropped_bytes: 0, choices: 0, refused: 0 };
        for row in report.tally.rows() {
            let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
            match row.problem.row().disposition {
                Disposition::Curable(least) if least <= tier => {
                    add(&mut prospect.cured, row.items);
                    if row.problem == Problem::RefcountLeak {
                        let cluster_bytes = report.cluster_bytes().unwrap_or(0);
                        add(&mut prospect.freed_bytes, row.items.saturating_mul(cluster_bytes));
                    }
                    if row.problem.row().cost == Cost::DropsData {
                        add(&mut prospect.dropping, row.items);
                        add(&mut prospect.dropped_bytes, row.guest_bytes);
                    }
                }
                Disposition::Curable(_) => {}
                Disposition::Choice if is_open(row.problem, row.witnesses) => {
                    add(&mut prospect.choices, row.items);
                }
                Disposition::Choice | Disposition::Refuse => add(&mut prospect.refused, row.items),
            }
        }
        prospect
    }
}

impl fmt::Display for Prospect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.cured == 0 {
            f.write_str("has nothing to cure here")?;
        } else {
            // What nobody has decided about may keep from mending the rest.
            let most =
                if self.tier == Tier::All && (self.choices > 0 || self.refused > 0) { "up to " } else { "" };
            write!(f, "can cure {most}{}", counted(self.cured, "item", "items"))?;
            if self.freed_bytes > 0 {
                write!(f, ", frees {}", bytes(self.freed_bytes))?;
            }
            if self.dropping == 0 {
                f.write_str(", costs nothing")?;
            } else {
                write!(f, ", drops {} that cannot be read now", bytes(self.dropped_bytes))?;
            }
        }
        if self.choices > 0 {
            write!(f, "; {} for you to decide", counted(self.choices, "item is", "items are"))?;
        }
        if self.refused > 0 {
            write!(f, "; {} never touched", counted(self.refused, "item is", "items are"))?;
        }
        Ok(())
    }
}
