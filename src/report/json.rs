//! The documents for programs. `docs/report.schema.json` and `docs/info.schema.json` are generated from the types in
//! here.
//!
//! Invariant: the keys of qemu's `ImageCheck` keep qemu's meaning, and those that qemu leaves out when they are
//! zero are left out here too. Two runs over the same image differ in `sandbox` only, whatever the cage.

use std::ops::Range;
use std::path::Path;

use instar_abi::call::TextKind;
use instar_abi::choice::Decision;
use instar_abi::finding::{ACTIVE, NONE, Owner, Table};
use instar_abi::problem::Row;
use instar_abi::summary::Summary;
use serde::Serialize;

use super::describe::{ImageReport, feature_names};
use super::discard::{DiscardDocument, DiscardFacts};
use super::escape::escape_path;
use super::ids::{cage_name, cost_name, disposition_name, severity_name, tier_name, verdict_name};
use super::model::{CheckReport, KeptFinding, RepairFacts, SandboxFacts, Verdict, cluster_bytes};
use super::names::Names;
use super::sentence::{sentence, table_name};
use super::tally::TallyRow;
use super::todo::TodoRow;
use crate::heal::option_of;
use crate::history::Recurring;

/// What `instar check --output=json` prints, and `.instar/report.json` in a mount holds.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CheckDocument {
    /// The image, as it was named.
    filename: String,
    /// "qcow2", or "unknown": nothing else is checked.
    format: &'static str,
    /// Parts that could not be looked at.
    check_errors: u64,
    /// One past the last host cluster in use, in bytes.
    #[serde(skip_serializing_if = "is_zero")]
    image_end_offset: u64,
    /// Corruptions, fatal ones included.
    #[serde(skip_serializing_if = "is_zero")]
    corruptions: u64,
    /// Leaks.
    #[serde(skip_serializing_if = "is_zero")]
    leaks: u64,
    /// Corruptions that the repair took away.
    #[serde(skip_serializing_if = "is_zero")]
    corruptions_fixed: u64,
    /// Leaks that the repair took away.
    #[serde(skip_serializing_if = "is_zero")]
    leaks_fixed: u64,
    /// Guest clusters of the active disk.
    #[serde(skip_serializing_if = "is_zero")]
    total_clusters: u64,
    /// Of those, the ones that have data.
    #[serde(skip_serializing_if = "is_zero")]
    allocated_clusters: u64,
    /// Of those, the ones that do not lie right behind their predecessor.
    #[serde(skip_serializing_if = "is_zero")]
    fragmented_clusters: u64,
    /// Of the allocated ones, the compressed ones.
    #[serde(skip_serializing_if = "is_zero")]
    compressed_clusters: u64,
    /// What it all comes to.
    verdict: &'static str,
    /// Counts of all findings by problem, kept or not.
    problems: Vec<ProblemDocument>,
    /// Every finding that was kept.
    findings: Vec<FindingDocument>,
    /// Findings that were only counted.
    findings_dropped: u64,
    /// The repair, where one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    repair: Option<RepairDocument>,
    /// What a repair would write or wrote, where one was planned.
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<PlanDocument>,
    /// Whether a fresh cage proved the repair.
    #[serde(skip_serializing_if = "Option::is_none")]
    attestation: Option<AttestationDocument>,
    /// What became of giving storage back, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    discard: Option<DiscardDocument>,
    /// What is left for the user to decide.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    choices: Vec<ChoiceDocument>,
    /// Problems that had been repaired before, again and again: the storage below is suspect.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    recurring_damage: Vec<RecurringDocument>,
    /// Where the image was looked at, and what that cost.
    sandbox: SandboxDocument,
}

/// One outcome of a problem that has several.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct ChoiceDocument {
    /// The problem's permanent id (docs/problems.md).
    problem: &'static str,
    /// The choice's permanent id: `--decide PROBLEM=CHOICE` makes it.
    choice: &'static str,
    /// What happens then, and what it gives up.
    sentence: &'static str,
}

/// A problem that comes back after it was repaired.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct RecurringDocument {
    /// The problem's permanent id (docs/problems.md).
    problem: String,
    /// How often it was repaired before.
    repairs: u32,
}

/// All findings of one problem.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct ProblemDocument {
    /// The problem's permanent id (docs/problems.md).
    problem: &'static str,
    severity: &'static str,
    /// Findings, a run counted once.
    findings: u64,
    /// Entries, clusters or fields that the findings stand for.
    items: u64,
}

