//! What one mount says of itself.
//!
//! Invariant: whatever serves the mount, a look ends after [`PATIENCE`] and reads at most [`HEALTH_BYTES_MAX`]. A mount
//! that gives no answer is left to the thread that asks it, which ends with the process.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use rustix::fs::getxattr;

use crate::fuse::Listed;
use crate::report::{MountFacts, MountHealth, MountState};

/// How long one mount is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest health document that is read.
const HEALTH_BYTES_MAX: u64 = 1 << 20;
/// Longest attribute that is read.
const ATTRIBUTE_BYTES_MAX: usize = 8192;

/// Looks at all of them at once.
#[must_use]
pub fn look_at(mounts: Vec<Listed>) -> Vec<MountFacts> {
    let asked: Vec<_> = mounts.into_iter().map(|mount| (ask(&mount), mount)).collect();
    let answer = |(answer, mount): (mpsc::Receiver<_>, Listed)| MountFacts {
        state: answer.recv_timeout(PATIENCE).unwrap_or(MountState::Silent),
        point: mount.point,
        source: mount.source,
    };
    asked.into_iter().map(answer).collect()
}

fn ask(mount: &Listed) -> mpsc::Receiver<MountState> {
    let (tell, answer) = mpsc::channel();
    let point = mount.point.clone();
    std::thread::spawn(move || {
        // Nobody listens any more where it took too long.
        tell.send(state_of(&point)).unwrap_or_default();
    });
    answer
}

fn state_of(point: &Path) -> MountState {
    match health_of(point) {
        Ok(health) => MountState::Serving(health),
        Err(error) => match error.kind() {
            io::ErrorKind::NotConnected | io::ErrorKind::ConnectionAborted => MountState::Dead,
            _ => MountState::Unreadable(error),
        },
    }
}

fn health_of(point: &Path) -> io::Result<MountHealth> {
    // Asks the server, where the kernel would answer for a dead one from memory.
    crate::fuse::is_mount_root(point)?;
    match File::open(point.join(".instar/health")) {
        Ok(file) => {
            let mut text = Vec::new();
            file.take(HEALTH_BYTES_MAX).read_to_end(&mut text)?;
            serde_json::from_slice(&text).map_err(io::Error::from)
        }
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(MountHealth::of_file(
            attribute(point, "user.instar.image")?,
            attribute(point, "user.instar.verdict")?,
        )),
        Err(error) => Err(error),
    }
}

fn attribute(path: &Path, name: &str) -> io::Result<String> {
    let mut value = vec![0; ATTRIBUTE_BYTES_MAX];
    let len = getxattr(path, name, &mut value[..])?;
    value.truncate(len);
    String::from_utf8(value).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}
