//! qemu's image locks: who may read, write or resize an image at the same time as whom.
//!
//! The locks are advisory open-file-description locks on single bytes far into the file (nothing is stored
//! there). Byte `100 + p` is read-locked by everybody who *uses* permission `p`; byte `200 + p` by everybody
//! who does *not share* it with others. Whoever wants in takes all its read locks, which never fail among
//! locks of this kind, and then asks the kernel for each permission that it uses whether somebody could not
//! write-lock `200 + p` (someone refuses to share), and for each that it does not share whether somebody holds
//! `100 + p` (someone uses it). As both sides lock first and look afterwards, two that start at the same
//! moment can both be refused, but never both be let in.
//!
//! Invariant: while an [`ImageLock`] lives its mode holds, and no longer; a dead process holds nothing. It
//! deliberately does not guard against programs that take no locks.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use thiserror::Error;

/// First of the bytes that say which permissions are in use.
const USED_BASE: i64 = 100;
/// First of the bytes that say which permissions are not shared.
const UNSHARED_BASE: i64 = 200;

/// Permissions, as bit numbers.
const CONSISTENT_READ: u8 = 0;
const WRITE: u8 = 1;
const WRITE_UNCHANGED: u8 = 2;
const RESIZE: u8 = 3;
const GRAPH_MOD: u8 = 4;
const PERMISSIONS: u8 = 5;

/// A set of permissions.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Permissions(u8);

impl Permissions {
    const fn of(bits: &[u8]) -> Self {
        let mut set = 0;
        let mut at = 0;
        while at < bits.len() {
            set |= 1 << bits[at];
            at += 1;
        }
        Self(set)
    }

    const fn holds(self, permission: u8) -> bool {
        self.0 & (1 << permission) != 0
    }
}

/// What the holder does with the image, and what it lets others do meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Reads; others may read too, nobody may write or resize. Goes together with qemu's own readers.
    Read,
    /// Writes and resizes; nobody else may do anything, not even read.
    Exclusive,
}

impl Mode {
    const fn used(self) -> Permissions {
        match self {
            Self::Read => Permissions::of(&[CONSISTENT_READ]),
            Self::Exclusive => Permissions::of(&[CONSISTENT_READ, WRITE, RESIZE]),
        }
    }

    const fn unshared(self) -> Permissions {
        match self {
            Self::Read => Permissions::of(&[WRITE, RESIZE]),
            Self::Exclusive => Permissions::of(&[CONSISTENT_READ, WRITE, WRITE_UNCHANGED, RESIZE, GRAPH_MOD]),
        }
    }
}

/// What another user of the image does that is in our way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflict {
    /// It uses the permission with this number, which we cannot share.
    Uses(u8),
    /// It does not share the permission with this number, which we need.
    Refuses(u8),
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Uses(permission) | Self::Refuses(permission)) = *self;
        match (self, permission) {
            (Self::Uses(_), CONSISTENT_READ) => f.write_str("it is being read by another program"),
            (Self::Uses(_), WRITE) => f.write_str("it is being written by another program"),
            (Self::Uses(_), WRITE_UNCHANGED) => f.write_str("it is being rewritten by another program"),
            (Self::Uses(_), RESIZE) => f.write_str("it may be resized by another program"),
            (Self::Refuses(_), CONSISTENT_READ) => {
                f.write_str("another program allows nobody to read it meanwhile")
            }
            (Self::Refuses(_), WRITE) => f.write_str("another program allows nobody to write it meanwhile"),
            (Self::Refuses(_), RESIZE) => f.write_str("another program allows nobody to resize it meanwhile"),
            (Self::Uses(_) | Self::Refuses(_), _) => f.write_str("another program holds a lock on it"),
        }
    }
}

/// A process that has the image open with a lock on it, as far as /proc tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Process id.
    pub pid: u32,
    /// Its command name, with control characters replaced.
    pub name: String,
}

