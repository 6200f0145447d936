//! The disks below an image: each member of its backing chain, checked and mapped in a cage of its own.
//!
//! Invariant: the chain is followed once, at the mount, and every member stays open and locked for reading as long as
//! the mount lives. A chain that is not whole is not served: what lies under a missing member is unknown, and zeros in
//! its place would be taken for data. Where the user leaves a member out, its place is damaged.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use instar_abi::boot::JobKind;
use instar_abi::finding::ACTIVE;
use instar_abi::summary::feature;
use parking_lot::Mutex;

use super::super::cache::CacheMemory;
use super::super::chain::policy;
use super::super::inspect::Inspector;
use super::super::options::{CageArgs, MountOptions};
use super::super::say;
use super::error::MountError;
use super::{Sources, is_another_map};
use crate::chain::{self, CageDescriber, Chain, ChainProblem, Format, Member};
use crate::disk::{Backing, Disk, DiskFiles, RawFile, SharedSource, Unpacker};
use crate::error::Error;
use crate::image::ImageHandle;
use crate::report::{CheckReport, Verdict, Watch, escape_path, headline};
use crate::sandbox::Resident;
use crate::sandbox::limits::Limits;

/// What answers for a raw file: windows of it are asked for as if it had clusters of this size.
const RAW_CLUSTER_BITS: u32 = 16;

/// The members below an image.
#[derive(Debug, Default)]
pub struct Below {
    /// The nearest of them, over all others.
    pub backing: Backing,
    /// How often the cage of each QCOW2 member was started anew.
    pub restarts: Vec<Arc<AtomicU64>>,
    /// The inflated clusters of each QCOW2 member.
    pub unpackers: Vec<Arc<Unpacker>>,
    /// A member has corruptions, or could not be looked at as a whole.
    is_damaged: bool,
    /// Keeps the members open and locked.
    chain: Option<Chain>,
}

impl Below {
    /// Opens, checks and maps all members below `image`, if it names any, with `memory` for what is kept of them.
    ///
    /// # Errors
    /// [`MountError::Chain`] and [`MountError::Member`] for a chain that cannot be served; [`Error::Sandbox`].
    pub fn open(
        options: &MountOptions,
        image: &Arc<ImageHandle>,
        report: &CheckReport,
        memory: CacheMemory,
    ) -> Result<Self, Error> {
        if report.summary.features & feature::BACKING == 0 {
            return Ok(Self::default());
        }
        let limits = Limits { arena_bytes: options.cage.memory, ..Limits::default() };
        let describer = CageDescriber { choice: options.cage.sandbox.into(), limits };
        let mut chain = chain::follow(image.clone(), &policy(&options.below), &describer);
        if let Some(broken) = chain.problems.iter().position(|(_, problem)| !problem.is_remark()) {
            let (position, problem) = chain.problems.swap_remove(broken);
            let image = chain.members[position].path.clone();
            return Err(MountError::Chain { image, problem }.into());
        }
        let below = &chain.members[1..];
        let share = memory.part(below.len());
        let mut all = Self::default();
        if chain.is_cut() {
            all.backing = Backing::LeftOut;
            all.is_damaged = true;
            say_left_out(&chain);
        }
        for member in below.iter().rev() {
            let disk = all.member_disk(options, member, share)?.on_damage(options.on_damage.into());
            all.backing = Backing::Disk(Arc::new(disk.over(std::mem::take(&mut all.backing))));
        }
        all.chain = Some(chain);
        Ok(all)
    }

    /// True if nothing was found in any member that could keep its bytes from being read.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        !self.is_damaged
    }

    /// The disk of one member by itself, with `memory` for what is kept of it.
    fn member_disk(
        &mut self,
        options: &MountOptions,
        member: &Member,
        memory: CacheMemory,
    ) -> Result<Disk, Error> {
        let file = member.handle.backend();
        let cache_bytes = memory.extents_bytes;
        match member.format {
            Format::Raw => {
                let source: SharedSource = Arc::new(Mutex::new(Box::new(RawFile::new(file.clone()))));
                let files: DiskFiles = [Some(file), None, None, None];
                Ok(Disk::new(files, source, ACTIVE, member.virtual_size, RAW_CLUSTER_BITS, cache_bytes))
            }
            Format::Qcow2 => {
                let (report, sources) = mapped(options, member)?;
                self.restarts.extend(sources.restarts);
                self.is_damaged |= !report.is_sound();
                let source = sources.all[0].clone();
                let (size_bytes, bits) = (report.summary.virtual_size, report.summary.cluster_bits);
                let cluster_bytes = report.cluster_bytes().unwrap_or(0);
                let unpacker = Arc::new(Unpacker::new(sources.all, cluster_bytes, memory.inflated_bytes));
                self.unpackers.push(unpacker.clone());
                let disk =
                    Disk::new([Some(file), None, None, None], source, ACTIVE, size_bytes, bits, cache_bytes);
                Ok(disk.with_unpacker(unpacker).made_of(report.unit_bytes(), !report.is_sound()))
            }
        }
    }
}

/// Tells which member has nothing below it that is served.
fn say_left_out(chain: &Chain) {
    for (position, problem) in &chain.problems {
        if matches!(problem, ChainProblem::LeftOut) {
            let image = escape_path(&chain.members[*position].path);
            say::to_person(&format!("warning: {image}: {problem}"));
        }
    }
}

/// Checks a QCOW2 member, and starts the cage that maps it.
fn mapped(options: &MountOptions, member: &Member) -> Result<(CheckReport, Sources), Error> {
    // The data file that was given is the top's.
    let cage = CageArgs { data_file: None, ..options.cage.clone() };
    let inspector = Inspector::new(&member.handle, &cage, Watch::people(options.quiet))?;
    let report = inspector.check()?;
    let refused = |why| Error::from(MountError::Member { image: member.path.clone(), why });
    if matches!(report.verdict(), Verdict::NotQcow2 | Verdict::Unsupported) || is_another_map(&report) {
        return Err(refused(headline(&report)));
    }
    if report.summary.features & feature::DATA_FILE != 0 {
        return Err(refused(
            "keeps its data in an external data file, which cannot be given for it".to_owned(),
        ));
    }
    let job = inspector.job(JobKind::Map);
    let source = Resident::start(&job, inspector.choice())
        .map_err(|source| Error::Sandbox { image: member.path.clone(), source })?;
    if report.verdict() != Verdict::Consistent {
        say::to_person(&format!("warning: {}: {}", escape_path(&member.path), headline(&report)));
    }
    Ok((report, Sources::new(source, &job, inspector.choice())))
}
