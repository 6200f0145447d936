//! Makes sure that the helper which unmounts for a killed server learns of the kill last.
//!
//! The helper (fusermount3) waits for the end of a socket, and then unmounts if the mount is dead. It looks once:
//! where it comes to look while /dev/fuse is still open, it goes away, and the dead mount stays. In which order the
//! kernel closes the descriptors of a killed process (by number, up or down) is its own affair, so the socket is
//! held by a descriptor below that of /dev/fuse and by one above it: one of them is closed after it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};

use rustix::io::{DupFlags, dup3, fcntl_dupfd_cloexec};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

/// Above every descriptor that a server has otherwise, below the usual limit of 1024.
const HIGH_FD_MIN: RawFd = 900;

/// A place for the socket below every descriptor that is opened after it.
#[derive(Debug)]
pub struct Reserved {
    low: OwnedFd,
    known: BTreeSet<RawFd>,
}

/// The socket, held twice.
#[derive(Debug)]
pub struct Held {
    _low: OwnedFd,
    _high: OwnedFd,
}

impl Reserved {
    /// To be called before the mount.
    ///
    /// # Errors
    /// Those of opening a descriptor, or of looking at those that are open.
    pub fn new() -> io::Result<Self> {
        Ok(Self { low: File::open("/dev/null")?.into(), known: sockets()? })
    }

    /// Holds the socket that was opened since; `None` if there is none.
    ///
    /// # Errors
    /// Those of duplicating a descriptor.
    pub fn hold(mut self) -> io::Result<Option<Held>> {
        let Some(&socket) = sockets()?.difference(&self.known).next() else { return Ok(None) };
        let myself = pidfd_open(getpid(), PidfdFlags::empty())?;
        let second = pidfd_getfd(myself.as_fd(), socket, PidfdGetfdFlags::empty())?;
        dup3(&second, &mut self.low, DupFlags::CLOEXEC)?;
        let high = fcntl_dupfd_cloexec(&second, HIGH_FD_MIN)?;
        Ok(Some(Held { _low: self.low, _high: high }))
    }
}

/// The sockets that this process has open.
fn sockets() -> io::Result<BTreeSet<RawFd>> {
    let is_socket = |entry: &fs::DirEntry| {
        fs::read_link(entry.path()).is_ok_and(|target| target.to_string_lossy().starts_with("socket:["))
    };
    let open = fs::read_dir("/proc/self/fd")?.flatten().filter(is_socket);
    Ok(open.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}
