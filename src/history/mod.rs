//! What is remembered of past repairs of an image, in a state folder of this host.
//!
//! Three things follow from it: a repair that has failed three times in the same state is not tried a fourth time
//! ([`judge::failures_in_a_row`]); damage that comes back after it was repaired is told as such
//! ([`judge::recurring`]); and one image has one healer at a time ([`Claim`]).
//!
//! Invariant: nothing here decides what may be written to an image, and nothing that goes wrong here keeps a repair
//! from being made: the caller says so and goes on. Bounded: old attempts are forgotten. Interprets no image byte.

use std::path::{Path, PathBuf};

use thiserror::Error;

mod claim;
mod fingerprint;
mod folder;
pub mod judge;
mod store;

pub use claim::{Claim, ClaimError};
pub use fingerprint::of as fingerprint;
pub use folder::{Folder, default_path};
pub use judge::Recurring;
pub use store::{Attempt, Counts, Store};

use crate::heal::Ending;
use crate::image::ImageFile;

/// What tells one image of this host from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageKey {
    /// Number of the device that it lies on.
    pub device: u64,
    /// Its inode number there.
    pub inode: u64,
    /// Its path, symbolic links followed.
    pub path: PathBuf,
}

impl ImageKey {
    /// The key of an open image.
    #[must_use]
    pub fn of(image: &ImageFile) -> Self {
        let (device, inode) = image.identity();
        // A name that is gone meanwhile still tells images apart as it was given.
        let path = std::fs::canonicalize(image.path()).unwrap_or_else(|_| image.path().to_owned());
        Self { device, inode, path }
    }
}

/// Why the memory cannot be used. Never a reason not to repair.
#[derive(Debug, Error)]
#[error("{}: {kind}", path.display())]
pub struct HistoryError {
    /// Which folder or file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub kind: HistoryErrorKind,
}

/// What is wrong with the state folder or a file in it.
#[derive(Debug, Error)]
pub enum HistoryErrorKind {
    /// The system refused.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried, as an infinitive.
        action: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// Somebody else could have written what is in it.
    #[error("is not to be trusted: {why}")]
    Untrusted {
        /// Why.
        why: &'static str,
    },
    /// The database could not be read or written.
    #[error("the database cannot be used: {0}")]
    Database(rusqlite::Error),
    /// The database was made by a newer version of this program.
    #[error("the database has version {version}, known is up to {known}")]
    Newer {
        /// Its version.
        version: i64,
        /// The newest that is known.
        known: i64,
    },
}

impl HistoryError {
    fn io(path: &Path, action: &'static str, source: impl Into<std::io::Error>) -> Self {
        Self { path: path.to_owned(), kind: HistoryErrorKind::Io { action, source: source.into() } }
    }
}

/// Why a repair is not begun.
#[derive(Debug, Error)]
pub enum Refusal {
    /// Another healer is at work on the image.
    #[error("it is being repaired by {}", holder.map_or("another process".to_owned(), |pid| format!("process {pid}")))]
    Claimed {
        /// Its process id, where it is known.
        holder: Option<u32>,
    },
    /// The same repair has failed too often.
    #[error("{failures} attempts in a row, the last one ended as {last}")]
    Exhausted {
        /// How often.
        failures: u32,
        /// How the last attempt ended.
        last: String,
    },
}

impl Refusal {
    /// Where it leads in the routing table.
    #[must_use]
    pub const fn ending(&self) -> Ending {
        match self {
            Self::Claimed { .. } => Ending::InUse,
            Self::Exhausted { .. } => Ending::Exhausted,
        }
    }
}
