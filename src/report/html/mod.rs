//! The report as one page that needs nothing but itself: no network, no script.
//!
//! Invariant: every text gets into the page through the escaping of [`maud`], and what comes from the image has been
//! made harmless before, so that no name can begin a tag or turn text round. The page forbids itself to load anything.

mod findings;
mod picture;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use instar_abi::call::TextKind;
use instar_abi::problem::{Severity, Tier};

use super::describe::feature_names;
use super::discard::DiscardFacts;
use super::escape::escape_path;
use super::human::{headline, next_command};
use super::ids::{cage_name, severity_name, tier_name};
use super::model::{CheckReport, RepairFacts, Verdict};
use super::picture::Picture;
use super::prospect::Prospect;
use super::units::{bytes, counted};
use crate::heal::option_of;

/// How every page begins.
pub const HTML_MAGIC: &[u8] = b"<!DOCTYPE html><html lang=\"en\"><!-- instar -->";

const STYLE: &str = include_str!("style.css");
/// Nothing is loaded and nothing is run.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

/// The page of a check. Where the image could not be surveyed there is no picture.
#[must_use]
pub fn check_html(report: &CheckReport, picture: Option<&Picture>) -> String {
    let name = escape_path(&report.image);
    let page = html! {
        head {
            meta charset="utf-8";
            meta name="viewport" content="width=device-width, initial-scale=1";
            meta name="color-scheme" content="light dark";
            meta http-equiv="Content-Security-Policy" content=(POLICY);
            title { (name) ": " (headline(report)) }
            style { (PreEscaped(STYLE)) }
        }
        body {
            (verdict(report, &name))
            (problems(report))
            @if let Some(repair) = &report.repair { (repaired(repair, report)) }
            @if let Some(discard) = &report.discard { (discarded(discard)) }
            (next(report))
            @if let Some(picture) = picture { (picture::pictures(picture, report.cluster_bytes())) }
            (findings::findings(report))
            (evidence(report))
        }
    };
    let start = String::from_utf8_lossy(HTML_MAGIC);
    debug_assert!(start.starts_with(&DOCTYPE.into_string()));
    format!("{start}{}</html>\n", page.into_string())
}

/// The class of what is as bad as this.
const fn class(severity: Severity) -> &'static str {
    match severity {
        Severity::Leak => "leak",
        Severity::Corruption | Severity::Fatal => "corruption",
    }
}

fn verdict(report: &CheckReport, name: &str) -> Markup {
    let class = match report.verdict() {
        Verdict::Consistent => "consistent",
        Verdict::Leaks | Verdict::Unsupported | Verdict::NotQcow2 => "leak",
        Verdict::Corruptions | Verdict::Incomplete => "corruption",
    };
    let summary = &report.summary;
    html! {
        header.verdict.(class) {
            h1 { (name) }
            strong { (headline(report)) }
            @if let Some(cluster_bytes) = report.cluster_bytes() {
                p.dim {
                    "qcow2 version " (summary.version) ", " (bytes(summary.virtual_size)) " disk, clusters of "
                    (bytes(cluster_bytes)) ", " (summary.allocated_clusters) " of " (summary.total_clusters)
                    " in use"
                    @if summary.snapshots > 0 {
                        ", " (counted(summary.snapshots.into(), "snapshot", "snapshots"))
                    }
                }
            }
        }
    }
}

fn problems(report: &CheckReport) -> Markup {
    let mut rows: Vec<_> = report.tally.rows().collect();
    rows.sort_by_key(|row| (std::cmp::Reverse(row.problem.row().severity), std::cmp::Reverse(row.items)));
    html! {
        h2 { "What was found" }
        @if rows.is_empty() {
            p { @if report.verdict() == Verdict::Consistent { "Nothing is wrong." } @else { "No findings." } }
        } @else {
            table {
                thead { tr { th { "items" } th { "problem" } th { "what it means" } } }
                tbody {
                    @for row in rows {
                        @let known = row.problem.row();
                        tr {
                            td.number { (row.items) }
                            td {
                                code { (known.id) } br;
                                span.badge.(class(known.severity)) { (severity_name(known.severity)) }
                            }
                            td {
                                (known.meaning)
                                @if row.guest_bytes > 0 {
                                    " " span.dim { "Guest bytes touched: " (bytes(row.guest_bytes)) "." }
                                }
                            }
                        }
                    }
                }
            }
        }
        @for recurring in &report.recurring {
            p { strong { "Recurring damage: " } (recurring.problem) " had been repaired "
                (counted(recurring.repairs.into(), "time", "times"))
                " before. Suspect the storage below, or who writes to the image." }
        }
    }
}

