//! A real file or block device as a [`Backend`].
//!
//! Invariant: what is opened is a regular file or a block device with at least one byte, and a file opened
//! read-only stays so: [`ImageFile::reopen_writable`] makes a second descriptor of the same file, never of
//! whatever has its name by then. Device nodes, FIFOs and sockets are looked at by name only, because opening
//! one can already do something. Locks are the business of [`super::lock`].

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, OFlags, SeekFrom, fallocate, fcntl_getfl, fcntl_setfl, fstatvfs, seek};
use rustix::io::Errno;
use thiserror::Error;

use super::Backend;

/// Most ranges that one [`Backend::data_ranges`] tells; the last one then reaches to the end of what was asked.
const DATA_RANGES_MAX: usize = 1 << 16;

/// Why a path cannot be an image. Every message names the path.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Nothing has this name.
    #[error("{}: no such file", .0.display())]
    NotFound(PathBuf),
    /// A directory.
    #[error("{}: is a directory, not an image", .0.display())]
    Directory(PathBuf),
    /// Zero bytes long.
    #[error("{}: is empty (0 bytes)", .0.display())]
    Empty(PathBuf),
    /// The file's permissions do not allow it.
    #[error("{}: permission denied (cannot open for {access})", path.display())]
    PermissionDenied {
        /// The file.
        path: PathBuf,
        /// "reading" or "writing".
        access: &'static str,
    },
    /// A FIFO, character device or socket.
    #[error("{}: is a {kind}; an image is a regular file or a block device", path.display())]
    WrongKind {
        /// The file.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// Another file has taken its place.
    #[error("{}: has been replaced by another file since it was opened", .0.display())]
    Replaced(PathBuf),
    /// Anything else.
    #[error("{}: cannot {action}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried, as an infinitive.
        action: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// What tells one state of a file from another without reading it. Equal values do not prove equal bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileState {
    /// Length in bytes.
    pub len: u64,
    /// Last change of the bytes: seconds and nanoseconds.
    pub modified: (i64, i64),
    /// Last change of bytes or attributes: seconds and nanoseconds.
    pub changed: (i64, i64),
}

/// How the storage below a file gives parts of it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Storage {
    /// Only multiples of so many bytes are given back.
    pub unit_bytes: u64,
    /// Bytes of storage that the file takes; `None` for a block device, of which that is not known.
    pub held_bytes: Option<u64>,
}

/// Smallest and largest unit that storage is given back in: where a file system tells a larger one (those on a network
/// tell what they like to be read by), pieces of it are tried all the same.
const UNIT_BYTES: std::ops::RangeInclusive<u64> = 4096..=65536;

/// An open image file or block device.
#[derive(Debug)]
pub struct ImageFile {
    file: File,
    path: PathBuf,
    len: AtomicU64,
    device: u64,
    inode: u64,
    block_device: bool,
}

impl ImageFile {
    /// Opens `path` for reading; no byte of it can be written through the result.
    ///
    /// # Errors
    /// One [`OpenError`] kind for each thing that can be wrong with a path.
    pub fn open_read_only(path: &Path) -> Result<Self, OpenError> {
        // By name first: only the names of files and block devices are opened at all.
        let meta = std::fs::metadata(path).map_err(|e| open_error(path, e, "reading"))?;
        refuse_wrong_kind(path, &meta)?;
        let file = open(path, false).map_err(|e| open_error(path, e, "reading"))?;
        Self::from_file(path, file)
    }

    /// Opens the same file, not the same name, a second time, for reading and writing.
    ///
    /// # Errors
    /// `PermissionDenied` where it may not be written; `Replaced` where the file has lost its name to another
    /// one; `Io`.
    pub fn reopen_writable(&self) -> Result<Self, OpenError> {
        self.reopen(true)
    }

    /// Opens the same file a second time for reading, to see the length that it has now.
    ///
    /// # Errors
    /// As [`ImageFile::reopen_writable`].
    pub fn reopen_read_only(&self) -> Result<Self, OpenError> {
        self.reopen(false)
    }

    fn reopen(&self, write: bool) -> Result<Self, OpenError> {
        let access = if write { "writing" } else { "reading" };
        let file = open(&self.path, write).map_err(|e| open_error(&self.path, e, access))?;
        let again = Self::from_file(&self.path, file)?;
        if (again.device, again.inode) != (self.device, self.inode) {
            return Err(OpenError::Replaced(self.path.clone()));
        }
        Ok(again)
    }

