//! A healthy image that is damaged, mended by us and by qemu, and healthy again for the next case.

use std::collections::BTreeSet;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use instar_abi::problem::Tier;
use instar_mount::heal::{self, Ending, HealError, RepairOptions, RepairReport};
use instar_mount::image::{Backend, ImageFile, ImageHandle, Mode};
use instar_mount::sandbox::observer::Ignore;

use crate::native::NativeInspector;
use crate::rival::{self, Expected};
use crate::support::damage::Recipe;
use crate::support::image::{self, Flavour, TestImage};
use crate::support::reading::{self, Disk};

const SECTOR: usize = 512;

/// An image to damage.
pub struct Subject {
    folder: tempfile::TempDir,
    image: TestImage,
    healthy: Vec<u8>,
    data_file: Option<Vec<u8>>,
    expected: Vec<Expected>,
    disks: Vec<Disk>,
    /// Sectors of the file that hold guest data.
    data: BTreeSet<usize>,
}

/// How well an image reads.
#[derive(Debug, Clone)]
struct Reading {
    /// For qemu: clusters of each disk that read right.
    by_qemu: Vec<usize>,
    /// For the reader of the tests, whom no header field keeps from opening it.
    by_us: Vec<usize>,
    /// Sectors with guest data that are in the file still.
    carved: usize,
}

impl Reading {
    /// Whether no disk reads worse than in `other` for anybody.
    fn keeps(&self, other: &Self) -> bool {
        let is_kept = |ours: &[usize], theirs: &[usize]| ours.iter().zip(theirs).all(|(o, t)| o >= t);
        self.carved >= other.carved
            && is_kept(&self.by_qemu, &other.by_qemu)
            && is_kept(&self.by_us, &other.by_us)
    }

    /// For each disk: clusters that read right for one of the two readers.
    fn best(&self) -> Vec<usize> {
        let qemus = self.by_qemu.iter().copied().chain(std::iter::repeat(0));
        self.by_us.iter().zip(qemus).map(|(ours, qemus)| qemus.max(*ours)).collect()
    }

    /// Whether as much of each disk can be saved as in `other`. Where what is left asks for a decision first, qemu may
    /// refuse to open the image still.
    fn saves(&self, other: &Self) -> bool {
        self.carved >= other.carved && self.best().iter().zip(other.best()).all(|(o, t)| *o >= t)
    }
}

/// The whole sectors of a file from one place to another.
fn sectors(file: &[u8], (start, end): (u64, u64)) -> Range<usize> {
    let [start, end] = [start, end].map(|at| usize::try_from(at).unwrap().min(file.len()) / SECTOR);
    start..end
}

fn has_data(file: &[u8], host: (u64, u64)) -> bool {
    let found = sectors(file, host);
    file[found.start * SECTOR..found.end * SECTOR].iter().any(|byte| *byte != 0)
}

impl Subject {
    /// Makes the image.
    pub fn new(flavour: Flavour, cluster_bytes: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let image = image::make(folder.path(), "subject", flavour, cluster_bytes);
        let healthy = std::fs::read(&image.path).unwrap();
        let data_file = image.data_file().map(|path| std::fs::read(path).unwrap());
        let mut disks = reading::disks(&healthy);
        let mut data = BTreeSet::new();
        if data_file.is_none() {
            for disk in &mut disks {
                // Zeros prove nothing: a file that grows has them, too.
                disk.places.retain(|_, seen| seen.host.0 == seen.host.1 || has_data(&healthy, seen.host));
                data.extend(disk.places.values().flat_map(|seen| sectors(&healthy, seen.host)));
            }
        }
        let expected = rival::expected(&image);
        Self { folder, image, healthy, data_file, expected, disks, data }
    }

