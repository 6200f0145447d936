//! Turns a finding into its problem's sentence. The place-holders are those that the problem table documents.

use instar_abi::call::TextKind;
use instar_abi::finding::{ACTIVE, Finding, NONE, Table};
use instar_abi::problem::Problem;

use super::names::Names;
use super::units;

/// Names that are listed in one sentence.
const NAMES_TOLD_MAX: u32 = 8;

/// The finding as a sentence, without a final stop. Runs say how many items they stand for.
#[must_use]
pub fn sentence(problem: Problem, finding: &Finding, names: &Names) -> String {
    let template = problem.row().sentence;
    let mut text = fill(template, finding, names);
    if finding.count > 1 && !template.contains("{count}") {
        text = format!("{text} (and {} more like it behind it)", finding.count - 1);
    }
    text
}

/// What the rest of the file says about a field, where it determines one.
#[must_use]
pub fn evidence(finding: &Finding) -> Option<String> {
    let Finding { witnesses, expected, .. } = *finding;
    let parts =
        units::counted(witnesses.into(), "other part of the file says", "other parts of the file say");
    (witnesses > 0).then(|| format!("evidence: {parts} that {expected} ({expected:#x}) stood there"))
}

fn fill(template: &str, finding: &Finding, names: &Names) -> String {
    let mut text = String::with_capacity(template.len() + 32);
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        text.push_str(before);
        let Some((holder, behind)) = after.split_once('}') else { break };
        text.push_str(&value(holder, finding, names).unwrap_or_else(|| format!("{{{holder}}}")));
        rest = behind;
    }
    text.push_str(rest);
    text
}

/// The text for one place-holder, `None` for one that is not known.
fn value(holder: &str, finding: &Finding, names: &Names) -> Option<String> {
    Some(match holder {
        "host" => hexadecimal(finding.host_offset),
        "table" => table(finding, names),
        "index" => decimal(finding.index),
        "count" => decimal(finding.count),
        "guest" => guest(finding),
        "stored" => hexadecimal(finding.stored),
        "stored:d" => decimal(finding.stored),
        "stored:bytes" => size(finding.stored),
        "expected" => hexadecimal(finding.expected),
        "expected:d" => decimal(finding.expected),
        "expected:bytes" => size(finding.expected),
        "snapshots" => snapshots_before(finding.index, names),
        _ => return None,
    })
}

fn hexadecimal(number: u64) -> String {
    if number == NONE { "unknown".to_owned() } else { format!("{number:#x}") }
}

fn decimal(number: u64) -> String {
    if number == NONE { "unknown".to_owned() } else { number.to_string() }
}

fn size(number: u64) -> String {
    if number == NONE { "an unknown length".to_owned() } else { units::bytes(number) }
}

/// The guest range of a finding, for people.
#[must_use]
pub(super) fn guest(finding: &Finding) -> String {
    if finding.guest_offset == NONE || finding.guest_len == 0 {
        return "no guest bytes".to_owned();
    }
    let last = finding.guest_offset.saturating_add(finding.guest_len - 1);
    format!("guest bytes {:#x} to {last:#x}", finding.guest_offset)
}

/// The kind of a structure, for people.
#[must_use]
pub(super) const fn table_name(table: Table) -> &'static str {
    match table {
        Table::File => "file",
        Table::Header => "header",
        Table::HeaderExtension => "header extension",
        Table::L1 => "L1 table",
        Table::L2 => "L2 table",
        Table::RefcountTable => "refcount table",
        Table::RefcountBlock => "refcount block",
        Table::SnapshotTable => "snapshot table",
        Table::BitmapDirectory => "bitmap directory",
        Table::BitmapTable => "bitmap table",
        Table::BitmapData => "bitmap data",
        Table::CryptoHeader => "LUKS header",
        Table::Data => "guest data",
        Table::CompressedData => "compressed guest data",
        Table::DataFile => "external data file",
    }
}

/// `snapshot 2 "before upgrade"`, or the active disk.
#[must_use]
pub(super) fn disk_name(snapshot: u32, names: &Names) -> String {
    if snapshot == ACTIVE {
        return "active disk".to_owned();
    }
    match names.get(TextKind::SnapshotName, snapshot) {
        Some(name) => format!("snapshot {snapshot} \"{name}\""),
        None => format!("snapshot {snapshot}"),
    }
}

/// How many snapshots stand before the one with this index, and the first ones' names.
fn snapshots_before(index: u64, names: &Names) -> String {
    let told = u32::try_from(index).unwrap_or(u32::MAX).min(NAMES_TOLD_MAX);
    let name = |at: u32| match names.get(TextKind::SnapshotName, at) {
        Some(name) => format!("\"{name}\""),
        None => at.to_string(),
    };
    let mut list: Vec<String> = (0..told).map(name).collect();
    if index > u64::from(told) {
        list.push("and others".to_owned());
    }
    match index {
        0 => "no snapshots".to_owned(),
        1 => format!("1 snapshot ({})", list.join(", ")),
        _ => format!("{index} snapshots ({})", list.join(", ")),
    }
}

fn table(finding: &Finding, names: &Names) -> String {
    let Some(table) = Table::from_u32(finding.table) else { return "unknown structure".to_owned() };
    let name = table_name(table);
    match table {
        Table::L1 | Table::L2 | Table::Data | Table::CompressedData => {
            format!("{}: {name}", disk_name(finding.snapshot, names))
        }
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use instar_abi::problem::PROBLEMS;

    use super::*;

    fn finding() -> Finding {
        Finding {
            problem: 0,
            table: Table::L2 as u32,
            snapshot: ACTIVE,
            witnesses: 0,
            host_offset: 0x5_0028,
            host_len: 8,
            index: 5,
            count: 1,
            guest_offset: 0x5_0000,
            guest_len: 0x1_0000,
            stored: 0x900_0000,
            expected: 0x30_0000,
        }
    }

    #[test]
    fn sentence_fills_every_place_holder_of_every_row() {
        for row in PROBLEMS {
            for finding in [finding(), Finding { table: 99, index: NONE, stored: NONE, ..finding() }] {
                let text = sentence(row.problem, &finding, &Names::default());
                assert!(!text.contains(['{', '}']), "{}: {text}", row.id);
            }
        }
    }

    #[test]
    fn sentence_of_an_entry_names_table_index_values_and_guest_range() {
        assert_eq!(
            sentence(Problem::L2EntryPastEof, &finding(), &Names::default()),
            "active disk: L2 table entry 5: host offset 0x9000000 is past the end of the file \
             (0x300000; guest bytes 0x50000 to 0x5ffff)"
        );
    }

    #[test]
    fn sentence_of_a_run_says_how_many() {
        let run = Finding { count: 3, stored: 1, expected: 0, ..finding() };
        assert_eq!(
            sentence(Problem::RefcountLeak, &run, &Names::default()),
            "cluster 5: refcount stored 1, counted 0 (and 2 more like it behind it)"
        );
    }

    #[test]
    fn sentence_of_a_snapshot_names_it_escaped() {
        let mut names = Names::default();
        names.insert(TextKind::SnapshotName, 1, b"a\x1b[31m");
        let text =
            sentence(Problem::L1EntryReserved, &Finding { snapshot: 1, table: 3, ..finding() }, &names);
        assert!(text.starts_with("snapshot 1 \"a\\u{1b}[31m\": L1 table entry 5: "), "{text}");
    }
}
