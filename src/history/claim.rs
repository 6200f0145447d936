//! One healer per image and host.
//!
//! A claim is a write lock of an open file description on a small file, so it ends with its holder, however that
//! ends. The file holds the holder's process id, for the one who comes second, and is gone when the claim is.
//! Invariant: of two who claim the same image at the same time, one gets it. It does not guard against healers with
//! another state folder; the image's own lock does.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::OFlags;
use thiserror::Error;

use super::{Folder, HistoryError, ImageKey};

/// The folder of the claims in the state folder.
const FOLDER: &str = "claims";
/// How often a file that went away between its opening and its locking is opened anew.
const TRIES_MAX: u32 = 16;
/// More bytes than a process id has.
const PID_BYTES_MAX: u64 = 20;

/// The right to repair an image; given back when dropped.
#[derive(Debug)]
pub struct Claim {
    /// Keeps the lock.
    _file: File,
    path: PathBuf,
}

/// Why there is no claim.
#[derive(Debug, Error)]
pub enum ClaimError {
    /// Another process has it.
    #[error("claimed by another process")]
    Held {
        /// Its id, where it is known.
        holder: Option<u32>,
    },
    /// The state folder cannot be used.
    #[error(transparent)]
    Unusable(#[from] HistoryError),
}

impl Claim {
    /// Claims an image.
    ///
    /// # Errors
    /// `Held`, `Unusable`.
    pub fn take(folder: &Folder, image: &ImageKey) -> Result<Self, ClaimError> {
        let claims = Folder::make(&folder.path().join(FOLDER))?;
        let path = claims.path().join(format!("{:x}-{:x}", image.device, image.inode));
        for _ in 0..TRIES_MAX {
            if let Some(claim) = Self::attempt(&path)? {
                return Ok(claim);
            }
        }
        Err(ClaimError::Held { holder: None })
    }

    /// `None` if the file lost its name to a holder who was just leaving.
    fn attempt(path: &Path) -> Result<Option<Self>, ClaimError> {
        let failed = |action| move |source: io::Error| HistoryError::io(path, action, source);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags((OFlags::NOFOLLOW | OFlags::CLOEXEC).bits().cast_signed())
            .open(path)
            .map_err(failed("open the claim"))?;
        match fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&whole_file())) {
            Ok(_) => {}
            Err(Errno::EAGAIN | Errno::EACCES) => return Err(ClaimError::Held { holder: holder(&mut file) }),
            Err(error) => return Err(failed("lock the claim")(error.into()).into()),
        }
        let (ours, named) = (file.metadata(), std::fs::metadata(path));
        let same = |a: &std::fs::Metadata, b: &std::fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
        if !matches!((&ours, &named), (Ok(ours), Ok(named)) if same(ours, named)) {
            return Ok(None);
        }
        let written = file.set_len(0).and_then(|()| write!(file, "{}", std::process::id()));
        written.map_err(failed("write the claim"))?;
        Ok(Some(Self { _file: file, path: path.to_owned() }))
    }
}

impl Drop for Claim {
    /// The name goes while the lock still holds, so that nobody else's claim is removed.
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the claim could not be removed");
        }
    }
}

fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(PID_BYTES_MAX).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn whole_file() -> libc::flock {
    libc::flock {
        l_type: i16::try_from(libc::F_WRLCK).unwrap_or(i16::MAX),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or(i16::MAX),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(inode: u64) -> ImageKey {
        ImageKey { device: 1, inode, path: "/i".into() }
    }

    #[test]
    fn second_claim_is_refused_by_pid_until_the_first_has_ended() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::make(temporary.path()).unwrap();
        let first = Claim::take(&folder, &key(7)).unwrap();
        let error = Claim::take(&folder, &key(7)).unwrap_err();
        let own = std::process::id();
        assert!(matches!(error, ClaimError::Held { holder: Some(pid) } if pid == own), "{error:?}");
        Claim::take(&folder, &key(8)).unwrap();
        drop(first);
        Claim::take(&folder, &key(7)).unwrap();
        assert_eq!(std::fs::read_dir(temporary.path().join(FOLDER)).unwrap().count(), 0);
    }

    #[test]
    fn claim_of_a_dead_holder_is_free() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::make(&temporary.path().join(FOLDER)).unwrap();
        std::fs::write(folder.path().join("1-7"), "4194304").unwrap();
        Claim::take(&Folder::make(temporary.path()).unwrap(), &key(7)).unwrap();
    }
}
