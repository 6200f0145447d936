//! What is said about mounts: to people, to programs, to a collector of metrics. `docs/status.schema.json` is generated
//! from the types in here.
//!
//! Invariant: what a mount says of itself may come from anybody; nothing of it is printed that could drive a terminal.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::escape::{escape_bytes, escape_message, escape_path};
use super::prometheus::{Exposition, MetricKind};
use super::units::counted;

/// One mount, as it was found.
#[derive(Debug)]
pub struct MountFacts {
    /// Where it is.
    pub point: PathBuf,
    /// What the system's list says that it is made from.
    pub source: OsString,
    /// What came of asking it.
    pub state: MountState,
}

/// What came of asking a mount.
#[derive(Debug)]
pub enum MountState {
    /// It answers.
    Serving(MountHealth),
    /// Its server is gone.
    Dead,
    /// It gave no answer in time.
    Silent,
    /// It cannot be looked at, for example because it is another user's.
    Unreadable(io::Error),
}

/// What a mount says of itself. The document in `.instar/health` has more keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MountHealth {
    /// The image, absolute, escaped.
    #[serde(default)]
    image: Option<String>,
    /// The check's verdict at the time of the mount.
    #[serde(default)]
    verdict: Option<String>,
    /// Corruptions in it.
    #[serde(default)]
    corruptions: Option<u64>,
    /// Leaks in it.
    #[serde(default)]
    leaks: Option<u64>,
    /// Nothing has gone wrong while it was served; unknown of a disk that is mounted on a file.
    #[serde(default)]
    healthy: Option<bool>,
    /// Reads that touched a damaged range.
    #[serde(default)]
    damaged_reads: Option<u64>,
    /// Reads that the file below failed.
    #[serde(default)]
    io_errors: Option<u64>,
    /// Reads that touched encrypted clusters.
    #[serde(default)]
    unsupported_reads: Option<u64>,
    /// Times the cage gave no answer that can be believed.
    #[serde(default)]
    source_errors: Option<u64>,
    /// Times a resident cage died and was started anew.
    #[serde(default)]
    cage_restarts: Option<u64>,
    /// How requests come from the kernel: "fuse" (through /dev/fuse) or "uring" (FUSE over io_uring).
    #[serde(default)]
    transport: Option<String>,
}

impl MountHealth {
    /// What a disk that is mounted on a file tells in its attributes.
    #[must_use]
    pub fn of_file(image: String, verdict: String) -> Self {
        Self {
            image: Some(image),
            verdict: Some(verdict),
            corruptions: None,
            leaks: None,
            healthy: None,
            damaged_reads: None,
            io_errors: None,
            unsupported_reads: None,
            source_errors: None,
            cage_restarts: None,
            transport: None,
        }
    }
}

/// What `instar status --output=json` prints.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StatusDocument {
    /// All mounts that can be seen, in the order of the system's list.
    mounts: Vec<MountDocument>,
}

/// One mount.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct MountDocument {
    /// Where it is, escaped.
    mountpoint: String,
    /// What the system's list says that it is made from, escaped.
    source: String,
    /// "serving", "dead" (its server is gone), "silent" (no answer in time) or "unreadable".
    state: &'static str,
    /// Why it cannot be looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// What it says of itself, if it answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    health: Option<MountHealth>,
}

/// The mounts as a document for programs.
#[must_use]
pub fn status_json(mounts: &[MountFacts]) -> StatusDocument {
    StatusDocument { mounts: mounts.iter().map(document).collect() }
}

fn document(mount: &MountFacts) -> MountDocument {
    let (state, reason, health) = match &mount.state {
        MountState::Serving(health) => ("serving", None, Some(health.clone())),
        MountState::Dead => ("dead", None, None),
        MountState::Silent => ("silent", None, None),
        MountState::Unreadable(error) => ("unreadable", Some(escape_message(&error.to_string())), None),
    };
    let (mountpoint, source) = (escape_path(&mount.point), escape_bytes(mount.source.as_bytes()));
    MountDocument { mountpoint, source, state, reason, health }
}

