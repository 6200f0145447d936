//! Landlock: which files a thread that gave up its rights may still open.
//!
//! For a server the list is what setting it up takes after its threads are told to expect requests; once it serves, the
//! system call filter forbids opening anything. A program of the command line names its own. Kernels without Landlock, or with less of it, leave that to the filter.

use std::io;
use std::path::{Path, PathBuf};

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

/// How much of the file system a program still needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// Nothing: what is open is enough.
    Nothing,
    /// Files, and the files of folders, to read.
    Reading,
    /// Besides, files to write, and folders to make, write, name and remove files in.
    Writing,
}

/// A file, or a folder and all below it, that stays open to a program which locks itself down.
#[derive(Debug, Clone)]
pub struct Place {
    /// Where it is. A place that is not there stays closed.
    pub path: PathBuf,
    /// What may be done there.
    pub reach: Reach,
}

impl Place {
    /// A place to read.
    #[must_use]
    pub fn to_read(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), reach: Reach::Reading }
    }

    /// A place to write.
    #[must_use]
    pub fn to_write(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), reach: Reach::Writing }
    }

    fn rights(&self) -> BitFlags<AccessFs> {
        let is_folder = self.path.is_dir();
        match (self.reach, is_folder) {
            (Reach::Nothing, _) => BitFlags::EMPTY,
            (Reach::Reading, false) => make_bitflags!(AccessFs::{ReadFile}),
            (Reach::Reading, true) => make_bitflags!(AccessFs::{ReadFile | ReadDir}),
            (Reach::Writing, false) => make_bitflags!(AccessFs::{ReadFile | WriteFile | Truncate}),
            (Reach::Writing, true) => make_bitflags!(AccessFs::{
                ReadFile | WriteFile | Truncate | ReadDir | MakeReg | MakeDir | RemoveFile
            }),
        }
    }
}

/// Closes everything but what a server opens to the calling thread and the threads that it will start.
pub(super) fn close() -> io::Result<()> {
    close_but(OPEN.iter().map(|(place, rights, _)| (Path::new(*place), *rights)))
}

/// Closes everything but these places.
pub(super) fn close_but_places(places: &[Place]) -> io::Result<()> {
    close_but(places.iter().map(|place| (place.path.as_path(), place.rights())))
}

fn close_but<'a>(places: impl Iterator<Item = (&'a Path, BitFlags<AccessFs>)>) -> io::Result<()> {
    let status = restrict(places).map_err(io::Error::other)?;
    tracing::debug!(?status, "the file system is closed to this thread");
    Ok(())
}

fn restrict<'a>(
    places: impl Iterator<Item = (&'a Path, BitFlags<AccessFs>)>,
) -> Result<landlock::RestrictionStatus, RulesetError> {
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(RIGHTS))?
        .handle_access(AccessNet::from_all(RIGHTS))?
        .scope(Scope::from_all(RIGHTS))?
        .create()?;
    for (path, rights) in places {
        // A place that is not there needs no rule.
        match PathFd::new(path) {
            Ok(place) => rules = rules.add_rule(PathBeneath::new(place, rights))?,
            Err(error) => tracing::debug!(path = %path.display(), %error, "cannot be opened later"),
        }
    }
    rules.restrict_self()
}

/// Whether this kernel enforces the rules at all.
#[cfg(test)]
pub(super) fn are_closed() -> Result<bool, RulesetError> {
    Ok(restrict(std::iter::empty())?.ruleset != landlock::RulesetStatus::NotEnforced)
}
