//! The one I/O trait: every byte of an image that is read or written goes through it, so that overlays, I/O
//! error latches and simulated disks for crash tests all fit in the same place.

use std::io;
use std::os::fd::BorrowedFd;

/// A file of bytes.
///
/// Invariant for implementations: a read never changes anything, and a write is not durable before `sync` came
/// back without an error.
pub trait Backend: Send + Sync + std::fmt::Debug {
    /// Length in bytes, as it was when the backend was opened or last resized through it.
    fn len(&self) -> u64;

    /// Fills `into` from `offset`.
    ///
    /// # Errors
    /// Those of the storage; `UnexpectedEof` when the file ends before `into` is full.
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`, growing the file if needed.
    ///
    /// # Errors
    /// Those of the storage. What part of `bytes` has been written is not known then.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Sets the length in bytes.
    ///
    /// # Errors
    /// Those of the storage.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Gives the storage of a range within the file back; it reads as zeros then, and the length stays. Durable once
    /// `sync` came back.
    ///
    /// # Errors
    /// `Unsupported` where the storage cannot do that; those of the storage. What part of the range has been given back
    /// is not known then.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let why = format!("no part of it can be given back, such as {len} bytes at {offset:#x}");
        Err(io::Error::new(io::ErrorKind::Unsupported, why))
    }

    /// Returns once everything written before is durable.
    ///
    /// # Errors
    /// Those of the storage; whether earlier writes are durable is not known then.
    fn sync(&self) -> io::Result<()>;

    /// Parts of `offset .. offset + len` that are not holes, as (offset, len), in order. Saying "all of it" is
    /// always right.
    ///
    /// # Errors
    /// Those of the storage.
    fn data_ranges(&self, offset: u64, len: u64) -> io::Result<Vec<(u64, u64)>> {
        Ok(vec![(offset, len)])
    }

    /// The descriptor whose bytes this backend shows one for one, where it is as simple as that: readers may
    /// then use pread or hand the descriptor to the kernel.
    fn plain_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// True for a file of no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
