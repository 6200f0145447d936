//! The one line of a mount: what was found, what was done, where the disk is.

use std::fmt::Write as _;
use std::path::Path;

use instar_abi::summary::feature;

use super::escape::escape_path;
use super::human::headline;
use super::model::{CheckReport, Verdict};
use super::units::counted;
use crate::disk::OnDamage;
use crate::heal::Ending;

/// One line, without a line end; `policy` is what reads of lost ranges give.
#[must_use]
pub fn line(report: &CheckReport, served: &Path, policy: OnDamage) -> String {
    let mut line = format!("{}: {}", escape_path(&report.image), headline(report));
    let (corruptions, leaks) = report.fixed();
    let mut add = |text: String| write!(line, ", {text}").unwrap_or_default();
    if leaks > 0 {
        add(format!("{} repaired", counted(leaks, "leak", "leaks")));
    }
    if corruptions > 0 {
        add(format!("{} repaired", counted(corruptions, "corruption", "corruptions")));
    }
    if matches!(report.verdict(), Verdict::Corruptions | Verdict::Incomplete) {
        let lost = match policy {
            OnDamage::Eio => "I/O errors",
            OnDamage::Zero => "zeros",
        };
        add(format!("ranges that are lost read as {lost}, other damaged ones may read wrong bytes"));
    }
    if report.repair.as_ref().is_some_and(|repair| repair.ending == Ending::Previewed) {
        add("shown as the repair would leave it, nothing was written".to_owned());
    }
    for recurring in &report.recurring {
        add(format!(
            "recurring-damage: {} was repaired {} times before",
            recurring.problem, recurring.repairs
        ));
    }
    if report.summary.features & feature::ENCRYPTED != 0 {
        add("encrypted: guest data stays sealed".to_owned());
    }
    write!(line, "; served read-only as {}", escape_path(served)).unwrap_or_default();
    line
}
