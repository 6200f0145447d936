//! The files below a disk: bytes in, bytes out. Nothing here knows what the bytes mean.

mod backend;

pub use backend::Backend;
