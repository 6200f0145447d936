//! Why there is no mount.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

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
    /// The disk's bytes lie in another file too.
    #[error("{}: images with a backing file are not served yet", escape_path(image))]
    Backing {
        /// The image.
        image: PathBuf,
    },
    /// The program could not be started once more, or the one that was waiting for the mount is gone.
    #[error("cannot go to the background")]
    Background(#[source] io::Error),
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
            Self::Backing { .. } => Some("qemu-img convert -O qcow2 writes a copy that needs no other file"),
            Self::Background(_) => Some("-f stays in the foreground"),
            Self::Session(_) | Self::Signals(_) => None,
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
