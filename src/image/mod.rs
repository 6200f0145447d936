//! The files below a disk: bytes in, bytes out. Nothing here knows what the bytes mean.

mod backend;
mod file;
pub mod gate;
mod handle;
mod holders;
mod latch;
mod lock;
mod overlay;
mod zeroed;

pub use backend::Backend;
pub use file::{FileState, ImageFile, OpenError, Storage};
pub use handle::{HandleError, ImageHandle};
pub use latch::Latch;
pub use lock::{Conflict, Holder, ImageLock, LockError, Mode};
pub use overlay::{Overlay, OverlayError, Write};
pub use zeroed::Zeroed;
