//! Why a command could not do what it was asked to, and what the user can do about it.
//!
//! Invariant: every one of these ends the program with [`Exit::Failed`]. What is wrong with an image is not an
//! error but a finding.

use std::error::Error as StdError;
use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::cli::mount::MountError;
use crate::cli::output_file::OutputFileError;
use crate::exit::Exit;
use crate::heal::{HealError, PlanFileError};
use crate::history::{HistoryError, Refusal};
use crate::image::{HandleError, LockError, OpenError};
use crate::report::{escape_message, escape_path};
use crate::sandbox::error::SandboxError;
use crate::sandbox::lockdown::LockdownError;

/// Why a command failed.
#[derive(Debug, Error)]
pub enum Error {
    /// The image could not be opened or locked.
    #[error(transparent)]
    Image(#[from] HandleError),
    /// The external data file could not be opened.
    #[error("external data file")]
    DataFile(#[source] OpenError),
    /// The cage gave no result.
    #[error("{}: no result from the cage", escape_path(image))]
    Sandbox {
        /// The image.
        image: PathBuf,
        /// What went wrong.
        #[source]
        source: SandboxError,
    },
    /// The healer did not do what was asked.
    #[error("{}: {}", escape_path(image), source.ending().route().sentence)]
    Heal {
        /// The image.
        image: PathBuf,
        /// What went wrong.
        #[source]
        source: HealError,
    },
    /// Past repairs speak against one more.
    #[error("{}: {}", escape_path(image), source.ending().route().sentence)]
    Refused {
        /// The image.
        image: PathBuf,
        /// Why.
        #[source]
        source: Refusal,
    },
    /// The image's file could not be opened to tell which one it is.
    #[error(transparent)]
    NoImage(OpenError),
    /// The history could not be read.
    #[error("history")]
    History(#[source] HistoryError),
    /// A repair came to an end without a single job.
    #[error("the repair ended before anything was looked at")]
    NothingRan,
    /// A plan file could not be read or written.
    #[error("plan file")]
    PlanFile(#[source] PlanFileError),
    /// A file that was asked for could not be written.
    #[error(transparent)]
    OutputFile(OutputFileError),
    /// The terminal could not be asked.
    #[error("cannot ask what to decide")]
    Ask(#[source] io::Error),
    /// A decision that the tier has no use for.
    #[error("--decide: decisions are for --repair=all")]
    DecideLeaks,
    /// Nobody knows where the undo files of a device are.
    #[error("{}: --discard: it is not known where the undo files of a block device are kept", escape_path(.0))]
    DiscardDevice(PathBuf),
    /// Progress cannot be written where it was asked for.
    #[error("--progress-fd: descriptor {fd} cannot be written")]
    ProgressFd {
        /// What was given.
        fd: u32,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// There is no mount.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The system's list of mounts could not be read.
    #[error("cannot read the list of mounts")]
    MountList(#[source] io::Error),
    /// There is no journal to log to.
    #[error("--log-to=journal: cannot reach the journal")]
    Journal(#[source] io::Error),
    /// The log filter is not one.
    #[error("--log: filter '{filter}' cannot be understood")]
    LogFilter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// A right that is not needed could not be given up.
    #[error(transparent)]
    Lockdown(#[from] LockdownError),
    /// The result could not be printed.
    #[error("cannot print the result")]
    Output(#[source] io::Error),
    /// The result could not be put into JSON.
    #[error("cannot print the result as JSON")]
    Json(#[source] serde_json::Error),
}

impl Error {
    /// The exit code.
    #[must_use]
    pub const fn exit(&self) -> Exit {
        Exit::Failed
    }

    /// What the user can do next, where there is something.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Image(HandleError::Open(error)) | Self::DataFile(error) | Self::NoImage(error) => {
                open_hint(error)
            }
            Self::Image(HandleError::Lock(LockError::Busy { .. })) => Some(
                "shut the virtual machine down, unmount the disk (fusermount3 -u), or wait until the other \
                     program is done, and try again",
            ),
            Self::Sandbox { source, .. } => sandbox_hint(source),
            Self::Heal { source: HealError::Cage { source, .. }, .. } if sandbox_hint(source).is_some() => {
                sandbox_hint(source)
            }
            Self::Heal { source, .. } => Some(source.ending().route().next).filter(|next| !next.is_empty()),
            Self::Refused { source, .. } => Some(source.ending().route().next),
            Self::Mount(error) => error.hint(),
            Self::OutputFile(error) => error.hint(),
            Self::DiscardDevice(_) => {
                Some("name the folder that its repairs were made with, as in --undo-dir=FOLDER")
            }
            Self::Journal(_) => Some("it is where systemd runs; --log-to=stderr works everywhere"),
            Self::LogFilter { .. } => Some("examples: --log=debug, --log=instar_mount::sandbox=trace"),
            Self::Image(HandleError::Lock(LockError::Io { .. }))
            | Self::ProgressFd { .. }
            | Self::NothingRan
            | Self::PlanFile(_)
            | Self::Ask(_)
            | Self::DecideLeaks
            | Self::History(_)
            | Self::MountList(_)
            | Self::Lockdown(_)
            | Self::Output(_)
            | Self::Json(_) => None,
        }
    }

    /// The whole story for a terminal: the error, its causes, and the hint on a line of its own.
    #[must_use]
    pub fn explain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            // Some errors of the system libraries repeat their cause in their own text.
            let message = error.to_string();
            if !text.ends_with(&message) {
                write!(text, ": {message}").unwrap_or_default();
            }
            cause = error.source();
        }
        let mut text = escape_message(&text);
        if let Some(hint) = self.hint() {
            write!(text, "\n  {hint}").unwrap_or_default();
        }
        text
    }
}

fn open_hint(error: &OpenError) -> Option<&'static str> {
    match error {
        OpenError::NotFound(_) => Some("is the path spelled right?"),
        OpenError::Directory(_) => Some("name the image file inside it"),
        OpenError::Empty(_) => Some("the copy or download may have failed; fetch it again"),
        OpenError::PermissionDenied { .. } => Some("run as a user who has that right on the file"),
        OpenError::Replaced(_) => Some("run the command again"),
        OpenError::WrongKind { .. } | OpenError::Io { .. } => None,
    }
}

fn sandbox_hint(error: &SandboxError) -> Option<&'static str> {
    match error {
        SandboxError::Unavailable { source, .. } => Some(match source.kind() {
            io::ErrorKind::PermissionDenied => {
                "join the group that owns /dev/kvm (often: sudo usermod -aG kvm $USER, then log in again), \
                 or use --sandbox=process"
            }
            io::ErrorKind::NotFound => {
                "this machine has no /dev/kvm (is the kvm module loaded, virtualisation switched on?); \
                 --sandbox=process works without it"
            }
            _ => "--sandbox=process works without KVM",
        }),
        SandboxError::Failed { out_of_memory: true, .. } => {
            Some("give it more with --memory, as in --memory=1G")
        }
        SandboxError::Timeout { .. } | SandboxError::Limit { .. } | SandboxError::Fault { .. } => {
            Some("the image may be made to do this; nothing was written, and nothing of it is to be trusted")
        }
        SandboxError::NotMappable { .. } => Some("instar check says more about the image"),
        SandboxError::Failed { .. } | SandboxError::Lockdown(_) | SandboxError::Host { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unavailable(kind: io::ErrorKind) -> Error {
        let source = SandboxError::Unavailable { action: "open /dev/kvm".to_owned(), source: kind.into() };
        Error::Sandbox { image: PathBuf::from("disk.qcow2"), source }
    }

    #[test]
    fn missing_right_on_kvm_names_the_group_and_the_other_cage() {
        let text = unavailable(io::ErrorKind::PermissionDenied).explain();
        assert!(text.starts_with("disk.qcow2: no result from the cage: cannot open /dev/kvm: "), "{text}");
        assert!(text.contains("kvm") && text.contains("--sandbox=process"), "{text}");
    }

    #[test]
    fn missing_kvm_says_so() {
        assert!(unavailable(io::ErrorKind::NotFound).explain().contains("this machine has no /dev/kvm"));
    }

    #[test]
    fn paths_in_messages_cannot_drive_the_terminal() {
        let path = PathBuf::from("a\x1b[2J\nb");
        let text = Error::from(HandleError::Open(OpenError::NotFound(path))).explain();
        assert!(text.starts_with("a\\u{1b}[2J\\nb: no such file\n"), "{text:?}");
    }
}
