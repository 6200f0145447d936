//! The life of one FUSE mount: from the mount call to the last request.
//!
//! Invariant: no thread that answers requests exists before [`Attached::start`], so that what a caller takes from its
//! own thread between the two steps (rights, places in the file system) none of them has.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};
use parking_lot::Mutex;
use rustix::fs::{AtFlags, CWD, StatxFlags, major, minor, statx};
use thiserror::Error;
use tracing::debug;

use super::adapter::Adapter;
use super::keeper::{Keeper, release};
use super::mountpoint::MountPoint;
use super::store::{self, Stored};
use super::transport::{Transport, TransportChoice};
use super::tree::Tree;
use super::uring::{NoRings, Rings, Serving};

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
    /// Rings were asked for, and there are none.
    #[error("cannot serve {} through io_uring", path.display())]
    Rings {
        /// The mount point.
        path: PathBuf,
        /// Why not.
        #[source]
        source: NoRings,
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
    /// The user who mounted.
    Owner,
    /// Every user.
    Everybody,
}

/// A mount whose requests nobody answers yet.
pub struct Attached {
    session: Session<Adapter>,
    adapter: Adapter,
    acl: SessionACL,
    /// Which the kernel has agreed to.
    rings: Option<Rings>,
    choice: TransportChoice,
    stored: Stored,
    path: PathBuf,
    device: (u32, u32),
    keeper: Keeper,
}

impl fmt::Debug for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attached").field("path", &self.path).finish_non_exhaustive()
    }
}

/// A mount that answers.
#[derive(Debug)]
pub struct Mounted {
    session: BackgroundSession,
    rings: Option<Serving>,
    unmounter: Unmounter,
    has_answered: bool,
}

/// Ends a mount from any thread.
#[derive(Debug, Clone)]
pub struct Unmounter {
    path: PathBuf,
    /// Unmounts for a server, which cannot.
    keeper: Option<Arc<Mutex<Keeper>>>,
}

impl Attached {
    /// Mounts a tree. `name` is what the system's list of mounts shows; `keeper` was started for `point`.
    ///
    /// # Errors
    /// [`SessionError::Mount`], and [`SessionError::Rings`] where they are what was chosen.
    pub fn new(
        tree: Tree,
        point: &MountPoint,
        name: &str,
        admitted: Admitted,
        choice: TransportChoice,
        mut keeper: Keeper,
    ) -> Result<Self, SessionError> {
        let path = point.path().to_path_buf();
        let failed = |source| SessionError::Mount { path: path.clone(), source };
        let no_rings = |why| choice.without_rings(why).map_err(|source| no_rings(&path, source));
        let config = config(name, admitted);
        let rings = match choice {
            TransportChoice::Fuse => None,
            TransportChoice::Auto | TransportChoice::Uring => {
                Rings::prepare().map_or_else(|why| no_rings(why).map(|()| None), |rings| Ok(Some(rings)))?
            }
        };
        let (storing, stored) = store::channel();
        let agreed = Arc::new(AtomicBool::new(false));
        let adapter = Adapter { tree: Arc::new(tree), storing, rings: None };
        let asking = Adapter { rings: rings.is_some().then(|| agreed.clone()), ..adapter.clone() };
        let session = Session::new(asking, &path, &config).map_err(|error| failed(on_one_line(error)))?;
        let rings = match rings {
            Some(_) if !agreed.load(Ordering::Acquire) => no_rings(NoRings::Off).map(|()| None)?,
            agreed => agreed,
        };
        // Whatever ends this process from here on leaves no dead mount.
        let device = device_of(&path).map_err(failed)?;
        keeper.keep(device).map_err(failed)?;
        Ok(Self { session, adapter, acl: config.acl, rings, choice, stored, path, device, keeper })
    }

