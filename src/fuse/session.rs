//! The life of one FUSE mount: from the mount call to the last request.
//!
//! Where it can be had, a helper process of the system (fusermount3) waits for this one to end and unmounts then,
//! so that a killed server leaves no dead mount behind. It can be had as root with fusermount3 installed, and as
//! another user if /etc/fuse.conf allows `user_allow_other`; fuser lets nobody in but root and the owner all the
//! same. Elsewhere the mount works too, and only a kill leaves something to release by hand.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};
use rustix::mount::{UnmountFlags, unmount};
use thiserror::Error;
use tracing::debug;

use super::adapter::Adapter;
use super::helper::{Held, Reserved};
use super::mountpoint::MountPoint;
use super::store;
use super::tree::Tree;

/// Threads that read requests: more than two were measured to get into each other's way.
const THREADS_MAX: usize = 2;
/// Readahead to ask for, in KiB: one request of the largest size.
const READAHEAD_KIB: u32 = 1024;

/// Why a mount did not come about, or did not end well.
#[derive(Debug, Error)]
pub enum SessionError {
    /// The kernel or fusermount3 refused.
    #[error("cannot mount on {}", path.display())]
    Mount {
        /// The mount point.
        path: PathBuf,
        /// What was said.
        #[source]
        source: io::Error,
    },
    /// The mount is there but gives no answer.
    #[error("the mount on {} gives no answer", path.display())]
    Silent {
        /// The mount point.
        path: PathBuf,
        /// What was said.
        #[source]
        source: io::Error,
    },
    /// The session ended with an error.
    #[error("serving {} ended with an error", path.display())]
    Served {
        /// The mount point.
        path: PathBuf,
        /// What was said.
        #[source]
        source: io::Error,
    },
    /// Unmounting failed.
    #[error("cannot unmount {}", path.display())]
    Unmount {
        /// The mount point.
        path: PathBuf,
        /// What was said.
        #[source]
        source: io::Error,
    },
}

/// Whom a mount lets in. What they may read there is up to the files' permissions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admitted {
    /// The user who mounted, and root where the system allows.
    OwnerAndRoot,
    /// Every user.
    Everybody,
}

/// A mount that answers.
#[derive(Debug)]
pub struct Mounted {
    session: BackgroundSession,
    path: PathBuf,
    auto_unmount: bool,
    /// See [`super::helper`].
    _held: Option<Held>,
}

/// Ends a mount from any thread.
#[derive(Debug, Clone)]
pub struct Unmounter {
    path: PathBuf,
}

impl Mounted {
    /// Mounts a tree and waits for its first answer. `name` is what the system's list of mounts shows.
    ///
    /// # Errors
    /// [`SessionError::Mount`] and [`SessionError::Silent`].
    pub fn new(tree: Tree, point: &MountPoint, name: &str, admitted: Admitted) -> Result<Self, SessionError> {
        let path = point.path().to_path_buf();
        let (storing, stored) = store::channel();
        let adapter = Adapter { tree: Arc::new(tree), storing };
        let reserved = Reserved::new();
        let (session, auto_unmount) = open(&adapter, &path, name, admitted)
            .map_err(|error| SessionError::Mount { path: path.clone(), source: on_one_line(error) })?;
        let session = session.spawn().map_err(|source| SessionError::Mount { path: path.clone(), source })?;
        drop(adapter);
        stored
            .start(session.notifier())
            .map_err(|source| SessionError::Mount { path: path.clone(), source })?;
        // Without it the mount works all the same.
        let held = reserved.and_then(Reserved::hold).unwrap_or_else(|error| {
            debug!(%error, "the helper's socket is not held");
            None
        });
        let root =
            fs::metadata(&path).map_err(|source| SessionError::Silent { path: path.clone(), source })?;
        raise_readahead(root.dev());
        Ok(Self { session, path, auto_unmount, _held: held })
    }

    /// True if the mount goes away with this process, however it ends.
    #[must_use]
    pub fn auto_unmount(&self) -> bool {
        self.auto_unmount
    }

    /// What can end this mount.
    #[must_use]
    pub fn unmounter(&self) -> Unmounter {
        Unmounter::new(self.path.clone())
    }

    /// Serves until somebody unmounts.
    ///
    /// # Errors
    /// [`SessionError::Served`].
    pub fn wait(self) -> Result<(), SessionError> {
        let path = self.path;
        self.session.join().map_err(|source| SessionError::Served { path, source })
    }
}

impl Unmounter {
    /// What ends the mount on `path`, which is absolute and without symbolic links.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Unmounts. With `detach`, a mount in use goes from the tree of names at once, and is served until its last
    /// user closes it.
    ///
    /// # Errors
    /// [`SessionError::Unmount`], of the kind `ResourceBusy` if the mount is in use and `detach` is not set.
    pub fn unmount(&self, detach: bool) -> Result<(), SessionError> {
        let flags = if detach { UnmountFlags::DETACH } else { UnmountFlags::empty() };
        let done = match unmount(&self.path, flags | UnmountFlags::NOFOLLOW) {
            Err(rustix::io::Errno::PERM) => fusermount(&self.path, detach),
            other => other.map_err(io::Error::from),
        };
        done.map_err(|source| SessionError::Unmount { path: self.path.clone(), source })
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

/// An error that repeats what fusermount3 said, without the end of its line.
fn on_one_line(error: io::Error) -> io::Error {
    let said = error.to_string();
    if said.ends_with('\n') { io::Error::new(error.kind(), said.trim_end()) } else { error }
}

/// Mounts, with auto-unmount where it can be had; says whether it could.
fn open(
    adapter: &Adapter,
    path: &Path,
    name: &str,
    admitted: Admitted,
) -> io::Result<(Session<Adapter>, bool)> {
    match Session::new(adapter.clone(), path, &config(name, admitted, true)) {
        Ok(session) => Ok((session, true)),
        Err(error) => {
            debug!(%error, "no auto-unmount");
            Session::new(adapter.clone(), path, &config(name, admitted, false))
                .map(|session| (session, false))
        }
    }
}

fn config(name: &str, admitted: Admitted, auto_unmount: bool) -> Config {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(list_name(name)),
        MountOption::Subtype("instar".into()),
        MountOption::RO,
        MountOption::NoDev,
        MountOption::NoSuid,
        MountOption::NoExec,
        // The server answers whoever asks; it is the kernel that holds users to the files' permissions.
        MountOption::DefaultPermissions,
    ];
    if auto_unmount {
        config.mount_options.push(MountOption::AutoUnmount);
    }
    config.acl = match admitted {
        Admitted::Everybody => SessionACL::All,
        Admitted::OwnerAndRoot if auto_unmount => SessionACL::RootAndOwner,
        Admitted::OwnerAndRoot => SessionACL::Owner,
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    config.n_threads = Some(cores.min(THREADS_MAX));
    // A descriptor of its own for each thread has to be opened by this process, which fusermount3 cannot help with.
    config.clone_fd = File::options().read(true).write(true).open("/dev/fuse").is_ok();
    config
}

/// A name that cannot be taken for anything but a name in a list of mount options.
fn list_name(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-+/".contains(c) { c } else { '_' };
    name.chars().map(plain).collect()
}

/// Lets the kernel read ahead further than its default for this mount. Only root may; nothing depends on it.
fn raise_readahead(device: u64) {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let knob = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    if let Err(error) = fs::write(&knob, READAHEAD_KIB.to_string()) {
        debug!(knob, %error, "readahead stays at the kernel's default");
    }
}
