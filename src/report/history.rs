//! What is remembered of past repairs, for people and for programs. `docs/history.schema.json` is generated from the
//! types in here.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;

use super::escape::{escape_bytes, escape_path};
use super::json::{filename, hex};
use super::units::counted;
use crate::history::{Attempt, Counts};

/// What `instar history --output=json` prints.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HistoryDocument {
    /// The image, as it was named.
    filename: String,
    /// Attempts at repairing it, the newest first.
    attempts: Vec<AttemptDocument>,
}

/// One attempt at a repair, or one undo.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct AttemptDocument {
    /// When it ended: UTC, as in RFC 3339.
    time: String,
    /// What was asked for, by which version of the program.
    request: String,
    /// The ending's permanent id.
    outcome: String,
    /// What tells the image before it from other states of the image.
    fingerprint_before: String,
    /// What tells the image after it from other states of the image.
    fingerprint_after: String,
    /// SHA-256 of the plan, where it came to one.
    #[serde(skip_serializing_if = "Option::is_none")]
    plan_digest: Option<String>,
    /// SHA-256 over the proof of the repaired image; absent where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    attestation: Option<String>,
    /// Items found before it, by problem id.
    found: BTreeMap<String, u64>,
    /// Items that a fresh check found after it, where there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    left: Option<BTreeMap<String, u64>>,
}

/// The history as a document for programs.
#[must_use]
pub fn history_json(image: &Path, attempts: &[Attempt]) -> HistoryDocument {
    HistoryDocument { filename: filename(image), attempts: attempts.iter().map(document).collect() }
}

fn document(attempt: &Attempt) -> AttemptDocument {
    AttemptDocument {
        time: attempt.time.clone(),
        request: attempt.request.clone(),
        outcome: attempt.outcome.clone(),
        fingerprint_before: hex(&attempt.fingerprint_before),
        fingerprint_after: hex(&attempt.fingerprint_after),
        plan_digest: attempt.plan_digest.as_ref().map(|digest| hex(digest)),
        attestation: attempt.attestation.as_ref().map(|digest| hex(digest)),
        found: attempt.before.clone(),
        left: attempt.after.clone(),
    }
}

/// Prints the history for people.
///
/// # Errors
/// Those of `out`.
pub fn write_history(image: &Path, attempts: &[Attempt], out: &mut dyn Write) -> io::Result<()> {
    let image = escape_path(image);
    if attempts.is_empty() {
        return writeln!(out, "{image}: no repair is remembered");
    }
    let count = counted(attempts.len() as u64, "repair or undo is", "repairs and undos are");
    writeln!(out, "{image}: {count} remembered, the newest first")?;
    for attempt in attempts {
        let text = |text: &str| escape_bytes(text.as_bytes());
        writeln!(out, "\n  {}  {}", text(&attempt.time), text(&attempt.outcome))?;
        writeln!(out, "    asked for: {}", text(&attempt.request))?;
        writeln!(out, "    found: {}", list(&attempt.before))?;
        if let Some(after) = &attempt.after {
            writeln!(out, "    left:  {}", list(after))?;
        }
        if let Some(digest) = &attempt.plan_digest {
            let proven = if attempt.attestation.is_some() { ", proven by a fresh check" } else { "" };
            writeln!(out, "    plan:  {}{proven}", hex(digest))?;
        }
    }
    Ok(())
}

fn list(counts: &Counts) -> String {
    if counts.is_empty() {
        return "nothing".to_owned();
    }
    let rows: Vec<_> = counts
        .iter()
        .map(|(problem, items)| format!("{items} x {}", escape_bytes(problem.as_bytes())))
        .collect();
    rows.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::schema::{assert_published, validator};

    fn attempts() -> [Attempt; 2] {
        let found = Counts::from([("refcount-leak".to_owned(), 12)]);
        let proven = Attempt {
            plan_digest: Some([7; 32]),
            attestation: Some([8; 32]),
            before: found.clone(),
            after: Some(Counts::new()),
            ..Attempt::of("repaired", "0.1.0 leaks")
        };
        [proven, Attempt { before: found, ..Attempt::of("quarantined", "0.1.0 \x1b[31m") }]
    }

    #[test]
    fn history_schema_in_docs_is_that_of_the_type() {
        assert_published::<HistoryDocument>("history");
        let document = serde_json::to_value(history_json(Path::new("i"), &attempts())).unwrap();
        assert!(validator("history").is_valid(&document), "{document:#}");
    }

    #[test]
    fn history_for_people_tells_found_and_left_and_cannot_drive_the_terminal() {
        let mut text = Vec::new();
        write_history(Path::new("i"), &attempts(), &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        for words in
            ["2 repairs and undos", "found: 12 x refcount-leak", "left:  nothing", "proven", "\\u{1b}[31m"]
        {
            assert!(text.contains(words), "{words}: {text}");
        }
    }
}
