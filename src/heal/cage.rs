//! The product's inspector: each job in a cage of its own.

use std::sync::Arc;

use instar_abi::boot::JobKind;
use instar_abi::choice::Decisions;
use instar_abi::problem::Tier;

use super::inspector::{Inspector, Ran, Surveyor};
use crate::image::Backend;
use crate::sandbox::error::SandboxError;
use crate::sandbox::job::Job;
use crate::sandbox::limits::Limits;
use crate::sandbox::observer::Observer;
use crate::sandbox::{CageKind, SandboxChoice, run};

/// Runs checks and plans in cages.
#[derive(Debug)]
pub struct CageInspector {
    choice: SandboxChoice,
    limits: Limits,
    data_file: Option<Arc<dyn Backend>>,
    deep: bool,
    cage: Option<(CageKind, Option<String>)>,
}

impl CageInspector {
    /// An inspector with these limits, except that no finding is dropped: the healer has its own bound on what
    /// it keeps.
    #[must_use]
    pub fn new(choice: SandboxChoice, limits: Limits) -> Self {
        let limits = Limits { findings_kept: limits.findings, ..limits };
        Self { choice, limits, data_file: None, deep: false, cage: None }
    }

    /// Also shows the cage an external data file.
    #[must_use]
    pub fn with_data_file(self, data_file: Option<Arc<dyn Backend>>) -> Self {
        Self { data_file, ..self }
    }

    /// Also inflates every compressed cluster.
    #[must_use]
    pub fn with_deep(self, deep: bool) -> Self {
        Self { deep, ..self }
    }

    /// Which cage the last job had, and why it was not KVM where that was wanted.
    #[must_use]
    pub fn cage(&self) -> Option<&(CageKind, Option<String>)> {
        self.cage.as_ref()
    }

    fn run(
        &mut self,
        kind: JobKind,
        (tier, decisions): (Option<Tier>, Decisions),
        image: Arc<dyn Backend>,
        observer: &mut dyn Observer,
    ) -> Result<Ran, SandboxError> {
        let job = Job {
            tier,
            decisions,
            deep: self.deep,
            data_file: self.data_file.clone(),
            limits: self.limits.clone(),
            ..Job::new(kind, image)
        };
        let result = run(&job, self.choice, observer)?;
        self.cage = Some((result.cage, result.fallback));
        Ok(Ran { summary: result.summary, stats: result.stats })
    }
}

impl Inspector for CageInspector {
    fn check(&mut self, image: Arc<dyn Backend>, observer: &mut dyn Observer) -> Result<Ran, SandboxError> {
        self.run(JobKind::Check, (None, Decisions::default()), image, observer)
    }

    fn plan(
        &mut self,
        image: Arc<dyn Backend>,
        tier: Tier,
        decisions: Decisions,
        observer: &mut dyn Observer,
    ) -> Result<Ran, SandboxError> {
        self.run(JobKind::Plan, (Some(tier), decisions), image, observer)
    }
}

impl Surveyor for CageInspector {
    fn free(&mut self, image: Arc<dyn Backend>, observer: &mut dyn Observer) -> Result<Ran, SandboxError> {
        self.run(JobKind::Free, (None, Decisions::default()), image, observer)
    }

    fn survey(&mut self, image: Arc<dyn Backend>, observer: &mut dyn Observer) -> Result<Ran, SandboxError> {
        self.run(JobKind::Survey, (None, Decisions::default()), image, observer)
    }
}
