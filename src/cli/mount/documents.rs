//! The texts under `.instar`: health, metrics, and maps of the damage.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use serde::Serialize;

use crate::disk::{CacheCounts, Disk, HealthCounts, Survey, Unpacker, merged};
use crate::fuse::{Document, Transport};
use crate::report::{CheckReport, Exposition, MetricKind, escape_path, mapfile, verdict_name};

/// A disk with the name of its file.
#[derive(Debug, Clone)]
pub struct Named {
    /// The name.
    pub name: String,
    /// The disk.
    pub disk: Arc<Disk>,
}

/// The image, as its check and its place tell of it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Known {
    /// Absolute, escaped.
    pub image: String,
    verdict: &'static str,
    corruptions: u64,
    leaks: u64,
}

impl Known {
    /// What is known of the image at `path` from its report.
    #[must_use]
    pub fn new(path: &Path, report: &CheckReport) -> Self {
        let absolute = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        Self {
            image: escape_path(&absolute),
            verdict: verdict_name(report.verdict()),
            corruptions: report.corruptions(),
            leaks: report.leaks(),
        }
    }
}

/// What health and metrics are made from.
#[derive(Debug, Clone)]
pub struct Watched {
    /// The image.
    pub known: Known,
    /// All disks that are served.
    pub disks: Vec<Named>,
    /// Counters of restarts, one for each resident cage.
    pub restarts: Vec<Arc<AtomicU64>>,
    /// The inflated clusters, of the image and of each member below it.
    pub unpackers: Vec<Arc<Unpacker>>,
    /// How the disks are served.
    pub transport: Arc<OnceLock<Transport>>,
}

/// `.instar/health`.
#[derive(Debug)]
pub struct Health(pub Watched);

/// `.instar/metrics`, in Prometheus' text form.
#[derive(Debug)]
pub struct Metrics(pub Watched);

/// What `.instar/health` says.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct HealthDocument<'a> {
    #[serde(flatten)]
    known: &'a Known,
    /// Nothing has gone wrong so far.
    healthy: bool,
    /// Sums over all disks.
    #[serde(flatten)]
    counts: HealthCounts,
    /// Times a resident cage died and was started anew, or could not be started.
    cage_restarts: u64,
    /// Clusters that are kept inflated, of the image and of what is below it.
    inflated: CacheCounts,
    /// "fuse" or "uring".
    transport: Option<&'static str>,
    disks: Vec<DiskDocument>,
}

#[derive(Debug, Serialize)]
struct DiskDocument {
    name: String,
    #[serde(flatten)]
    counts: HealthCounts,
    /// What is known of where its clusters are.
    extents: CacheCounts,
}

impl Watched {
    fn inflated(&self) -> CacheCounts {
        self.unpackers.iter().map(|unpacker| unpacker.counts()).sum()
    }

    fn cage_restarts(&self) -> u64 {
        self.restarts.iter().fold(0, |sum: u64, count| sum.saturating_add(count.load(Ordering::Relaxed)))
    }
}

impl Document for Health {
    fn render(&self) -> Vec<u8> {
        let counts: HealthCounts = self.0.disks.iter().map(|named| named.disk.health().counts()).sum();
        let disk = |Named { name, disk }: &Named| DiskDocument {
            name: name.clone(),
            counts: disk.health().counts(),
            extents: disk.extent_counts(),
        };
        let cage_restarts = self.0.cage_restarts();
        let healthy = counts == HealthCounts::default() && cage_restarts == 0;
        let disks = self.0.disks.iter().map(disk).collect();
        let (known, inflated) = (&self.0.known, self.0.inflated());
        let transport = self.0.transport.get().map(|transport| transport.name());
        let document = HealthDocument { known, healthy, counts, cage_restarts, inflated, transport, disks };
        let mut text = serde_json::to_vec_pretty(&document).unwrap_or_else(|error| {
            tracing::error!(%error, "the counters cannot be put into JSON");
            Vec::new()
        });
        text.push(b'\n');
        text
    }
}

/// Reads one of the counters.
type Counter = fn(&HealthCounts) -> u64;

/// The counters by name, with what they count.
const COUNTERS: [(&str, &str, Counter); 4] = [
    ("instar_damaged_reads_total", "Reads that touched a damaged range.", |counts| counts.damaged_reads),
    ("instar_io_errors_total", "Reads that the file below failed.", |counts| counts.io_errors),
    ("instar_unsupported_reads_total", "Reads that touched encrypted clusters.", |counts| {
        counts.unsupported_reads
    }),
    ("instar_source_errors_total", "Times the cage gave no answer that can be believed.", |counts| {
        counts.source_errors
    }),
];

/// Reads one figure of a cache.
type Figure = fn(&CacheCounts) -> u64;

/// The figures of a cache: the end of the name, what it is, its kind.
const FIGURES: [(&str, &str, MetricKind, Figure); 3] = [
    ("bytes", "Memory for", MetricKind::Gauge, |counts| counts.bytes),
    ("added_total", "Times that there was something new among", MetricKind::Counter, |counts| counts.added),
    ("dropped_total", "Times that something was dropped from", MetricKind::Counter, |counts| counts.dropped),
];

impl Document for Metrics {
    fn render(&self) -> Vec<u8> {
        let mut text = Exposition::default();
        for (name, help, value) in COUNTERS {
            text.begin(name, MetricKind::Counter, help);
            for Named { name: disk, disk: of } in &self.0.disks {
                text.value(name, &[("disk", disk)], value(&of.health().counts()));
            }
        }
        for (ending, what, kind, figure) in FIGURES {
            let name = format!("instar_extents_{ending}");
            text.begin(&name, kind, &format!("{what} the known extents."));
            for Named { name: disk, disk: of } in &self.0.disks {
                text.value(&name, &[("disk", disk)], figure(&of.extent_counts()));
            }
            let name = format!("instar_inflated_{ending}");
            text.begin(&name, kind, &format!("{what} the inflated clusters."));
            text.value(&name, &[], figure(&self.0.inflated()));
        }
        let name = "instar_cage_restarts_total";
        text.begin(name, MetricKind::Counter, "Times a resident cage died and was started anew.");
        text.value(name, &[], self.0.cage_restarts());
        text.into_text().into_bytes()
    }
}

/// Where a disk is damaged, as a mapfile of ddrescue: `+` is what can be read, `-` what cannot, `?` what was not
/// looked at because the disk is in too many pieces.
#[derive(Debug)]
pub struct DamageMap {
    disk: Arc<Disk>,
    survey: OnceLock<Survey>,
}

impl DamageMap {
    /// The map of a disk; of one in which nothing was found, nothing but what reads have found since.
    #[must_use]
    pub fn new(disk: Arc<Disk>, is_clean: bool) -> Self {
        let survey = OnceLock::new();
        if is_clean {
            let seen_bytes = disk.size_bytes();
            survey.get_or_init(|| Survey { seen_bytes, ..Survey::default() });
        }
        Self { disk, survey }
    }
}

impl Document for DamageMap {
    fn render(&self) -> Vec<u8> {
        let (size, cluster) = (self.disk.size_bytes(), self.disk.cluster_bytes());
        let survey = self.survey.get_or_init(|| self.disk.survey());
        let bad = self.disk.health().bad_clusters();
        let found = bad.into_iter().map(|at| at..at.saturating_add(cluster).min(size));
        let damaged = merged(survey.damaged.iter().cloned().chain(found).collect());
        mapfile(size, survey.seen_bytes, &damaged).into_bytes()
    }
}
