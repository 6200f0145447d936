//! A backend that fails for good after its first failed write.
//!
//! Once a write or sync has failed it is unknown what the storage holds, and a later sync that "succeeds" says
//! nothing about what was lost before it. Invariant: after the first failure of `write_at`, `set_len`, `punch`
//! or `sync`, every call fails. Failed reads do not latch.

use std::io;
use std::sync::{Arc, OnceLock};

use super::Backend;

/// The wrapper.
#[derive(Debug)]
pub struct Latch {
    inner: Arc<dyn Backend>,
    failed: OnceLock<(io::ErrorKind, String)>,
}

impl Latch {
    /// Wraps `inner`, which nobody else may write to any more.
    #[must_use]
    pub fn new(inner: Arc<dyn Backend>) -> Self {
        Self { inner, failed: OnceLock::new() }
    }

    fn open(&self) -> io::Result<()> {
        match self.failed.get() {
            None => Ok(()),
            Some((kind, what)) => Err(io::Error::new(*kind, format!("an earlier write failed: {what}"))),
        }
    }

    fn latched(&self, result: io::Result<()>) -> io::Result<()> {
        result.inspect_err(|error| {
            // Only the first failure counts; a second one at the same time changes nothing.
            self.failed.get_or_init(|| (error.kind(), error.to_string()));
        })
    }
}

impl Backend for Latch {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.open()?;
        self.inner.read_at(into, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.open()?;
        self.latched(self.inner.write_at(bytes, offset))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.open()?;
        self.latched(self.inner.set_len(len))
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.open()?;
        self.latched(self.inner.punch(offset, len))
    }

    fn sync(&self) -> io::Result<()> {
        self.open()?;
        self.latched(self.inner.sync())
    }

    fn data_ranges(&self, offset: u64, len: u64) -> io::Result<Vec<(u64, u64)>> {
        self.open()?;
        self.inner.data_ranges(offset, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[derive(Debug)]
    struct SyncFailsOnce(AtomicBool);

    impl Backend for SyncFailsOnce {
        fn len(&self) -> u64 {
            1
        }
        fn read_at(&self, into: &mut [u8], _offset: u64) -> io::Result<()> {
            into.fill(0);
            Ok(())
        }
        fn write_at(&self, _bytes: &[u8], _offset: u64) -> io::Result<()> {
            Ok(())
        }
        fn set_len(&self, _len: u64) -> io::Result<()> {
            Ok(())
        }
        fn sync(&self) -> io::Result<()> {
            if self.0.swap(true, Ordering::Relaxed) { Ok(()) } else { Err(io::Error::other("disk on fire")) }
        }
    }

    #[test]
    fn failed_sync_makes_everything_after_it_fail() {
        let latch = Latch::new(Arc::new(SyncFailsOnce(AtomicBool::new(false))));
        latch.write_at(b"x", 0).unwrap();
        assert!(latch.sync().is_err());
        assert!(latch.sync().unwrap_err().to_string().contains("disk on fire"));
        assert!(latch.write_at(b"x", 0).is_err());
        assert!(latch.read_at(&mut [0], 0).is_err());
        assert!(latch.set_len(2).is_err());
    }
}
