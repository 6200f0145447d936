//! Asks a cage what a member says about itself.

use std::sync::Arc;

use instar_abi::boot::JobKind;
use instar_abi::call::TextKind;
use instar_abi::summary::{Outcome, feature};

use super::member::{Describe, Facts};
use crate::image::Backend;
use crate::sandbox::error::SandboxError;
use crate::sandbox::job::Job;
use crate::sandbox::limits::Limits;
use crate::sandbox::observer::Observer;
use crate::sandbox::{self, SandboxChoice};

/// [`Describe`] by a job in a cage of its own.
#[derive(Debug, Clone)]
pub struct CageDescriber {
    /// Which cage.
    pub choice: SandboxChoice,
    /// What each job may use up.
    pub limits: Limits,
}

impl Describe for CageDescriber {
    fn describe(&self, image: Arc<dyn Backend>) -> Result<Facts, SandboxError> {
        let mut job = Job::new(JobKind::Describe, image);
        // No names are wanted but those of other files.
        job.params[0] = 1;
        job.limits = self.limits.clone();
        let mut names = BackingNames::default();
        let summary = sandbox::run(&job, self.choice, &mut names)?.summary;
        let outcome = Outcome::from_u32(summary.outcome);
        Ok(Facts {
            is_qcow2: outcome != Some(Outcome::NotQcow2),
            has_backing: summary.features & feature::BACKING != 0,
            virtual_size: summary.virtual_size,
            backing_name: names.file,
            backing_format: names.format,
        })
    }
}

/// Keeps the two names that a chain is followed by, as they are.
#[derive(Debug, Default)]
struct BackingNames {
    file: Option<Vec<u8>>,
    format: Option<Vec<u8>>,
}

impl Observer for BackingNames {
    fn text(&mut self, kind: TextKind, _index: u32, bytes: &[u8]) {
        match kind {
            TextKind::BackingFile => self.file = Some(bytes.to_vec()),
            TextKind::BackingFormat => self.format = Some(bytes.to_vec()),
            _ => {}
        }
    }
}
