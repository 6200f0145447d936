//! The verifier: the only maker of attestations.
//!
//! An [`Attestation`] says that a fresh check of an image (or of a copy with a plan's writes in place) found
//! what the tier asks for: for `leaks` nothing that it promised to cure and nothing that was not there before; for
//! `all` strictly less to cure, and nothing at a place where none of its kind was ([`judge_all`]). Invariant: it
//! cannot be made or copied outside of this file, and it is used up by what it allows: a [`Proof`] of the copy by
//! the landing, an [`Attestation`] of the live image by the lowering of the guard and the removal of the journal.

use std::fmt;

use instar_abi::choice::{Decision, Decisions};
use instar_abi::finding::NONE;
use instar_abi::problem::{Problem, Tier};
use instar_abi::summary::Outcome;

use super::inspector::Inspection;

/// Why a repaired image did not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Doubt {
    /// The fresh check did not see all of it.
    NotComplete,
    /// The tier promised to cure this.
    StillThere {
        /// What.
        problem: Problem,
        /// How many.
        count: u64,
    },
    /// This was not there before.
    New {
        /// What.
        problem: Problem,
        /// Where in the file, [`NONE`] if nowhere.
        host_offset: u64,
    },
    /// A trace that the user has not decided about is gone.
    Gone {
        /// What.
        problem: Problem,
        /// Where in the file, [`NONE`] if nowhere.
        host_offset: u64,
    },
    /// More guest clusters are gone than there were entries that lead nowhere.
    DataLost {
        /// Allocated before.
        before: u64,
        /// Allocated now.
        after: u64,
        /// Most that may be gone.
        allowed: u64,
    },
    /// The disk is not the same one: this fact has changed.
    Fact {
        /// Which.
        name: &'static str,
        /// What it was.
        before: u64,
        /// What it is.
        after: u64,
    },
    /// There were too many findings to compare them.
    TooMany,
    /// Nothing got better.
    NotBetter,
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotComplete => f.write_str("the fresh check could not look at all of it"),
            Self::StillThere { problem, count } => write!(f, "{count} {} are still there", problem.row().id),
            Self::New { problem, host_offset: NONE } => write!(f, "new finding {}", problem.row().id),
            Self::New { problem, host_offset } => {
                write!(f, "new finding {} at {host_offset:#x}", problem.row().id)
            }
            Self::Gone { problem, host_offset } => {
                write!(f, "{} at {host_offset:#x} would be gone without a decision", problem.row().id)
            }
            Self::DataLost { before, after, allowed } => write!(
                f,
                "of {before} allocated guest clusters {after} would be left, at most {allowed} may go"
            ),
            Self::Fact { name, before, after } => write!(f, "{name} was {before} and would be {after}"),
            Self::TooMany => f.write_str("there are too many findings to compare them"),
            Self::NotBetter => f.write_str("nothing got better"),
        }
    }
}

/// The copy is strictly better than the image. Allows the landing.
#[derive(Debug)]
pub struct Proof {
    cured: u64,
}

impl Proof {
    /// Items that are cured.
    #[must_use]
    pub fn cured(&self) -> u64 {
        self.cured
    }
}

/// The live image is strictly better than it was. Allows the journal to go.
#[derive(Debug)]
pub struct Attestation {
    cured: u64,
    plan_digest: [u8; 32],
}

/// What an attestation said, for reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attested {
    /// Items that are cured.
    pub cured: u64,
    /// Digest of the plan that was landed.
    pub plan_digest: [u8; 32],
}

impl Attestation {
    /// Its content, once it has been used up.
    pub(super) fn into_facts(self) -> Attested {
        Attested { cured: self.cured, plan_digest: self.plan_digest }
    }
}

/// What was asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub tier: Tier,
    pub decisions: Decisions,
}

/// What a repaired image is held against.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin<'a> {
    /// The image as it was found.
    pub found: &'a Inspection,
    /// The same with nothing but its header fields restored, where that was decided: everything behind them comes to
    /// light with them, so it is not new.
    pub restored: Option<&'a Inspection>,
}

/// Judges a copy with a plan's writes in place by two checks.
pub(super) fn prove(before: &Origin<'_>, after: &Inspection, asked: Asked) -> Result<Proof, Doubt> {
    Ok(Proof { cured: compare(before, after, asked)? })
}

/// Judges the live image after landing, its guard shown lowered, by two checks.
pub(super) fn attest(
    before: &Origin<'_>,
    after: &Inspection,
    asked: Asked,
    plan_digest: [u8; 32],
) -> Result<Attestation, Doubt> {
    Ok(Attestation { cured: compare(before, after, asked)?, plan_digest })
}

/// How many items are cured, if nothing speaks against the result.
fn compare(origin: &Origin<'_>, after: &Inspection, asked: Asked) -> Result<u64, Doubt> {
    let before = origin.restored.unwrap_or(origin.found);
    if after.outcome() != Outcome::Complete || before.outcome() != Outcome::Complete {
        return Err(Doubt::NotComplete);
    }
    let restored = restored(origin, after, asked.decisions)?;
    let cured = match asked.tier {
        Tier::Leaks => judge_leaks(before, after)?,
        Tier::All => judge_all(before, after, asked.decisions)?.saturating_add(restored),
    };
    for (name, fact) in facts(asked) {
        let (before, after) = (fact(before), fact(after));
        if before != after {
            return Err(Doubt::Fact { name, before, after });
        }
    }
    match cured {
        0 => Err(Doubt::NotBetter),
        cured => Ok(cured),
    }
}

