//! How a repair, a resume or an undo can end: one closed set, and one table that says for each what the
//! program's exit code follows from, what the user is told, and what to do next.
//!
//! Invariant: [`Ending::route`] is total; no other place in the program decides what an ending means.

/// What an exit code follows from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitRule {
    /// From the findings of the last check of the image: none, leaks, corruptions.
    ByFindings,
    /// What was asked for was not done.
    Failed,
    /// The file was not checked at all.
    NotChecked,
}

/// One row of the routing table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// What the exit code follows from.
    pub exit: ExitRule,
    /// What happened, in one sentence.
    pub sentence: &'static str,
    /// What the user can do next; empty where nothing needs to be done.
    pub next: &'static str,
}

macro_rules! endings {
    ($($(#[$doc:meta])* $name:ident $id:literal $exit:ident $sentence:literal; $next:literal)*) => {
        /// How it ended.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Ending {
            $(#[doc = $sentence] $name,)*
        }

        impl Ending {
            /// Every ending.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Permanent kebab-case id.
            #[must_use]
            pub const fn id(self) -> &'static str {
                match self { $(Self::$name => $id,)* }
            }

            /// What it means for the exit code and the user.
            #[must_use]
            pub const fn route(self) -> Route {
                match self {
                    $(Self::$name => Route { exit: ExitRule::$exit, sentence: $sentence, next: $next },)*
                }
            }
        }
    };
}

endings! {
    Clean "clean" ByFindings
        "nothing is wrong with the image, nothing was written"; ""
    NothingToCure "nothing-to-cure" ByFindings
        "nothing of what was found is cured at this tier, nothing was written";
        "see what the findings ask for"
    NeedsDecision "needs-decision" ByFindings
        "what could be cured waits for a decision that only you can make, nothing was written";
        "see which findings ask for one, then run the same with --decide PROBLEM=CHOICE"
    Withheld "withheld" ByFindings
        "what could be cured is left, because curing it would hide the traces of other damage; nothing was written";
        "see what the other findings ask for; copy the image while it can be read"
    IncompleteWalk "incomplete-walk" ByFindings
        "parts of the image could not be looked at, so nothing can be proven unreferenced; nothing was written";
        "the findings say which parts; copy the image while it can be read"
    NotAnImage "not-an-image" NotChecked
        "the file is not a QCOW2 image, nothing was written"; "give the image's own path"
    Unsupported "unsupported" NotChecked
        "the image uses a feature that cannot be counted yet, nothing was written";
        "the findings name the feature"
    Previewed "previewed" ByFindings
        "the repair was proven on a copy, nothing was written"; "run the same without --preview to write it"
    Repaired "repaired" ByFindings
        "repaired, and proven by a fresh check of the image"; ""
    RepairedPartly "repaired-partly" ByFindings
        "what this tier cures is repaired and proven by a fresh check; other findings are left";
        "see what the findings ask for"
    Resumed "resumed" ByFindings
        "a repair that had been interrupted was finished, and proven by a fresh check of the image"; ""
    Undone "undone" ByFindings
        "the last repair was undone: every byte is as it was before"; ""
    BadPlan "bad-plan" Failed
        "the plan broke its own rules and was dropped, nothing was written"; "report it with the image's metadata"
    TooLarge "too-large" Failed
        "the repair would have to write more than one plan may hold, nothing was written";
        "copy what can be read with qemu-img convert, or from a mount, to a new image"
    Quarantined "quarantined" Failed
        "the planned repair did not pass its proof on a copy, nothing was written";
        "report it with the image's metadata; the image is as it was"
    RolledBack "rolled-back" Failed
        "the repaired image did not pass its proof and was put back: every byte is as it was before";
        "report it with the image's metadata; check the storage below"
    RollbackFailed "rollback-failed" Failed
        "the repaired image did not pass its proof and could not be put back";
        "do not use the image; check the storage below, then run instar undo"
    ImageChanged "image-changed" Failed
        "somebody else changed the image during the repair, nothing was written";
        "find out who writes to it without a lock, then run the same again"
    NoSpace "no-space" Failed
        "there is not enough free space for undo file and journal, nothing was written";
        "free some space on the file system that holds the image"
    NoPlaceForRecords "no-place-for-records" Failed
        "undo file and journal cannot be kept beside the image, nothing was written";
        "repair a copy, made with cp or dd in a folder where you may create files"
    NotWritable "not-writable" Failed
        "the image cannot be written, nothing was written";
        "run as a user who may write it, on a file system that is not read-only"
    Exhausted "exhausted" Failed
        "the same repair of the same image has failed too often to be tried again, nothing was written";
        "keep a copy and report it with the image's metadata; another tier or decision, or changed bytes, start anew"
    InUse "in-use" Failed
        "another program uses the image, nothing was written"; "stop it, then run the same again"
    CageFailed "cage-failed" Failed
        "the cage gave no result, nothing was written"; "the message says why; --sandbox may help"
    StorageFailed "storage-failed" Failed
        "reading the image or writing the records failed, the image was not written"; "check the storage below"
    LandingInterrupted "landing-interrupted" Failed
        "the repair was interrupted while it was being written; its journal is kept";
        "check the storage below, then run instar resume to finish it or instar undo to go back"
    PlanForeign "plan-foreign" Failed
        "the plan was not made for this image as it is now, nothing was written";
        "make a new plan of the image as it is"
    JournalFound "journal-found" Failed
        "an interrupted repair has left its journal, nothing was written";
        "run instar resume to finish it or instar undo to go back"
    UndoInterrupted "undo-interrupted" Failed
        "an undo was interrupted while it was putting old bytes back; its undo file is kept";
        "check the storage below, then run instar undo to finish it"
    JournalDamaged "journal-damaged" Failed
        "the journal is damaged or not to be trusted, nothing was written";
        "run instar undo to go back, or remove the journal and check again"
    JournalForeign "journal-foreign" Failed
        "journal and undo file do not belong to this image as it is now, nothing was written";
        "was the image replaced or written since? Remove the journal and check again"
    NoJournal "no-journal" Failed
        "there is no journal: no repair was interrupted, nothing was written"; ""
    NoUndo "no-undo" Failed
        "there is no undo file: no repair can be undone, nothing was written"; ""
    UndoDamaged "undo-damaged" Failed
        "the undo file is damaged or not to be trusted, nothing was written";
        "the image stays as it is; check it"
    UndoDropped "undo-dropped" ByFindings
        "the undo file is removed: the last repair cannot be undone any more"; ""
    Discarded "discarded" ByFindings
        "what no cluster in use needs was given back to the storage, and the image was checked again"; ""
    NothingToDiscard "nothing-to-discard" ByFindings
        "no storage is held for clusters that nothing uses, nothing was given back"; ""
    DiscardPreviewed "discard-previewed" ByFindings
        "what could be given back was proven to have no user, nothing was given back";
        "run the same without --preview to give it back"
    NotConsistent "not-consistent" ByFindings
        "only an image in which nothing at all is wrong has clusters that are surely free, nothing was given back";
        "see what the findings ask for, and try again when the image is consistent"
    UndoKept "undo-kept" Failed
        "the last repair can still be undone, and may need what nothing uses now; nothing was given back";
        "look at the repaired image, then run instar undo --drop to keep the repair for good, or instar undo to go back"
    UnknownOwner "unknown-owner" Failed
        "the image has something of which it is not known which clusters it uses, nothing was given back";
        "leave it to the program that made it, or copy the image with qemu-img convert, which copies no free clusters"
    DiscardUnproven "discard-unproven" Failed
        "what is told as free did not pass its proof, nothing was given back";
        "report it with the image's metadata; the image is as it was"
    CannotDiscard "cannot-discard" Failed
        "the storage of the image cannot give back a part of a file, nothing was given back";
        "copy the image with qemu-img convert, which copies no free clusters"
    DiscardInterrupted "discard-interrupted" Failed
        "giving back was interrupted: some was given back and some was not, and nothing that is in use was touched";
        "check the storage below, then run the same again"
    UsedSince "used-since" Failed
        "the image was written after the repair, so going back would mix old and new; nothing was written";
        "the image stays as it is; check it"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_ids_are_unique_and_failures_say_what_to_do() {
        for (at, ending) in Ending::ALL.iter().enumerate() {
            assert!(ending.id().bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{ending:?}");
            assert!(Ending::ALL[..at].iter().all(|other| other.id() != ending.id()), "{ending:?}");
            let route = ending.route();
            let absent = matches!(ending, Ending::NoJournal | Ending::NoUndo);
            assert!(route.exit != ExitRule::Failed || absent || !route.next.is_empty(), "{ending:?}");
        }
    }
}