/// Why an image could not be locked.
#[derive(Debug, Error)]
pub enum LockError {
    /// Somebody else is in the way.
    #[error("{}: is in use: {conflict}{}", path.display(), holders_suffix(holders))]
    Busy {
        /// The image.
        path: PathBuf,
        /// What is in the way.
        conflict: Conflict,
        /// Who it is, as far as this can be told; empty where it cannot.
        holders: Vec<Holder>,
    },
    /// The file system has no such locks, or the kernel refused.
    #[error("{}: cannot take the image lock", path.display())]
    Io {
        /// The image.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

fn holders_suffix(holders: &[Holder]) -> String {
    if holders.is_empty() {
        return String::new();
    }
    let names: Vec<String> = holders.iter().map(|h| format!("{} (process {})", h.name, h.pid)).collect();
    format!("; held by {}", names.join(", "))
}

/// The image lock of one open file description.
#[derive(Debug)]
pub struct ImageLock {
    fd: OwnedFd,
    path: PathBuf,
    mode: Mode,
}

impl ImageLock {
    /// Locks the file behind `fd` in `mode`. The lock belongs to the open file description, of which a
    /// descriptor is kept: closing `fd` itself does not end it.
    ///
    /// # Errors
    /// `Busy` if another user is in the way (nothing is held then); `Io`.
    pub fn acquire(fd: BorrowedFd<'_>, path: &Path, mode: Mode) -> Result<Self, LockError> {
        let io_error = |source| LockError::Io { path: path.to_path_buf(), source };
        let fd = fd.try_clone_to_owned().map_err(io_error)?;
        let lock = Self { fd, path: path.to_path_buf(), mode };
        lock.take(mode)?;
        Ok(lock)
    }

    /// The mode that is held.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Goes over to another mode. There is no moment at which neither holds.
    ///
    /// # Errors
    /// As [`ImageLock::acquire`]; the old mode still holds then.
    pub fn change(&mut self, mode: Mode) -> Result<(), LockError> {
        let result = self.take(mode);
        if result.is_ok() {
            self.mode = mode;
        }
        self.drop_bytes(self.mode.used(), self.mode.unshared())
            .map_err(|source| LockError::Io { path: self.path.clone(), source })?;
        result
    }

    /// Takes the bytes of `mode` besides those that are held, then looks for conflicts.
    fn take(&self, mode: Mode) -> Result<(), LockError> {
        let (used, unshared) = (mode.used(), mode.unshared());
        let io_error = |source| LockError::Io { path: self.path.clone(), source };
        for p in 0..PERMISSIONS {
            if used.holds(p) {
                set(&self.fd, libc::F_RDLCK, USED_BASE + i64::from(p)).map_err(io_error)?;
            }
            if unshared.holds(p) {
                set(&self.fd, libc::F_RDLCK, UNSHARED_BASE + i64::from(p)).map_err(io_error)?;
            }
        }
        for p in 0..PERMISSIONS {
            if used.holds(p) && is_held(&self.fd, UNSHARED_BASE + i64::from(p)).map_err(io_error)? {
                return Err(self.busy(Conflict::Refuses(p)));
            }
            if unshared.holds(p) && is_held(&self.fd, USED_BASE + i64::from(p)).map_err(io_error)? {
                return Err(self.busy(Conflict::Uses(p)));
            }
        }
        Ok(())
    }

    /// Lets go of every byte that is in neither set.
    fn drop_bytes(&self, used: Permissions, unshared: Permissions) -> io::Result<()> {
        for p in 0..PERMISSIONS {
            if !used.holds(p) {
                set(&self.fd, libc::F_UNLCK, USED_BASE + i64::from(p))?;
            }
            if !unshared.holds(p) {
                set(&self.fd, libc::F_UNLCK, UNSHARED_BASE + i64::from(p))?;
            }
        }
        Ok(())
    }

    fn busy(&self, conflict: Conflict) -> LockError {
        LockError::Busy { path: self.path.clone(), conflict, holders: super::holders::of(&self.fd) }
    }
}

impl Drop for ImageLock {
    /// Lets go byte by byte: the description may live on in the caller's descriptor, or for a moment in a child
    /// that another thread has forked and that has not come to its exec yet.
    fn drop(&mut self) {
        if let Err(error) = self.drop_bytes(Permissions(0), Permissions(0)) {
            tracing::warn!(path = %self.path.display(), %error, "the image lock could not be released");
        }
    }
}

fn one_byte(kind: i32, at: i64) -> libc::flock {
    libc::flock {
        l_type: i16::try_from(kind).unwrap_or(i16::MAX),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or(i16::MAX),
        l_start: at,
        l_len: 1,
        l_pid: 0,
    }
}

fn set(fd: &impl AsFd, kind: i32, at: i64) -> io::Result<()> {
    fcntl(fd.as_fd(), FcntlArg::F_OFD_SETLK(&one_byte(kind, at)))?;
    Ok(())
}

/// Whether somebody else holds a lock of any kind on the byte.
fn is_held(fd: &impl AsFd, at: i64) -> io::Result<bool> {
    let mut probe = one_byte(libc::F_WRLCK, at);
    fcntl(fd.as_fd(), FcntlArg::F_OFD_GETLK(&mut probe))?;
    Ok(i32::from(probe.l_type) != libc::F_UNLCK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn two_descriptions() -> (tempfile::NamedTempFile, File, File) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let one = File::open(file.path()).unwrap();
        let two = File::open(file.path()).unwrap();
        (file, one, two)
    }

    #[test]
    fn readers_coexist_and_keep_writers_out() {
        let (file, one, two) = two_descriptions();
        let reader = ImageLock::acquire(one.as_fd(), file.path(), Mode::Read).unwrap();
        let other = ImageLock::acquire(two.as_fd(), file.path(), Mode::Read).unwrap();
        let third = File::open(file.path()).unwrap();
        assert!(ImageLock::acquire(third.as_fd(), file.path(), Mode::Exclusive).is_err());
        drop((reader, other, one, two));
        ImageLock::acquire(third.as_fd(), file.path(), Mode::Exclusive).unwrap();
    }

    #[test]
    fn exclusive_keeps_everybody_out() {
        let (file, one, two) = two_descriptions();
        let _lock = ImageLock::acquire(one.as_fd(), file.path(), Mode::Exclusive).unwrap();
        let error = ImageLock::acquire(two.as_fd(), file.path(), Mode::Read).unwrap_err();
        let LockError::Busy { conflict, .. } = error else { panic!("{error}") };
        assert_eq!(conflict, Conflict::Refuses(CONSISTENT_READ));
    }

    #[test]
    fn refused_lock_leaves_nothing_behind() {
        let (file, one, two) = two_descriptions();
        let lock = ImageLock::acquire(one.as_fd(), file.path(), Mode::Read).unwrap();
        assert!(ImageLock::acquire(two.as_fd(), file.path(), Mode::Exclusive).is_err());
        drop((lock, one));
        let third = File::open(file.path()).unwrap();
        ImageLock::acquire(third.as_fd(), file.path(), Mode::Exclusive).unwrap();
    }

    #[test]
    fn change_upgrades_when_alone_and_keeps_the_old_mode_when_not() {
        let (file, one, two) = two_descriptions();
        let mut lock = ImageLock::acquire(one.as_fd(), file.path(), Mode::Read).unwrap();
        let other = ImageLock::acquire(two.as_fd(), file.path(), Mode::Read).unwrap();
        assert!(lock.change(Mode::Exclusive).is_err());
        assert_eq!(lock.mode(), Mode::Read);
        drop((other, two));
        lock.change(Mode::Exclusive).unwrap();
        let third = File::open(file.path()).unwrap();
        assert!(ImageLock::acquire(third.as_fd(), file.path(), Mode::Read).is_err());
        lock.change(Mode::Read).unwrap();
        ImageLock::acquire(third.as_fd(), file.path(), Mode::Read).unwrap();
    }
}
