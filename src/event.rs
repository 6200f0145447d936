//! The events that are logged for an operator to act on.
//!
//! Invariant: an id is permanent, and never used for something else; filters and alarms go by it. `docs/guide.md` has
//! this table, held against it by a test.

/// One kind of event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// Its permanent id, the value of the field `event`.
    pub id: &'static str,
    /// What it means.
    pub meaning: &'static str,
}

/// A disk is mounted.
pub const MOUNTED: Event =
    Event { id: "mounted", meaning: "a disk is mounted, after a check with this verdict" };
/// A mount has ended.
pub const UNMOUNTED: Event = Event { id: "unmounted", meaning: "a mount has ended" };
/// A repair is about to be written.
pub const REPAIR_LANDING: Event =
    Event { id: "repair-landing", meaning: "a proven repair is about to be written into an image" };
/// Clusters are about to be given back.
pub const DISCARDING: Event = Event {
    id: "discarding",
    meaning: "what nothing in an image uses is about to be given back to the storage",
};
/// A mount could not be ended because it is in use.
pub const IN_USE: Event = Event {
    id: "mount-in-use",
    meaning: "a mount that is to end is detached, and served until its last user closes it",
};
/// A mount could not be ended.
pub const UNMOUNT_FAILED: Event = Event { id: "unmount-failed", meaning: "a mount could not be ended" };
/// A resident cage died.
pub const CAGE_RESTARTED: Event = Event {
    id: "cage-restarted",
    meaning: "a cage has ended while its disk was served, and is started anew",
};
/// The cage gave no answer, or one that breaks the rules.
pub const CAGE_FAILED: Event =
    Event { id: "cage-failed", meaning: "the cage gave no answer that can be believed; the read failed" };
/// The file under a disk could not be read.
pub const FILE_FAILED: Event =
    Event { id: "file-failed", meaning: "the file under a disk could not be read, or has become too short" };

/// All of them.
pub const ALL: [Event; 9] = [
    MOUNTED,
    UNMOUNTED,
    REPAIR_LANDING,
    DISCARDING,
    IN_USE,
    UNMOUNT_FAILED,
    CAGE_RESTARTED,
    CAGE_FAILED,
    FILE_FAILED,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_ids_are_unique_and_kebab_case() {
        for (at, event) in ALL.iter().enumerate() {
            assert!(ALL[..at].iter().all(|other| other.id != event.id), "{}", event.id);
            assert!(event.id.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{}", event.id);
        }
    }
}
