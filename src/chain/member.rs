//! The members of a chain, as far as it could be followed.

use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;

use crate::image::gate::{GateError, GatePolicy};
use crate::image::{Backend, HandleError, ImageHandle};
use crate::sandbox::error::SandboxError;

/// What a member is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// QCOW2: has metadata, may have a backing file.
    Qcow2,
    /// Bytes of the disk, one for one; the end of every chain.
    Raw,
}

impl Format {
    /// The format with this name in a backing format extension or on the command line.
    #[must_use]
    pub fn from_name(name: &[u8]) -> Option<Self> {
        match name {
            b"qcow2" => Some(Self::Qcow2),
            b"raw" => Some(Self::Raw),
            _ => None,
        }
    }

    /// The name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
        }
    }
}

/// What a QCOW2 member says about itself. Bytes of names are hostile data.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// False if it does not even begin like a QCOW2 image.
    pub is_qcow2: bool,
    /// True if its header says that there is a file below it.
    pub has_backing: bool,
    /// Size of its disk in bytes.
    pub virtual_size: u64,
    /// The name of the file below it.
    pub backing_name: Option<Vec<u8>>,
    /// The format of the file below it.
    pub backing_format: Option<Vec<u8>>,
}

/// Learns what an image says about itself.
pub trait Describe {
    /// Looks at an image.
    ///
    /// # Errors
    /// Those of the cage.
    fn describe(&self, image: Arc<dyn Backend>) -> Result<Facts, SandboxError>;
}

/// What the user allows and says of the members below the top.
#[derive(Debug, Clone, Default)]
pub struct ChainPolicy {
    /// Which files may be opened.
    pub gate: GatePolicy,
    /// The formats of the members, nearest first, for those whose overlay does not state it.
    pub formats: Vec<Format>,
    /// The position of the member whose backing file is left out, whatever it is. 0 is the top.
    pub last: Option<usize>,
}

/// One member.
#[derive(Debug)]
pub struct Member {
    /// Where it was found.
    pub path: PathBuf,
    /// What it is made of, by the word of the member above it.
    pub format: Format,
    /// Size of its disk in bytes.
    pub virtual_size: u64,
    /// The open, locked file.
    pub handle: Arc<ImageHandle>,
}

/// A chain, top first.
#[derive(Debug)]
pub struct Chain {
    /// The members that were reached.
    pub members: Vec<Member>,
    /// What is worth saying, by the position of the member that it is about.
    pub problems: Vec<(usize, ChainProblem)>,
}

impl Chain {
    /// True if the last member has a backing file that was left out.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.problems.iter().any(|(_, problem)| matches!(problem, ChainProblem::LeftOut))
    }

    /// True if every member that is named was reached, or left out by the user.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.problems.iter().all(|(_, problem)| problem.is_remark())
    }
}

/// What can be wrong with a member, told from the member that names it.
#[derive(Debug, Error)]
pub enum ChainProblem {
    /// The name did not pass the gate.
    #[error("its backing file is not used")]
    Gate(#[source] GateError),
    /// The user has left out what is below.
    #[error("its backing file is left out: what it does not hold itself is not known")]
    LeftOut,
    /// The file cannot be opened or locked.
    #[error("its backing file cannot be used")]
    Handle(#[source] HandleError),
    /// The header says that there is a backing file, and its name cannot be read.
    #[error("the name of its backing file cannot be read")]
    NameUnreadable,
    /// The member does not say what format its backing file has.
    #[error("it does not state the format of its backing file, which is never guessed")]
    FormatUnstated,
    /// The stated format is none that is served.
    #[error("it states a format for its backing file that is neither qcow2 nor raw")]
    FormatUnknown {
        /// The stated name.
        stated: Vec<u8>,
    },
    /// The backing file is not what was stated.
    #[error("its backing file is stated to be qcow2 and is not")]
    NotAsStated,
    /// The cage gave no answer.
    #[error("it cannot be looked at")]
    Cage(#[source] SandboxError),
    /// The backing file stands above in the chain already.
    #[error("its backing file is member {position} of the same chain: the chain has no end")]
    Cycle {
        /// Which member it is, 0 is the top.
        position: usize,
    },
    /// More members than are followed.
    #[error("the chain has more than {limit} members")]
    TooLong {
        /// How many are followed.
        limit: usize,
    },
    /// The backing file's disk is smaller: legal, reads as zeros behind its end.
    #[error("its backing file is shorter ({below} of {own} bytes): what is behind its end reads as zeros")]
    Shorter {
        /// Bytes of this member's disk.
        own: u64,
        /// Bytes of the disk below.
        below: u64,
    },
    /// The backing file's disk is larger: legal, the rest is not seen.
    #[error("its backing file is larger ({below} bytes, {own} of them are seen): it may have been resized")]
    Larger {
        /// Bytes of this member's disk.
        own: u64,
        /// Bytes of the disk below.
        below: u64,
    },
}

impl ChainProblem {
    /// True for what is legal, or by the user's word, and only worth knowing.
    #[must_use]
    pub const fn is_remark(&self) -> bool {
        matches!(self, Self::Shorter { .. } | Self::Larger { .. } | Self::LeftOut)
    }
}
