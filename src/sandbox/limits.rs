//! Every bound on what an inmate may use up, in one place. All of them are reported when hit.

use std::time::Duration;

/// Bounds on one job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of arena (`--memory`); rounded up to large pages. Only what is touched costs memory.
    pub arena_bytes: u64,
    /// Calls in the life of the job; a resident job counts them anew for each request.
    pub calls: u64,
    /// Bytes read in the life of the job; a resident job counts them anew for each request.
    pub bytes_read: u64,
    /// Bytes staged by a plan.
    pub bytes_staged: u64,
    /// Findings that are kept; those after it are only counted.
    pub findings_kept: u64,
    /// Findings, kept or not.
    pub findings: u64,
    /// Owners of findings.
    pub owners: u64,
    /// Bytes of names and other texts.
    pub text_bytes: u64,
    /// Wall time between two calls.
    pub silence: Duration,
    /// Wall time of the whole job, or of one request of a resident job.
    pub total: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            arena_bytes: 256 << 20,
            calls: 64 << 20,
            bytes_read: 16 << 40,
            bytes_staged: 16 << 30,
            findings_kept: 10_000,
            findings: 1 << 32,
            owners: 1 << 20,
            text_bytes: 64 << 20,
            silence: Duration::from_secs(30),
            total: Duration::from_secs(24 * 3600),
        }
    }
}