    /// Takes a file that has been opened already, for reading and with O_NONBLOCK, under the name `path`.
    ///
    /// # Errors
    /// `WrongKind`, `Directory` or `Empty` if it is no image file; `Io`.
    pub fn from_file(path: &Path, file: File) -> Result<Self, OpenError> {
        let io_error = |action| move |source| OpenError::Io { path: path.to_path_buf(), action, source };
        let meta = file.metadata().map_err(io_error("read the attributes"))?;
        refuse_wrong_kind(path, &meta)?;
        // The flag only served to get past a FIFO that took the name's place meanwhile.
        let flags = fcntl_getfl(&file).map_err(|e| io_error("read the flags")(e.into()))?;
        fcntl_setfl(&file, flags.difference(OFlags::NONBLOCK))
            .map_err(|e| io_error("set the flags")(e.into()))?;
        let block_device = meta.file_type().is_block_device();
        let len = if block_device {
            seek(&file, SeekFrom::End(0)).map_err(|e| io_error("find the size of the device")(e.into()))?
        } else {
            meta.len()
        };
        if len == 0 {
            return Err(OpenError::Empty(path.to_path_buf()));
        }
        Ok(Self {
            file,
            path: path.to_path_buf(),
            len: AtomicU64::new(len),
            device: meta.dev(),
            inode: meta.ino(),
            block_device,
        })
    }

    /// A record that stands beside an image, already open; it may be empty.
    ///
    /// # Errors
    /// Those of fstat.
    pub(crate) fn of_side_file(path: &Path, file: File) -> io::Result<Self> {
        let meta = file.metadata()?;
        Ok(Self {
            file,
            path: path.to_path_buf(),
            len: AtomicU64::new(meta.len()),
            device: meta.dev(),
            inode: meta.ino(),
            block_device: false,
        })
    }

