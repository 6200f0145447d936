//! The raw-disk view: guest offsets in, bytes out. Knows nothing of FUSE and interprets no image byte.
//!
//! A read is answered from cached extents and plain reads of the files below. Only a range that is not cached
//! asks the [`source::ExtentSource`], which in the product is the resident cage. What the source names is
//! checked against the request and the files before it is believed ([`extent::checked`]); an answer that fails
//! this check is an error of the source and serves nothing.
//!
//! A disk may lie over another one, whose bytes show where it has nothing allocated; below the end of that other disk
//! are zeros.
//!
//! ```text
//! read(offset, buffer) -> cache -> hit: one read per extent; a compressed one -> unpacker -> kept: copied
//!                                                                                      -> source -> kept
//!                               -> miss: source (one at a time) -> checked -> cache
//! ```

mod cache;
pub mod extent;
pub mod health;
mod idle;
mod pieces;
mod raw;
mod revive;
pub mod source;
mod survey;
mod unpack;
mod view;

pub use extent::{Piece, Place};
pub use health::{CacheCounts, Health, HealthCounts};
pub use idle::forget_when_idle;
pub use raw::RawFile;
pub use revive::Revived;
pub use source::{ExtentSource, Inflated, Payload};
pub use survey::{Survey, merged};
pub use unpack::{SharedSource, Unpacker};
pub use view::{Backing, Disk, DiskFiles, LeftOver, OnDamage, ReadOutcome, Stop};
