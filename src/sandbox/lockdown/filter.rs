//! From the table of system calls to filters in the kernel.
//!
//! A call that is not in the table fails with "operation not permitted"; nothing is killed, because a mount that dies
//! of a new version of the C library harms more than a call that is refused. `clone3` alone is answered as a kernel
//! would that does not have it: the library then uses `clone`, whose arguments a filter can see.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter, apply_filter_all_threads,
};

use super::calls::{CALLS, Call, When};
use crate::sandbox::cage::CageKind;

fn errno(number: i32) -> SeccompAction {
    SeccompAction::Errno(number.unsigned_abs())
}

/// The filters of a server. The one for `clone3` comes last: of two refusals the last filter's counts.
pub(super) fn for_server(cages: CageKind, rings: bool) -> Result<[BpfProgram; 2], BackendError> {
    Ok([program(|call| call.is_for(cages, rings))?, unknown()?])
}

/// Filters all threads of this process.
pub(super) fn install_for_all(cages: CageKind, rings: bool) -> io::Result<()> {
    for program in for_server(cages, rings).map_err(io::Error::other)? {
        apply_filter_all_threads(&program).map_err(io::Error::other)?;
    }
    Ok(())
}

/// Filters the calling thread, which keeps a cage of this kind.
pub(super) fn install_for_cage(kind: CageKind) -> io::Result<()> {
    let kept = program(|call| call.in_cage_threads && call.is_for(kind, false)).map_err(io::Error::other)?;
    apply_filter(&kept).map_err(io::Error::other)
}

fn program(is_allowed: impl Fn(&Call) -> bool) -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for call in CALLS.iter().filter(|call| is_allowed(call)) {
        tracing::trace!(call.name, call.caller, ?call.when, "a system call that is left");
        let conditions = conditions(call)?;
        match rules.get_mut(&call.number) {
            // No conditions allow the call always, and so do they with others.
            Some(known) if known.is_empty() || conditions.is_empty() => known.clear(),
            Some(known) => known.extend(conditions),
            None => drop(rules.insert(call.number, conditions)),
        }
    }
    SeccompFilter::new(rules, errno(libc::EPERM), SeccompAction::Allow, TargetArch::x86_64)?.try_into()
}

fn unknown() -> Result<BpfProgram, BackendError> {
    let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    SeccompFilter::new(rules, SeccompAction::Allow, errno(libc::ENOSYS), TargetArch::x86_64)?.try_into()
}

/// No conditions allow the call always.
fn conditions(call: &Call) -> Result<Vec<SeccompRule>, BackendError> {
    let rule = |index, operator, value| {
        SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value)
            .and_then(|condition| SeccompRule::new(vec![condition]))
    };
    match call.when {
        When::Always => Ok(Vec::new()),
        When::Bits { index, mask, value } => Ok(vec![rule(index, SeccompCmpOp::MaskedEq(mask), value)?]),
        When::OneOf { index, values } => {
            values.iter().map(|&value| rule(index, SeccompCmpOp::Eq, value)).collect()
        }
    }
}
