//! The findings, by problem.

use std::collections::BTreeMap;

use maud::{Markup, html};

use instar_abi::problem::{Problem, Severity};

use super::super::human::owner_text;
use super::super::ids::severity_name;
use super::super::model::{CheckReport, KeptFinding};
use super::super::sentence::sentence;
use super::class;

/// Findings of one problem that are listed; more would make a page that nobody can open.
const LISTED_MAX: usize = 500;
/// Problems with at most so many findings are shown open.
const OPEN_MAX: usize = 20;

/// All of them, with a filter where there are both kinds.
pub fn findings(report: &CheckReport) -> Markup {
    let mut by_problem: BTreeMap<Problem, Vec<&KeptFinding>> = BTreeMap::new();
    for kept in &report.findings {
        by_problem.entry(kept.problem).or_default().push(kept);
    }
    let mut groups: Vec<_> = by_problem.into_iter().collect();
    groups.sort_by_key(|(problem, _)| std::cmp::Reverse(problem.row().severity));
    let is_leak = |problem: &Problem| problem.row().severity == Severity::Leak;
    let has_both = groups.iter().any(|(problem, _)| is_leak(problem))
        && groups.iter().any(|(problem, _)| !is_leak(problem));
    html! {
        @if !groups.is_empty() {
            h2 { "Findings" }
            @if has_both { (filter()) }
            @for (problem, kept) in &groups { (group(report, *problem, kept)) }
            @if report.findings_dropped > 0 {
                p.dim { (report.findings_dropped) " more findings were counted, not kept." }
            }
        }
    }
}

/// Works without a script, and leaves everything visible where the style does not know how.
fn filter() -> Markup {
    html! {
        fieldset.filter {
            legend.dim { "Show" }
            @for (id, label, is_checked) in
                [("only-all", "everything", true), ("only-corruptions", "corruptions", false), ("only-leaks", "leaks", false)]
            {
                label { input type="radio" name="only" id=(id) checked[is_checked]; " " (label) }
            }
        }
    }
}

fn group(report: &CheckReport, problem: Problem, kept: &[&KeptFinding]) -> Markup {
    let row = problem.row();
    let items = report.tally.row(problem).map_or(0, |row| row.items);
    html! {
        details.(class(row.severity)) open[kept.len() <= OPEN_MAX] {
            summary {
                code { (row.id) } " " span.badge.(class(row.severity)) { (severity_name(row.severity)) }
                " " span.dim { (items) @if items == 1 { " item" } @else { " items" } }
            }
            ul {
                @for one in kept.iter().take(LISTED_MAX) {
                    li {
                        (sentence(one.problem, &one.finding, &report.names))
                        @if !one.owners.is_empty() {
                            ul { @for owner in &one.owners { li { (owner_text(owner, &report.names)) } } }
                        }
                    }
                }
            }
            @if kept.len() > LISTED_MAX { p.dim { "and " (kept.len() - LISTED_MAX) " more" } }
        }
    }
}