    /// Starts to answer, and waits for the first answer. The threads that do are children of the calling one.
    ///
    /// # Errors
    /// [`SessionError::Mount`], [`SessionError::Rings`] and [`SessionError::Silent`].
    pub fn start(self) -> Result<Mounted, SessionError> {
        let Self { session, adapter, acl, rings, choice, stored, path, device, keeper } = self;
        let mount = |source| SessionError::Mount { path: path.clone(), source };
        let queue = session.as_fd().try_clone_to_owned().map_err(mount)?;
        let session = session.spawn().map_err(mount)?;
        stored.start(session.notifier()).map_err(mount)?;
        let rings = match rings.map(|rings| rings.start(queue, &adapter, acl)) {
            None => None,
            Some(Ok(serving)) => Some(serving),
            Some(Err(refused @ NoRings::Refused(_))) => {
                choice.without_rings(refused).map_err(|source| no_rings(&path, source))?;
                None
            }
            Some(Err(source)) => return Err(no_rings(&path, source)),
        };
        let transport = if rings.is_some() { Transport::Uring } else { Transport::Fuse };
        debug!(?transport, "the mount is served");
        adapter.tree.transport.get_or_init(|| transport);
        drop(adapter);
        let root =
            fs::metadata(&path).map_err(|source| SessionError::Silent { path: path.clone(), source })?;
        let has_answered = (major(root.dev()), minor(root.dev())) == device;
        raise_readahead(device);
        let unmounter = Unmounter { path, keeper: Some(Arc::new(Mutex::new(keeper))) };
        Ok(Mounted { session, rings, unmounter, has_answered })
    }
}

fn no_rings(path: &Path, source: NoRings) -> SessionError {
    SessionError::Rings { path: path.to_owned(), source }
}

impl Mounted {
    /// Whether it is served through rings.
    #[must_use]
    pub fn has_rings(&self) -> bool {
        self.rings.is_some()
    }

    /// Whether the mount itself has answered, and so all threads that do are there. Otherwise somebody has unmounted it
    /// before it could.
    #[must_use]
    pub const fn has_answered(&self) -> bool {
        self.has_answered
    }

    /// What can end this mount.
    #[must_use]
    pub fn unmounter(&self) -> Unmounter {
        self.unmounter.clone()
    }

    /// Serves until somebody unmounts.
    ///
    /// # Errors
    /// [`SessionError::Served`].
    pub fn wait(self) -> Result<(), SessionError> {
        let Unmounter { path, keeper } = self.unmounter;
        let served = self.session.join();
        if let Some(rings) = self.rings {
            rings.join();
        }
        served.map_err(|source| SessionError::Served { path, source })?;
        if let Some(Err(error)) = keeper.map(|keeper| keeper.lock().forget()) {
            debug!(%error, "the keeper does not know of the end");
        }
        Ok(())
    }
}

impl Unmounter {
    /// What ends the mount on `path`, which is absolute and without symbolic links.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path, keeper: None }
    }

    /// Unmounts. With `detach`, a mount in use goes from the tree of names at once, and is served until its last
    /// user closes it.
    ///
    /// # Errors
    /// [`SessionError::Unmount`], of the kind `ResourceBusy` if the mount is in use and `detach` is not set.
    pub fn unmount(&self, detach: bool) -> Result<(), SessionError> {
        let done = match &self.keeper {
            Some(keeper) => keeper.lock().unmount(detach),
            None => release(&self.path, detach),
        };
        done.map_err(|source| SessionError::Unmount { path: self.path.clone(), source })
    }
}

/// Major and minor number of what is mounted on a path. It is the kernel that answers: nobody else does yet.
fn device_of(path: &Path) -> io::Result<(u32, u32)> {
    let root = statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::empty())?;
    Ok((root.stx_dev_major, root.stx_dev_minor))
}

/// An error that repeats what fusermount3 said, without the end of its line.
fn on_one_line(error: io::Error) -> io::Error {
    let said = error.to_string();
    if said.ends_with('\n') { io::Error::new(error.kind(), said.trim_end()) } else { error }
}

fn config(name: &str, admitted: Admitted) -> Config {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(list_name(name)),
        // Spelled out, because fuser leaves its own option for this away where it mounts without fusermount3.
        MountOption::CUSTOM("subtype=instar".into()),
        MountOption::RO,
        MountOption::NoDev,
        MountOption::NoSuid,
        MountOption::NoExec,
        // The server answers whoever asks; it is the kernel that holds users to the files' permissions.
        MountOption::DefaultPermissions,
    ];
    config.acl = match admitted {
        Admitted::Everybody => SessionACL::All,
        Admitted::Owner => SessionACL::Owner,
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
fn raise_readahead((major, minor): (u32, u32)) {
    let knob = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    if let Err(error) = fs::write(&knob, READAHEAD_KIB.to_string()) {
        debug!(knob, %error, "readahead stays at the kernel's default");
    }
}
