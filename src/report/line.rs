//! The one line of a mount: what was found, what was done, where the disk is.

use std::fmt::Write as _;
use std::path::Path;

use instar_abi::summary::feature;

use super::escape::escape_path;
use super::human::headline;
use super::model::{CheckReport, Verdict};
use super::units::counted;

/// One line, without a line end.
#[must_use]
pub fn line(report: &CheckReport, served: &Path) -> String {
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
        add("ranges that are lost read as I/O errors, other damaged ones may read wrong bytes".to_owned());
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
