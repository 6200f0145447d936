//! What an image is, as far as it can be told without counting anything.

use std::path::PathBuf;

use instar_abi::summary::{Outcome, Summary, feature};

use super::collect::Collector;
use super::model::{KeptFinding, SandboxFacts, Verdict};
use super::names::Names;

/// What a `describe` job told.
#[derive(Debug, Clone)]
pub struct ImageReport {
    /// The image, as the user named it.
    pub image: PathBuf,
    /// The facts.
    pub summary: Summary,
    /// Names found inside the image.
    pub names: Names,
    /// What was seen to be wrong on the way; by no means everything.
    pub findings: Vec<KeptFinding>,
    /// The cage.
    pub sandbox: SandboxFacts,
}

impl ImageReport {
    /// The report of a `describe` job.
    #[must_use]
    pub fn new(image: PathBuf, summary: Summary, collected: Collector, sandbox: SandboxFacts) -> Self {
        let Collector { findings, names, .. } = collected;
        Self { image, summary, names, findings, sandbox }
    }

    /// [`Verdict::NotQcow2`], [`Verdict::Unsupported`], or what was seen on the way.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match Outcome::from_u32(self.summary.outcome) {
            Some(Outcome::NotQcow2) => Verdict::NotQcow2,
            Some(Outcome::Unsupported) => Verdict::Unsupported,
            _ if !self.findings.is_empty() => Verdict::Corruptions,
            Some(Outcome::Incomplete) | None => Verdict::Incomplete,
            Some(Outcome::Complete) => Verdict::Consistent,
        }
    }
}

/// The names of the features in `bits` ([`feature`]), in a fixed order.
#[must_use]
pub(super) fn feature_names(bits: u64) -> Vec<&'static str> {
    const NAMES: [(u64, &str); 11] = [
        (feature::DIRTY, "dirty"),
        (feature::CORRUPT, "corrupt"),
        (feature::DATA_FILE, "data-file"),
        (feature::DATA_FILE_RAW, "data-file-raw"),
        (feature::ZSTD, "zstd"),
        (feature::EXTENDED_L2, "extended-l2"),
        (feature::LAZY_REFCOUNTS, "lazy-refcounts"),
        (feature::ENCRYPTED, "encrypted"),
        (feature::BACKING, "backing-file"),
        (feature::BITMAPS, "bitmaps"),
        (feature::SNAPSHOTS, "snapshots"),
    ];
    NAMES.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| *name).collect()
}
