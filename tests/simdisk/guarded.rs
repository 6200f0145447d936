//! A toy image format with structure: a guard, things to mend in rounds, traces that only a user can decide about.
//!
//! Eight bytes at [`GUARD`] are flags: `!` in the first says that the image is corrupt, `D` in the second that it is
//! dirty. Elsewhere `X` is a doubly used entry, mended by a fresh sector at the end and an `S` in its place; the
//! fresh sector begins with a `U`, a count that the next round finds too low. `C` is another such count, `L` a leak,
//! `O` a leak that may be data.

use std::sync::Arc;

use instar_abi::choice::{Decision, Decisions};
use instar_abi::cure::Cure;
use instar_abi::problem::{Problem, Tier};
use instar_abi::summary::{Outcome, Summary};
use instar_mount::heal::{Inspector, Ran};
use instar_mount::image::Backend;
use instar_mount::sandbox::error::SandboxError;
use instar_mount::sandbox::observer::{Observer, RunStats};

use crate::simdisk::formats::{bytes, finding};

/// Where the guard is.
pub const GUARD: usize = 72;
const GUARD_END: usize = GUARD + 8;
/// Its first byte while it is raised.
pub const RAISED: u8 = b'!';
/// Bytes of a fresh cluster.
const FRESH: usize = 512;

/// More than the scope ranges of any plan.
const TOO_MANY_RANGES: usize = (1 << 22) + 1;

/// What the plan does besides its duty.
#[allow(dead_code, reason = "each test program uses its own part of this")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mischief {
    None,
    /// Leaves out the guard.
    Unguarded,
    /// Guards although it only frees leaks.
    GuardsNothing,
    /// Writes into the guard by another step.
    WritesGuard,
    /// Raises the guard elsewhere than it lowers it.
    MovesGuard,
    /// Lowers the guard before it is done.
    LowersEarly,
    /// Proposes something in every round.
    NeverEnds,
    /// Frees what may be data without a decision.
    FreesOrphans,
    /// Makes a finding at a place where none was.
    Spreads,
    /// Loses guest clusters.
    LosesData,
    /// Makes the next round's walk incomplete.
    Blinds,
    /// Holds everything back.
    Withholds,
    /// Names more places than a plan may have.
    Sprawls,
}

/// Looks at guarded toy images.
#[derive(Debug)]
pub struct Guarded {
    pub mischief: Mischief,
    pub version: u32,
    /// The check with this number (from 1) finds a corruption that is not there.
    pub lies_at: u64,
    pub checks: u64,
    pub plans: u32,
}

impl Guarded {
    pub fn new(mischief: Mischief) -> Self {
        Self { mischief, version: 3, lies_at: 0, checks: 0, plans: 0 }
    }

    fn ran(&self, bytes: &[u8]) -> Ran {
        let is_blind = bytes.contains(&b'B');
        let outcome = if is_blind { Outcome::Incomplete } else { Outcome::Complete };
        let allocated_clusters = bytes.iter().filter(|&&byte| byte == b'A').count() as u64;
        let summary = Summary {
            outcome: outcome as u32,
            version: self.version,
            allocated_clusters,
            ..Summary::default()
        };
        Ran { summary, stats: RunStats::default() }
    }
}

fn problem_at(bytes: &[u8], at: usize) -> Option<Problem> {
    Some(match (at, bytes[at]) {
        (GUARD, RAISED) => Problem::HeaderCorrupt,
        (at, b'D') if at == GUARD + 1 => Problem::HeaderDirty,
        (GUARD..GUARD_END, _) => return None,
        (_, b'L') => Problem::RefcountLeak,
        (_, b'O') => Problem::OrphanData,
        (_, b'C' | b'U') => Problem::RefcountTooLow,
        (_, b'X') => Problem::L2EntryShared,
        _ => return None,
    })
}

fn places(bytes: &[u8], of: &[u8]) -> Vec<usize> {
    let is_guards = |at: &usize| (GUARD..GUARD_END).contains(at);
    (0..bytes.len()).filter(|at| !is_guards(at) && of.contains(&bytes[*at])).collect()
}

/// Writes one byte at each place, in two groups.
fn set(observer: &mut dyn Observer, cure: Cure, places: &[usize], byte: u8) {
    let scope: Vec<(u64, u64)> = places.iter().map(|&at| (at as u64, 1)).collect();
    if !scope.is_empty() {
        observer.scope(cure, &scope);
    }
    for (index, &at) in places.iter().enumerate() {
        if index == places.len() / 2 {
            observer.barrier();
        }
        observer.stage(at as u64, vec![byte]);
    }
}

impl Guarded {
    fn raise(&self, bytes: &[u8], observer: &mut dyn Observer) {
        let mut guard = bytes[GUARD..GUARD_END].to_vec();
        guard[0] = RAISED;
        self.guard(Cure::RaiseGuard, guard, observer);
    }

    fn lower(&self, guard: &[u8], observer: &mut dyn Observer) {
        self.guard(Cure::LowerGuard, guard.to_vec(), observer);
    }

    fn guard(&self, cure: Cure, bytes: Vec<u8>, observer: &mut dyn Observer) {
        if self.version < 3 || self.mischief == Mischief::Unguarded {
            return;
        }
        let moved = self.mischief == Mischief::MovesGuard && cure == Cure::LowerGuard;
        let at = if moved { GUARD_END } else { GUARD } as u64;
        observer.scope(cure, &[(at, 8)]);
        observer.stage(at, bytes);
        observer.barrier();
    }

