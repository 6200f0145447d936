//! The keeper of a mount: a small process that unmounts for the server, which has given up the right to do so and can
//! start no program once it serves.
//!
//! The server orders through a pipe, one line each. Where the pipe ends while the mount is still there, the server
//! was killed, and the keeper unmounts without an order: no dead mount is left behind. It never opens an image.
//!
//! Invariant: it unmounts nothing but the mount that the server named, known by its place and its device, so that a
//! mount which somebody made there later, or over it, stays. Which descriptor of a killed server is closed first does not matter:
//! the mount is detached whether or not the kernel has noticed that nobody serves it.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::mount::{UnmountFlags, unmount};
use signal_hook::consts::{SIGINT, SIGTERM};

use super::mountpoint::MountPoint;
use super::mounts::{self, Listed};
use crate::exit::Exit;
use crate::sandbox::lockdown;

/// The hidden option that makes a keeper of the program; the mount point follows it.
const KEEPER_OPTION: &str = "--mount-keeper";

/// The server's end of the pipes to its keeper.
#[derive(Debug)]
pub struct Keeper {
    _process: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Keeper {
    /// Starts a keeper. `program` is the `instar-mount` to start as one; to be called before anything is mounted on
    /// `point`.
    ///
    /// # Errors
    /// Those of starting a program.
    pub fn start(program: &Path, point: &MountPoint) -> io::Result<Self> {
        let mut process = Command::new(program)
            .arg(KEEPER_OPTION)
            .arg(point.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let (Some(orders), Some(answers)) = (process.stdin.take(), process.stdout.take()) else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        Ok(Self { _process: process, orders, answers: BufReader::new(answers) })
    }

    /// From now on the mount of this device, by its major and minor number, is to be kept.
    ///
    /// # Errors
    /// A keeper that is gone.
    pub(super) fn keep(&mut self, (major, minor): (u32, u32)) -> io::Result<()> {
        self.order(&format!("keep {major}:{minor}"))
    }

    /// The mount has ended by itself; whatever is mounted there next is another one, even if it has the same number.
    ///
    /// # Errors
    /// A keeper that is gone.
    pub(super) fn forget(&mut self) -> io::Result<()> {
        self.order("forget")
    }

    /// Unmounts, or detaches.
    ///
    /// # Errors
    /// What kept it, of the kind `ResourceBusy` where the mount is in use; a keeper that is gone.
    pub(super) fn unmount(&mut self, detach: bool) -> io::Result<()> {
        self.order(if detach { "detach" } else { "unmount" })
    }

    fn order(&mut self, line: &str) -> io::Result<()> {
        self.orders.write_all(format!("{line}\n").as_bytes())?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        match answer.trim_end().split_once(' ') {
            None if answer == "done\n" => Ok(()),
            Some(("busy", said)) => Err(io::Error::new(io::ErrorKind::ResourceBusy, said)),
            Some(("failed", said)) => Err(io::Error::other(said.to_owned())),
            _ => Err(io::Error::new(io::ErrorKind::BrokenPipe, "the mount's keeper is gone")),
        }
    }
}

/// The mount point, if these arguments are those of a keeper.
pub fn keeper_of(mut arguments: impl Iterator<Item = OsString>) -> Option<PathBuf> {
    (arguments.nth(1)? == KEEPER_OPTION).then(|| arguments.next().map(PathBuf::from))?
}

/// The keeper's whole life.
#[must_use]
pub fn keep(point: &Path) -> Exit {
    match obey(point) {
        Ok(()) => Exit::Consistent,
        Err(error) => {
            tracing::error!(%error, "the keeper of a mount cannot go on");
            Exit::Failed
        }
    }
}

fn obey(point: &Path) -> io::Result<()> {
    // What ends the server by a signal to a whole group must leave the one that cleans up behind it.
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
    }
    rustix::process::setsid()?;
    std::env::set_current_dir("/")?;
    lockdown::keep_mount_capabilities()?;
    let mut kept = None;
    for order in io::stdin().lock().lines() {
        let order = order?;
        let outcome = match order.split_once(' ') {
            Some(("keep", device)) => {
                kept = Some(device.to_owned());
                Ok(())
            }
            _ if order == "forget" => {
                kept = None;
                Ok(())
            }
            _ => release_kept(point, kept.as_deref(), order == "detach"),
        };
        answer(outcome)?;
    }
    match release_kept(point, kept.as_deref(), true) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Unmounts what is kept, unless it is gone or something else would be unmounted in its place: `NotFound`.
fn release_kept(point: &Path, kept: Option<&str>, detach: bool) -> io::Result<()> {
    let list = mounts::all()?;
    if kept.is_some_and(|device| is_on_top(&list, point, device)) {
        release(point, detach)
    } else {
        Err(io::Error::new(io::ErrorKind::NotFound, "the mount is gone, or another one is on top of it"))
    }
}

fn answer(outcome: io::Result<()>) -> io::Result<()> {
    let line = match outcome {
        Ok(()) => "done\n".to_owned(),
        Err(error) => {
            let word = if error.kind() == io::ErrorKind::ResourceBusy { "busy" } else { "failed" };
            format!("{word} {}\n", error.to_string().replace('\n', " "))
        }
    };
    let mut out = io::stdout();
    out.write_all(line.as_bytes())?;
    out.flush()
}

/// Unmounts; as root by itself.
pub(super) fn release(point: &Path, detach: bool) -> io::Result<()> {
    let flags = if detach { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    match unmount(point, flags | UnmountFlags::NOFOLLOW) {
        Err(rustix::io::Errno::PERM) => fusermount(point, detach),
        other => other.map_err(io::Error::from),
    }
}

/// Unmounts as a user who is not root.
fn fusermount(path: &Path, detach: bool) -> io::Result<()> {
    let mode = if detach { "-uz" } else { "-u" };
    let output = Command::new("fusermount3").arg(mode).arg("--").arg(path).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let kind = if said.contains("busy") { io::ErrorKind::ResourceBusy } else { io::ErrorKind::Other };
    Err(io::Error::new(kind, said))
}

/// Whether, in this list, the mount of this device is the one at this place that an unmount would take.
fn is_on_top(list: &[Listed], point: &Path, device: &str) -> bool {
    let top = list.iter().rfind(|mount| mount.point == point);
    top.is_some_and(|mount| mount.device == device.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_is_known_by_place_and_device_and_only_where_nothing_is_on_top_of_it() {
        let ours = r"147 28 0:59 / /mnt/a\040b\134c ro,nosuid shared:1 - fuse.instar disk ro,user_id=0";
        let elsewhere = "148 28 0:60 / /mnt ro - tmpfs none ro";
        let on_top = r"149 147 0:61 / /mnt/a\040b\134c rw - tmpfs none rw";
        let point = Path::new(r"/mnt/a b\c");
        let list = mounts::parse(format!("{ours}\n{elsewhere}\n").as_bytes());
        assert!(is_on_top(&list, point, "0:59"));
        assert!(!is_on_top(&list, point, "0:5"));
        assert!(!is_on_top(&list, Path::new("/mnt/a"), "0:59"));
        let covered = mounts::parse(format!("{ours}\n{elsewhere}\n{on_top}\n").as_bytes());
        assert!(!is_on_top(&covered, point, "0:59"));
    }

    #[test]
    fn keeper_is_asked_for_by_the_first_argument_only() {
        let arguments = |all: &[&str]| all.iter().map(OsString::from).collect::<Vec<_>>().into_iter();
        assert_eq!(keeper_of(arguments(&["m", KEEPER_OPTION, "/p"])), Some("/p".into()));
        assert_eq!(keeper_of(arguments(&["m", "a.qcow2", KEEPER_OPTION])), None);
        assert_eq!(keeper_of(arguments(&["m", KEEPER_OPTION])), None);
    }
}
