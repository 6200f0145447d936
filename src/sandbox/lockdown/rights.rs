//! Capabilities, new privileges, dumps.

use std::io;

use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

use super::places::Reach;

/// No core file, and no core dump to a program either, which the limit alone does not keep the kernel from.
pub(super) fn dump_nothing() -> io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Takes every capability from the calling thread.
pub(super) fn drop_capabilities() -> io::Result<()> {
    keep_capabilities(CapabilitySet::empty())
}

/// Leaves the calling thread, if it has it, what lets root read, or write, the files of others.
pub(super) fn keep_file_capabilities(reach: Reach) -> io::Result<()> {
    keep_capabilities(match reach {
        Reach::Nothing => CapabilitySet::empty(),
        Reach::Reading => CapabilitySet::DAC_READ_SEARCH,
        Reach::Writing => CapabilitySet::DAC_READ_SEARCH | CapabilitySet::DAC_OVERRIDE,
    })
}

/// Leaves the calling thread, if it has any, the capabilities that unmounting takes: to do it, and to reach the place.
///
/// # Errors
/// Those of the system.
pub fn keep_mount_capabilities() -> io::Result<()> {
    keep_capabilities(CapabilitySet::SYS_ADMIN | CapabilitySet::DAC_READ_SEARCH)
}

/// The bounding set first: narrowing it takes a capability of its own.
fn keep_capabilities(kept: CapabilitySet) -> io::Result<()> {
    let now = capabilities(None)?;
    if now.effective.contains(CapabilitySet::SETPCAP) {
        for bit in 0..u64::BITS {
            let capability = CapabilitySet::from_bits_retain(1 << bit);
            match remove_capability_from_bounding_set(capability) {
                Ok(()) => {}
                // Past the last capability that this kernel knows.
                Err(Errno::INVAL) => break,
                Err(error) => return Err(error.into()),
            }
        }
    }
    match clear_ambient_capability_set() {
        // A kernel without ambient capabilities.
        Ok(()) | Err(Errno::INVAL) => {}
        Err(error) => return Err(error.into()),
    }
    let left = CapabilitySets {
        effective: now.effective & kept,
        permitted: now.permitted & kept,
        inheritable: CapabilitySet::empty(),
    };
    Ok(set_capabilities(None, left)?)
}

/// Programs that this thread starts get no rights from their files.
pub(super) fn take_no_new_privileges() -> io::Result<()> {
    Ok(set_no_new_privs(true)?)
}

/// Keeps every descriptor that this process has, its standard ones aside, from the programs that it starts. What it
/// was itself started with would else stay open in a server for ever.
///
/// # Errors
/// Those of the system.
pub fn pass_nothing_on() -> io::Result<()> {
    let flags = libc::c_int::try_from(libc::CLOSE_RANGE_CLOEXEC).unwrap_or(0);
    // SAFETY: the descriptors stay open in this process; only what an exec does to them changes.
    if unsafe { libc::close_range(3, libc::c_uint::MAX, flags) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