/// Prints the mounts for people.
///
/// # Errors
/// Those of `out`.
pub fn write_status(mounts: &[MountFacts], out: &mut dyn Write) -> io::Result<()> {
    if mounts.is_empty() {
        return writeln!(out, "nothing is mounted");
    }
    for mount in mounts {
        let point = escape_path(&mount.point);
        match &mount.state {
            MountState::Serving(health) => {
                writeln!(out, "{point}: {}", fares(health))?;
                if let Some(image) = &health.image {
                    writeln!(out, "  image: {}", escape_message(image))?;
                }
                if let Some(verdict) = &health.verdict {
                    writeln!(out, "  check: {}{}", escape_message(verdict), found(health))?;
                }
                if let Some(transport) = &health.transport {
                    writeln!(out, "  transport: {}", escape_message(transport))?;
                }
            }
            MountState::Dead => {
                writeln!(out, "{point}: its server is gone\n  release it with: fusermount3 -u")?;
            }
            MountState::Silent => writeln!(out, "{point}: gives no answer")?,
            MountState::Unreadable(error) => {
                writeln!(out, "{point}: cannot be looked at: {}", escape_message(&error.to_string()))?;
            }
        }
    }
    Ok(())
}

fn fares(health: &MountHealth) -> String {
    if health.healthy != Some(false) {
        return "serving".to_owned();
    }
    let events = [
        (health.damaged_reads, "read of damaged ranges", "reads of damaged ranges"),
        (health.io_errors, "I/O error of the file below", "I/O errors of the file below"),
        (health.unsupported_reads, "read of encrypted clusters", "reads of encrypted clusters"),
        (health.source_errors, "failure of the cage", "failures of the cage"),
        (health.cage_restarts, "restart of the cage", "restarts of the cage"),
    ];
    let told = events.into_iter().filter_map(|(count, one, many)| {
        let count = count.filter(|count| *count > 0)?;
        Some(counted(count, one, many))
    });
    format!("serving, {}", told.collect::<Vec<_>>().join(", "))
}

fn found(health: &MountHealth) -> String {
    let corruptions = health.corruptions.filter(|count| *count > 0);
    let leaks = health.leaks.filter(|count| *count > 0);
    let told: Vec<_> = [
        corruptions.map(|count| counted(count, "corruption", "corruptions")),
        leaks.map(|count| counted(count, "leak", "leaks")),
    ]
    .into_iter()
    .flatten()
    .collect();
    if told.is_empty() { String::new() } else { format!(" ({})", told.join(", ")) }
}

/// One metric of a mount: its name and what it counts.
type Metric = (&'static str, MetricKind, &'static str, fn(&MountHealth) -> Option<u64>);

const METRICS: [Metric; 8] = [
    ("instar_mount_healthy", MetricKind::Gauge, "1 if nothing has gone wrong since the mount.", |health| {
        health.healthy.map(u64::from)
    }),
    ("instar_mount_corruptions", MetricKind::Gauge, "Corruptions that the check found.", |health| {
        health.corruptions
    }),
    ("instar_mount_leaks", MetricKind::Gauge, "Leaks that the check found.", |health| health.leaks),
    ("instar_mount_damaged_reads_total", MetricKind::Counter, "Reads that touched damage.", |health| {
        health.damaged_reads
    }),
    ("instar_mount_io_errors_total", MetricKind::Counter, "Reads that the file below failed.", |health| {
        health.io_errors
    }),
    ("instar_mount_unsupported_reads_total", MetricKind::Counter, "Reads of encrypted clusters.", |health| {
        health.unsupported_reads
    }),
    ("instar_mount_source_errors_total", MetricKind::Counter, "Failures of the cage.", |health| {
        health.source_errors
    }),
    ("instar_mount_cage_restarts_total", MetricKind::Counter, "Restarts of the cage.", |health| {
        health.cage_restarts
    }),
];

