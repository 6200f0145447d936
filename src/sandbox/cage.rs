//! What every kind of cage can do: let the inmate run until it rings.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::error::SandboxError;
use super::memory::InmateMemory;

/// How the inmate is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CageKind {
    /// A virtual machine with one vCPU that never leaves CPL 3.
    Kvm,
    /// A process with no memory but its own and no system calls but two pipe ends and exit.
    Process,
}

impl CageKind {
    /// The name that `--sandbox` takes and reports show.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Process => "process",
        }
    }
}

/// A point in time at which the inmate's run ends, and what to say then.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    /// When.
    pub at: Instant,
    /// What has not come by then.
    pub what: &'static str,
    /// The limit that this comes from.
    pub limit: Duration,
}

impl Deadline {
    /// The error for having passed it.
    pub(super) fn passed(&self) -> SandboxError {
        SandboxError::Timeout { what: self.what, limit: self.limit }
    }

    /// Time that is left, zero if none.
    pub(super) fn left(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }
}

/// An inmate that is stopped, at its start or at its doorbell.
///
/// Dropping a cage ends the inmate wherever it is and frees all that it used. A cage stays on the thread that
/// made it: deadlines are delivered to that thread.
pub(super) trait Cage {
    /// The memory that calls are about.
    fn memory(&self) -> &Arc<InmateMemory>;

    /// Lets the inmate run until it rings the doorbell.
    ///
    /// # Errors
    /// [`SandboxError::Timeout`] at the deadline, [`SandboxError::Fault`] when the inmate leaves in any other way
    /// than through the doorbell, [`SandboxError::Host`] when the system fails. The cage is of no use after that.
    fn enter(&mut self, deadline: &Deadline) -> Result<(), SandboxError>;
}
