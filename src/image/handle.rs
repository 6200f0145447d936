//! An image file together with its lock.
//!
//! Invariant: from [`ImageHandle::open`] until it is dropped, the image is locked in one mode or the other, and
//! through [`ImageHandle::backend`] no byte of it can be written.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use thiserror::Error;

use super::gate::Admitted;
use super::{Backend, ImageFile, ImageLock, LockError, Mode, OpenError};

/// Why an image could not be opened and locked.
#[derive(Debug, Error)]
pub enum HandleError {
    /// The path is no image file.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Somebody else has it.
    #[error(transparent)]
    Lock(#[from] LockError),
}

/// An open, locked image.
#[derive(Debug)]
pub struct ImageHandle {
    file: Arc<ImageFile>,
    lock: Mutex<ImageLock>,
}

impl ImageHandle {
    /// Opens the image for reading and locks it.
    ///
    /// # Errors
    /// Those of [`ImageFile::open_read_only`] and [`ImageLock::acquire`].
    pub fn open(path: &Path, mode: Mode) -> Result<Self, HandleError> {
        Self::lock(ImageFile::open_read_only(path)?, mode)
    }

    /// Locks a file that the [gate](super::gate) has opened.
    ///
    /// # Errors
    /// Those of [`ImageFile::from_file`] and [`ImageLock::acquire`].
    pub fn from_admitted(admitted: Admitted, mode: Mode) -> Result<Self, HandleError> {
        Self::lock(ImageFile::from_file(&admitted.path, admitted.file)?, mode)
    }

    fn lock(file: ImageFile, mode: Mode) -> Result<Self, HandleError> {
        let lock = ImageLock::acquire(file.as_fd(), file.path(), mode)?;
        Ok(Self { file: Arc::new(file), lock: Mutex::new(lock) })
    }

    /// The file, read-only.
    #[must_use]
    pub fn file(&self) -> &Arc<ImageFile> {
        &self.file
    }

    /// The file as a backend, read-only.
    #[must_use]
    pub fn backend(&self) -> Arc<dyn Backend> {
        Arc::clone(&self.file) as Arc<dyn Backend>
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The lock mode that is held.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.lock.lock().mode()
    }

    /// Goes over to another lock mode without a gap.
    ///
    /// # Errors
    /// `Busy` if another user is in the way; the old mode still holds then.
    pub fn change_mode(&self, mode: Mode) -> Result<(), LockError> {
        self.lock.lock().change(mode)
    }
}
