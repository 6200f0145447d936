//! The gate for names that stand inside an image (backing files, data files).
//!
//! Such a name is data from a hostile image. It opens nothing by itself: either the user named the file for this
//! place in the chain, or the user named a folder that chain members may come from, and the name is then
//! resolved beneath that folder by the kernel (openat2 with RESOLVE_BENEATH), so that neither `..` nor a
//! symbolic link nor a mount of /proc leads out of it. Formats are never probed.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use thiserror::Error;

/// Most members a chain may have, the top one included.
pub const CHAIN_MEMBERS_MAX: usize = 200;

/// What the user allows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GatePolicy {
    /// Files named for the members below the top one, nearest first (`--backing`).
    pub named: Vec<PathBuf>,
    /// Folders that members may come from (`--allow-chain`).
    pub folders: Vec<PathBuf>,
}

/// A name that passed.
#[derive(Debug)]
pub struct Admitted {
    /// Opened read-only, close-on-exec; not yet looked at, may be anything but a symbolic link.
    pub file: File,
    /// The path to show, and the folder that the member's own relative names are relative to.
    pub path: PathBuf,
}

/// A name that did not pass.
#[derive(Debug, Error)]
pub enum GateError {
    /// The image names a file and the user allowed none.
    #[error(
        "not opened without leave: name the file with --backing PATH, or its folder with --allow-chain FOLDER"
    )]
    NotAllowed,
    /// The name is no path.
    #[error("not a file name: {why}")]
    NotAPath {
        /// What it is instead.
        why: &'static str,
    },
    /// The name leads out of every folder that was allowed.
    #[error("leads out of the allowed folder {folder:?}")]
    Outside {
        /// The last folder that was tried.
        folder: PathBuf,
    },
    /// The file cannot be opened.
    #[error("cannot open {path:?}")]
    Open {
        /// What was to be opened.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl GatePolicy {
    /// Opens the file for the name that the member `depth` (0 = the top) has for the member below it. `naming` is
    /// the path of the member that holds the name.
    ///
    /// # Errors
    /// Why the name does not pass; nothing has been opened then.
    pub fn admit(&self, depth: usize, naming: &Path, name: &[u8]) -> Result<Admitted, GateError> {
        if let Some(path) = self.named.get(depth) {
            let file = super::file::open(path, false)
                .map_err(|source| GateError::Open { path: path.clone(), source })?;
            return Ok(Admitted { file, path: path.clone() });
        }
        if self.folders.is_empty() {
            return Err(GateError::NotAllowed);
        }
        let wanted = absolute(naming, as_path(name)?)?;
        let mut refusal = GateError::NotAllowed;
        for folder in &self.folders {
            match open_beneath(folder, &wanted) {
                Ok(admitted) => return Ok(admitted),
                Err(error) => refusal = error,
            }
        }
        Err(refusal)
    }
}

/// The name as a path, if it is one: no protocol (`nbd:`, `json:`, `https://`), no NUL, not empty.
fn as_path(name: &[u8]) -> Result<&Path, GateError> {
    if name.is_empty() {
        return Err(GateError::NotAPath { why: "it is empty" });
    }
    if name.contains(&0) {
        return Err(GateError::NotAPath { why: "it holds a NUL byte" });
    }
    let name = name.strip_prefix(b"file:").unwrap_or(name);
    let colon = name.iter().position(|&byte| byte == b':');
    let slash = name.iter().position(|&byte| byte == b'/').unwrap_or(name.len());
    if colon.is_some_and(|colon| colon < slash) {
        return Err(GateError::NotAPath { why: "it names a protocol" });
    }
    Ok(Path::new(OsStr::from_bytes(name)))
}

/// The name as an absolute path: relative names start at the folder of the image that holds them.
fn absolute(naming: &Path, name: &Path) -> Result<PathBuf, GateError> {
    let folder = naming.parent().unwrap_or_else(|| Path::new(""));
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let at = |path: &Path, source| GateError::Open { path: path.to_path_buf(), source };
    Ok(folder.canonicalize().map_err(|source| at(folder, source))?.join(name))
}

