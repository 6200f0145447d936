//! Gives back what an idle mount does not need: the memory of inflated clusters that nobody reads any more.
//!
//! Invariant: nothing is taken from a reader, and what is forgotten can be inflated again. The thread ends when nobody
//! has the clusters any more, at its next look.

use std::io;
use std::sync::Weak;
use std::thread;
use std::time::Duration;

use super::unpack::Unpacker;
use crate::sandbox::heap;

/// What was not read for this long, and for twice as long at most, is forgotten.
const PATIENCE: Duration = Duration::from_secs(10);

/// Starts to look after `unpackers`. The thread is a child of the calling one, with its rights.
///
/// # Errors
/// Where no thread can be started.
pub fn forget_when_idle(unpackers: Vec<Weak<Unpacker>>) -> io::Result<()> {
    let live = move || {
        while unpackers.iter().any(|unpacker| unpacker.strong_count() > 0) {
            thread::sleep(PATIENCE);
            let forgotten: usize =
                unpackers.iter().filter_map(Weak::upgrade).map(|unpacker| unpacker.forget_unused()).sum();
            if forgotten > 0 {
                heap::give_back();
            }
        }
    };
    thread::Builder::new().name("instar-idle".into()).spawn(live).map(drop)
}