/// One finding.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct FindingDocument {
    /// The problem's permanent id (docs/problems.md).
    problem: &'static str,
    severity: &'static str,
    /// Who decides about a cure.
    disposition: &'static str,
    /// What the cure costs.
    cost: &'static str,
    /// The finding in words.
    sentence: String,
    /// The structure that holds the damaged item.
    table: &'static str,
    /// The internal snapshot whose structure it is; absent for the active disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot: Option<u32>,
    /// Its name, escaped.
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot_name: Option<String>,
    /// Byte offset in the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    host_offset: Option<u64>,
    #[serde(skip_serializing_if = "is_zero")]
    host_len: u64,
    /// Index of the first item in its structure.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u64>,
    /// Items in a row that this finding stands for.
    count: u64,
    /// First guest byte touched.
    #[serde(skip_serializing_if = "Option::is_none")]
    guest_offset: Option<u64>,
    #[serde(skip_serializing_if = "is_zero")]
    guest_len: u64,
    /// The value as stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    stored: Option<u64>,
    /// The value that the rest of the metadata asks for, or the bound that was broken.
    #[serde(skip_serializing_if = "Option::is_none")]
    expected: Option<u64>,
    /// Where the finding is about a header field that the rest of the file determines: what it says.
    #[serde(skip_serializing_if = "Option::is_none")]
    evidence: Option<EvidenceDocument>,
    /// Users of the place.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    owners: Vec<OwnerDocument>,
}

/// A user of a finding's place.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct OwnerDocument {
    /// What the place is used as.
    table: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot: Option<u32>,
    /// Its name, escaped.
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot_name: Option<String>,
    /// Byte offset in the file of the entry that points there.
    #[serde(skip_serializing_if = "Option::is_none")]
    entry_offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    guest_offset: Option<u64>,
}

/// How a repair ended.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct RepairDocument {
    /// What it was allowed to do.
    tier: &'static str,
    /// The ending's permanent id.
    ending: &'static str,
    /// The ending in words.
    sentence: &'static str,
    /// The undo file.
    #[serde(skip_serializing_if = "Option::is_none")]
    undo_file: Option<String>,
}

/// A plan.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct PlanDocument {
    steps: usize,
    writes: usize,
    /// Bytes in all writes.
    write_bytes: u64,
    /// SHA-256 of the plan, in hexadecimal: the same image gives the same plan.
    digest: String,
    /// The file that it was written to.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    /// What it is going to do; only in a preview.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    to_do: Vec<TodoDocument>,
    /// What is done because the user decided so, as PROBLEM=CHOICE; only in a preview.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    decided: Vec<String>,
}

/// What one cure of a plan is going to do.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct TodoDocument {
    /// The cure's permanent id.
    cure: &'static str,
    /// Items that it takes away; 0 where it only follows up what other cures do.
    items: u64,
    /// Those of them with which traces of what was lost go.
    #[serde(skip_serializing_if = "is_zero")]
    traces: u64,
    /// Bytes that it writes.
    write_bytes: u64,
    /// Guest ranges whose data it gives up, which could not be read before either.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    dropped: Vec<DroppedDocument>,
}

/// A guest range.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct DroppedDocument {
    /// The internal snapshot whose disk it is; absent for the active disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot: Option<u32>,
    guest_offset: u64,
    guest_len: u64,
}

/// The proof.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct AttestationDocument {
    /// A fresh cage found every promised cure done and nothing new.
    proven: bool,
}

/// The cage and its cost. The only part that may differ between two runs over the same image.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct SandboxDocument {
    /// "kvm" or "process".
    cage: &'static str,
    /// Why it is not the one that was preferred.
    #[serde(skip_serializing_if = "Option::is_none")]
    fallback: Option<String>,
    /// Times the inmate called its host.
    exits: u64,
    /// Bytes read from the image for it.
    bytes_read: u64,
    /// Wall time in microseconds.
    wall_us: u64,
    /// Memory granted, in bytes.
    arena_bytes: u64,
    /// Most of it in use at once, by the inmate's own account.
    arena_bytes_peak: u64,
}

