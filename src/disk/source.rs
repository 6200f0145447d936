//! Who names the extents of a disk, and inflates what is packed.

use instar_abi::extent::Extent;
use instar_abi::problem::Problem;

use crate::sandbox::error::SandboxError;

/// One compressed cluster, as an extent named it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Payload {
    /// Byte offset in the image.
    pub offset: u64,
    /// Compressed bytes, at least 1.
    pub len: u32,
}

/// A cluster's bytes, or what is wrong with its payload.
pub type Inflated = Result<Box<[u8]>, Problem>;

/// Turns guest ranges into extents and payloads into clusters. Its word on extents is checked before it is used, so
/// an implementation may be as wrong as it likes without harm to anything but the disk it speaks for.
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

    /// Inflates payloads to clusters of `cluster_bytes` bytes each: one outcome for each, in order, and
    /// [`Problem::ReadError`] for what the file did not give. There are 1 to
    /// [`instar_abi::extent::REQUESTS_MAX`] of them, and more than one only if all together inflate to no more than
    /// [`instar_abi::extent::INFLATED_BYTES_MAX`].
    ///
    /// # Errors
    /// As [`ExtentSource::map`].
    fn inflate(&mut self, payloads: &[Payload], cluster_bytes: u64) -> Result<Vec<Inflated>, SandboxError>;
}
