//! What a cage is asked to do.

use std::sync::Arc;

use instar_abi::boot::JobKind;
use instar_abi::choice::Decisions;
use instar_abi::problem::Tier;

use super::limits::Limits;
use crate::image::Backend;

/// What becomes of names in a dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DumpNames {
    /// They stay.
    Kept,
    /// Something as long stands in their place.
    Masked,
}

/// One job for one inmate.
#[derive(Debug, Clone)]
pub struct Job {
    /// What to do.
    pub kind: JobKind,
    /// For [`JobKind::Plan`].
    pub tier: Option<Tier>,
    /// For [`JobKind::Plan`]: what the user has decided.
    pub decisions: Decisions,
    /// Inflate every compressed cluster too.
    pub deep: bool,
    /// For [`JobKind::Survey`]: what a dump may hold is told, and not what the disk is made of.
    pub dump: Option<DumpNames>,
    /// The image.
    pub image: Arc<dyn Backend>,
    /// The external data file, where the user gave one.
    pub data_file: Option<Arc<dyn Backend>>,
    /// What the inmate may use up.
    pub limits: Limits,
    /// For [`JobKind::Evil`]: which misbehaviour. For [`JobKind::Describe`], the first of them: of how many snapshots and
    /// bitmaps each is told, each of which costs calls; 0 for all.
    pub params: [u64; 4],
}

impl Job {
    /// A job on an image with the default limits.
    #[must_use]
    pub fn new(kind: JobKind, image: Arc<dyn Backend>) -> Self {
        Self {
            kind,
            tier: None,
            decisions: Decisions::default(),
            deep: false,
            dump: None,
            image,
            data_file: None,
            limits: Limits::default(),
            params: [0; 4],
        }
    }
}