fn open_beneath(folder: &Path, wanted: &Path) -> Result<Admitted, GateError> {
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |source: io::Error| GateError::Open { path, source }
    };
    let root = folder.canonicalize().map_err(failed(folder))?;
    let outside = || GateError::Outside { folder: folder.to_path_buf() };
    let beneath = wanted.strip_prefix(&root).map_err(|_| outside())?;
    if beneath.components().any(|part| matches!(part, Component::RootDir | Component::Prefix(_))) {
        return Err(outside());
    }
    let root_fd = File::open(&root).map_err(failed(&root))?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(&root_fd, beneath, flags, Mode::empty(), resolve) {
        Ok(fd) => Ok(Admitted { file: File::from(fd), path: wanted.to_path_buf() }),
        Err(rustix::io::Errno::XDEV) => Err(outside()),
        Err(errno) => Err(failed(wanted)(errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    struct Place {
        folder: tempfile::TempDir,
    }

    impl Place {
        /// allowed/top, allowed/base, allowed/deep/base, outside
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            for name in ["allowed/top", "allowed/base", "allowed/deep/base", "outside"] {
                let path = folder.path().join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(&path, name).unwrap();
            }
            Self { folder }
        }

        fn at(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn admit(&self, name: &[u8]) -> Result<String, GateError> {
            let policy = GatePolicy { named: vec![], folders: vec![self.at("allowed")] };
            let admitted = policy.admit(0, &self.at("allowed/top"), name)?;
            Ok(io::read_to_string(admitted.file).unwrap())
        }
    }

    #[test]
    fn admit_without_leave_opens_nothing() {
        let place = Place::new();
        let refusal = GatePolicy::default().admit(0, &place.at("allowed/top"), b"base");
        assert!(matches!(refusal, Err(GateError::NotAllowed)));
    }

    #[test]
    fn admit_name_beneath_the_folder_opens_it() {
        let place = Place::new();
        assert_eq!(place.admit(b"base").unwrap(), "allowed/base");
        assert_eq!(place.admit(b"file:deep/../deep/base").unwrap(), "allowed/deep/base");
        let absolute = place.at("allowed/base").canonicalize().unwrap();
        assert_eq!(place.admit(absolute.as_os_str().as_bytes()).unwrap(), "allowed/base");
    }

    #[test]
    fn admit_name_that_leads_out_is_refused() {
        let place = Place::new();
        symlink(place.at("outside"), place.at("allowed/link")).unwrap();
        symlink("/", place.at("allowed/root")).unwrap();
        let absolute = place.at("outside");
        for name in
            [&b"../outside"[..], b"link", b"root/etc/passwd", b"/etc/passwd", absolute.as_os_str().as_bytes()]
        {
            assert!(
                matches!(place.admit(name), Err(GateError::Outside { .. })),
                "{:?}",
                OsStr::from_bytes(name)
            );
        }
    }

    #[test]
    fn admit_name_that_is_no_path_is_refused() {
        let place = Place::new();
        for name in [&b""[..], b"a\0b", b"nbd:localhost:10809", b"json:{\"driver\":\"raw\"}", b"https://x/y"]
        {
            assert!(
                matches!(place.admit(name), Err(GateError::NotAPath { .. })),
                "{:?}",
                OsStr::from_bytes(name)
            );
        }
    }

    #[test]
    fn admit_file_named_by_the_user_wins_over_the_name() {
        let place = Place::new();
        let policy = GatePolicy { named: vec![place.at("outside")], folders: vec![] };
        let admitted = policy.admit(0, &place.at("allowed/top"), b"nbd:evil").unwrap();
        assert_eq!(io::read_to_string(admitted.file).unwrap(), "outside");
        assert!(matches!(policy.admit(1, &place.at("outside"), b"base"), Err(GateError::NotAllowed)));
    }
}
