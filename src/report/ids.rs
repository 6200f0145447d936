//! What things are called in documents and on the command line.
//!
//! Invariant: a name stays what it is, since programs go by it; each is there once, here.

use instar_abi::problem::{Cost, Disposition, Severity, Tier};

use super::model::Verdict;
use crate::sandbox::CageKind;

/// A verdict's name in documents.
#[must_use]
pub const fn verdict_name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Consistent => "consistent",
        Verdict::Leaks => "leaks",
        Verdict::Corruptions => "corruptions",
        Verdict::Incomplete => "incomplete",
        Verdict::Unsupported => "unsupported",
        Verdict::NotQcow2 => "not-qcow2",
    }
}

/// A severity's name in documents.
pub(super) const fn severity_name(severity: Severity) -> &'static str {
    match severity {
        Severity::Leak => "leak",
        Severity::Corruption => "corruption",
        Severity::Fatal => "fatal",
    }
}

/// A disposition's name in documents.
pub(super) const fn disposition_name(disposition: Disposition) -> &'static str {
    match disposition {
        Disposition::Curable(Tier::Leaks) => "curable(leaks)",
        Disposition::Curable(Tier::All) => "curable(all)",
        Disposition::Choice => "choice",
        Disposition::Refuse => "refuse",
    }
}

/// A cost's name in documents.
pub(super) const fn cost_name(cost: Cost) -> &'static str {
    match cost {
        Cost::Lossless => "lossless",
        Cost::DropsData => "drops-data",
        Cost::DestroysEvidence => "destroys-evidence",
    }
}

/// A tier's name, on the command line as in documents.
pub(super) const fn tier_name(tier: Tier) -> &'static str {
    match tier {
        Tier::Leaks => "leaks",
        Tier::All => "all",
    }
}

/// A cage's name in documents.
pub(super) const fn cage_name(cage: CageKind) -> &'static str {
    match cage {
        CageKind::Kvm => "kvm",
        CageKind::Process => "process",
    }
}
