//! The report for people: a screen that ends with the next command to type.

use std::io::{self, Write};

use instar_abi::call::TextKind;
use instar_abi::choice::Decision;
use instar_abi::finding::{NONE, Owner, Table};
use instar_abi::problem::{Problem, Severity, Tier};
use instar_abi::summary::Outcome;

use super::describe::{ImageReport, feature_names};
use super::escape::escape_path;
use super::ids::{cage_name, severity_name, tier_name};
use super::model::{CheckReport, KeptFinding, RepairFacts, SandboxFacts, Verdict, cluster_bytes};
use super::names::Names;
use super::prospect::Prospect;
use super::sentence::{disk_name, evidence, sentence, table_name};
use super::tally::TallyRow;
use super::touched::Touched;
use super::units::{bytes, counted};
use crate::heal::option_of;
use crate::history::Recurring;

/// Problems shown before the rest is only counted.
const ROWS_MAX: usize = 8;

/// Guest ranges shown before the rest is only counted.
const RANGES_MAX: usize = 6;

/// Decisions explained before they are only named.
const CHOICES_MAX: usize = 3;

/// What to print.
#[derive(Debug, Clone, Copy, Default)]
pub struct HumanOptions {
    /// Every finding instead of counts by problem.
    pub all: bool,
    /// Nothing at all.
    pub quiet: bool,
}

/// Prints a check's report.
///
/// # Errors
/// Those of `out`.
pub fn write_check(report: &CheckReport, options: HumanOptions, out: &mut dyn Write) -> io::Result<()> {
    let verdict = report.verdict();
    if options.quiet {
        return Ok(());
    }
    writeln!(out, "{}: {}", escape_path(&report.image), headline(report))?;
    if verdict == Verdict::NotQcow2 {
        return Ok(());
    }
    write_shape(report, out)?;
    if options.all {
        write_findings(report, out)?;
    } else {
        write_problems(report, out)?;
    }
    write_guest_bytes(report, out)?;
    if let Some(repair) = &report.repair {
        write_repair(repair, &report.names, out)?;
    }
    if let Some(discard) = &report.discard {
        discard.write(out)?;
    }
    write_choices(report, options, out)?;
    write_recurring(&report.recurring, out)?;
    write_next(report, options, out)?;
    write_sandbox(&report.sandbox, out)
}

/// The verdict in one line.
#[must_use]
pub fn headline(report: &CheckReport) -> String {
    match report.verdict() {
        Verdict::Consistent => "consistent".to_owned(),
        Verdict::Leaks => counted(report.leaks(), "leak, nothing worse", "leaks, nothing worse"),
        Verdict::Corruptions if report.leaks() > 0 => format!(
            "{} and {}",
            counted(report.corruptions(), "corruption", "corruptions"),
            counted(report.leaks(), "leak", "leaks")
        ),
        Verdict::Corruptions => counted(report.corruptions(), "corruption", "corruptions"),
        Verdict::Incomplete => "no verdict: parts of the image could not be looked at".to_owned(),
        Verdict::Unsupported => "no verdict: the image uses a feature that cannot be checked yet".to_owned(),
        Verdict::NotQcow2 => format!("not a format that is checked: {}", other_format(report)),
    }
}

/// What a file without the QCOW2 magic begins with, where that is well known. A hint for people: the bytes are
/// the inmate's word.
fn other_format(report: &CheckReport) -> &'static str {
    if report.tally.row(Problem::HeaderMagic).is_some() {
        return "the QCOW2 magic is lost, what follows is such an image";
    }
    let magic = report.tally.row(Problem::NotQcow2).map(|row| row.first.stored);
    match magic.and_then(|magic| u32::try_from(magic).ok()).map(u32::to_be_bytes).as_ref() {
        Some(b"KDMV" | b"COWD" | b"# Di") => "it reads like VMDK",
        Some(b"vhdx") => "it reads like VHDX",
        Some(b"cone") => "it reads like VHD",
        Some(b"<<< ") => "it reads like VDI",
        Some(b"QED\0") => "it reads like QED",
        _ => "it does not begin with the QCOW2 magic; a raw disk has nothing to check",
    }
}

fn write_shape(report: &CheckReport, out: &mut dyn Write) -> io::Result<()> {
    let summary = &report.summary;
    let Some(cluster_bytes) = report.cluster_bytes() else { return Ok(()) };
    write!(
        out,
        "  qcow2 version {}, {} disk, {} clusters, {} of {} in use",
        summary.version,
        bytes(summary.virtual_size),
        bytes(cluster_bytes),
        summary.allocated_clusters,
        summary.total_clusters
    )?;
    if summary.snapshots > 0 {
        write!(out, ", {}", counted(summary.snapshots.into(), "snapshot", "snapshots"))?;
    }
    writeln!(out)
}