/// How many header fields are restored: what was told of them is told no longer.
fn restored(origin: &Origin<'_>, after: &Inspection, decisions: Decisions) -> Result<u64, Doubt> {
    if origin.restored.is_none() {
        return Ok(0);
    }
    let problems = origin.found.fields.iter().filter_map(|field| Problem::from_u32(field.problem));
    let is_decided = |problem: &Problem| Decision::restoring(*problem).is_some_and(|one| decisions.has(one));
    problems.filter(is_decided).try_fold(0, |sum, problem| match after.items(problem) {
        0 => Ok(sum + 1),
        count => Err(Doubt::StillThere { problem, count }),
    })
}

/// The `leaks` tier: all of what it promised is cured, and every other finding stood there before as it stands.
fn judge_leaks(before: &Inspection, after: &Inspection) -> Result<u64, Doubt> {
    let tier = Tier::Leaks;
    if let Some((&problem, &count)) =
        after.counts.iter().find(|(p, n)| before.is_promised(**p, tier) && **n > 0)
    {
        return Err(Doubt::StillThere { problem, count });
    }
    if after.overflowed || before.overflowed {
        return Err(Doubt::TooMany);
    }
    match after.new_since(before) {
        Some((problem, finding)) => Err(Doubt::New { problem, host_offset: finding.host_offset }),
        None => Ok(before.curable(tier)),
    }
}

/// The `all` tier: there is strictly less to cure, nothing at a place where none of its kind was, no trace gone that
/// the user has not decided about, and no guest cluster but those that entries without a cluster stood for.
fn judge_all(before: &Inspection, after: &Inspection, decisions: Decisions) -> Result<u64, Doubt> {
    if after.overflowed || before.overflowed {
        return Err(Doubt::TooMany);
    }
    if let Some((problem, host_offset)) = after.places.new_since(&before.places, &come_to_light(after)) {
        return Err(Doubt::New { problem, host_offset });
    }
    for problem in undecided_orphans(decisions) {
        const ORPHANS: &[Problem] = &[Problem::OrphanData, Problem::OrphanTable];
        if let Some(host_offset) = before.places.gone_since(&after.places, problem, ORPHANS) {
            return Err(Doubt::Gone { problem, host_offset });
        }
    }
    let gone = |problem, count: u64| count.saturating_sub(after.items(problem));
    let allowed = before.dropping().fold(0_u64, |sum, (p, n)| sum.saturating_add(gone(p, n)));
    let allocated = |of: &Inspection| of.summary.allocated_clusters;
    if allocated(before).saturating_sub(allocated(after)) > allowed {
        return Err(Doubt::DataLost { before: allocated(before), after: allocated(after), allowed });
    }
    let left = |of: &Inspection| of.mendable(Tier::All, decisions);
    Ok(left(before).saturating_sub(left(after)))
}

/// The header fields that the rest of the file speaks against. They may come to light with what was in the way of looking,
/// such as reference counts, and are not made by a repair: nothing but a decision writes there.
fn come_to_light(after: &Inspection) -> Vec<Problem> {
    let problems = after.fields.iter().filter_map(|field| Problem::from_u32(field.problem));
    problems.filter(|problem| Decision::restoring(*problem).is_some()).collect()
}

/// The kinds of orphan that must still be told of after a repair with these decisions.
fn undecided_orphans(decisions: Decisions) -> impl Iterator<Item = Problem> {
    // Who decides about tables decides about the clusters that only they lead to.
    let tables = decisions.has(Decision::FreeOrphanTables) || decisions.has(Decision::AttachOrphanTables);
    let data = tables || decisions.has(Decision::FreeOrphanData);
    let kinds = [(Problem::OrphanTable, tables), (Problem::OrphanData, data)];
    kinds.into_iter().filter(|(_, is_decided)| !is_decided).map(|(problem, _)| problem)
}

type Fact = (&'static str, fn(&Inspection) -> u64);

/// What a cure of this tier never changes, unless the user has decided that it may.
fn facts(asked: Asked) -> impl Iterator<Item = Fact> {
    const ALWAYS: &[Fact] = &[
        ("version", |i| u64::from(i.summary.version)),
        ("cluster bits", |i| u64::from(i.summary.cluster_bits)),
        ("virtual size", |i| i.summary.virtual_size),
    ];
    // Entries of the table that are none may be counted no longer, but exactly those.
    const SNAPSHOTS: Fact = ("snapshots", |i| {
        u64::from(i.summary.snapshots).saturating_sub(i.items(Problem::SnapshotEntryEmpty))
    });
    const BITMAPS: Fact = ("bitmaps", |i| u64::from(i.summary.bitmaps));
    const LEAKS: &[Fact] = &[
        ("refcount width", |i| u64::from(i.summary.refcount_bits)),
        ("feature bits", |i| i.summary.features),
        ("total clusters", |i| i.summary.total_clusters),
        ("allocated clusters", |i| i.summary.allocated_clusters),
        ("fragmented clusters", |i| i.summary.fragmented_clusters),
        ("compressed clusters", |i| i.summary.compressed_clusters),
    ];
    let unless = |decision, fact| (!asked.decisions.has(decision)).then_some(fact);
    let snapshots = unless(Decision::KeepReadableSnapshots, SNAPSHOTS);
    let kept = [
        snapshots.and_then(|fact| unless(Decision::DropSnapshots, fact)),
        unless(Decision::DropBitmaps, BITMAPS),
    ];
    let leaks = if asked.tier == Tier::Leaks { LEAKS } else { &[] };
    ALWAYS.iter().chain(leaks).copied().chain(kept.into_iter().flatten())
}
