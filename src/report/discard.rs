//! What is said about giving storage back.

use std::io::{self, Write};
use std::path::PathBuf;

use instar_abi::summary::Stranger;
use serde::Serialize;

use super::escape::escape_path;
use super::json::filename;
use super::units::{bytes, counted};
use crate::exit::Exit;
use crate::heal::{DiscardReport, Ending, ExitRule};

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscardFacts {
    /// How it ended.
    pub ending: Ending,
    /// Ranges of the file that were given back, or would be.
    pub ranges: usize,
    /// Bytes in them that storage is held for, as far as it tells.
    pub bytes: u64,
    /// There are more than are given back at once.
    pub is_partial: bool,
    /// How many bytes less the storage holds for the file than before, where that is known.
    pub released_bytes: Option<u64>,
    /// The record that is in the way.
    pub record: Option<PathBuf>,
    /// What of the image may use clusters in a way that is not known.
    pub stranger: Option<String>,
}

impl From<&DiscardReport> for DiscardFacts {
    fn from(report: &DiscardReport) -> Self {
        Self {
            ending: report.ending,
            ranges: report.listed.ranges().len(),
            bytes: report.listed.bytes(),
            is_partial: report.listed.is_partial(),
            released_bytes: report.released_bytes,
            record: report.record.clone(),
            stranger: report.stranger.map(|(stranger, value)| in_words(stranger, value)),
        }
    }
}

/// A part of an image that is not known.
fn in_words(stranger: Stranger, value: u64) -> String {
    match stranger {
        Stranger::DataFile => "an external data file, which holds the guest data".to_owned(),
        Stranger::HeaderLength => format!("a header of {value} bytes, with fields that are not known"),
        Stranger::Extension => format!("a header extension of the unknown type {value:#010x}"),
        Stranger::Compatible => format!("unknown compatible features ({value:#x})"),
        Stranger::Autoclear => format!("unknown autoclear features ({value:#x})"),
    }
}

impl DiscardFacts {
    /// The exit code of a run that would have ended with `exit` without it. What the findings say is said first.
    pub(super) fn exit(&self, exit: Exit) -> Exit {
        match exit {
            Exit::Consistent | Exit::Repaired if self.ending.route().exit == ExitRule::Failed => Exit::Failed,
            exit => exit,
        }
    }

    /// Why nothing was given back, where that is a failure, and what to do.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        let route = self.ending.route();
        let lines = self.lines();
        let rest = lines.iter().map(|(label, text)| format!("\n  {label}: {text}"));
        (route.exit == ExitRule::Failed)
            .then(|| rest.fold(route.sentence.to_owned(), |all, line| all + &line))
    }

    /// What there is to say besides how it ended: labels and texts.
    pub(super) fn lines(&self) -> Vec<(&'static str, String)> {
        let more = if self.is_partial { "; there is more, for another run" } else { "" };
        let ranges = counted(self.ranges as u64, "range", "ranges");
        let amount = (self.ranges > 0).then(|| format!("{} in {ranges}{more}", bytes(self.bytes)));
        let next = self.ending.route().next;
        [
            ("free clusters", amount),
            ("storage released", self.released_bytes.map(bytes)),
            ("in the way", self.record.as_deref().map(escape_path)),
            ("not known", self.stranger.clone()),
            ("next", (!next.is_empty()).then(|| next.to_owned())),
        ]
        .into_iter()
        .filter_map(|(label, text)| text.map(|text| (label, text)))
        .collect()
    }

    /// Prints it.
    ///
    /// # Errors
    /// Those of `out`.
    pub(super) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "\n  discard: {}", self.ending.route().sentence)?;
        self.lines().iter().try_for_each(|(label, text)| writeln!(out, "  {label}: {text}"))
    }

    /// The same for programs.
    pub(super) fn document(&self) -> DiscardDocument {
        let route = self.ending.route();
        DiscardDocument {
            ending: self.ending.id(),
            sentence: route.sentence,
            ranges: self.ranges,
            bytes: self.bytes,
            partial: self.is_partial,
            released_bytes: self.released_bytes,
            record: self.record.as_deref().map(filename),
            not_known: self.stranger.clone(),
        }
    }
}

/// How giving storage back ended.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct DiscardDocument {
    /// The ending's permanent id.
    ending: &'static str,
    /// The ending in words.
    sentence: &'static str,
    /// Ranges of the file that were given back, or would be.
    ranges: usize,
    /// Bytes in them that storage is held for, as far as it tells.
    bytes: u64,
    /// There are more than are given back at once.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    partial: bool,
    /// How many bytes less the storage holds for the file than before, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    released_bytes: Option<u64>,
    /// The record that is in the way.
    #[serde(skip_serializing_if = "Option::is_none")]
    record: Option<String>,
    /// What of the image may use clusters in a way that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_known: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(ending: Ending) -> DiscardFacts {
        let (record, stranger) = (None, None);
        DiscardFacts {
            ending,
            ranges: 0,
            bytes: 0,
            is_partial: false,
            released_bytes: None,
            record,
            stranger,
        }
    }

    #[test]
    fn refused_discard_of_a_consistent_image_is_a_failure_and_findings_come_first() {
        let refused = facts(Ending::UndoKept);
        assert_eq!(refused.exit(Exit::Consistent), Exit::Failed);
        assert_eq!(refused.exit(Exit::Repaired), Exit::Failed);
        assert_eq!(refused.exit(Exit::Corruptions), Exit::Corruptions);
        assert_eq!(facts(Ending::NotConsistent).exit(Exit::Leaks), Exit::Leaks);
        assert_eq!(facts(Ending::NothingToDiscard).exit(Exit::Consistent), Exit::Consistent);
    }

    #[test]
    fn report_for_people_says_what_is_in_the_way_and_what_to_do() {
        let record = Some(PathBuf::from("d.instar-undo"));
        let mut out = Vec::new();
        DiscardFacts { record, ..facts(Ending::UndoKept) }.write(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("in the way: d.instar-undo\n") && text.contains("undo --drop"), "{text}");
        assert!(!text.contains("free clusters"), "{text}");
    }
}
