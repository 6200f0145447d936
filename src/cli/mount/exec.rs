//! `--exec`: a command with the disk at hand, and no mount afterwards.
//!
//! The program that the user started (the caller) starts a server as for any mount in the background, runs the command
//! while the mount answers, unmounts, and ends as the command did. Invariant: whatever ends the command, the mount and
//! the folder made for it are gone before the caller ends; a signal that asks the caller for its end is handed on to the
//! command. If the caller is killed, its server unmounts.
//!
//! ```text
//! caller: start server -- wait -- start command ------------- wait -- unmount -- wait -> the command's exit code
//! server:    check, heal, mount, READY, serve ------------------------------------|
//! ```
//!
//! The command is a child of the caller, so that nothing that locks the server down reaches it.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use signal_hook::iterator::Signals;
use tracing::debug;

use super::super::options::MountOptions;
use super::super::say;
use super::background::Server;
use super::error::MountError;
use super::names::served_path;
use super::serve::ENDING;
use crate::error::Error;
use crate::exit::Exit;
use crate::fuse::{MountPoint, SessionError, Unmounter, is_mount_root};

/// Where the command finds the disk, and the folder that it is in.
const DISK_VARIABLE: &str = "INSTAR_DISK";
const FOLDER_VARIABLE: &str = "INSTAR_MOUNT";
/// What runs the command.
const SHELL: &str = "/bin/sh";
/// What a shell adds to the number of a signal for the exit code of what it ended.
const SIGNAL_EXIT: u8 = 128;
/// How long the last user of a mount may take to let go of it after the command's end, before the mount is detached.
const BUSY_MAX: Duration = Duration::from_secs(2);
/// How long a server may take to end once its mount is gone.
const SERVER_END_MAX: Duration = Duration::from_secs(10);
/// Between two looks at something that ends soon.
const LOOK: Duration = Duration::from_millis(20);

/// Mounts, runs `command`, unmounts.
///
/// # Errors
/// What kept the mount from coming about or from going away, and what kept the command from being started.
pub fn run(options: &MountOptions, command: &OsStr) -> Result<Exit, Error> {
    let relay = Relay::catch().map_err(MountError::Signals)?;
    let place = Place::of(options.mountpoint.as_deref())?;
    let done = serve_for(options, command, &place, &relay);
    let removed = place.remove();
    let exit = done?;
    removed?;
    Ok(exit)
}

fn serve_for(
    options: &MountOptions,
    command: &OsStr,
    place: &Place,
    relay: &Relay,
) -> Result<Exit, MountError> {
    let mut server = Server::start(place.made.as_deref()).map_err(MountError::Background)?;
    if let Some(exit) = server.answered().map_err(MountError::Background)? {
        return Ok(exit);
    }
    let disk = served_path(&place.point(), &options.image);
    let ended = relay.run(
        Command::new(SHELL).arg("-c").arg(command).env(DISK_VARIABLE, disk).env(FOLDER_VARIABLE, &place.path),
    );
    if unmount(&place.path).map_err(MountError::Session)? {
        await_end(&mut server).map_err(MountError::Background)?;
    }
    ended
}

/// Unmounts, with patience for users that are about to close the disk. One that does not keeps it, detached: then the
/// answer is false.
fn unmount(path: &Path) -> Result<bool, SessionError> {
    let unmounter = Unmounter::new(path.to_owned());
    let began = Instant::now();
    loop {
        match unmounter.unmount(false) {
            Ok(()) => return Ok(true),
            // The server, or the command, may have done it.
            Err(_) if !is_mount_root(path).unwrap_or(true) => return Ok(true),
            Err(SessionError::Unmount { source, .. }) if source.kind() == io::ErrorKind::ResourceBusy => {
                if began.elapsed() > BUSY_MAX {
                    say::to_person(
                        "warning: something that the command started still uses the disk, which is served until \
                         it is closed",
                    );
                    return unmounter.unmount(true).map(|()| false);
                }
                std::thread::sleep(LOOK);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Waits for the server's end, so that the image is free when the caller ends.
fn await_end(server: &mut Server) -> io::Result<()> {
    let began = Instant::now();
    while !server.has_ended()? && began.elapsed() < SERVER_END_MAX {
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// Where the disk appears.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    /// The folder, if it was made for this.
    made: Option<PathBuf>,
}

impl Place {
    fn of(given: Option<&Path>) -> Result<Self, MountError> {
        match given {
            Some(path) => Ok(Self { path: path.canonicalize().map_err(MountError::Folder)?, made: None }),
            None => {
                // Open to nobody else; kept, because what is below it is not to be removed but unmounted.
                let folder =
                    tempfile::Builder::new().prefix("instar-").tempdir().map_err(MountError::Folder)?;
                let path = folder.keep().canonicalize().map_err(MountError::Folder)?;
                Ok(Self { made: Some(path.clone()), path })
            }
        }
    }

    fn point(&self) -> MountPoint {
        if self.path.is_dir() {
            MountPoint::Directory(self.path.clone())
        } else {
            MountPoint::File(self.path.clone())
        }
    }

    fn remove(&self) -> Result<(), MountError> {
        self.made.as_ref().map_or(Ok(()), fs::remove_dir).map_err(MountError::Folder)
    }
}

/// Hands signals on to the command.
#[derive(Debug)]
struct Relay {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// The command, while it runs.
    command: Option<OwnedFd>,
    /// The first signal.
    caught: Option<i32>,
}

impl Relay {
    /// From now on the signals no longer end the process.
    fn catch() -> io::Result<Self> {
        let mut signals = Signals::new(ENDING)?;
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        std::thread::spawn(move || signals.forever().for_each(|signal| shared.lock().hand_on(signal)));
        Ok(Self { state })
    }

    /// Runs a command to its end, unless a signal has come before.
    fn run(&self, command: &mut Command) -> Result<Exit, MountError> {
        let mut state = self.state.lock();
        if let Some(signal) = state.caught {
            return Ok(Exit::Command(exit_of_signal(signal)));
        }
        let mut child = command.spawn().map_err(MountError::Command)?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        // Without it, signals do not reach the command by way of the caller.
        state.command = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        drop(state);
        let ended = child.wait().map_err(MountError::Command)?;
        self.state.lock().command = None;
        Ok(Exit::Command(exit_of(ended)))
    }
}

impl State {
    fn hand_on(&mut self, signal: i32) {
        self.caught.get_or_insert(signal);
        if let (Some(command), Some(signal)) = (&self.command, Signal::from_named_raw(signal))
            && let Err(error) = pidfd_send_signal(command, signal)
        {
            debug!(%error, "the command has ended before the signal");
        }
    }
}

/// The exit code that a shell would give for it.
fn exit_of(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(u8::MAX),
        (None, Some(signal)) => exit_of_signal(signal),
        (None, None) => u8::MAX,
    }
}

fn exit_of_signal(signal: i32) -> u8 {
    SIGNAL_EXIT.saturating_add(u8::try_from(signal).unwrap_or(0))
}