/// What `instar info --output=json` prints.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ImageDocument {
    /// The image, as it was named.
    filename: String,
    /// "qcow2", or "unknown": nothing else is told about.
    format: &'static str,
    /// What was seen on the way; nothing was counted.
    verdict: &'static str,
    /// Version of the format; 0 where it cannot be told, like every number here.
    version: u32,
    /// Size of the disk in bytes.
    virtual_size: u64,
    /// Bytes of a cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster_size: Option<u64>,
    /// Width of a reference count.
    refcount_bits: u32,
    /// Names of the features in use.
    features: Vec<&'static str>,
    /// The backing file's name, escaped.
    #[serde(skip_serializing_if = "Option::is_none")]
    backing_file: Option<String>,
    /// The backing file's format, as stated, escaped.
    #[serde(skip_serializing_if = "Option::is_none")]
    backing_format: Option<String>,
    /// The external data file's name, escaped.
    #[serde(skip_serializing_if = "Option::is_none")]
    data_file: Option<String>,
    /// Internal snapshots.
    snapshots: Vec<NameDocument>,
    /// Persistent bitmaps.
    bitmaps: Vec<NameDocument>,
    /// What was seen to be wrong on the way; by no means everything.
    findings: Vec<FindingDocument>,
    /// Where the image was looked at, and what that cost.
    sandbox: SandboxDocument,
}

/// What the rest of a file says about a field.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct EvidenceDocument {
    /// The value that should stand there.
    value: u64,
    /// Parts of the file that say so.
    witnesses: u32,
}

/// A named part of an image.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct NameDocument {
    /// Its index in the table or directory that lists it.
    index: u32,
    /// Its name, escaped.
    name: String,
}

/// The report as a document for programs.
#[must_use]
pub fn check_json(report: &CheckReport) -> CheckDocument {
    let (corruptions_fixed, leaks_fixed) = report.fixed();
    let summary = &report.summary;
    CheckDocument {
        filename: filename(&report.image),
        format: format_name(report.verdict()),
        check_errors: report.check_errors(),
        image_end_offset: summary.image_end_offset,
        corruptions: report.corruptions(),
        leaks: report.leaks(),
        corruptions_fixed,
        leaks_fixed,
        total_clusters: summary.total_clusters,
        allocated_clusters: summary.allocated_clusters,
        fragmented_clusters: summary.fragmented_clusters,
        compressed_clusters: summary.compressed_clusters,
        verdict: verdict_name(report.verdict()),
        problems: report.tally.rows().map(problem).collect(),
        findings: report.findings.iter().map(|kept| finding(kept, &report.names)).collect(),
        findings_dropped: report.findings_dropped,
        repair: report.repair.as_ref().map(repair),
        plan: report.repair.as_ref().and_then(plan),
        attestation: report
            .repair
            .as_ref()
            .and_then(|repair| repair.plan.as_ref().map(|_| AttestationDocument { proven: repair.attested })),
        discard: report.discard.as_ref().map(DiscardFacts::document),
        choices: report.choices().map(choice).collect(),
        recurring_damage: report.recurring.iter().map(recurring).collect(),
        sandbox: sandbox(&report.sandbox, summary),
    }
}

/// What is known of an image as a document for programs.
#[must_use]
pub fn image_json(report: &ImageReport) -> ImageDocument {
    let summary = &report.summary;
    let name = |kind| report.names.get(kind, 0).map(str::to_owned);
    let list = |kind| {
        report.names.of(kind).map(|(index, name)| NameDocument { index, name: name.to_owned() }).collect()
    };
    ImageDocument {
        filename: filename(&report.image),
        format: format_name(report.verdict()),
        verdict: verdict_name(report.verdict()),
        version: summary.version,
        virtual_size: summary.virtual_size,
        cluster_size: cluster_bytes(summary),
        refcount_bits: summary.refcount_bits,
        features: feature_names(summary.features),
        backing_file: name(TextKind::BackingFile),
        backing_format: name(TextKind::BackingFormat),
        data_file: name(TextKind::DataFile),
        snapshots: list(TextKind::SnapshotName),
        bitmaps: list(TextKind::BitmapName),
        findings: report.findings.iter().map(|kept| finding(kept, &report.names)).collect(),
        sandbox: sandbox(&report.sandbox, summary),
    }
}

pub(super) fn filename(path: &Path) -> String {
    path.to_str().map_or_else(|| escape_path(path), str::to_owned)
}

