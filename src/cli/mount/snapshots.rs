//! The snapshots inside an image as files: which there are, how long, and under which names.
//!
//! Invariants: file names are unique, at most [`NAME_BYTES_MAX`] bytes, neither empty nor hidden, and free of
//! separators, control characters and what turns text round; the same image gives the same names. At most
//! [`SERVED_MAX`] snapshots are served, whatever the image claims to hold.

use std::collections::{BTreeMap, HashSet};

use instar_abi::boot::JobKind;
use instar_abi::call::{SnapshotRecord, TextKind};

use super::super::inspect::Inspector;
use super::super::say;
use super::RAW_ENDING;
use crate::error::Error;
use crate::report::{CheckReport, escape_path};
use crate::sandbox;
use crate::sandbox::observer::Observer;

/// Most snapshots that are served: each costs an extent cache.
pub const SERVED_MAX: u32 = 1024;
/// Longest file name in bytes, that of most file systems.
const NAME_BYTES_MAX: usize = 255;
/// Bytes of an escaped name that are kept, so that index and ending fit behind them.
const KEPT_BYTES: usize = 230;

/// A snapshot that can be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its index in the snapshot table.
    pub index: u32,
    /// Its disk's size in bytes.
    pub disk_bytes: u64,
    /// Its file name.
    pub file_name: String,
}

/// Asks a cage which snapshots there are.
///
/// # Errors
/// [`Error::Sandbox`].
pub fn find(report: &CheckReport, inspector: &Inspector) -> Result<Vec<Snapshot>, Error> {
    if report.summary.snapshots == 0 {
        return Ok(Vec::new());
    }
    let mut seen = Seen::default();
    let mut job = inspector.job(JobKind::Describe);
    job.params[0] = SERVED_MAX.into();
    sandbox::run(&job, inspector.choice(), &mut seen)
        .map_err(|source| Error::Sandbox { image: report.image.clone(), source })?;
    if report.summary.snapshots > SERVED_MAX {
        say::to_person(&format!(
            "warning: {} has {} snapshots, the first {SERVED_MAX} are served",
            escape_path(&report.image),
            report.summary.snapshots
        ));
    }
    Ok(seen.snapshots())
}

/// What a describe job tells of snapshots.
#[derive(Debug, Default)]
struct Seen {
    names: BTreeMap<u32, Vec<u8>>,
    disk_bytes: BTreeMap<u32, u64>,
}

impl Observer for Seen {
    fn text(&mut self, kind: TextKind, index: u32, bytes: &[u8]) {
        if kind == TextKind::SnapshotName && index < SERVED_MAX {
            self.names.entry(index).or_insert_with(|| bytes.to_vec());
        }
    }

    fn snapshot(&mut self, record: &SnapshotRecord) {
        if record.index < SERVED_MAX {
            self.disk_bytes.insert(record.index, record.disk_bytes);
        }
    }
}

impl Seen {
    fn snapshots(&self) -> Vec<Snapshot> {
        let mut taken = HashSet::new();
        let snapshot = |(&index, &disk_bytes): (&u32, &u64)| {
            let name = self.names.get(&index).map_or(&[][..], Vec::as_slice);
            // No file is longer than this; what is behind it could not be asked for.
            let disk_bytes = disk_bytes.min(i64::MAX.unsigned_abs());
            Snapshot { index, disk_bytes, file_name: file_name(name, index, &mut taken) }
        };
        self.disk_bytes.iter().map(snapshot).collect()
    }
}

/// A file name of its own for the snapshot called `name`. The index follows a `~` where the name alone would not
/// do; no escaped name has one.
fn file_name(name: &[u8], index: u32, taken: &mut HashSet<String>) -> String {
    let (escaped, whole) = escape(name);
    let plain = format!("{escaped}.{RAW_ENDING}");
    let chosen = if whole && !escaped.is_empty() && !taken.contains(&plain) {
        plain
    } else {
        format!("{escaped}~{index}.{RAW_ENDING}")
    };
    debug_assert!(chosen.len() <= NAME_BYTES_MAX);
    taken.insert(chosen.clone());
    chosen
}

/// A name with `%XX` for each byte that a file name should not have, cut to [`KEPT_BYTES`]; says whether it is whole.
fn escape(name: &[u8]) -> (String, bool) {
    let mut escaped = String::new();
    for chunk in name.utf8_chunks() {
        for character in chunk.valid().chars() {
            let mut bytes = [0; 4];
            let text = character.encode_utf8(&mut bytes);
            let part = if is_plain(character) && !(character == '.' && escaped.is_empty()) {
                text.to_owned()
            } else {
                percent(text.as_bytes())
            };
            if escaped.len() + part.len() > KEPT_BYTES {
                return (escaped, false);
            }
            escaped.push_str(&part);
        }
        for byte in chunk.invalid() {
            if escaped.len() + 3 > KEPT_BYTES {
                return (escaped, false);
            }
            escaped.push_str(&percent(&[*byte]));
        }
    }
    (escaped, true)
}

fn percent(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("%{byte:02X}")).collect()
}

/// Whether a character may stand in a file name as it is.
fn is_plain(character: char) -> bool {
    let turns_round = matches!(character,
        '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
    !(character.is_control() || turns_round || matches!(character, '/' | '\\' | '%' | '~'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&[u8]]) -> Vec<String> {
        let mut seen = Seen::default();
        for (index, name) in (0..).zip(names) {
            seen.text(TextKind::SnapshotName, index, name);
            seen.snapshot(&SnapshotRecord { index, reserved: 0, disk_bytes: 512 });
        }
        seen.snapshots().into_iter().map(|snapshot| snapshot.file_name).collect()
    }

    #[test]
    fn snapshot_file_names_are_harmless() {
        let hostile: [&[u8]; 9] = [
            b"plain",
            b"before update 3.raw",
            b"../../etc/passwd",
            b"..",
            b"",
            b"a\0b\nc\x1b[2J",
            b"\xff\xfe",
            "\u{202e}gnp.exe \u{e9}".as_bytes(),
            b"100%~1",
        ];
        assert_eq!(
            names(&hostile),
            [
                "plain.raw",
                "before update 3.raw.raw",
                "%2E.%2F..%2Fetc%2Fpasswd.raw",
                "%2E..raw",
                "~4.raw",
                "a%00b%0Ac%1B[2J.raw",
                "%FF%FE.raw",
                "%E2%80%AEgnp.exe \u{e9}.raw",
                "100%25%7E1.raw"
            ]
        );
    }

    #[test]
    fn snapshot_file_names_are_unique_and_short() {
        let long = [b'x'; 65_535];
        let got = names(&[b"same", b"same", &long, &long, "\u{1f600}".repeat(300).as_bytes(), b"same~1"]);
        let unique: HashSet<&String> = got.iter().collect();
        assert_eq!(unique.len(), got.len());
        assert_eq!(got[1], "same~1.raw");
        assert!(got.iter().all(|name| name.len() <= NAME_BYTES_MAX));
    }

    #[test]
    fn snapshots_beyond_the_bound_are_not_served() {
        let mut seen = Seen::default();
        for index in [0, SERVED_MAX, u32::MAX] {
            seen.snapshot(&SnapshotRecord { index, reserved: 0, disk_bytes: u64::MAX });
        }
        let snapshots = seen.snapshots();
        assert_eq!((snapshots.len(), snapshots[0].disk_bytes), (1, i64::MAX.unsigned_abs()));
    }
}
