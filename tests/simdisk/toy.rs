//! A toy image format for testing the engine alone: each byte is a finding or none.
//!
//! `L` is a leak, `C` a corruption, anything else is fine. The plan turns leaks into `.`, in groups with
//! barriers between them, and can be told to misbehave.

use std::sync::Arc;

use instar_abi::choice::Decisions;
use instar_abi::cure::Cure;
use instar_abi::problem::{Problem, Tier};
use instar_abi::summary::{Outcome, Summary};
use instar_mount::heal::{Inspector, Ran};
use instar_mount::image::Backend;
use instar_mount::sandbox::error::SandboxError;
use instar_mount::sandbox::observer::{Observer, RunStats};

use crate::simdisk::formats::{bytes, finding};

/// What the plan does besides its duty.
#[allow(dead_code, reason = "each test program uses its own part of this")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mischief {
    None,
    /// Appends two clusters in a first group, as a structural plan would.
    Grows,
    /// Leaves one leak.
    ForgetsOne,
    /// Makes a corruption.
    Corrupts,
    /// Writes outside of its scope.
    LeavesScope,
    /// Writes one byte twice.
    WritesTwice,
    /// Proposes nothing.
    Nothing,
}

/// Looks at toy images.
#[derive(Debug)]
pub struct Toy {
    pub mischief: Mischief,
    pub outcome: Outcome,
    /// The check with this number (from 1) finds a corruption that is not there.
    pub lies_at: u64,
    pub checks: u64,
}

impl Toy {
    pub fn new(mischief: Mischief) -> Self {
        Self { mischief, outcome: Outcome::Complete, lies_at: 0, checks: 0 }
    }

    fn ran(&self) -> Ran {
        let summary = Summary { outcome: self.outcome as u32, version: 3, ..Summary::default() };
        Ran { summary, stats: RunStats::default() }
    }
}

impl Inspector for Toy {
    fn check(&mut self, image: Arc<dyn Backend>, observer: &mut dyn Observer) -> Result<Ran, SandboxError> {
        self.checks += 1;
        for (at, byte) in bytes(&image)?.into_iter().enumerate() {
            let problem = match byte {
                b'L' => Problem::RefcountLeak,
                b'C' => Problem::RefcountTooLow,
                _ => continue,
            };
            observer.finding(problem, &finding(problem, at));
        }
        if self.checks == self.lies_at {
            observer.finding(Problem::RefcountTooLow, &finding(Problem::RefcountTooLow, 1 << 20));
        }
        Ok(self.ran())
    }

    fn plan(
        &mut self,
        image: Arc<dyn Backend>,
        _tier: Tier,
        _decisions: Decisions,
        observer: &mut dyn Observer,
    ) -> Result<Ran, SandboxError> {
        let bytes = bytes(&image)?;
        let leaks: Vec<usize> = (0..bytes.len()).filter(|&at| bytes[at] == b'L').collect();
        if self.mischief == Mischief::Nothing {
            return Ok(self.ran());
        }
        let len = bytes.len() as u64;
        observer.scope(Cure::FreeLeaks, &[(0, len + 2000)]);
        if self.mischief == Mischief::Grows {
            observer.stage(len, vec![b'n'; 1300]);
            observer.barrier();
        }
        let skip = usize::from(self.mischief == Mischief::ForgetsOne);
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for at in leaks.into_iter().skip(skip) {
            match runs.last_mut() {
                Some((start, len)) if *start + *len == at => *len += 1,
                _ => runs.push((at, 1)),
            }
        }
        for (index, (start, len)) in runs.into_iter().enumerate() {
            if index % 3 == 2 {
                observer.barrier();
            }
            observer.stage(start as u64, vec![b'.'; len]);
        }
        match self.mischief {
            Mischief::Corrupts => observer.stage(1, vec![b'C']),
            Mischief::LeavesScope => observer.stage(len + 1999, vec![b'.'; 2]),
            Mischief::WritesTwice => {
                observer.barrier();
                observer.stage(0, vec![b'.'; bytes.len()]);
            }
            _ => {}
        }
        Ok(self.ran())
    }
}

/// A toy image with leaks near each other, across sectors, and one run that spans sectors.
pub fn leaky() -> Vec<u8> {
    let mut image = vec![b'x'; 6000];
    for at in [3, 4, 5, 100, 511, 512, 700, 1023, 5999] {
        image[at] = b'L';
    }
    image[2000..3700].fill(b'L');
    image
}
