//! The least that a FUSE server can do: one raw file, served from its own bytes by two threads.
//!
//! It is what the mount is held against: whatever it is slower by is the price of the format. It runs as a process of
//! its own, this program with [`OPTION`] as its first argument, so that its processor time can be told.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, INodeNo, InitFlags, KernelConfig,
    LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyOpen, Request, Session,
};

/// Makes a server of the bench; the file and the mount point follow.
pub const OPTION: &str = "--passthrough";
/// How long the kernel may keep attributes.
const FOREVER: Duration = Duration::from_secs(3600);
/// Reads in the background that the kernel may have under way.
const BACKGROUND_REQUESTS: u16 = 64;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The file.
#[derive(Debug)]
struct Passthrough {
    file: File,
    size: u64,
}

impl Filesystem for Passthrough {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        config.add_capabilities(InitFlags::FUSE_ASYNC_DIO).map_err(|_| io::ErrorKind::Unsupported)?;
        config.set_max_background(BACKGROUND_REQUESTS).map_err(|_| io::ErrorKind::Unsupported)?;
        Ok(())
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let never = SystemTime::UNIX_EPOCH;
        let attr = FileAttr {
            ino,
            size: self.size,
            blocks: self.size.div_ceil(512),
            atime: never,
            mtime: never,
            ctime: never,
            crtime: never,
            kind: FileType::RegularFile,
            perm: 0o400,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        };
        reply.attr(&FOREVER, &attr);
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let left = self.size.saturating_sub(offset).min(u64::from(size));
        let size = usize::try_from(left).expect("32 bits fit");
        BUFFER.with_borrow_mut(|buffer| {
            buffer.resize(buffer.len().max(size), 0);
            match self.file.read_exact_at(&mut buffer[..size], offset) {
                Ok(()) => reply.data(&buffer[..size]),
                Err(_) => reply.error(Errno::EIO),
            }
        });
    }
}

/// Serves `file` at `point` until it is unmounted.
pub fn serve(file: &Path, point: &Path) -> io::Result<()> {
    let file = File::open(file)?;
    let size = file.metadata()?.len();
    let mut config = Config::default();
    config.mount_options = vec![MountOption::RO];
    config.n_threads = Some(2);
    config.clone_fd = true;
    Session::new(Passthrough { file, size }, point, &config)?.run()
}