fn write_problems(report: &CheckReport, out: &mut dyn Write) -> io::Result<()> {
    let mut rows: Vec<&TallyRow> = report.tally.rows().collect();
    rows.sort_by_key(|row| (std::cmp::Reverse(row.problem.row().severity), std::cmp::Reverse(row.items)));
    for row in rows.iter().take(ROWS_MAX) {
        let table_row = row.problem.row();
        writeln!(out, "\n  {:>8} x {} ({})", row.items, table_row.id, severity_name(table_row.severity))?;
        writeln!(out, "             {}", sentence(row.problem, &row.first, &report.names))?;
        if let Some(evidence) = evidence(&row.first) {
            writeln!(out, "             {evidence}")?;
        }
        writeln!(out, "             {}", table_row.meaning)?;
    }
    if rows.len() > ROWS_MAX {
        let rest = counted((rows.len() - ROWS_MAX) as u64, "more problem", "more problems");
        writeln!(out, "\n  and {rest}: --all lists them")?;
    }
    Ok(())
}

fn write_findings(report: &CheckReport, out: &mut dyn Write) -> io::Result<()> {
    if !report.findings.is_empty() {
        writeln!(out)?;
    }
    for kept in &report.findings {
        write_finding(kept, &report.names, out)?;
    }
    if report.findings_dropped > 0 {
        let rest = counted(report.findings_dropped, "more finding was", "more findings were");
        writeln!(out, "  {rest} counted, not kept")?;
    }
    Ok(())
}

fn write_finding(kept: &KeptFinding, names: &Names, out: &mut dyn Write) -> io::Result<()> {
    let row = kept.problem.row();
    writeln!(out, "  {}: {}", row.id, sentence(kept.problem, &kept.finding, names))?;
    if let Some(evidence) = evidence(&kept.finding) {
        writeln!(out, "      {evidence}")?;
    }
    for owner in &kept.owners {
        writeln!(out, "      {}", owner_text(owner, names))?;
    }
    Ok(())
}

/// Who uses the place of a finding.
pub(super) fn owner_text(owner: &Owner, names: &Names) -> String {
    let table = Table::from_u32(owner.table).map_or("unknown structure", table_name);
    let mut text = format!("used as {table} of the {}", disk_name(owner.snapshot, names));
    if owner.guest_offset != NONE {
        text.push_str(&format!(", guest byte {:#x}", owner.guest_offset));
    }
    if owner.entry_offset != NONE {
        text.push_str(&format!(", by the entry at {:#x}", owner.entry_offset));
    }
    text
}

fn write_guest_bytes(report: &CheckReport, out: &mut dyn Write) -> io::Result<()> {
    let touched = Touched::by(&report.findings);
    if touched.bytes() == 0 {
        return Ok(());
    }
    let least = if report.findings_dropped > 0 { "at least " } else { "" };
    writeln!(out, "\n  guest bytes touched by corruptions: {least}{}", bytes(touched.bytes()))?;
    for (snapshot, range) in touched.ranges().take(RANGES_MAX) {
        let disk = disk_name(snapshot, &report.names);
        let size = bytes(range.end - range.start);
        writeln!(out, "    {disk}: {:#x} to {:#x} ({size})", range.start, range.end)?;
    }
    match touched.ranges().count().saturating_sub(RANGES_MAX) {
        0 => Ok(()),
        more => writeln!(out, "    and {}", counted(more as u64, "range more", "ranges more")),
    }
}

fn write_repair(repair: &RepairFacts, names: &Names, out: &mut dyn Write) -> io::Result<()> {
    let route = repair.ending.route();
    writeln!(out, "\n  repair ({}): {}", tier_name(repair.tier), route.sentence)?;
    if let Some(plan) = &repair.plan {
        let writes = counted(plan.writes as u64, "write", "writes");
        let steps = counted(plan.steps as u64, "step", "steps");
        writeln!(out, "  plan: {steps}, {writes}, {}", bytes(plan.write_bytes))?;
    }
    if let Some(todo) = &repair.todo {
        todo.write(names, out)?;
    }
    if let Some(path) = &repair.plan_file {
        writeln!(out, "  plan file: {}", escape_path(path))?;
    }
    if let Some(path) = &repair.undo_file {
        writeln!(out, "  undo file: {}", escape_path(path))?;
    }
    if repair.plan_file.is_none() && !route.next.is_empty() {
        writeln!(out, "  next: {}", route.next)?;
    }
    Ok(())
}

/// What only the user can decide, as the options that say so: with what each gives up where they are few.
fn write_choices(report: &CheckReport, options: HumanOptions, out: &mut dyn Write) -> io::Result<()> {
    let choices: Vec<Decision> = report.choices().collect();
    if choices.is_empty() {
        return Ok(());
    }
    if choices.len() > CHOICES_MAX && !options.all {
        let names: Vec<_> = choices.iter().map(|decision| option_of(*decision)).collect();
        return writeln!(
            out,
            "  for you to decide (--all tells what each gives up), with --repair=all --decide: {}",
            names.join(", ")
        );
    }
    writeln!(out, "\n  for you to decide, with --repair=all:")?;
    for decision in choices {
        writeln!(out, "    --decide {}\n        {}", option_of(decision), decision.sentence())?;
    }
    Ok(())
}

