//! Where a repair takes place: one image, and the folder that keeps its records.
//!
//! Invariant: the engine reaches files only through [`Site`] and [`Folder`], so that a simulated disk can stand
//! in for both; and a record is trusted only if it is a regular file, with one name, that nobody but root,
//! this user or the image's owner could have written.

use std::ffi::{OsStr, OsString};
use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags, fstatvfs, openat, renameat, unlinkat};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::error::HealError;
use crate::image::{Backend, FileState, ImageFile, OpenError, Storage};

/// The files that a repair keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SideFile {
    /// What is being written; there while a landing is under way.
    Journal,
    /// What was there before the last repair.
    Undo,
    /// The undo file's name while it is being used: there is no way but back then.
    Undoing,
    /// A journal that is not complete.
    JournalPart,
    /// An undo file that is not complete.
    UndoPart,
}

impl SideFile {
    /// What its name ends in, after the image's.
    #[must_use]
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::Journal => ".instar-journal",
            Self::Undo => ".instar-undo",
            Self::Undoing => ".instar-undoing",
            Self::JournalPart => ".instar-journal.part",
            Self::UndoPart => ".instar-undo.part",
        }
    }

    /// The name under which it is written before it is complete.
    pub(super) const fn part(self) -> Self {
        match self {
            Self::Journal | Self::JournalPart => Self::JournalPart,
            Self::Undo | Self::Undoing | Self::UndoPart => Self::UndoPart,
        }
    }
}

/// A folder for side files.
pub trait Folder: Debug {
    /// Makes a new, empty file that only this user can read or write.
    ///
    /// # Errors
    /// `AlreadyExists` if anything has the name; those of the storage.
    fn create(&self, file: SideFile) -> io::Result<Arc<dyn Backend>>;

    /// Opens a file for reading, `None` if there is none.
    ///
    /// # Errors
    /// `PermissionDenied` if it is not to be trusted; those of the storage.
    fn open(&self, file: SideFile) -> io::Result<Option<Arc<dyn Backend>>>;

    /// Gives a file another name, over whatever had that name.
    ///
    /// # Errors
    /// Those of the storage.
    fn rename(&self, from: SideFile, to: SideFile) -> io::Result<()>;

    /// Removes a file; one that is not there is fine.
    ///
    /// # Errors
    /// Those of the storage.
    fn remove(&self, file: SideFile) -> io::Result<()>;

    /// Returns once all names are durable.
    ///
    /// # Errors
    /// Those of the storage.
    fn sync(&self) -> io::Result<()>;

    /// Bytes that can still be written.
    ///
    /// # Errors
    /// Those of the storage.
    fn free_bytes(&self) -> io::Result<u64>;

    /// For messages.
    fn path_of(&self, file: SideFile) -> PathBuf;
}

/// One image to be repaired.
pub trait Site: Debug {
    /// The image, read-only, as long as it was when it was opened or [looked at again](Site::look_again).
    fn image(&self) -> Arc<dyn Backend>;

    /// Takes note of the length that the image has now: finishing what was interrupted may have changed it.
    ///
    /// # Errors
    /// Those of the storage.
    fn look_again(&self) -> io::Result<()>;

    /// The image, read-only, opened a second time: what a check of the live image looks at after a landing.
    ///
    /// # Errors
    /// As [`ImageFile::open_read_only`], and `Replaced`.
    fn image_again(&self) -> Result<Arc<dyn Backend>, OpenError>;

    /// The image's path, for messages.
    fn path(&self) -> &Path;

    /// Something that changes when somebody writes to the image, where the system tells.
    ///
    /// # Errors
    /// Those of the storage.
    fn state(&self) -> io::Result<Option<FileState>>;

    /// The same image for writing. Called only when a landing begins.
    ///
    /// # Errors
    /// As [`ImageFile::reopen_writable`].
    fn open_writable(&self) -> Result<Arc<dyn Backend>, OpenError>;

    /// Bytes that the image can still grow by.
    ///
    /// # Errors
    /// Those of the storage.
    fn room_to_grow(&self) -> io::Result<u64>;

    /// How the storage below the image gives parts of it back.
    ///
    /// # Errors
    /// Those of the storage.
    fn storage(&self) -> io::Result<Storage>;

    /// Where the records are.
    fn folder(&self) -> &dyn Folder;
}

/// An image file, with its records beside it or in a folder that the user named.
#[derive(Debug)]
pub struct FileSite {
    file: Arc<ImageFile>,
    folder: RealFolder,
}

