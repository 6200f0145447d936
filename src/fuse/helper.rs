//! Makes sure that the helper which unmounts for a killed server learns of the kill last.
//!
//! The helper (fusermount3) waits for the end of a socket, and then unmounts if the mount is dead. It looks once:
//! where it comes to look while /dev/fuse is still open, it goes away, and the dead mount stays. A killed process's
//! files are released in a batch, in an order that is the kernel's own affair. So the socket is kept where it is
//! reached only once that batch is through: sent to this process itself through another socket, and never received.
//!
//! ```text
//! killed: release { /dev/fuse, carrier, ... } in any order ---> what the carrier carried: the helper's socket
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, RawFd};
use std::os::unix::net::UnixStream;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

/// The sockets from before the mount.
#[derive(Debug)]
pub struct Reserved {
    known: BTreeSet<RawFd>,
}

/// Both ends of the socket that carries the helper's.
#[derive(Debug)]
pub struct Held {
    _carrier: (UnixStream, UnixStream),
}

impl Reserved {
    /// To be called before the mount.
    ///
    /// # Errors
    /// Those of looking at the descriptors that are open.
    pub fn new() -> io::Result<Self> {
        Ok(Self { known: sockets()? })
    }

    /// Holds the socket that was opened since; `None` if there is none.
    ///
    /// # Errors
    /// Those of making a socket and of sending through it.
    pub fn hold(self) -> io::Result<Option<Held>> {
        let Some(&socket) = sockets()?.difference(&self.known).next() else { return Ok(None) };
        let myself = pidfd_open(getpid(), PidfdFlags::empty())?;
        let second = pidfd_getfd(myself.as_fd(), socket, PidfdGetfdFlags::empty())?;
        let carrier = UnixStream::pair()?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let carried = [second.as_fd()];
        if !ancillary.push(SendAncillaryMessage::ScmRights(&carried)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        sendmsg(&carrier.0, &[IoSlice::new(b"0")], &mut ancillary, SendFlags::empty())?;
        Ok(Some(Held { _carrier: carrier }))
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
