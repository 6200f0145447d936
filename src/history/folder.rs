//! The state folder.
//!
//! Invariant: an open [`Folder`] belongs to root or to the user who runs the program, and nobody else may put files
//! into it, so what is in it can be believed.

use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

use super::store::Store;
use super::{HistoryError, HistoryErrorKind};

/// Where the state of a program that runs as root belongs.
const OF_ROOT: &str = "/var/lib/instar";
/// The folder's name in a user's own state folder.
const NAME: &str = "instar";
/// The database in it.
const DATABASE: &str = "history.sqlite3";

/// The folder that is used where none is named; `None` for a user without a home.
#[must_use]
pub fn default_path() -> Option<PathBuf> {
    if geteuid().is_root() {
        return Some(OF_ROOT.into());
    }
    let absolute = |variable| std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .map(|folder| folder.join(NAME))
}

/// A state folder that can be believed.
#[derive(Debug, Clone)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Opens the folder at `path`, made first where it is missing.
    ///
    /// # Errors
    /// `Io`, `Untrusted`.
    pub fn make(path: &Path) -> Result<Self, HistoryError> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|source| HistoryError::io(path, "make the folder", source))?;
        Self::trusted(path)
    }

    /// Opens the folder at `path`; `None` where there is none.
    ///
    /// # Errors
    /// `Io`, `Untrusted`.
    pub fn find(path: &Path) -> Result<Option<Self>, HistoryError> {
        match std::fs::metadata(path) {
            Ok(_) => Self::trusted(path).map(Some),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(HistoryError::io(path, "look at the folder", source)),
        }
    }

    fn trusted(path: &Path) -> Result<Self, HistoryError> {
        let failed = |source| HistoryError::io(path, "look at the folder", source);
        let path = std::fs::canonicalize(path).map_err(failed)?;
        let meta = std::fs::metadata(&path).map_err(failed)?;
        let why = if !meta.is_dir() {
            "it is not a folder"
        } else if ![0, geteuid().as_raw()].contains(&meta.uid()) {
            "it belongs to somebody else"
        } else if meta.mode() & 0o022 != 0 {
            "others than its owner may write to it"
        } else {
            return Ok(Self { path });
        };
        Err(HistoryError { path, kind: HistoryErrorKind::Untrusted { why } })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the database in it, made first where it is missing.
    ///
    /// # Errors
    /// `Database`, `Newer`.
    pub fn store(&self) -> Result<Store, HistoryError> {
        Store::open(&self.path.join(DATABASE))
    }

    /// Opens the database in it; `None` where there is none.
    ///
    /// # Errors
    /// `Database`, `Newer`.
    pub fn existing_store(&self) -> Result<Option<Store>, HistoryError> {
        let path = self.path.join(DATABASE);
        if path.exists() { Store::open_to_read(&path).map(Some) } else { Ok(None) }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn folder_that_others_may_write_to_is_not_believed() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("a/b");
        assert!(Folder::find(&path).unwrap().is_none());
        Folder::make(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
        let error = Folder::find(&path).unwrap_err();
        assert!(matches!(error.kind, HistoryErrorKind::Untrusted { .. }), "{error}");
    }

    #[test]
    fn file_in_the_folders_place_is_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(Folder::make(file.path()).is_err());
        assert!(Folder::find(file.path()).is_err());
    }
}
