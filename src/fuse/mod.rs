//! A raw disk as a file that the kernel can read: the tree of names, the adapter to fuser, the session, and rings in
//! place of the device for most requests ([`uring`]).
//!
//! Invariant: the adapter has no logic of its own; what a read gives is decided in [`crate::disk`], what exists is
//! decided in [`tree`]. Everything is read-only.

mod adapter;
mod errno;
mod keeper;
mod mountpoint;
mod mounts;
mod session;
mod store;
mod transport;
mod tree;
mod uring;

pub use keeper::{Keeper, keep, keeper_of};
pub use mountpoint::is_mount_root;
pub use mountpoint::{MountPoint, MountPointError};
pub use mounts::{Listed, ours};
pub use session::{Admitted, Attached, Mounted, SessionError, Unmounter};
pub use transport::{Transport, TransportChoice};
pub use tree::{Content, Document, Node, ROOT, Tree};
pub use uring::NoRings;