impl FileSite {
    /// The site of an open image. The records stand in `side_folder`, or else beside the file that the path
    /// leads to in the end, so that every symbolic link to an image finds the same records.
    ///
    /// # Errors
    /// `NoPlaceForRecords` for a block device without `side_folder`, or if the folder cannot be opened.
    pub fn new(file: Arc<ImageFile>, side_folder: Option<&Path>) -> Result<Self, HealError> {
        let no_place = |source| HealError::NoPlaceForRecords {
            image: file.path().to_path_buf(),
            folder: side_folder.map(Path::to_path_buf),
            source,
        };
        if file.is_block_device() && side_folder.is_none() {
            let why = io::Error::new(io::ErrorKind::Unsupported, "a block device has no folder that lasts");
            return Err(no_place(why));
        }
        let real = std::fs::canonicalize(file.path()).map_err(no_place)?;
        let no_name = || io::Error::from(io::ErrorKind::InvalidFilename);
        let name = real.file_name().ok_or_else(no_name).map_err(no_place)?;
        let parent = real.parent().ok_or_else(no_name).map_err(no_place)?;
        let owner = rustix::fs::fstat(&*file).map_err(|e| no_place(e.into()))?.st_uid;
        let folder = RealFolder::open(side_folder.unwrap_or(parent), name, owner).map_err(no_place)?;
        Ok(Self { file, folder })
    }
}

impl Site for FileSite {
    fn image(&self) -> Arc<dyn Backend> {
        Arc::clone(&self.file) as Arc<dyn Backend>
    }

    fn look_again(&self) -> io::Result<()> {
        self.file.look_again()
    }

    fn image_again(&self) -> Result<Arc<dyn Backend>, OpenError> {
        Ok(Arc::new(self.file.reopen_read_only()?))
    }

    fn path(&self) -> &Path {
        self.file.path()
    }

    fn state(&self) -> io::Result<Option<FileState>> {
        self.file.state().map(Some)
    }

    fn open_writable(&self) -> Result<Arc<dyn Backend>, OpenError> {
        Ok(Arc::new(self.file.reopen_writable()?))
    }

    fn room_to_grow(&self) -> io::Result<u64> {
        if self.file.is_block_device() { Ok(0) } else { free_bytes(&*self.file) }
    }

    fn storage(&self) -> io::Result<Storage> {
        self.file.storage()
    }

    fn folder(&self) -> &dyn Folder {
        &self.folder
    }
}

#[derive(Debug)]
struct RealFolder {
    fd: OwnedFd,
    path: PathBuf,
    name: OsString,
    image_owner: u32,
}

impl RealFolder {
    fn open(path: &Path, name: &OsStr, image_owner: u32) -> io::Result<Self> {
        // Looking for records needs no more than the right to search the folder.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Self { fd, path: path.to_path_buf(), name: name.to_os_string(), image_owner })
    }

    fn name_of(&self, file: SideFile) -> OsString {
        let mut name = self.name.clone();
        name.push(file.suffix());
        name
    }

    fn trusted(&self, file: &File) -> io::Result<()> {
        let meta = file.metadata()?;
        let owners = [0, geteuid().as_raw(), self.image_owner];
        let why = if !meta.is_file() {
            "it is not a regular file"
        } else if !owners.contains(&meta.uid()) {
            "it belongs to somebody else"
        } else if meta.mode() & 0o022 != 0 {
            "others than its owner may write it"
        } else if meta.nlink() != 1 {
            "it has more than one name"
        } else {
            return Ok(());
        };
        Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
    }
}

impl Folder for RealFolder {
    fn create(&self, file: SideFile) -> io::Result<Arc<dyn Backend>> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&self.fd, self.name_of(file), flags, Mode::RUSR | Mode::WUSR)?;
        Ok(Arc::new(ImageFile::of_side_file(&self.path_of(file), fd.into())?))
    }

    fn open(&self, file: SideFile) -> io::Result<Option<Arc<dyn Backend>>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let fd = match openat(&self.fd, self.name_of(file), flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => {
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it is a symbolic link"));
            }
            Err(e) => return Err(e.into()),
        };
        self.trusted(&fd)?;
        Ok(Some(Arc::new(ImageFile::of_side_file(&self.path_of(file), fd)?)))
    }

    fn rename(&self, from: SideFile, to: SideFile) -> io::Result<()> {
        Ok(renameat(&self.fd, self.name_of(from), &self.fd, self.name_of(to))?)
    }

    fn remove(&self, file: SideFile) -> io::Result<()> {
        match unlinkat(&self.fd, self.name_of(file), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::fsync(openat(&self.fd, ".", flags, Mode::empty())?)?)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        free_bytes(&self.fd)
    }

    fn path_of(&self, file: SideFile) -> PathBuf {
        let mut name = self.path.join(&self.name).as_os_str().as_bytes().to_vec();
        name.extend_from_slice(file.suffix().as_bytes());
        PathBuf::from(OsStr::from_bytes(&name))
    }
}

fn free_bytes(fd: &impl std::os::fd::AsFd) -> io::Result<u64> {
    let stat = fstatvfs(fd)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}
