//! fuser behind a ring: a session of its own that answers what the ring's threads do not answer themselves.
//!
//! To fuser it is an ordinary session. What it takes for the device is one end of a pair of sockets that keep messages
//! apart; a request from a slot goes in at the other end as the classic message that it would have been, and the
//! reply goes back into the slot. One request is under way at a time.

use std::fs::File;
use std::io::{self, IoSlice, Read as _, Write as _};

use fuser::{BackgroundSession, Config, Session, SessionACL};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use zerocopy::FromBytes as _;

use super::ring::Slot;
use super::wire::{self, Reply};
use crate::fuse::adapter::Adapter;

/// Longest reply: shorter than what a socket takes by default. Only the listing of a folder would be longer.
const REPLY_BYTES_MAX: u32 = 64 << 10;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Relay {
    socket: File,
    session: BackgroundSession,
}

impl Relay {
    /// Starts a session for the same tree.
    ///
    /// # Errors
    /// Those of the system and of fuser.
    pub fn start(adapter: Adapter, acl: SessionACL) -> io::Result<Self> {
        let kind = SocketType::SEQPACKET;
        let (own, fusers) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        let mut socket = File::from(own);
        // fuser answers the handshake before it returns, and a socket keeps what nobody reads yet.
        socket.write_all(&wire::init_message())?;
        let session = Session::from_fd(adapter, fusers, acl, Config::default())?.spawn()?;
        if socket.read(&mut [0; 256])? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Self { socket, session })
    }

    /// Answers the request in a slot.
    pub fn answer(&mut self, slot: &mut Slot) {
        let outcome = self.ask(slot).unwrap_or_else(|error| {
            tracing::error!(%error, "a request could not be handed on");
            Err(libc::EIO)
        });
        slot.answer(outcome);
    }

    /// The reply: an errno, or bytes of payload, which are in the slot.
    fn ask(&mut self, slot: &mut Slot) -> io::Result<Result<usize, i32>> {
        let (header, payload) = slot.parts();
        header.limit_listing(REPLY_BYTES_MAX);
        let parts = header.classic(payload).ok_or(io::ErrorKind::InvalidData)?;
        let message = parts.map(IoSlice::new);
        let len: usize = parts.iter().map(|part| part.len()).sum();
        if self.socket.write_vectored(&message)? != len {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let mut reply = [0; size_of::<Reply>()];
        let got = self
            .socket
            .read_vectored(&mut [io::IoSliceMut::new(&mut reply), io::IoSliceMut::new(payload)])?;
        let told = Reply::read_from_bytes(&reply).map_err(|_| io::ErrorKind::InvalidData)?;
        let bytes = got.checked_sub(size_of::<Reply>()).ok_or(io::ErrorKind::UnexpectedEof)?;
        if told.unique != header.request().unique {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(if told.error == 0 { Ok(bytes) } else { Err(-told.error) })
    }

    /// Ends the session, as the end of a mount would.
    ///
    /// # Errors
    /// Those of the system and of fuser.
    pub fn end(mut self) -> io::Result<()> {
        self.socket.write_all(&wire::bare_message(wire::DESTROY))?;
        self.session.join()
    }
}
