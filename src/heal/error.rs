//! Why a repair, a resume or an undo did not do what was asked. Each kind leads to one [`Ending`].

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::discard::Mistrust;
use super::ending::Ending;
use super::plan::PlanError;
use super::side::RecordError;
use super::verify::Doubt;
use crate::image::{LockError, OpenError};
use crate::sandbox::error::SandboxError;

/// What went wrong.
#[derive(Debug, Error)]
pub enum HealError {
    /// Somebody else uses the image.
    #[error(transparent)]
    InUse(#[from] LockError),
    /// A cage gave no result.
    #[error("{stage} gave no result")]
    Cage {
        /// Which job ("the check", "the plan", ...).
        stage: &'static str,
        /// What the cage said.
        #[source]
        source: SandboxError,
    },
    /// The plan broke a rule.
    #[error("the plan cannot be carried out")]
    BadPlan(#[source] PlanError),
    /// A plan that was made for another image, or for this one in another state.
    #[error("{}: not the image that the plan was made for: {what}", path.display())]
    PlanForeign {
        /// The image.
        path: PathBuf,
        /// What tells so.
        what: String,
    },
    /// The proof on the copy failed.
    #[error("quarantine: the repaired copy of the image is not better: {0}")]
    Quarantined(Doubt),
    /// The proof on the live image failed, and the image was put back.
    #[error("quarantine: the repaired image is not better: {0}")]
    RolledBack(Doubt),
    /// The proof on the live image failed, and the image could not be put back.
    #[error("quarantine: the repaired image is not better ({doubt}), and could not be put back")]
    RollbackFailed {
        /// Why the proof failed.
        doubt: Doubt,
        /// Why it could not be put back.
        #[source]
        source: io::Error,
    },
    /// What was told as free is not believed to be.
    #[error("not all of what is told as free is without a user: {0}")]
    Unproven(Mistrust),
    /// What was told as free makes no list of ranges.
    #[error("what is told as free cannot be looked through")]
    BadList(#[source] io::Error),
    /// The storage gives nothing back.
    #[error("{}: the storage below cannot give back a part of it", path.display())]
    CannotDiscard {
        /// The image.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Storage failed while clusters that nothing uses were given back.
    #[error("{}: cannot give back {len} bytes at {offset:#x} for certain", path.display())]
    DiscardInterrupted {
        /// The image.
        path: PathBuf,
        /// Where it failed.
        offset: u64,
        /// How many bytes were to be given back there.
        len: u64,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// All was given back, but the check of the image after it gave no result.
    #[error("the check of the image, after its unused clusters were given back, gave no result")]
    DiscardUnchecked(#[source] SandboxError),
    /// The image is not what it was when it was checked.
    #[error("{}: the image was changed by somebody else: {what}", path.display())]
    Changed {
        /// The image.
        path: PathBuf,
        /// What tells so.
        what: &'static str,
    },
    /// Not enough room.
    #[error("{}: {needed_bytes} bytes are needed, {free_bytes} are free", path.display())]
    NoSpace {
        /// What would have been written.
        path: PathBuf,
        /// How much.
        needed_bytes: u64,
        /// What there is.
        free_bytes: u64,
    },
    /// There is no folder for the records.
    #[error("{}: no place for undo file and journal{}", image.display(),
        folder.as_ref().map(|f| format!(" in {}", f.display())).unwrap_or_default())]
    NoPlaceForRecords {
        /// The image.
        image: PathBuf,
        /// The folder that the user named.
        folder: Option<PathBuf>,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The image cannot be opened for writing.
    #[error(transparent)]
    NotWritable(#[from] OpenError),
    /// Storage failed before the image was written.
    #[error("{}: cannot {action}", path.display())]
    Storage {
        /// Which file.
        path: PathBuf,
        /// What was tried, as an infinitive.
        action: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Storage failed while the image was written; the journal is still there.
    #[error("{}: cannot {action}", path.display())]
    Interrupted {
        /// Which file.
        path: PathBuf,
        /// What was tried, as an infinitive.
        action: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Storage failed while the image was put back; the undo file is still there.
    #[error("{}: cannot {action}", path.display())]
    UndoFailed {
        /// Which file.
        path: PathBuf,
        /// What was tried, as an infinitive.
        action: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The image is written, but the check of it gave no result; the journal is still there.
    #[error("the check of the repaired image gave no result")]
    Unattested(#[source] SandboxError),
    /// There is a journal, and nobody has said what is to be done with it.
    #[error("{}: an interrupted repair has left its journal", .0.display())]
    JournalFound(PathBuf),
    /// An undo was interrupted.
    #[error("{}: an undo was interrupted", .0.display())]
    UndoInterrupted(PathBuf),
    /// The journal cannot be used.
    #[error("{}", path.display())]
    JournalDamaged {
        /// The journal.
        path: PathBuf,
        /// Why.
        #[source]
        source: RecordError,
    },
    /// Journal, undo file and image do not belong together.
    #[error("{}: {why}", path.display())]
    JournalForeign {
        /// The journal.
        path: PathBuf,
        /// What does not fit.
        why: &'static str,
    },
    /// Nothing to resume.
    #[error("{}: no journal", .0.display())]
    NoJournal(PathBuf),
    /// Nothing to undo.
    #[error("{}: no undo file", .0.display())]
    NoUndo(PathBuf),
    /// The undo file cannot be used.
    #[error("{}", path.display())]
    UndoDamaged {
        /// The undo file.
        path: PathBuf,
        /// Why.
        #[source]
        source: RecordError,
    },
    /// The image has been written by somebody else since the repair.
    #[error("{}: byte {offset:#x} is neither as before the repair nor as after it", path.display())]
    UsedSince {
        /// The image.
        path: PathBuf,
        /// Where.
        offset: u64,
    },
}

impl HealError {
    /// Where it leads in the routing table.
    #[must_use]
    pub fn ending(&self) -> Ending {
        match self {
            Self::InUse(_) => Ending::InUse,
            Self::Cage { .. } => Ending::CageFailed,
            Self::BadPlan(error) if error.is_about_size() => Ending::TooLarge,
            Self::BadPlan(_) => Ending::BadPlan,
            Self::PlanForeign { .. } => Ending::PlanForeign,
            Self::Quarantined(_) => Ending::Quarantined,
            Self::RolledBack(_) => Ending::RolledBack,
            Self::RollbackFailed { .. } => Ending::RollbackFailed,
            Self::Unproven(_) | Self::BadList(_) => Ending::DiscardUnproven,
            Self::CannotDiscard { .. } => Ending::CannotDiscard,
            Self::DiscardInterrupted { .. } | Self::DiscardUnchecked(_) => Ending::DiscardInterrupted,
            Self::Changed { .. } => Ending::ImageChanged,
            Self::NoSpace { .. } => Ending::NoSpace,
            Self::Storage { source, .. } if is_full(source) => Ending::NoSpace,
            Self::NoPlaceForRecords { .. } => Ending::NoPlaceForRecords,
            Self::NotWritable(_) => Ending::NotWritable,
            Self::Storage { .. } => Ending::StorageFailed,
            Self::Interrupted { .. } | Self::Unattested(_) => Ending::LandingInterrupted,
            Self::JournalFound(_) => Ending::JournalFound,
            Self::UndoFailed { .. } | Self::UndoInterrupted(_) => Ending::UndoInterrupted,
            Self::JournalDamaged { .. } => Ending::JournalDamaged,
            Self::JournalForeign { .. } => Ending::JournalForeign,
            Self::NoJournal(_) => Ending::NoJournal,
            Self::NoUndo(_) => Ending::NoUndo,
            Self::UndoDamaged { .. } => Ending::UndoDamaged,
            Self::UsedSince { .. } => Ending::UsedSince,
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
