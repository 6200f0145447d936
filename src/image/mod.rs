//! The files below a disk: bytes in, bytes out. Nothing here knows what the bytes mean.

mod backend;
mod file;
mod holders;
mod lock;

pub use backend::Backend;
pub use file::{FileState, ImageFile, OpenError};
pub use lock::{Conflict, Holder, ImageLock, LockError, Mode};
