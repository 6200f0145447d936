//! Why there is no mount.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::chain::ChainProblem;
use crate::fuse::{MountPointError, SessionError};
use crate::report::escape_path;

/// Why there is no mount, or why it ended badly.
#[derive(Debug, Error)]
pub enum MountError {
    /// The mount point is none.
    #[error(transparent)]
    Point(MountPointError),
    /// The kernel, or fusermount3.
    #[error(transparent)]
    Session(SessionError),
    /// The backing chain is not whole.
    #[error("{}: its backing chain is not whole", escape_path(image))]
    Chain {
        /// The member that it is about.
        image: PathBuf,
        /// What is wrong.
        #[source]
        problem: ChainProblem,
    },
    /// A member of the backing chain cannot be served.
    #[error("{}: {why}", escape_path(image))]
    Member {
        /// The member.
        image: PathBuf,
        /// What it is or has.
        why: String,
    },
    /// The program could not be started once more, or the one that was waiting for the mount is gone.
    #[error("cannot go to the background")]
    Background(#[source] io::Error),
    /// The command could not be started or waited for.
    #[error("cannot run the command")]
    Command(#[source] io::Error),
    /// The folder for the mount of a command cannot be made, looked at or removed.
    #[error("the folder to mount on for the command")]
    Folder(#[source] io::Error),
    /// Nowhere to mount on.
    #[error("no mount point is given")]
    NoPoint,
    /// What gives memory back could not be started.
    #[error("cannot start the thread that gives memory back")]
    Idle(#[source] io::Error),
    /// The process that unmounts could not be started.
    #[error("cannot start the keeper of the mount")]
    Keeper(#[source] io::Error),
    /// Signals cannot be caught.
    #[error("cannot wait for signals")]
    Signals(#[source] io::Error),
}

impl MountError {
    /// What the user can do next, where there is something.
    #[must_use]
    pub const fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Point(error) => point_hint(error),
            Self::Session(SessionError::Mount { .. }) => Some(
                "is fuse3 installed, the fuse module loaded (modprobe fuse) and /dev/fuse there? Users other than root \
                 need fusermount3, and the right to write to /dev/fuse and to the mount point",
            ),
            Self::Session(SessionError::Rings { .. }) => Some(
                "it takes Linux 6.14 or newer, and root to switch it on: echo Y >/sys/module/fuse/parameters/enable_uring; \
                 --transport=auto does without it where it has to",
            ),
            Self::Chain { problem: ChainProblem::FormatUnstated, .. } => {
                Some("say what it is with --backing-format=qcow2 or --backing-format=raw")
            }
            Self::Chain { .. } | Self::Member { .. } => Some(
                "instar check --chain tells of every member that can be reached; --backing=none serves what the image \
                 itself holds",
            ),
            Self::Background(_) => Some("-f stays in the foreground"),
            Self::Session(_)
            | Self::Keeper(_)
            | Self::Idle(_)
            | Self::Signals(_)
            | Self::Command(_)
            | Self::Folder(_)
            | Self::NoPoint => None,
        }
    }
}

const fn point_hint(error: &MountPointError) -> Option<&'static str> {
    match error {
        MountPointError::Missing { .. } => {
            Some("create an empty folder (mkdir) or an empty file (touch) there")
        }
        MountPointError::Dead { .. } => Some("release it with fusermount3 -u, then try again"),
        MountPointError::Mounted { .. } => {
            Some("release it with fusermount3 -u or umount, or use another one")
        }
        MountPointError::NotEmpty { .. } => {
            Some("use an empty folder: what is in it could not be seen any more")
        }
        MountPointError::Kind { .. } => Some("use an empty folder or a regular file"),
        MountPointError::Image { .. } => Some("use another file, or an empty folder"),
        MountPointError::Unreadable { .. } => None,
    }
}