fn write_recurring(recurring: &[Recurring], out: &mut dyn Write) -> io::Result<()> {
    for Recurring { problem, repairs } in recurring {
        writeln!(
            out,
            "\n  warning: recurring-damage: {problem} had been repaired {} before; suspect the storage below, or \
             who writes to the image",
            counted((*repairs).into(), "time", "times")
        )?;
    }
    Ok(())
}

/// What each tier would do and at what price, and the next command.
fn write_next(report: &CheckReport, options: HumanOptions, out: &mut dyn Write) -> io::Result<()> {
    if report.tally.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    let image = escape_path(&report.image);
    for tier in [Tier::Leaks, Tier::All] {
        writeln!(out, "  --repair={:<6} {}", tier_name(tier), Prospect::of(report, tier))?;
    }
    match next_command(report) {
        Some(command) => writeln!(out, "  next: {command}"),
        None if report.repair.is_none() && !options.all => {
            writeln!(out, "  next: instar check --all {image}")
        }
        None => Ok(()),
    }
}

/// The command that goes on from here, where there is something to cure or to carry out.
pub(super) fn next_command(report: &CheckReport) -> Option<String> {
    let image = escape_path(&report.image);
    if let Some(repair) = &report.repair {
        let plan = repair.plan_file.as_ref()?;
        return Some(format!("instar check --apply-plan {} {image}", escape_path(plan)));
    }
    let cured = |tier| Prospect::of(report, tier).cured;
    if let Some(field) = report.choices().find(|decision| decision.restores()) {
        let option = option_of(field);
        return Some(format!("instar check --repair=all --decide {option} --preview {image}"));
    }
    if report.summary.outcome != Outcome::Complete as u32 {
        return Some(format!("instar info {image}"));
    }
    if cured(Tier::All) > cured(Tier::Leaks) {
        Some(format!("instar check --repair=all --preview {image}"))
    } else if cured(Tier::Leaks) > 0 {
        Some(format!("instar check --repair=leaks {image}"))
    } else {
        None
    }
}

fn write_sandbox(facts: &SandboxFacts, out: &mut dyn Write) -> io::Result<()> {
    let stats = &facts.stats;
    writeln!(
        out,
        "  checked in a {} cage: {}.{:02} s, {} read, {}, at most {} of memory",
        cage_name(facts.cage),
        stats.wall_us / 1_000_000,
        stats.wall_us / 10_000 % 100,
        bytes(stats.bytes_read),
        counted(stats.exits, "exit", "exits"),
        bytes(stats.arena_bytes)
    )?;
    match &facts.fallback {
        Some(reason) => writeln!(out, "  not in a KVM cage: {reason}"),
        None => Ok(()),
    }
}

/// Prints what an image is.
///
/// # Errors
/// Those of `out`.
pub fn write_image(report: &ImageReport, out: &mut dyn Write) -> io::Result<()> {
    let summary = &report.summary;
    writeln!(out, "image:          {}", escape_path(&report.image))?;
    if report.verdict() == Verdict::NotQcow2 {
        return writeln!(out, "format:         not QCOW2 (no magic)");
    }
    // What could not be read is left out: a zero would be invented.
    match summary.version {
        0 => writeln!(out, "format:         qcow2, the version cannot be told")?,
        version => writeln!(out, "format:         qcow2 version {version}")?,
    }
    if summary.virtual_size != 0 {
        writeln!(out, "disk size:      {} ({} bytes)", bytes(summary.virtual_size), summary.virtual_size)?;
    }
    if let Some(cluster_bytes) = cluster_bytes(summary) {
        writeln!(out, "clusters:       {}", bytes(cluster_bytes))?;
    }
    if summary.refcount_bits != 0 {
        writeln!(out, "refcounts:      {} bits", summary.refcount_bits)?;
    }
    let features = feature_names(summary.features);
    if !features.is_empty() {
        writeln!(out, "features:       {}", features.join(", "))?;
    }
    for (label, kind) in [
        ("backing file:   ", TextKind::BackingFile),
        ("backing format: ", TextKind::BackingFormat),
        ("data file:      ", TextKind::DataFile),
    ] {
        if let Some(name) = report.names.get(kind, 0) {
            writeln!(out, "{label}{name}")?;
        }
    }
    for (label, kind) in [("snapshot", TextKind::SnapshotName), ("bitmap", TextKind::BitmapName)] {
        for (index, name) in report.names.of(kind) {
            writeln!(out, "{:<15} {name}", format!("{label} {index}:"))?;
        }
    }
    for kept in &report.findings {
        let row = kept.problem.row();
        if row.severity >= Severity::Corruption {
            writeln!(
                out,
                "seen:           {}: {}",
                row.id,
                sentence(kept.problem, &kept.finding, &report.names)
            )?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "human_tests.rs"]
mod tests;