    /// Takes note of the length that the file has now, which another descriptor may have changed.
    ///
    /// # Errors
    /// Those of fstat.
    pub fn look_again(&self) -> io::Result<()> {
        if !self.block_device {
            self.len.store(self.file.metadata()?.len(), Ordering::Release);
        }
        Ok(())
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// True for a block device: it cannot grow, and the folder of its node is no place for files.
    #[must_use]
    pub fn is_block_device(&self) -> bool {
        self.block_device
    }

    /// Device and inode number.
    #[must_use]
    pub fn identity(&self) -> (u64, u64) {
        (self.device, self.inode)
    }

    /// How its storage gives parts back, and what it takes now.
    ///
    /// # Errors
    /// Those of fstat and fstatvfs.
    pub fn storage(&self) -> io::Result<Storage> {
        let told = fstatvfs(&self.file)?.f_frsize;
        let unit = if told.is_power_of_two() { told } else { *UNIT_BYTES.end() };
        let blocks = self.file.metadata()?.blocks();
        Ok(Storage {
            unit_bytes: unit.clamp(*UNIT_BYTES.start(), *UNIT_BYTES.end()),
            held_bytes: (!self.block_device).then(|| blocks.saturating_mul(512)),
        })
    }

    /// Length and times as they are now, for telling whether somebody else has changed the file.
    ///
    /// # Errors
    /// Those of fstat.
    pub fn state(&self) -> io::Result<FileState> {
        let meta = self.file.metadata()?;
        Ok(FileState {
            len: if self.block_device { self.len() } else { meta.len() },
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

pub(super) fn open(path: &Path, write: bool) -> io::Result<File> {
    let flags = OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    OpenOptions::new().read(true).write(write).custom_flags(flags.bits().cast_signed()).open(path)
}

fn open_error(path: &Path, source: io::Error, access: &'static str) -> OpenError {
    let path = path.to_path_buf();
    match source.kind() {
        io::ErrorKind::NotFound => OpenError::NotFound(path),
        io::ErrorKind::PermissionDenied => OpenError::PermissionDenied { path, access },
        io::ErrorKind::IsADirectory => OpenError::Directory(path),
        _ if access == "writing" => OpenError::Io { path, action: "open for writing", source },
        _ => OpenError::Io { path, action: "open for reading", source },
    }
}

fn refuse_wrong_kind(path: &Path, meta: &Metadata) -> Result<(), OpenError> {
    let kind = meta.file_type();
    let path = path.to_path_buf();
    if kind.is_file() || kind.is_block_device() {
        Ok(())
    } else if kind.is_dir() {
        Err(OpenError::Directory(path))
    } else if kind.is_fifo() {
        Err(OpenError::WrongKind { path, kind: "FIFO" })
    } else if kind.is_socket() {
        Err(OpenError::WrongKind { path, kind: "socket" })
    } else {
        Err(OpenError::WrongKind { path, kind: "character device" })
    }
}

impl AsFd for ImageFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for ImageFile {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.file.as_raw_fd()
    }
}

impl Backend for ImageFile {
    fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(into, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let end = offset
            .checked_add(bytes.len() as u64)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        self.file.write_all_at(bytes, offset)?;
        self.len.fetch_max(end, Ordering::AcqRel);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)?;
        self.len.store(len, Ordering::Release);
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        loop {
            match fallocate(&self.file, flags, offset, len) {
                // A long one may be told to stop by a signal; what it did stays done.
                Err(Errno::INTR) => {}
                result => return Ok(result?),
            }
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn data_ranges(&self, offset: u64, len: u64) -> io::Result<Vec<(u64, u64)>> {
        let end = offset.saturating_add(len).min(self.len());
        let mut ranges = Vec::new();
        let mut at = offset;
        while at < end {
            let data = match seek(&self.file, SeekFrom::Data(at)) {
                Ok(data) => data.max(at),
                // Only a hole is left.
                Err(Errno::NXIO) => break,
                Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(vec![(offset, end - offset)]),
                Err(e) => return Err(e.into()),
            };
            if data >= end {
                break;
            }
            if ranges.len() + 1 == DATA_RANGES_MAX {
                ranges.push((data, end - data));
                break;
            }
            // The kernel's answer for a file that shrinks meanwhile must not stop the loop from going on.
            let hole = match seek(&self.file, SeekFrom::Hole(data)) {
                Ok(hole) => hole.clamp(data + 1, end),
                Err(Errno::NXIO) => break,
                Err(e) => return Err(e.into()),
            };
            ranges.push((data, hole - data));
            at = hole;
        }
        Ok(ranges)
    }

    fn plain_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_with(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        std::fs::write(&path, bytes).unwrap();
        (folder, path)
    }

    #[test]
    fn open_missing_directory_empty_names_the_path() {
        let (folder, path) = file_with(b"");
        let missing = folder.path().join("nothing");
        assert_eq!(
            ImageFile::open_read_only(&missing).unwrap_err().to_string(),
            format!("{}: no such file", missing.display())
        );
        assert!(matches!(ImageFile::open_read_only(folder.path()), Err(OpenError::Directory(_))));
        assert!(matches!(ImageFile::open_read_only(&path), Err(OpenError::Empty(_))));
    }

    #[test]
    fn open_fifo_refused_without_hanging() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        let error = ImageFile::open_read_only(&path).unwrap_err();
        assert!(matches!(error, OpenError::WrongKind { kind: "FIFO", .. }), "{error}");
    }

    #[test]
    fn open_character_device_refused() {
        let error = ImageFile::open_read_only(Path::new("/dev/null")).unwrap_err();
        assert!(matches!(error, OpenError::WrongKind { kind: "character device", .. }), "{error}");
    }

    #[test]
    fn read_only_file_write_fails_and_bytes_stay() {
        let (_folder, path) = file_with(b"abcdef");
        let file = ImageFile::open_read_only(&path).unwrap();
        assert!(file.write_at(b"X", 0).is_err());
        assert!(file.set_len(1).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"abcdef");
    }

    #[test]
    fn reopen_writable_after_replacement_refused() {
        let (folder, path) = file_with(b"abcdef");
        let file = ImageFile::open_read_only(&path).unwrap();
        std::fs::write(folder.path().join("other"), b"other").unwrap();
        std::fs::rename(folder.path().join("other"), &path).unwrap();
        assert!(matches!(file.reopen_writable(), Err(OpenError::Replaced(_))));
    }

    #[test]
    fn reads_and_writes_at_offsets_follow_the_length() {
        let (_folder, path) = file_with(b"abcdef");
        let file = ImageFile::open_read_only(&path).unwrap().reopen_writable().unwrap();
        file.write_at(b"ZZZZ", 4).unwrap();
        file.sync().unwrap();
        assert_eq!(file.len(), 8);
        let mut all = [0; 8];
        file.read_at(&mut all, 0).unwrap();
        assert_eq!(&all, b"abcdZZZZ");
        let end = file.read_at(&mut all, 1).unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn data_ranges_sparse_file_leaves_out_the_hole() {
        let (_folder, path) = file_with(b"head");
        let writer = ImageFile::open_read_only(&path).unwrap().reopen_writable().unwrap();
        writer.set_len(64 << 20).unwrap();
        writer.write_at(b"tail", 32 << 20).unwrap();
        let file = ImageFile::open_read_only(&path).unwrap();
        let ranges = file.data_ranges(0, file.len()).unwrap();
        let told: u64 = ranges.iter().map(|r| r.1).sum();
        assert!(ranges.iter().any(|&(o, l)| o <= 32 << 20 && (32 << 20) + 4 <= o + l), "{ranges:?}");
        assert!(ranges.windows(2).all(|w| w[0].0 + w[0].1 <= w[1].0), "{ranges:?}");
        assert!(told <= 64 << 20);
        // Only told where the file system knows holes.
        let meta = std::fs::metadata(&path).unwrap();
        if meta.blocks() * 512 < 1 << 20 {
            assert!(told < 1 << 20, "{ranges:?}");
        }
        assert_eq!(file.data_ranges(64 << 20, 10).unwrap(), []);
    }
}
