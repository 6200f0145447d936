//! From the first answer of a mount to its end.
//!
//! A mount ends when somebody unmounts it (`fusermount3 -u`, `umount`), or at the first of the signals in [`ENDING`].
//! A mount in use cannot be unmounted at a signal; it then leaves the tree of names at once and is served until its
//! last user closes it. A second signal ends the process on the spot.

use std::io;
use std::thread::JoinHandle;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;
use tracing::{error, warn};

use crate::event;
use crate::fuse::{Mounted, SessionError, Unmounter};

/// Signals that ask for the end.
pub const ENDING: [i32; 3] = [SIGINT, SIGTERM, SIGHUP];

/// Waits for signals on a thread of its own, from before the mount is made.
#[derive(Debug)]
pub struct Ending {
    signals: Signals,
}

impl Ending {
    /// From now on the signals no longer end the process.
    ///
    /// # Errors
    /// Those of the system.
    pub fn catch() -> io::Result<Self> {
        Ok(Self { signals: Signals::new(ENDING)? })
    }

    /// Serves until the end.
    ///
    /// # Errors
    /// [`SessionError::Served`].
    pub fn serve(self, mounted: Mounted) -> Result<(), SessionError> {
        let handle = self.signals.handle();
        let waiting = self.wait_for_signals(mounted.unmounter());
        let served = mounted.wait();
        handle.close();
        if waiting.join().is_err() {
            error!("the thread that waits for signals panicked");
        }
        served
    }

    fn wait_for_signals(mut self, unmounter: Unmounter) -> JoinHandle<()> {
        std::thread::spawn(move || {
            let mut asked_before = false;
            for signal in self.signals.forever() {
                if asked_before {
                    end_now(signal);
                }
                asked_before = true;
                end(&unmounter);
            }
        })
    }
}

/// Unmounts, and where that is not possible because the mount is in use, detaches.
fn end(unmounter: &Unmounter) {
    match unmounter.unmount(false) {
        Ok(()) => {}
        Err(SessionError::Unmount { source, .. }) if source.kind() == io::ErrorKind::ResourceBusy => {
            warn!(
                event = event::IN_USE.id,
                "the mount is in use: it is served until its last user closes it"
            );
            if let Err(error) = unmounter.unmount(true) {
                error!(event = event::UNMOUNT_FAILED.id, %error, "cannot detach the mount");
            }
        }
        Err(error) => error!(event = event::UNMOUNT_FAILED.id, %error, "cannot unmount"),
    }
}

fn end_now(signal: i32) {
    if let Err(error) = emulate_default_handler(signal) {
        error!(%error, signal, "the signal has no effect");
    }
}
