//! Files that a command writes for the user.
//!
//! Invariant: under its name such a file is complete and durable; until then it has another name, in the same folder,
//! and goes away if it is not finished. What is there already is replaced only where the caller says that it is one
//! of its own, and an image never is.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use thiserror::Error;

use crate::report::escape_path;

/// Why a file was not written. Nothing has its name that did not have it before.
#[derive(Debug, Error)]
#[error("{}: {what}", escape_path(path))]
pub struct OutputFileError {
    path: PathBuf,
    #[source]
    what: OutputFileFault,
}

impl OutputFileError {
    /// What the user can do about it.
    #[must_use]
    pub const fn hint(&self) -> Option<&'static str> {
        match self.what {
            OutputFileFault::Exists => Some("name a file that is not there yet"),
            OutputFileFault::Foreign => {
                Some("name a file that is not there yet, or one that this command has written")
            }
            OutputFileFault::Name | OutputFileFault::Io { .. } => None,
        }
    }
}

/// What went wrong.
#[derive(Debug, Error)]
enum OutputFileFault {
    #[error("there is a file with this name already")]
    Exists,
    #[error("there is something with this name that this program has not written, and it is not replaced")]
    Foreign,
    #[error("not the name of a file")]
    Name,
    #[error("cannot {action} it: {source}")]
    Io { action: &'static str, source: io::Error },
}

/// A file being written.
#[derive(Debug)]
pub struct OutputFile {
    file: File,
    path: PathBuf,
    part: PathBuf,
    flags: RenameFlags,
    is_finished: bool,
}

impl OutputFile {
    /// Begins a file that must not be there yet.
    ///
    /// # Errors
    /// There is one, or it cannot be made.
    pub fn new(path: &Path) -> Result<Self, OutputFileError> {
        if path.symlink_metadata().is_ok() {
            return Err(fault(path, OutputFileFault::Exists));
        }
        Self::create(path, RenameFlags::NOREPLACE)
    }

    /// Begins a file that takes the place of one which begins with `magic`, where there is one.
    ///
    /// # Errors
    /// There is another one, or it cannot be made.
    pub fn replacing(path: &Path, magic: &[u8]) -> Result<Self, OutputFileError> {
        match path.symlink_metadata() {
            Err(_) => Self::create(path, RenameFlags::NOREPLACE),
            Ok(meta) if meta.is_file() && begins_with(path, magic) => {
                Self::create(path, RenameFlags::empty())
            }
            Ok(_) => Err(fault(path, OutputFileFault::Foreign)),
        }
    }

    fn create(path: &Path, flags: RenameFlags) -> Result<Self, OutputFileError> {
        let name = path.file_name().ok_or_else(|| fault(path, OutputFileFault::Name))?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}.part", std::process::id()));
        let part = path.with_file_name(hidden);
        let made = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&part);
        let file = made.map_err(|source| fault(path, OutputFileFault::Io { action: "make", source }))?;
        Ok(Self { file, path: path.to_owned(), part, flags, is_finished: false })
    }

    /// The file.
    #[must_use]
    pub const fn file(&self) -> &File {
        &self.file
    }

    /// Where it is until it is finished.
    #[must_use]
    pub fn part(&self) -> &Path {
        &self.part
    }

    /// Writes all of `bytes` behind what was written before.
    ///
    /// # Errors
    /// Those of the storage.
    pub fn write_all(&mut self, bytes: &[u8]) -> Result<(), OutputFileError> {
        self.file.write_all(bytes).map_err(|source| self.failed("write", source))
    }

    /// Makes it durable and gives it its name.
    ///
    /// # Errors
    /// Those of the storage, and a file that has got this name meanwhile.
    pub fn finish(mut self) -> Result<(), OutputFileError> {
        self.file.sync_all().map_err(|source| self.failed("write", source))?;
        renameat_with(CWD, &self.part, CWD, &self.path, self.flags).map_err(|error| match error {
            rustix::io::Errno::EXIST => fault(&self.path, OutputFileFault::Exists),
            error => self.failed("name", error.into()),
        })?;
        self.is_finished = true;
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = File::open(folder.unwrap_or(Path::new(".")));
        folder.and_then(|folder| folder.sync_all()).map_err(|source| self.failed("keep the name of", source))
    }

    /// The error for something that the system said about the file.
    #[must_use]
    pub fn failed(&self, action: &'static str, source: io::Error) -> OutputFileError {
        fault(&self.path, OutputFileFault::Io { action, source })
    }
}

impl Drop for OutputFile {
    fn drop(&mut self) {
        if !self.is_finished
            && let Err(error) = std::fs::remove_file(&self.part)
        {
            tracing::warn!(path = %self.part.display(), %error, "a file that is not whole could not be removed");
        }
    }
}

fn fault(path: &Path, what: OutputFileFault) -> OutputFileError {
    OutputFileError { path: path.to_owned(), what }
}

fn begins_with(path: &Path, magic: &[u8]) -> bool {
    let mut start = vec![0; magic.len()];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut start));
    read.is_ok() && start == magic
}

/// Whether a path leads to a file of this device and inode number.
#[must_use]
pub fn is_same(path: &Path, identity: (u64, u64)) -> bool {
    path.metadata().is_ok_and(|meta| (meta.dev(), meta.ino()) == identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_has_its_name_only_once_it_is_finished() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let mut file = OutputFile::new(&path).unwrap();
        file.write_all(b"whole").unwrap();
        assert!(!path.exists());
        file.finish().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"whole");
        drop(OutputFile::replacing(&path, b"whole").unwrap());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_there_is_replaced_only_where_it_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        std::fs::write(&path, "<!DOCTYPE html>old").unwrap();
        assert!(OutputFile::new(&path).unwrap_err().to_string().contains("already"));
        assert!(OutputFile::replacing(&path, b"QFI\xfb").unwrap_err().to_string().contains("not replaced"));
        let mut file = OutputFile::replacing(&path, b"<!DOCTYPE html>").unwrap();
        file.write_all(b"new").unwrap();
        file.finish().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert!(OutputFile::replacing(folder.path(), b"").is_err());
    }
}
