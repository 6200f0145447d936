//! Storage that fails: a file system of one file, of which ranges can be made unreadable while it is in use.

use std::ffi::OsStr;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEntry, ReplyOpen, Request, Session,
};
use parking_lot::Mutex;
use tempfile::TempDir;

use super::tools;

const FILE: INodeNo = INodeNo(2);
/// Nothing is remembered of what may change.
const TTL: Duration = Duration::ZERO;

/// A file that can be made to fail. Ends with its owner.
#[derive(Debug)]
pub struct FailingFile {
    bad: Arc<Mutex<Range<u64>>>,
    session: Option<BackgroundSession>,
    point: TempDir,
}

impl FailingFile {
    /// A file system that holds a copy of `source`. Needs [`super::tools::fuse`] and the rights of root.
    pub fn copy_of(source: &Path) -> Self {
        let point = tempfile::tempdir().expect("a temporary folder");
        let bad = Arc::new(Mutex::new(0..0));
        let bytes = fs::read(source).expect("the test has made it");
        let session = Session::new(Storage { bytes, bad: bad.clone() }, point.path(), &Config::default());
        let session = session.and_then(Session::spawn).expect("a mount");
        Self { bad, session: Some(session), point }
    }

    /// The file.
    pub fn path(&self) -> PathBuf {
        self.point.path().join("disk.qcow2")
    }

    /// From now on, reads that touch these bytes fail, and no others.
    pub fn fail(&self, range: Range<u64>) {
        *self.bad.lock() = range;
    }
}

impl Drop for FailingFile {
    fn drop(&mut self) {
        // A server that still has the file open is just about to end.
        tools::run(Command::new("fusermount3").arg("-uz").arg(self.point.path()));
        let ended = self.session.take().expect("it ends once").join();
        assert!(std::thread::panicking() || ended.is_ok(), "{ended:?}");
    }
}

struct Storage {
    bytes: Vec<u8>,
    bad: Arc<Mutex<Range<u64>>>,
}

impl Storage {
    fn attr(&self, ino: INodeNo) -> FileAttr {
        let is_file = ino == FILE;
        let size = if is_file { self.bytes.len() as u64 } else { 0 };
        FileAttr {
            ino,
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if is_file { FileType::RegularFile } else { FileType::Directory },
            perm: if is_file { 0o600 } else { 0o700 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Storage {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == "disk.qcow2" {
            reply.entry(&TTL, &self.attr(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attr(ino));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
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
        let end = offset.saturating_add(u64::from(size)).min(self.bytes.len() as u64);
        let bad = self.bad.lock().clone();
        if offset < bad.end && bad.start < end {
            return reply.error(Errno::EIO);
        }
        let range = instar_abi::to_usize(offset.min(end))..instar_abi::to_usize(end);
        reply.data(&self.bytes[range]);
    }
}
