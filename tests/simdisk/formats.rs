//! What the toy formats have in common: a finding is one byte, and an image is read as a whole.

use std::sync::Arc;

use instar_abi::finding::{ACTIVE, Finding, NONE, Table};
use instar_abi::problem::Problem;
use instar_mount::image::Backend;
use instar_mount::sandbox::error::SandboxError;

/// All bytes of an image.
pub fn bytes(image: &Arc<dyn Backend>) -> Result<Vec<u8>, SandboxError> {
    let mut bytes = vec![0; usize::try_from(image.len()).expect("a small image")];
    let action = || "read the image".to_owned();
    image.read_at(&mut bytes, 0).map_err(|source| SandboxError::Host { action: action(), source })?;
    Ok(bytes)
}

/// A finding about one byte.
pub fn finding(problem: Problem, at: usize) -> Finding {
    Finding {
        problem: problem as u32,
        table: Table::File as u32,
        snapshot: ACTIVE,
        witnesses: 0,
        host_offset: at as u64,
        host_len: 1,
        index: at as u64,
        count: 1,
        guest_offset: NONE,
        guest_len: 0,
        stored: 1,
        expected: 0,
    }
}
