//! The boot page: what the inmate is told before its first instruction.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `BootPage::magic`: "INSTARBT".
pub const BOOT_MAGIC: u64 = u64::from_be_bytes(*b"INSTARBT");

/// Most files a job can see.
pub const FILES_MAX: usize = 4;
/// File index of the image itself.
pub const FILE_IMAGE: u32 = 0;
/// File index of the external data file, where the user gave one.
pub const FILE_DATA: u32 = 1;
/// `BootPage::file_length` of a file that is not there.
pub const FILE_ABSENT: u64 = u64::MAX;

/// What the inmate is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum JobKind {
    /// Walk all metadata, report findings, end with a summary.
    Check = 1,
    /// Check, then propose the writes that cure what the tier in `BootPage::tier` promises to cure.
    Plan = 2,
    /// Resident: answer [`crate::extent::MapRequest`]s until told to exit.
    Map = 3,
    /// Tell the header's facts, snapshots, bitmaps and chain names; nothing is counted.
    Describe = 4,
    /// Tell who uses which part of the file, and what the active disk is made of; nothing is judged.
    Survey = 5,
    /// Check, and where nothing is wrong tell which whole clusters of the file nothing uses.
    Free = 6,
    /// Test payloads only: misbehave in the way that `BootPage::params[0]` names.
    Evil = 0xe711,
}

impl JobKind {
    /// The job with this number, or `None`.
    #[must_use]
    pub const fn from_u32(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Check,
            2 => Self::Plan,
            3 => Self::Map,
            4 => Self::Describe,
            5 => Self::Survey,
            6 => Self::Free,
            0xe711 => Self::Evil,
            _ => return None,
        })
    }
}

/// How the inmate rings the host.
pub const GATE_PORT: u32 = 0;
/// As [`GATE_PORT`], but with one byte through a pipe (process cage).
pub const GATE_PIPE: u32 = 1;

/// `BootPage::flags`: also inflate every compressed cluster (`--deep`).
pub const FLAG_DEEP: u64 = 1 << 0;
/// `BootPage::flags`: a survey tells what a copy without guest data may hold, instead of what the disk is made of.
pub const FLAG_DUMP: u64 = 1 << 1;
/// `BootPage::flags`: with [`FLAG_DUMP`], names are replaced too.
pub const FLAG_MASK_NAMES: u64 = 1 << 2;

/// The boot page at [`crate::layout::BOOT`].
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BootPage {
    /// [`BOOT_MAGIC`].
    pub magic: u64,
    /// [`crate::ABI_VERSION`].
    pub abi_version: u32,
    /// A [`JobKind`].
    pub job: u32,
    /// [`GATE_PORT`] or [`GATE_PIPE`].
    pub gate: u32,
    /// A [`crate::problem::Tier`], for [`JobKind::Plan`]; 0 otherwise.
    pub tier: u32,
    /// `FLAG_*` bits.
    pub flags: u64,
    /// [`crate::choice::Decisions`] bits, for [`JobKind::Plan`]; 0 otherwise.
    pub decisions: u64,
    /// Bytes of arena at [`crate::layout::ARENA_BASE`]; a multiple of [`crate::layout::LARGE_PAGE`].
    pub arena_bytes: u64,
    /// Length in bytes of each file, [`FILE_ABSENT`] where there is none.
    pub file_length: [u64; FILES_MAX],
    /// Meaning depends on the job.
    pub params: [u64; 4],
}