    fn cross_links(bytes: &[u8], links: &[usize], observer: &mut dyn Observer) {
        let end = bytes.len().next_multiple_of(FRESH);
        observer.scope(Cure::CopyShared, &[(end as u64, (links.len() * FRESH) as u64)]);
        for index in 0..links.len() {
            let mut fresh = vec![b'n'; FRESH];
            fresh[0] = b'U';
            observer.stage((end + index * FRESH) as u64, fresh);
        }
        observer.barrier();
        set(observer, Cure::CopyShared, links, b'S');
    }

    fn counts(&self, bytes: &[u8], decisions: Decisions, observer: &mut dyn Observer) {
        set(observer, Cure::FixCounts, &places(bytes, b"C"), b'.');
        set(observer, Cure::FixCounts, &places(bytes, b"U"), b'n');
        set(observer, Cure::FreeLeaks, &places(bytes, self.freed(decisions)), b'.');
    }

    fn freed(&self, decisions: Decisions) -> &'static [u8] {
        let is_decided = decisions.has(Decision::FreeOrphanData);
        if is_decided || self.mischief == Mischief::FreesOrphans { b"LO" } else { b"L" }
    }

    fn misbehave(&self, bytes: &[u8], observer: &mut dyn Observer) {
        let mut one = |at: usize, byte| {
            observer.scope(Cure::FixCounts, &[(at as u64, 1)]);
            observer.stage(at as u64, vec![byte]);
        };
        match self.mischief {
            Mischief::WritesGuard => one(GUARD + 5, b'?'),
            Mischief::Spreads => one(10, b'X'),
            Mischief::LosesData => places(bytes, b"A").into_iter().take(1).for_each(|at| one(at, b'.')),
            Mischief::Blinds => one(10, b'B'),
            _ => {}
        }
    }

    fn propose(&self, bytes: &[u8], decisions: Decisions, observer: &mut dyn Observer) {
        let now = &bytes[GUARD..GUARD_END];
        let links = places(bytes, b"X");
        let counts = places(bytes, b"CU");
        if self.mischief == Mischief::NeverEnds {
            self.raise(bytes, observer);
            set(observer, Cure::FixCounts, &[300], if bytes[300] == b'a' { b'b' } else { b'a' });
            self.lower(now, observer);
        } else if !links.is_empty() && self.mischief != Mischief::Spreads {
            self.raise(bytes, observer);
            Self::cross_links(bytes, &links, observer);
            self.misbehave(bytes, observer);
            self.lower(now, observer);
        } else if !counts.is_empty() {
            self.raise(bytes, observer);
            if self.mischief == Mischief::LowersEarly {
                self.lower(now, observer);
            }
            self.counts(bytes, decisions, observer);
            self.misbehave(bytes, observer);
            self.lower(now, observer);
        } else if !places(bytes, self.freed(decisions)).is_empty() {
            self.counts(bytes, decisions, observer);
        } else if now[0] == RAISED || now[1] == b'D' {
            self.raise(bytes, observer);
            self.lower(b"--------", observer);
        }
    }
}

impl Inspector for Guarded {
    fn check(&mut self, image: Arc<dyn Backend>, observer: &mut dyn Observer) -> Result<Ran, SandboxError> {
        self.checks += 1;
        let bytes = bytes(&image)?;
        for at in 0..bytes.len() {
            if let Some(problem) = problem_at(&bytes, at) {
                observer.finding(problem, &finding(problem, at));
            }
        }
        if self.checks == self.lies_at {
            observer.finding(Problem::RefcountTooLow, &finding(Problem::RefcountTooLow, 1 << 20));
        }
        Ok(self.ran(&bytes))
    }

    fn plan(
        &mut self,
        image: Arc<dyn Backend>,
        tier: Tier,
        decisions: Decisions,
        observer: &mut dyn Observer,
    ) -> Result<Ran, SandboxError> {
        self.plans += 1;
        if self.mischief == Mischief::Sprawls {
            observer.scope(Cure::FixCounts, &vec![(0, 1); TOO_MANY_RANGES]);
        }
        let bytes = bytes(&image)?;
        if self.mischief == Mischief::GuardsNothing && self.plans == 1 {
            self.raise(&bytes, observer);
            self.lower(&bytes[GUARD..GUARD_END], observer);
        } else if tier == Tier::Leaks {
            set(observer, Cure::FreeLeaks, &places(&bytes, b"L"), b'.');
        } else if self.mischief != Mischief::Withholds {
            self.propose(&bytes, decisions, observer);
        }
        Ok(self.ran(&bytes))
    }
}

/// An image with everything in it that can be mended, across sectors, and with an end that is not aligned.
pub fn damaged() -> Vec<u8> {
    let mut image = vec![b'x'; 6000];
    image[GUARD..GUARD_END].fill(b'-');
    image[GUARD + 1] = b'D';
    for (places, byte) in [
        (&[200, 511, 3000][..], b'X'),
        (&[60, 100, 700, 1023, 1024, 5999], b'C'),
        (&[3, 90, 2047, 2048], b'L'),
        (&[400, 401, 4000], b'A'),
    ] {
        places.iter().for_each(|&at| image[at] = byte);
    }
    image[2300..2600].fill(b'C');
    image[4400..4700].fill(b'L');
    image
}
