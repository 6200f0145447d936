//! Landlock: which files a thread that gave up its rights may still open.
//!
//! The list is what setting up a server takes after its threads are told to expect requests; once it serves, the
//! system call filter forbids opening anything. Kernels without Landlock, or with less of it, leave that to the filter.

use std::io;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, Scope, make_bitflags,
};

/// The newest set of rights that is asked for; older kernels enforce what they know of it.
const RIGHTS: ABI = ABI::V6;

/// Place, what may be done there, and who does.
const OPEN: [(&str, BitFlags<AccessFs>, &str); 3] = [
    (
        "/dev/fuse",
        make_bitflags!(AccessFs::{ReadFile | WriteFile | IoctlDev}),
        "each thread that answers requests has a descriptor of its own",
    ),
    (
        "/dev/null",
        make_bitflags!(AccessFs::{ReadFile | WriteFile}),
        "a server in the background lets go of its terminal",
    ),
    (
        "/sys/devices/virtual/bdi",
        make_bitflags!(AccessFs::{WriteFile}),
        "the kernel's readahead for the mount is raised",
    ),
];

/// Closes everything else to the calling thread and the threads that it will start.
pub(super) fn close() -> io::Result<()> {
    let status = restrict().map_err(io::Error::other)?;
    tracing::debug!(?status, "the file system is closed to this thread");
    Ok(())
}

fn restrict() -> Result<landlock::RestrictionStatus, RulesetError> {
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(RIGHTS))?
        .handle_access(AccessNet::from_all(RIGHTS))?
        .scope(Scope::from_all(RIGHTS))?
        .create()?;
    for (place, rights, caller) in OPEN {
        // A place that is not there needs no rule.
        match PathFd::new(Path::new(place)) {
            Ok(place) => rules = rules.add_rule(PathBeneath::new(place, rights))?,
            Err(error) => tracing::debug!(place, caller, %error, "cannot be opened later"),
        }
    }
    rules.restrict_self()
}

/// Whether this kernel enforces the rules at all.
#[cfg(test)]
pub(super) fn are_closed() -> Result<bool, RulesetError> {
    Ok(restrict()?.ruleset != landlock::RulesetStatus::NotEnforced)
}
