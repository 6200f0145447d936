//! What system calls the inmate of a process cage has: one byte from the answer pipe, one byte to the doorbell
//! pipe, and exit. Everything else, in any calling convention, ends it.

use std::io;

use instar_abi::layout::{ANSWER_FD, CALL, CALL_BYTES, DOORBELL_FD};
use instar_abi::to_usize;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// Bytes of the kernel's `sock_fprog`, which comes before the filter.
const HEAD_BYTES: usize = 16;

/// A call on one descriptor with a length of one byte.
fn one_byte(number: libc::c_long, fd: i32) -> Result<(i64, Vec<SeccompRule>), BackendError> {
    let equals = |index, len, value| SeccompCondition::new(index, len, SeccompCmpOp::Eq, value);
    let conditions = vec![
        equals(0, SeccompCmpArgLen::Dword, fd.unsigned_abs().into())?,
        equals(2, SeccompCmpArgLen::Qword, 1)?,
    ];
    Ok((number, vec![SeccompRule::new(conditions)?]))
}

fn program() -> Result<BpfProgram, BackendError> {
    let rules = [
        one_byte(libc::SYS_read, ANSWER_FD)?,
        one_byte(libc::SYS_write, DOORBELL_FD)?,
        (libc::SYS_exit, Vec::new()),
    ];
    SeccompFilter::new(
        rules.into_iter().collect(),
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        TargetArch::x86_64,
    )?
    .try_into()
}

/// The filter as the payload hands it to the kernel: a `sock_fprog` and its instructions, at the start of the call
/// area.
pub(super) fn image() -> io::Result<Vec<u8>> {
    let program = program().map_err(io::Error::other)?;
    let len = u16::try_from(program.len()).map_err(io::Error::other)?;
    let mut image = vec![0; HEAD_BYTES];
    image[..2].copy_from_slice(&len.to_le_bytes());
    image[8..].copy_from_slice(&(CALL + HEAD_BYTES as u64).to_le_bytes());
    for step in program {
        image.extend_from_slice(&step.code.to_le_bytes());
        image.extend_from_slice(&[step.jt, step.jf]);
        image.extend_from_slice(&step.k.to_le_bytes());
    }
    debug_assert!(image.len() <= to_usize(CALL_BYTES));
    Ok(image)
}
