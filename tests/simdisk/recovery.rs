//! What every state that an interrupted repair, resume or undo can leave must allow: going on, and going back.

use std::collections::BTreeMap;

use instar_mount::heal::{Ending, HealError, SideFile, undo_at};

use crate::simdisk::{Machine, Survivors};

/// Does something to a machine.
type Act<'a> = &'a dyn Fn(&Machine) -> Result<Ending, HealError>;

/// A repair, seen from an interruption of it.
pub struct Recovery<'a> {
    /// The image before it.
    pub before: &'a [u8],
    /// The image after it.
    pub after: &'a [u8],
    /// Bytes that are something else meanwhile.
    pub raised: BTreeMap<usize, u8>,
    pub repair: Act<'a>,
    pub resume: Act<'a>,
}

/// The same machine once more.
pub fn again(machine: &Machine) -> Machine {
    machine.after_power_cut(Survivors::Everything, usize::MAX)
}

impl Recovery<'_> {
    pub fn assert_possible(&self, state: &Machine, what: &str) {
        self.assert_no_foreign_byte(state, what);
        self.assert_undone_after(&self.assert_forward(state, what), what);
        if state.has(SideFile::Journal) && !state.has(SideFile::Undoing) {
            let repaired = again(state);
            let ending = (self.repair)(&repaired).unwrap_or_else(|e| panic!("{what}: {e:?}"));
            assert!(matches!(ending, Ending::Repaired | Ending::Clean), "{what}: {ending:?}");
            assert!(repaired.image() == self.after, "{what}: finished and repaired to something else");
            self.assert_undone_after(&repaired, &format!("{what}, repaired"));
        }
        self.assert_back(state, what);
    }

    fn assert_undone_after(&self, forward: &Machine, what: &str) {
        if forward.has(SideFile::Undo) {
            assert_eq!(undo_at(forward).unwrap_or_else(|e| panic!("{what}: {e:?}")), Ending::Undone);
            assert!(forward.image() == self.before, "{what}: undone to something else after resuming");
        }
    }

    fn assert_no_foreign_byte(&self, state: &Machine, what: &str) {
        for (at, &byte) in state.image().iter().enumerate() {
            let old = self.before.get(at).copied().unwrap_or(0);
            let new = self.after.get(at).copied().unwrap_or(0);
            let known = [Some(old), Some(new), self.raised.get(&at).copied()];
            assert!(known.contains(&Some(byte)), "{what}: byte {at} is from nowhere");
        }
    }

    fn assert_forward(&self, state: &Machine, what: &str) -> Machine {
        let forward = again(state);
        let repaired = || (self.repair)(&forward).unwrap_or_else(|e| panic!("{what}: {e:?}"));
        if forward.has(SideFile::Undoing) {
            assert!(matches!((self.resume)(&forward), Err(HealError::UndoInterrupted(_))), "{what}");
            assert_eq!(repaired(), Ending::Repaired, "{what}");
        } else if forward.has(SideFile::Journal) {
            let ending = (self.resume)(&forward).unwrap_or_else(|e| panic!("{what}: {e:?}"));
            assert_eq!(ending, Ending::Resumed, "{what}");
        } else {
            assert!(matches!((self.resume)(&forward), Err(HealError::NoJournal(_))), "{what}");
            assert!(matches!(repaired(), Ending::Repaired | Ending::Clean), "{what}");
        }
        assert!(forward.image() == self.after, "{what}: resumed to something else");
        assert!(!forward.has(SideFile::Journal), "{what}");
        forward
    }

    fn assert_back(&self, state: &Machine, what: &str) {
        let back = again(state);
        if !back.has(SideFile::Undo) && !back.has(SideFile::Undoing) {
            assert!(back.image() == self.before, "{what}: written, but there is no undo file");
            return;
        }
        assert_eq!(undo_at(&back).unwrap_or_else(|e| panic!("{what}: {e:?}")), Ending::Undone);
        assert!(back.image() == self.before, "{what}: undone to something else");
        for file in [SideFile::Undo, SideFile::Undoing, SideFile::Journal] {
            assert!(!back.has(file), "{what}: {file:?} is left");
        }
    }
}
