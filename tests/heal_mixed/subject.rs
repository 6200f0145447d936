//! A damaged image, and what must hold of its repair.

use std::collections::BTreeMap;
use std::sync::Arc;

use instar_abi::finding::Finding;
use instar_abi::problem::{Problem, Tier};
use instar_mount::heal::{
    Ending, HealError, Inspector as _, RepairOptions, RepairReport, Site, repair_at, undo_at,
};
use instar_mount::image::Backend;
use instar_mount::sandbox::observer::{Ignore, Observer};

use crate::native::{Hollow, NativeInspector};
use crate::shapes::Choice;
use crate::simdisk::{Machine, Trouble};
use crate::support::builder::Shape;
use crate::support::{fields, reading, tools};

/// A healthy image and what became of it.
#[derive(Debug)]
pub struct Subject {
    /// Before the damage.
    pub healthy: Vec<u8>,
    /// After it.
    pub damaged: Vec<u8>,
    /// Bytes of the external data file.
    pub data_file_bytes: Option<u64>,
    /// How much is mended.
    pub tier: Tier,
    /// It never was healthy: a plan that does not pass its proof on the copy is allowed.
    pub is_hostile: bool,
}

/// A repair.
#[derive(Debug)]
pub struct Mended {
    /// How it ended.
    pub ending: Ending,
    /// The image after it.
    pub bytes: Vec<u8>,
}

/// Ids of findings, and how many items they are about.
#[derive(Debug, Default)]
struct Found(BTreeMap<&'static str, u64>);

impl Observer for Found {
    fn finding(&mut self, problem: Problem, finding: &Finding) {
        *self.0.entry(problem.row().id).or_default() += finding.count;
    }
}

impl Subject {
    /// An image of this shape, changed in these ways one after the other.
    pub fn damaged(shape: &Shape, choices: &[Choice]) -> Self {
        let built = shape.build();
        let all = fields::all(&built.bytes);
        let mut damaged = built.bytes.clone();
        for choice in choices {
            for (at, bytes) in choice.patch(&all, &damaged, 1 << shape.cluster_bits) {
                let start = usize::try_from(at).unwrap();
                damaged[start..start + bytes.len()].copy_from_slice(&bytes);
            }
        }
        let (healthy, data_file_bytes) = (built.bytes, built.data_file_bytes);
        Self { healthy, damaged, data_file_bytes, tier: Tier::All, is_hostile: false }
    }

    fn inspector(&self) -> NativeInspector {
        let data_file = self.data_file_bytes.map(|bytes| -> Arc<dyn Backend> { Arc::new(Hollow(bytes)) });
        NativeInspector { data_file }
    }

    fn repair(&self, machine: &Machine) -> Result<RepairReport, HealError> {
        let options = RepairOptions::default();
        repair_at(machine, self.tier, &options, &mut self.inspector(), &mut Ignore)
    }

    fn may_refuse(&self, ending: Ending) -> bool {
        ending == Ending::TooLarge || self.is_hostile && ending == Ending::Quarantined
    }

    /// What is wrong with the damaged image, and how often.
    fn found(&self) -> Found {
        let mut found = Found::default();
        let image = Site::image(&Machine::new(self.damaged.clone()));
        if let Err(error) = self.inspector().check(image, &mut found) {
            eprintln!("the check of the damaged image: {error}");
        }
        found
    }

    /// Repairs, repairs again, goes back. Says what is wrong with that.
    pub fn mend(&self) -> Result<Mended, String> {
        let machine = Machine::new(self.damaged.clone());
        let report = match self.repair(&machine) {
            Ok(report) => report,
            Err(error) if self.may_refuse(error.ending()) && machine.operations() == 0 => {
                return Ok(Mended { ending: error.ending(), bytes: self.damaged.clone() });
            }
            Err(error) => return Err(format!("{error:?} of {:?}", self.found())),
        };
        let what =
            format!("{:?}, {:?} became {:?}", report.ending, report.before.counts, report.last().counts);
        let mended = Mended { ending: report.ending, bytes: machine.image() };
        reading::compare(&self.healthy, &self.damaged, &mended.bytes)
            .map_err(|error| format!("{what}: {error}"))?;
        if report.undo_file.is_none() {
            let is_same = machine.operations() == 0 && mended.bytes == self.damaged;
            return if is_same { Ok(mended) } else { Err(format!("{what}: written without a way back")) };
        }
        machine.set_trouble(Trouble::None);
        let again = self.repair(&machine).map_err(|error| format!("{what}; second run: {error:?}"))?;
        if machine.operations() > 0 || machine.image() != mended.bytes {
            let (old, new) = (&again.before.counts, &again.last().counts);
            return Err(format!("{what}; the second run makes {new:?} of {old:?}"));
        }
        if report.ending == Ending::Repaired && again.ending != Ending::Clean {
            return Err(format!("{what}; the second run finds {:?}", again.before.counts));
        }
        match undo_at(&machine) {
            Ok(Ending::Undone) if machine.image() == self.damaged => Ok(mended),
            other => Err(format!("{what}; undo: {other:?}, the same: {}", machine.image() == self.damaged)),
        }
    }
}

/// Exit code and words of `qemu-img check` on these bytes; a code other than 0, 2 and 3 is no verdict.
pub fn qemu_check(bytes: &[u8]) -> (i32, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mended.qcow2");
    std::fs::write(&path, bytes).unwrap();
    let output = tools::run(tools::qemu_img(["check", "-f", "qcow2"]).arg(&path));
    (tools::code(&output), format!("{}{}", tools::stdout(&output), tools::stderr(&output)))
}
