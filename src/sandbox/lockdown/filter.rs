//! From the table of system calls to filters in the kernel.
//!
//! A call that is not in the table fails with "operation not permitted"; nothing is killed, because a mount that dies
//! of a new version of the C library harms more than a call that is refused. `clone3` alone is answered as a kernel
//! would that does not have it: the library then uses `clone`, whose arguments a filter can see.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter, apply_filter_all_threads,
};

use super::calls::{CALLS, Call, When};
use super::places::Reach;
use super::tools;
use crate::sandbox::cage::CageKind;

/// How often threads that are ending are waited for, and for how long each time.
const ENDING_THREAD_TRIES: u32 = 200;
const ENDING_THREAD_PAUSE: Duration = Duration::from_millis(5);

fn errno(number: i32) -> SeccompAction {
    SeccompAction::Errno(number.unsigned_abs())
}

/// The filters of a server. The one for `clone3` comes last: of two refusals the last filter's counts.
pub(super) fn for_server(cages: CageKind, rings: bool) -> Result<[BpfProgram; 2], BackendError> {
    Ok([program(of_servers(cages, rings))?, unknown()?])
}

/// The filters of a program of the command line, in the same order.
pub(super) fn for_tool(cages: CageKind, reach: Reach) -> Result<[BpfProgram; 2], BackendError> {
    let own = tools::CALLS.iter().filter(|(least, _)| *least <= reach).map(|(_, call)| call);
    Ok([program(of_servers(cages, false).chain(own))?, unknown()?])
}

fn of_servers(cages: CageKind, rings: bool) -> impl Iterator<Item = &'static Call> {
    CALLS.iter().filter(move |call| call.is_for(cages, rings))
}

/// Filters all threads of this process.
pub(super) fn install_for_all(programs: Result<[BpfProgram; 2], BackendError>) -> io::Result<()> {
    for program in programs.map_err(io::Error::other)? {
        install_with_patience(&program)?;
    }
    Ok(())
}

/// Kernels before 6.11 also count a thread that is just ending, and one that has filtered itself further, as a job's
/// has, cannot be filtered with the others.
fn install_with_patience(program: &BpfProgram) -> io::Result<()> {
    let mut tries_left = ENDING_THREAD_TRIES;
    loop {
        match apply_filter_all_threads(program) {
            Ok(()) => return Ok(()),
            Err(error @ seccompiler::Error::ThreadSync(_)) if tries_left > 0 => {
                tracing::debug!(%error, "a thread that is ending is waited for");
                tries_left -= 1;
                std::thread::sleep(ENDING_THREAD_PAUSE);
            }
            Err(error) => return Err(io::Error::other(error)),
        }
    }
}

/// Filters the calling thread, which keeps a cage of this kind.
pub(super) fn install_for_cage(kind: CageKind) -> io::Result<()> {
    let kept = of_servers(kind, false).filter(|call| call.in_cage_threads);
    let kept = program(kept).map_err(io::Error::other)?;
    apply_filter(&kept).map_err(io::Error::other)
}

/// Filters the calling thread, which serves one job in a cage of this kind, and tells an observer.
pub(super) fn install_for_job(kind: CageKind) -> io::Result<()> {
    let own = tools::CALLS.iter().map(|(_, call)| call);
    let kept = of_servers(kind, false).chain(own).filter(|call| call.in_cage_threads);
    apply_filter(&program(kept).map_err(io::Error::other)?).map_err(io::Error::other)
}

fn program<'a>(calls: impl Iterator<Item = &'a Call>) -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for call in calls {
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