fn finding(kept: &KeptFinding, names: &Names) -> FindingDocument {
    let Row { id, severity, disposition, cost, .. } = *kept.problem.row();
    let finding = &kept.finding;
    FindingDocument {
        problem: id,
        severity: severity_name(severity),
        disposition: disposition_name(disposition),
        cost: cost_name(cost),
        sentence: sentence(kept.problem, finding, names),
        table: table(finding.table),
        snapshot: snapshot(finding.snapshot),
        snapshot_name: snapshot_name(finding.snapshot, names),
        host_offset: known(finding.host_offset),
        host_len: finding.host_len,
        index: known(finding.index),
        count: finding.count,
        guest_offset: known(finding.guest_offset),
        guest_len: finding.guest_len,
        stored: known(finding.stored),
        expected: known(finding.expected),
        evidence: (finding.witnesses > 0)
            .then_some(EvidenceDocument { value: finding.expected, witnesses: finding.witnesses }),
        owners: kept.owners.iter().map(|user| owner(user, names)).collect(),
    }
}

fn problem(row: &TallyRow) -> ProblemDocument {
    let Row { id, severity, .. } = *row.problem.row();
    ProblemDocument {
        problem: id,
        severity: severity_name(severity),
        findings: row.findings,
        items: row.items,
    }
}

fn owner(owner: &Owner, names: &Names) -> OwnerDocument {
    OwnerDocument {
        table: table(owner.table),
        snapshot: snapshot(owner.snapshot),
        snapshot_name: snapshot_name(owner.snapshot, names),
        entry_offset: known(owner.entry_offset),
        guest_offset: known(owner.guest_offset),
    }
}

fn repair(facts: &RepairFacts) -> RepairDocument {
    RepairDocument {
        tier: tier_name(facts.tier),
        ending: facts.ending.id(),
        sentence: facts.ending.route().sentence,
        undo_file: facts.undo_file.as_deref().map(filename),
    }
}

fn plan(facts: &RepairFacts) -> Option<PlanDocument> {
    let plan = facts.plan?;
    let decided = facts.todo.iter().flat_map(|todo| &todo.decided);
    Some(PlanDocument {
        steps: plan.steps,
        writes: plan.writes,
        write_bytes: plan.write_bytes,
        digest: hex(&plan.digest),
        file: facts.plan_file.as_deref().map(filename),
        decided: decided.map(|(decision, _)| option_of(*decision)).collect(),
        to_do: facts.todo.iter().flat_map(|todo| &todo.rows).map(todo_row).collect(),
    })
}

fn todo_row(row: &TodoRow) -> TodoDocument {
    let dropped = |(disk, range): &(u32, Range<u64>)| DroppedDocument {
        snapshot: snapshot(*disk),
        guest_offset: range.start,
        guest_len: range.end - range.start,
    };
    TodoDocument {
        cure: row.cure.id(),
        items: row.items,
        traces: row.traces,
        write_bytes: row.write_bytes,
        dropped: row.dropped.iter().map(dropped).collect(),
    }
}

/// Bytes in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn choice(decision: Decision) -> ChoiceDocument {
    ChoiceDocument {
        problem: decision.problem().row().id,
        choice: decision.id(),
        sentence: decision.sentence(),
    }
}

fn recurring(recurring: &Recurring) -> RecurringDocument {
    RecurringDocument { problem: recurring.problem.clone(), repairs: recurring.repairs }
}

fn sandbox(facts: &SandboxFacts, summary: &Summary) -> SandboxDocument {
    SandboxDocument {
        cage: cage_name(facts.cage),
        fallback: facts.fallback.clone(),
        exits: facts.stats.exits,
        bytes_read: facts.stats.bytes_read,
        wall_us: facts.stats.wall_us,
        arena_bytes: facts.stats.arena_bytes,
        arena_bytes_peak: summary.arena_bytes_peak,
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn known(number: u64) -> Option<u64> {
    (number != NONE).then_some(number)
}

fn snapshot(index: u32) -> Option<u32> {
    (index != ACTIVE).then_some(index)
}

fn snapshot_name(index: u32, names: &Names) -> Option<String> {
    names.get(TextKind::SnapshotName, index).map(str::to_owned)
}

fn table(number: u32) -> &'static str {
    Table::from_u32(number).map_or("unknown", table_name)
}

const fn format_name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::NotQcow2 => "unknown",
        _ => "qcow2",
    }
}

#[cfg(test)]
#[path = "json_tests.rs"]
mod tests;
