//! Who names the extents of a disk.

use instar_abi::extent::Extent;

use crate::sandbox::error::SandboxError;

/// Turns guest ranges into extents. Its word is checked before it is used, so an implementation may be as wrong
/// as it likes without harm to anything but the disk it speaks for.
pub trait ExtentSource: Send + std::fmt::Debug {
    /// Appends the extents of `guest_offset .. guest_offset + guest_len` of a snapshot
    /// ([`instar_abi::finding::ACTIVE`] for the active disk) to `into`, in guest order and without a gap.
    ///
    /// # Errors
    /// Those of the cage: it could not answer, or broke a rule.
    fn map(
        &mut self,
        snapshot: u32,
        guest_offset: u64,
        guest_len: u64,
        into: &mut Vec<Extent>,
    ) -> Result<(), SandboxError>;
}
