//! Changes that no check of metadata can find, because what they make is another healthy image.
//!
//! A change after which every byte of every disk reads as before needs no name here. Each of those named below
//! leaves all structures valid and all counts right, and changes what an entry *means*; only somebody who knows
//! the guest's data could tell.

use crate::support::fields::{Change, Field, Kind};
use crate::support::reference::Facts;

/// The change that was made.
#[derive(Debug)]
pub struct Made {
    /// The field.
    pub field: Field,
    /// How it was changed.
    pub change: Change,
    /// Its value before.
    pub old: u64,
    /// And after.
    pub new: u64,
}

const COMPRESSED: u64 = 1 << 62;

impl Made {
    /// Whether plain bytes are now taken for a packed payload: what it inflates to is all that could tell.
    pub fn is_packing_flag(&self) -> bool {
        self.field.kind == Kind::L2 && self.new == self.old | COMPRESSED && self.new != self.old
    }
}

/// Why nobody could have found it; `None` if somebody could.
pub fn reason(made: &Made, before: &Facts, after: &Facts, has_data_file: bool) -> Option<&'static str> {
    let is_swap = matches!(made.change, Change::Swap);
    let same_manner = before.manner == after.manner;
    let same_content = before.disks.len() == after.disks.len()
        && before.disks.iter().zip(&after.disks).all(|(one, other)| one.content == other.content);
    match made.field.kind {
        Kind::Header(24) | Kind::Snapshot(48) if same_manner && same_content => {
            Some("disk size within its tables' reach")
        }
        Kind::Header(4) if before.disks == after.disks => {
            Some("version, where only the kind of packing hangs on it")
        }
        Kind::Header(32) if same_content && before.disks == after.disks => Some("encryption method"),
        Kind::Header(8 | 16) | Kind::BackingName if before.disks == after.disks => Some("backing file name"),
        Kind::ExtensionHead(_) | Kind::ExtensionData(_) | Kind::Header(100)
            if before.disks == after.disks =>
        {
            Some("name of a backing format or data file")
        }
        Kind::L1(_) if same_manner && is_swap => Some("two L1 entries changed places"),
        Kind::L2 if same_manner && has_data_file => {
            Some("place in an external data file, which counts nothing")
        }
        Kind::L2 if same_manner && is_swap => Some("two L2 entries changed places"),
        Kind::L2 if same_manner && made.old ^ made.new == 1 => Some("zero flag of an entry with a cluster"),
        Kind::L2 if same_manner && made.old & made.new & COMPRESSED != 0 => {
            Some("place of a packed payload within its clusters")
        }
        Kind::L2Bitmap if same_manner => Some("subcluster bits"),
        Kind::Snapshot(0) if same_manner && is_swap => Some("two snapshots' tables changed places"),
        _ => None,
    }
}
