//! How requests come from the kernel, and what was chosen.

use super::uring::NoRings;

/// What is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TransportChoice {
    /// Rings where the kernel has them and they are switched on.
    #[default]
    Auto,
    /// The device alone.
    Fuse,
    /// Rings or nothing.
    Uring,
}

/// What it came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Messages through `/dev/fuse`.
    Fuse,
    /// FUSE over io_uring.
    Uring,
}

impl Transport {
    /// Its name for programs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fuse => "fuse",
            Self::Uring => "uring",
        }
    }
}

impl TransportChoice {
    /// Goes on without rings where the choice allows it.
    ///
    /// # Errors
    /// Why there are none, where nothing else will do.
    pub(super) fn without_rings(self, why: NoRings) -> Result<(), NoRings> {
        if self == Self::Uring {
            return Err(why);
        }
        tracing::debug!(%why, "the mount is served without rings");
        Ok(())
    }
}
