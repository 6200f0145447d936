//! An image file together with its lock.
//!
//! Invariant: from [`ImageHandle::open`] until it is dropped, the image is locked in one mode or the other, and
//! through [`ImageHandle::backend`] no byte of it can be written.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use thiserror::Error;

use super::gate::Admitted;
use super::{Backend, ImageFile, ImageLock, LockError, Mode, OpenError};

/// How long a busy image is tried again: a program that is just ending, such as the server of a disk that was
/// unmounted a moment ago, is not worth an error.
const PATIENCE: Duration = Duration::from_millis(500);
/// Time between two tries.
const PAUSE: Duration = Duration::from_millis(20);

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
        let lock = with_patience(|| ImageLock::acquire(file.as_fd(), file.path(), mode))?;
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

    /// The file as a backend, read-only, with the length that it has now. It must not outlive the handle's lock.
    ///
    /// # Errors
    /// Those of [`ImageFile::reopen_read_only`].
    pub fn now(&self) -> Result<Arc<dyn Backend>, OpenError> {
        Ok(Arc::new(self.file.reopen_read_only()?))
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
        let mut lock = self.lock.lock();
        with_patience(|| lock.change(mode))
    }
}

/// Tries again for [`PATIENCE`] while somebody else is in the way.
fn with_patience<T>(mut attempt: impl FnMut() -> Result<T, LockError>) -> Result<T, LockError> {
    let began = Instant::now();
    loop {
        match attempt() {
            Err(LockError::Busy { .. }) if began.elapsed() < PATIENCE => thread::sleep(PAUSE),
            ended => return ended,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn open_waits_for_a_user_who_is_just_leaving_and_for_no_other() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [1]).unwrap();
        let path = file.path().to_path_buf();
        let (locked, is_locked) = channel();
        let leaving = thread::spawn(move || {
            let handle = ImageHandle::open(&path, Mode::Exclusive).unwrap();
            locked.send(()).unwrap();
            thread::sleep(PAUSE * 2);
            drop(handle);
        });
        is_locked.recv().unwrap();
        let handle = ImageHandle::open(file.path(), Mode::Exclusive).unwrap();
        leaving.join().unwrap();
        assert!(matches!(ImageHandle::open(file.path(), Mode::Read), Err(HandleError::Lock(_))));
        drop(handle);
    }
}
