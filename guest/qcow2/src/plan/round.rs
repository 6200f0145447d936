//! One round's proposals, with the guard round them.
//!
//! Invariant: where anything but plain frees is proposed, the first step raises the guard and the last one lowers
//! it; where nothing is proposed there is no step at all.

use alloc::vec::Vec;

use instar_abi::cure::Cure;

use super::guard::Guard;
use crate::host::Host;

/// A proposed write: offset in the file and bytes.
pub type Proposal = (u64, Vec<u8>);

/// The proposals of one round.
#[derive(Debug)]
pub struct Round<'h, H> {
    /// Whom they are made to.
    pub host: &'h mut H,
    guard: Option<Guard>,
    is_guarded: bool,
    steps: u64,
}

impl<'h, H: Host> Round<'h, H> {
    /// A round without proposals. Images of a version that has no guard have none.
    pub const fn new(host: &'h mut H, guard: Option<Guard>) -> Self {
        Self { host, guard, is_guarded: false, steps: 0 }
    }

    /// Whether anything was proposed.
    #[must_use]
    pub const fn is_begun(&self) -> bool {
        self.steps > 0
    }

    /// Proposes a step of a cure: writes within ranges of `(offset, len)`. Without writes it is none.
    pub fn step(&mut self, cure: Cure, scope: &[(u64, u64)], writes: &[Proposal]) {
        if writes.is_empty() {
            return;
        }
        if cure != Cure::FreeLeaks {
            self.raise();
        }
        self.propose(cure, scope, writes);
    }

    /// The same for writes that are its scope themselves.
    pub fn writes(&mut self, cure: Cure, writes: &[Proposal]) {
        let scope: Vec<(u64, u64)> =
            writes.iter().map(|(offset, bytes)| (*offset, bytes.len() as u64)).collect();
        self.step(cure, &scope, writes);
    }

    fn propose(&mut self, cure: Cure, scope: &[(u64, u64)], writes: &[Proposal]) {
        self.host.scope(cure, scope);
        for (offset, bytes) in writes {
            self.host.stage(*offset, bytes);
        }
        self.host.barrier();
        self.steps += 1;
    }

    fn raise(&mut self) {
        if let (Some(guard), false) = (self.guard, self.is_guarded) {
            self.is_guarded = true;
            self.propose(Cure::RaiseGuard, &[Guard::PLACE], &[guard.raised()]);
        }
    }

    /// Raises the guard where lowering it again is all that there is to do.
    pub fn mend_guard(&mut self) {
        if self.guard.is_some_and(Guard::changes) {
            self.raise();
        }
    }

    /// Ends the round.
    pub fn finish(mut self) {
        if let (Some(guard), true) = (self.guard, self.is_guarded) {
            self.propose(Cure::LowerGuard, &[Guard::PLACE], &[guard.lowered()]);
        }
    }
}
