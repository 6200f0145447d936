//! How a job can end without a result. Each variant is a different thing to tell the user.

use std::io;
use std::time::Duration;

use thiserror::Error;

use super::lockdown::LockdownError;

/// Why a cage gave no result.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// The cage could not be built (no /dev/kvm, no permission, no memory).
    #[error("cannot {action}")]
    Unavailable {
        /// What was tried, as an infinitive ("open /dev/kvm").
        action: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The inmate did what it may never do; its word counts for nothing. Report: `sandbox-fault`.
    #[error("sandbox-fault: {what}")]
    Fault {
        /// What it did, with address and value where there are any.
        what: String,
    },
    /// A deadline passed. Report: `sandbox-timeout`.
    #[error("sandbox-timeout: no {what} within {limit:?}")]
    Timeout {
        /// "progress" or "result".
        what: &'static str,
        /// The limit that was hit.
        limit: Duration,
    },
    /// A limit other than time was hit. Report: `sandbox-limit`.
    #[error("sandbox-limit: {what} over {limit}")]
    Limit {
        /// Which of [`super::limits::Limits`].
        what: &'static str,
        /// Its value.
        limit: u64,
    },
    /// The inmate gave up in an orderly way.
    #[error("sandbox-fault: the payload failed: {message}")]
    Failed {
        /// Its own words (already stripped of control characters).
        message: String,
        /// It ran out of arena: a larger `--memory` may help.
        out_of_memory: bool,
    },
    /// A resident job has nothing to serve: the image's header or active L1 table cannot be used.
    #[error("the image cannot be mapped: {reason}")]
    NotMappable {
        /// The problems that the inmate reported, by their ids.
        reason: String,
    },
    /// The cage's thread could not give up its rights.
    #[error(transparent)]
    Lockdown(#[from] LockdownError),
    /// The host itself failed while serving (not an I/O error of the image: those are answers).
    #[error("cannot {action}")]
    Host {
        /// What was tried, as an infinitive.
        action: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}
