//! Which errno a stopped read becomes. One exhaustive match, with reasons.

use fuser::Errno;

use crate::disk::Stop;

/// The errno of a read that could not go on.
pub(super) fn of_stop(stop: &Stop) -> Errno {
    match stop {
        // What a disk says of a sector that it cannot read: file systems and rescue tools know how to go on.
        Stop::Damaged(_) | Stop::LeftOut => Errno::EIO,
        // The bytes are there and sound, so that a rescue tool must not take them for lost.
        Stop::Encrypted => Errno::EOPNOTSUPP,
        // The cause is in the log; readers of a disk know EIO, and may not know what else an NFS or an overlay
        // below can say.
        Stop::Io(_) => Errno::EIO,
        // Nothing is known about the range, which must not read as anything.
        Stop::Source => Errno::EIO,
    }
}