    fn path(&self) -> &Path {
        &self.image.path
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.path()).unwrap()
    }

    fn restore(&self) {
        std::fs::write(self.path(), &self.healthy).unwrap();
        if let (Some(path), Some(bytes)) = (self.image.data_file(), &self.data_file) {
            std::fs::write(path, bytes).unwrap();
        }
    }

    fn read(&self, path: &Path, bytes: &Vec<u8>) -> Reading {
        let disks = reading::disks(bytes);
        let none = Disk::default();
        let by_us = self
            .disks
            .iter()
            .enumerate()
            .map(|(index, healthy)| healthy.same(disks.get(index).unwrap_or(&none)).len());
        let is_there = |number: &&usize| {
            let at = **number * SECTOR..(**number + 1) * SECTOR;
            bytes.get(at.clone()) == Some(&self.healthy[at])
        };
        Reading {
            by_qemu: rival::right(&self.expected, &self.image.qemu_arguments_for(path), self.folder.path()),
            by_us: by_us.collect(),
            carved: self.data.iter().filter(is_there).count(),
        }
    }

    fn repair(&self) -> Result<RepairReport, HealError> {
        let open = |path: PathBuf| Arc::new(ImageFile::open_read_only(&path).unwrap()) as Arc<dyn Backend>;
        let mut inspector = NativeInspector { data_file: self.image.data_file().map(open) };
        let handle = ImageHandle::open(self.path(), Mode::Read).unwrap();
        heal::repair(&handle, Tier::All, &RepairOptions::default(), &mut inspector, &mut Ignore)
    }

    /// What qemu's repair makes of a copy, and whether its check is content then.
    fn mended_by_qemu(&self, damaged: &[u8]) -> (Reading, bool) {
        let path = self.folder.path().join("rival.qcow2");
        std::fs::write(&path, damaged).unwrap();
        let arguments = self.image.qemu_arguments_for(&path);
        rival::repair(&arguments);
        let reading = self.read(&path, &std::fs::read(&path).unwrap());
        (reading, rival::check(&arguments) == 0)
    }

    /// Damages the image, mends it, compares with qemu, goes back. Says how it ended, or what is wrong with that.
    pub fn judge(&self, recipes: &[&Recipe]) -> Result<String, String> {
        for recipe in recipes {
            // Where the first kind has taken away what the second one damages, the first remains.
            if catch_unwind(AssertUnwindSafe(|| recipe.damage(&self.image))).is_err() {
                eprintln!("{} found nothing to damage", recipe.name);
            }
        }
        let verdict = self.judge_damaged();
        self.restore();
        verdict
    }

    fn judge_damaged(&self) -> Result<String, String> {
        let damaged = self.bytes();
        let before = self.read(self.path(), &damaged);
        let report = self.repair().map_err(|error| format!("{error}: {error:?}"))?;
        let what = format!("{}, {:?} left", report.ending.id(), report.last().counts);
        let mended = self.bytes();
        reading::compare(&self.healthy, &damaged, &mended).map_err(|error| format!("{what}: {error}"))?;
        let after = if mended == damaged { before.clone() } else { self.read(self.path(), &mended) };
        if !after.keeps(&before) {
            return Err(format!("{what}: {before:?} became {after:?}"));
        }
        let code = rival::check(&self.image.qemu_arguments());
        if report.ending == Ending::Repaired && code != 0 {
            return Err(format!("{what}, but qemu-img check gives {code}"));
        }
        let (rival, is_clean) = self.mended_by_qemu(&damaged);
        // Where qemu gets at more by destroying something else, that is for the user to decide.
        let is_destroyed = !rival.keeps(&before);
        let is_enough = match report.ending {
            Ending::Repaired => after.keeps(&rival),
            _ => is_destroyed || after.saves(&rival),
        };
        if !is_enough {
            return Err(format!("{what}: {after:?}, but qemu has {rival:?} of {before:?}"));
        }
        self.judge_way_back(&report, &damaged, &mended).map_err(|error| format!("{what}; {error}"))?;
        let theirs = match (is_clean, is_destroyed) {
            (true, true) => "clean by destruction",
            (true, false) => "clean",
            (false, _) => "not clean",
        };
        Ok(format!("{}; qemu's: {theirs}", report.ending.id()))
    }

    fn judge_way_back(&self, report: &RepairReport, damaged: &[u8], mended: &[u8]) -> Result<(), String> {
        if report.undo_file.is_none() {
            return if damaged == mended { Ok(()) } else { Err("written without a way back".to_owned()) };
        }
        let again = self.repair().map_err(|error| format!("second run: {error:?}"))?;
        if self.bytes() != mended {
            return Err(format!("the second run makes {:?}", again.last().counts));
        }
        let handle = ImageHandle::open(self.path(), Mode::Read).unwrap();
        match heal::undo(&handle, None) {
            Ok(Ending::Undone) if self.bytes() == damaged => Ok(()),
            other => Err(format!("undo: {other:?}, the same: {}", self.bytes() == damaged)),
        }
    }
}
