//! The keeper of a mount: a small process that unmounts for the server, which has given up the right to do so and can
//! start no program once it serves.
//!
//! The server orders through a pipe, one line each. Where the pipe ends while the mount is still there, the server
//! was killed, and the keeper unmounts without an order: no dead mount is left behind. It never opens an image.
//!
//! Invariant: it unmounts nothing but the mount that the server named, known by its place and its device, so that a
//! mount which somebody made there later stays. Which descriptor of a killed server is closed first does not matter:
//! the mount is detached whether or not the kernel has noticed that nobody serves it.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::mount::{UnmountFlags, unmount};
use signal_hook::consts::{SIGINT, SIGTERM};

use super::mountpoint::MountPoint;
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

    /// From now on the mount of this device number is to be kept.
    ///
    /// # Errors
    /// A keeper that is gone.
    pub(super) fn keep(&mut self, device: u64) -> io::Result<()> {
        self.order(&format!("keep {}:{}", rustix::fs::major(device), rustix::fs::minor(device)))
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
            _ if kept.is_none() => Err(io::ErrorKind::NotFound.into()),
            _ if order == "forget" => {
                kept = None;
                Ok(())
            }
            _ => release(point, order == "detach"),
        };
        answer(outcome)?;
    }
    match kept {
        Some(device) if is_there(point, &device)? => release(point, true),
        _ => Ok(()),
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

/// Whether the list of mounts has this device at this place.
fn is_there(point: &Path, device: &str) -> io::Result<bool> {
    let mounts = fs::read("/proc/self/mountinfo")?;
    Ok(mounts.split(|&byte| byte == b'\n').any(|line| is_mount(line, point, device)))
}

/// Whether a line of mountinfo is about this device at this place.
fn is_mount(line: &[u8], point: &Path, device: &str) -> bool {
    let mut fields = line.split(|&byte| byte == b' ').skip(2);
    fields.next() == Some(device.as_bytes())
        && fields.nth(1).is_some_and(|place| OsStr::from_bytes(&unescape(place)) == point.as_os_str())
}

/// The list of mounts has `\ooo` for bytes that would split its fields.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    let mut rest = field;
    while let [first, after @ ..] = rest {
        let octal = after.get(..3).filter(|_| *first == b'\\').and_then(|digits| str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(byte);
                rest = &after[3..];
            }
            None => {
                plain.push(*first);
                rest = after;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &[u8] = br"147 28 0:59 / /mnt/a\040b\134c ro,nosuid shared:1 - fuse.instar disk ro,user_id=0";

    #[test]
    fn mount_is_known_by_place_and_device() {
        let point = Path::new(r"/mnt/a b\c");
        assert!(is_mount(LINE, point, "0:59"));
        assert!(!is_mount(LINE, point, "0:5"));
        assert!(!is_mount(LINE, Path::new("/mnt/a"), "0:59"));
        assert!(!is_mount(b"", point, "0:59"));
    }

    #[test]
    fn keeper_is_asked_for_by_the_first_argument_only() {
        let arguments = |all: &[&str]| all.iter().map(OsString::from).collect::<Vec<_>>().into_iter();
        assert_eq!(keeper_of(arguments(&["m", KEEPER_OPTION, "/p"])), Some("/p".into()));
        assert_eq!(keeper_of(arguments(&["m", "a.qcow2", KEEPER_OPTION])), None);
        assert_eq!(keeper_of(arguments(&["m", KEEPER_OPTION])), None);
    }
}
