//! What a mount point must be before anything is mounted on it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
use thiserror::Error;

/// A place that can be mounted on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountPoint {
    /// An empty folder: the tree appears in it.
    Directory(PathBuf),
    /// A regular file: the disk appears at exactly this path.
    File(PathBuf),
}

/// Why a path cannot be mounted on.
#[derive(Debug, Error)]
pub enum MountPointError {
    /// Nothing there.
    #[error("mount point {} does not exist", path.display())]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// A mount whose server is gone.
    #[error("mount point {} holds a mount whose server is gone", path.display())]
    Dead {
        /// The path.
        path: PathBuf,
    },
    /// Something is mounted there.
    #[error("mount point {} is a mount point already", path.display())]
    Mounted {
        /// The path.
        path: PathBuf,
    },
    /// A folder with something in it.
    #[error("mount point {} is not empty: {} is in it", path.display(), entry.display())]
    NotEmpty {
        /// The path.
        path: PathBuf,
        /// The first entry found.
        entry: PathBuf,
    },
    /// Neither folder nor file.
    #[error("mount point {} is neither a folder nor a regular file", path.display())]
    Kind {
        /// The path.
        path: PathBuf,
    },
    /// The image itself.
    #[error("mount point {} is the image itself", path.display())]
    Image {
        /// The path.
        path: PathBuf,
    },
    /// It cannot be looked at.
    #[error("mount point {} cannot be looked at", path.display())]
    Unreadable {
        /// The path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl MountPoint {
    /// Looks at a path. `image` is device and inode number of the image, which cannot be its own mount point.
    ///
    /// # Errors
    /// Why it cannot be mounted on.
    pub fn check(path: &Path, image: (u64, u64)) -> Result<Self, MountPointError> {
        let failed = |source: io::Error| failed(path, source);
        let absolute = path.canonicalize().map_err(failed)?;
        let metadata = fs::metadata(&absolute).map_err(failed)?;
        if (metadata.dev(), metadata.ino()) == image {
            return Err(MountPointError::Image { path: path.into() });
        }
        if is_mount_root(&absolute).map_err(failed)? {
            return Err(MountPointError::Mounted { path: path.into() });
        }
        if metadata.is_file() {
            return Ok(Self::File(absolute));
        }
        if !metadata.is_dir() {
            return Err(MountPointError::Kind { path: path.into() });
        }
        match fs::read_dir(&absolute).map_err(failed)?.next() {
            None => Ok(Self::Directory(absolute)),
            Some(entry) => {
                let entry = entry.map_err(failed)?.file_name().into();
                Err(MountPointError::NotEmpty { path: path.into(), entry })
            }
        }
    }

    /// The path, absolute and without symbolic links.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Directory(path) | Self::File(path) => path,
        }
    }
}

fn failed(path: &Path, source: io::Error) -> MountPointError {
    let path = path.into();
    match source.kind() {
        io::ErrorKind::NotFound => MountPointError::Missing { path },
        io::ErrorKind::NotConnected => MountPointError::Dead { path },
        _ => MountPointError::Unreadable { path, source },
    }
}

/// True if something is mounted exactly there. A kernel that cannot tell (before 5.8) is taken for a no: mounting on
/// top is what it would have allowed.
///
/// # Errors
/// Those of the system, and of a server that gives no answer.
pub fn is_mount_root(path: &Path) -> io::Result<bool> {
    // Asked of the server, if there is one: what the kernel remembers of a dead one would do as an answer.
    let found = statx(CWD, path, AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS)?;
    Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_IMAGE: (u64, u64) = (0, 0);

    #[test]
    fn mount_point_empty_folder_and_file_are_taken() {
        let folder = tempfile::tempdir().unwrap();
        let canonical = folder.path().canonicalize().unwrap();
        assert_eq!(
            MountPoint::check(folder.path(), NO_IMAGE).unwrap(),
            MountPoint::Directory(canonical.clone())
        );
        let file = folder.path().join("disk");
        fs::write(&file, b"").unwrap();
        assert_eq!(MountPoint::check(&file, NO_IMAGE).unwrap(), MountPoint::File(canonical.join("disk")));
    }

    #[test]
    fn mount_point_that_cannot_be_used_is_refused_with_its_reason() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        assert!(matches!(MountPoint::check(&missing, NO_IMAGE), Err(MountPointError::Missing { .. })));
        fs::write(folder.path().join("something"), b"x").unwrap();
        assert!(matches!(
            MountPoint::check(folder.path(), NO_IMAGE),
            Err(MountPointError::NotEmpty { entry, .. }) if entry == Path::new("something")
        ));
        let image = fs::metadata(folder.path().join("something")).unwrap();
        assert!(matches!(
            MountPoint::check(&folder.path().join("something"), (image.dev(), image.ino())),
            Err(MountPointError::Image { .. })
        ));
        assert!(matches!(
            MountPoint::check(Path::new("/dev/null"), NO_IMAGE),
            Err(MountPointError::Kind { .. })
        ));
        assert!(matches!(
            MountPoint::check(Path::new("/proc"), NO_IMAGE),
            Err(MountPointError::Mounted { .. })
        ));
    }
}
