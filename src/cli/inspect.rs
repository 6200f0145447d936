//! Runs jobs on an open image as the command line asked, and makes reports of what they told.

use std::path::PathBuf;
use std::sync::Arc;

use instar_abi::boot::JobKind;

use super::options::{CageArgs, Sandbox};
use super::say;
use crate::error::Error;
use crate::heal::CageInspector;
use crate::image::{Backend, ImageFile, ImageHandle};
use crate::report::{CheckReport, Collector, ImageReport, SandboxFacts, Watch, escape_message, escape_path};
use crate::sandbox::job::Job;
use crate::sandbox::{self, JobResult, SandboxChoice};

impl From<Sandbox> for SandboxChoice {
    fn from(sandbox: Sandbox) -> Self {
        match sandbox {
            Sandbox::Auto => Self::Auto,
            Sandbox::Kvm => Self::Kvm,
            Sandbox::Process => Self::Process,
        }
    }
}

/// What to look at, and in which cage.
#[derive(Debug, Clone)]
pub struct Inspector {
    image_path: PathBuf,
    image: Arc<dyn Backend>,
    data_file: Option<Arc<dyn Backend>>,
    choice: SandboxChoice,
    memory_bytes: u64,
    deep: bool,
    watch: Watch,
}

impl Inspector {
    /// Looks at an open image as `cage` says. Its progress is shown to `watch`.
    ///
    /// # Errors
    /// [`Error::DataFile`].
    pub fn new(image: &ImageHandle, cage: &CageArgs, watch: Watch) -> Result<Self, Error> {
        let data_file = cage.data_file.as_deref().map(ImageFile::open_read_only).transpose();
        Ok(Self {
            image_path: image.path().to_owned(),
            image: image.backend(),
            data_file: data_file.map_err(Error::DataFile)?.map(|file| Arc::new(file) as Arc<dyn Backend>),
            choice: cage.sandbox.into(),
            memory_bytes: cage.memory,
            deep: false,
            watch,
        })
    }

    /// The same; with `deep`, its checks inflate every compressed cluster too.
    #[must_use]
    pub fn with_deep(self, deep: bool) -> Self {
        Self { deep, ..self }
    }

    /// The same; what is looked at is `image`, a later or previewed state of it.
    #[must_use]
    pub fn of(self, image: Arc<dyn Backend>) -> Self {
        Self { image, ..self }
    }

    /// A job of this kind on the image.
    #[must_use]
    pub fn job(&self, kind: JobKind) -> Job {
        let mut job = Job::new(kind, Arc::clone(&self.image));
        job.data_file.clone_from(&self.data_file);
        job.limits.arena_bytes = self.memory_bytes;
        job.deep = self.deep;
        job
    }

    /// What is asked for, in words, by which version and with which means: two requests with the same words do the
    /// same to the same image.
    #[must_use]
    pub fn request(&self, what: &str) -> String {
        let version = env!("CARGO_PKG_VERSION");
        let sandbox = match self.choice {
            SandboxChoice::Auto => "auto",
            SandboxChoice::Kvm => "kvm",
            SandboxChoice::Process => "process",
        };
        let deep = if self.deep { ", deep" } else { "" };
        format!("instar {version}: {what}; cage {sandbox}, memory {} bytes{deep}", self.memory_bytes)
    }

    /// Which cage was asked for.
    #[must_use]
    pub const fn choice(&self) -> SandboxChoice {
        self.choice
    }

    /// Cages for the healer, of the same kind and with the same limits.
    pub(super) fn healers_cages(&self) -> CageInspector {
        let limits = self.job(JobKind::Check).limits;
        CageInspector::new(self.choice, limits).with_data_file(self.data_file.clone()).with_deep(self.deep)
    }

    /// Checks the image.
    ///
    /// # Errors
    /// [`Error::Sandbox`].
    pub fn check(&self) -> Result<CheckReport, Error> {
        let (result, collected) = self.run(JobKind::Check)?;
        Ok(CheckReport::new(self.image_path.clone(), result.summary, collected, facts(result)))
    }

    /// Asks what the image is.
    ///
    /// # Errors
    /// [`Error::Sandbox`].
    pub fn describe(&self) -> Result<ImageReport, Error> {
        let (result, collected) = self.run(JobKind::Describe)?;
        Ok(ImageReport::new(self.image_path.clone(), result.summary, collected, facts(result)))
    }

    fn run(&self, kind: JobKind) -> Result<(JobResult, Collector), Error> {
        let mut collector = Collector::new(self.watch.progress());
        let result = sandbox::run(&self.job(kind), self.choice, &mut collector)
            .map_err(|source| Error::Sandbox { image: self.image_path.clone(), source })?;
        self.warn_of_fallback(result.fallback.as_deref());
        Ok((result, collector))
    }

    /// Says loudly that the better cage was not to be had.
    pub(super) fn warn_of_fallback(&self, reason: Option<&str>) {
        if let Some(reason) = reason {
            say::to_person(&format!(
                "warning: no KVM cage ({}): {} is looked at in a process cage, which is the weaker wall",
                escape_message(reason),
                escape_path(&self.image_path)
            ));
        }
    }

    /// Who wants to know how far its jobs are.
    pub(super) const fn watch(&self) -> &Watch {
        &self.watch
    }
}

fn facts(result: JobResult) -> SandboxFacts {
    SandboxFacts { cage: result.cage, fallback: result.fallback, stats: result.stats }
}