fn repaired(repair: &RepairFacts, report: &CheckReport) -> Markup {
    let route = repair.ending.route();
    let mut todo = Vec::new();
    if let Some(list) = &repair.todo
        && list.write(&report.names, &mut todo).is_err()
    {
        todo.clear();
    }
    html! {
        h2 { "What was done" }
        table.facts {
            tr { th { "repair" } td { (tier_name(repair.tier)) ": " (route.sentence) } }
            @if let Some(plan) = &repair.plan {
                tr { th { "plan" } td {
                    (counted(plan.steps as u64, "step", "steps")) ", "
                    (counted(plan.writes as u64, "write", "writes")) ", " (bytes(plan.write_bytes))
                } }
            }
            tr { th { "attestation" } td {
                @if repair.attested { "A fresh cage has found the repaired image as promised." }
                @else { "None: no cage has attested a repaired image." }
            } }
            tr { th { "found before" } td {
                (counted(repair.before.items(Severity::Corruption).saturating_add(repair.before.items(Severity::Fatal)),
                    "corruption", "corruptions")) ", "
                (counted(repair.before.items(Severity::Leak), "leak", "leaks"))
            } }
            @if let Some(path) = &repair.undo_file { tr { th { "undo file" } td { code { (escape_path(path)) } } } }
            @if let Some(path) = &repair.plan_file { tr { th { "plan file" } td { code { (escape_path(path)) } } } }
        }
        @if !todo.is_empty() { pre { (String::from_utf8_lossy(&todo)) } }
    }
}

fn discarded(discard: &DiscardFacts) -> Markup {
    html! {
        h2 { "What was given back" }
        table.facts {
            tr { th { "discard" } td { (discard.ending.route().sentence) } }
            @for (label, text) in discard.lines() { tr { th { (label) } td { (text) } } }
        }
    }
}

fn next(report: &CheckReport) -> Markup {
    let command = next_command(report);
    let choices: Vec<_> = report.choices().collect();
    let route =
        report.repair.as_ref().map(|repair| repair.ending.route().next).filter(|next| !next.is_empty());
    html! {
        @if !report.tally.is_empty() || route.is_some() {
            h2 { "What to do next" }
            @if let Some(next) = route { p { (next) } }
            @if !report.tally.is_empty() {
                ul {
                    @for tier in [Tier::Leaks, Tier::All] {
                        li { code { "--repair=" (tier_name(tier)) } " " (Prospect::of(report, tier).to_string()) }
                    }
                }
            }
            @if let Some(command) = command { pre { (command) } }
            @if !choices.is_empty() {
                p { "For you to decide, with " code { "--repair=all" } ":" }
                ul {
                    @for decision in choices {
                        li { code { "--decide " (option_of(decision)) } ": " (decision.sentence()) }
                    }
                }
            }
        }
    }
}

fn evidence(report: &CheckReport) -> Markup {
    let (summary, sandbox) = (&report.summary, &report.sandbox);
    let features = feature_names(summary.features);
    let fact = |name: &str, value: String| html! { tr { th { (name) } td { (value) } } };
    html! {
        h2 { "Evidence" }
        table.facts {
            @if summary.image_end_offset > 0 { (fact("end of what is in use", bytes(summary.image_end_offset))) }
            @if summary.refcount_bits > 0 { (fact("width of reference counts", format!("{} bits", summary.refcount_bits))) }
            @if !features.is_empty() { (fact("features", features.join(", "))) }
            (fact("fragmented, compressed clusters",
                format!("{}, {}", summary.fragmented_clusters, summary.compressed_clusters)))
            @for (index, name) in report.names.of(TextKind::SnapshotName) {
                (fact(&format!("snapshot {index}"), name.to_owned()))
            }
            @for (index, name) in report.names.of(TextKind::BitmapName) {
                (fact(&format!("bitmap {index}"), name.to_owned()))
            }
            (fact("checked in", format!("a {} cage", cage_name(sandbox.cage))))
            @if let Some(reason) = &sandbox.fallback { (fact("not in a KVM cage", reason.clone())) }
            (fact("time, bytes read, exits", format!("{}.{:02} s, {}, {}", sandbox.stats.wall_us / 1_000_000,
                sandbox.stats.wall_us / 10_000 % 100, bytes(sandbox.stats.bytes_read), sandbox.stats.exits)))
            (fact("program", format!("instar {}", env!("CARGO_PKG_VERSION"))))
        }
    }
}