/// What the text of [`status_metrics`] begins with.
pub const METRICS_MAGIC: &str = "# HELP instar_mounts ";

/// The mounts in Prometheus' text form.
#[must_use]
pub fn status_metrics(mounts: &[MountFacts]) -> String {
    let mut text = Exposition::default();
    text.begin("instar_mounts", MetricKind::Gauge, "Mounts that can be seen.");
    text.value("instar_mounts", &[], mounts.len() as u64);
    text.begin("instar_mount_up", MetricKind::Gauge, "1 if the mount answers.");
    let documents: Vec<_> = mounts.iter().map(document).collect();
    for mount in &documents {
        text.value("instar_mount_up", &labels(mount), u64::from(mount.health.is_some()));
    }
    for (name, kind, help, value) in METRICS {
        text.begin(name, kind, help);
        for mount in &documents {
            if let Some(value) = mount.health.as_ref().and_then(value) {
                text.value(name, &labels(mount), value);
            }
        }
    }
    text.into_text()
}

fn labels(mount: &MountDocument) -> [(&str, &str); 2] {
    [("mountpoint", &mount.mountpoint), ("source", &mount.source)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::schema::{assert_published, validator};

    fn mounts() -> [MountFacts; 4] {
        let health = r#"{"image": "/srv/a\u001b[31m.qcow2", "verdict": "corruptions", "corruptions": 2, "healthy": false,
            "damaged-reads": 7, "cage-restarts": 1, "transport": "uring", "disks": []}"#;
        let mount = |point: &str, state| MountFacts { point: point.into(), source: "a.qcow2".into(), state };
        [
            mount("/mnt/a\n", MountState::Serving(serde_json::from_str(health).unwrap())),
            mount("/mnt/b", MountState::Dead),
            mount("/mnt/c", MountState::Silent),
            mount("/mnt/d", MountState::Unreadable(io::ErrorKind::PermissionDenied.into())),
        ]
    }

    #[test]
    fn status_schema_in_docs_is_that_of_the_type() {
        assert_published::<StatusDocument>("status");
        let document = serde_json::to_value(status_json(&mounts())).unwrap();
        assert!(validator("status").is_valid(&document), "{document:#}");
        assert_eq!(document["mounts"][0]["health"]["damaged-reads"], 7);
        assert_eq!(document["mounts"][1]["state"], "dead");
    }

    #[test]
    fn status_for_people_tells_what_happened_and_cannot_drive_the_terminal() {
        let mut text = Vec::new();
        write_status(&mounts(), &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        for words in [
            "/mnt/a\\n: serving, 7 reads of damaged ranges, 1 restart of the cage\n",
            "  image: /srv/a\\u{1b}[31m.qcow2\n",
            "  check: corruptions (2 corruptions)\n",
            "  transport: uring\n",
            "/mnt/b: its server is gone\n",
            "/mnt/c: gives no answer\n",
            "/mnt/d: cannot be looked at: permission denied\n",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
        let mut none = Vec::new();
        write_status(&[], &mut none).unwrap();
        assert_eq!(none, b"nothing is mounted\n");
    }

    #[test]
    fn metrics_tell_of_every_mount_and_leave_out_what_is_unknown() {
        let text = status_metrics(&mounts());
        assert!(text.starts_with(METRICS_MAGIC), "{text}");
        let labels = r#"{mountpoint="/mnt/a\\n",source="a.qcow2"}"#;
        for line in [
            "instar_mounts 4".to_owned(),
            format!("instar_mount_up{labels} 1"),
            format!("instar_mount_healthy{labels} 0"),
            format!("instar_mount_damaged_reads_total{labels} 7"),
            r#"instar_mount_up{mountpoint="/mnt/b",source="a.qcow2"} 0"#.to_owned(),
        ] {
            assert!(text.lines().any(|l| l == line), "{line}: {text}");
        }
        assert!(!text.lines().any(|line| line.starts_with("instar_mount_leaks{")), "{text}");
    }
}
