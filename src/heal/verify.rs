//! The verifier: the only maker of attestations.
//!
//! An [`Attestation`] says that a fresh check of an image (or of a copy with a plan's writes in place) found
//! nothing that the tier promised to cure, and nothing that was not there before. Invariant: it cannot be made
//! or copied outside of this file, and it is used up by what it allows: a [`Proof`] of the copy by the landing,
//! an [`Attestation`] of the live image by the removal of the journal.

use std::fmt;

use instar_abi::finding::NONE;
use instar_abi::problem::{Problem, Tier};
use instar_abi::summary::{Outcome, Summary};

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

/// Judges a copy with a plan's writes in place by two checks.
pub(super) fn prove(before: &Inspection, after: &Inspection, tier: Tier) -> Result<Proof, Doubt> {
    Ok(Proof { cured: compare(before, after, tier)? })
}

/// Judges the live image after landing by two checks.
pub(super) fn attest(
    before: &Inspection,
    after: &Inspection,
    tier: Tier,
    plan_digest: [u8; 32],
) -> Result<Attestation, Doubt> {
    Ok(Attestation { cured: compare(before, after, tier)?, plan_digest })
}

/// How many items are cured, if nothing speaks against the result.
fn compare(before: &Inspection, after: &Inspection, tier: Tier) -> Result<u64, Doubt> {
    if after.outcome() != Outcome::Complete {
        return Err(Doubt::NotComplete);
    }
    if let Some((&problem, &count)) =
        after.counts.iter().find(|(p, n)| before.is_promised(**p, tier) && **n > 0)
    {
        return Err(Doubt::StillThere { problem, count });
    }
    if after.overflowed || before.overflowed {
        return Err(Doubt::TooMany);
    }
    if let Some((problem, finding)) = after.new_since(before) {
        return Err(Doubt::New { problem, host_offset: finding.host_offset });
    }
    for (name, fact) in facts(tier) {
        let (before, after) = (fact(&before.summary), fact(&after.summary));
        if before != after {
            return Err(Doubt::Fact { name, before, after });
        }
    }
    match before.curable(tier) {
        0 => Err(Doubt::NotBetter),
        cured => Ok(cured),
    }
}

type Fact = (&'static str, fn(&Summary) -> u64);

/// What a cure of this tier never changes.
fn facts(tier: Tier) -> impl Iterator<Item = Fact> {
    const ALWAYS: &[Fact] = &[
        ("version", |s| u64::from(s.version)),
        ("cluster bits", |s| u64::from(s.cluster_bits)),
        ("virtual size", |s| s.virtual_size),
        ("snapshots", |s| u64::from(s.snapshots)),
    ];
    const LEAKS: &[Fact] = &[
        ("refcount width", |s| u64::from(s.refcount_bits)),
        ("feature bits", |s| s.features),
        ("bitmaps", |s| u64::from(s.bitmaps)),
        ("total clusters", |s| s.total_clusters),
        ("allocated clusters", |s| s.allocated_clusters),
        ("fragmented clusters", |s| s.fragmented_clusters),
        ("compressed clusters", |s| s.compressed_clusters),
    ];
    let leaks = if tier == Tier::Leaks { LEAKS } else { &[] };
    ALWAYS.iter().chain(leaks).copied()
}
