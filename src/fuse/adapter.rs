//! fuser's calls on a [`Tree`]. No logic: each call looks a node up and answers.
//!
//! Reads come in two kinds, and the kernel tells them apart by the lock owner, which only a read that bypasses the
//! page cache carries. Into the page cache nothing short of the whole range may go, because the kernel takes a
//! short answer for the end of the file and cuts it there; so a range that touches damage fails as a whole, and the
//! kernel then asks again for each page by itself: the neighbours of the damage are read after all. A read past the
//! page cache gets the good bytes before the damage first, as from any file.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};
use instar_abi::to_usize;

use super::errno;
use super::store::Storing;
use super::tree::{Content, ROOT, Tree};
use super::uring::PAYLOAD_BYTES;
use crate::disk::Disk;

/// How long the kernel may keep what cannot change.
const FOREVER: Duration = Duration::from_secs(24 * 3600);
/// Block size that is told to callers.
const BLOCK_BYTES: u32 = 4096;
/// Requests in the background (readahead, direct I/O in parts) that the kernel may have under way.
const BACKGROUND_REQUESTS: u16 = 64;

thread_local! {
    /// The bytes of the reply under way; kept, so that a read allocates nothing.
    static REPLY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A tree as fuser wants it.
#[derive(Debug, Clone)]
pub(super) struct Adapter {
    pub tree: Arc<Tree>,
    pub storing: Storing,
    /// Rings are asked for, and whether the kernel has agreed to them.
    pub rings: Option<Arc<AtomicBool>>,
}

impl Adapter {
    fn content(&self, ino: INodeNo) -> Result<&Content, Errno> {
        self.tree.node(ino.0).map(|node| &node.content).ok_or(Errno::ENOENT)
    }

    /// Whether a read of this range asks no cage.
    pub fn is_at_hand(&self, ino: u64, offset: u64, size: u32) -> bool {
        match self.content(INodeNo(ino)) {
            Ok(Content::Disk { disk, .. }) => disk.is_at_hand(offset, size.into()),
            _ => false,
        }
    }

    /// Reads a file for the kernel; `direct` as the module documentation says. Told is how many bytes are to be given.
    pub fn read_into(&self, ino: u64, offset: u64, direct: bool, into: &mut [u8]) -> Result<usize, Errno> {
        match self.content(INodeNo(ino))? {
            Content::Disk { disk, .. } => self.read_disk(ino, disk, offset, direct, into),
            Content::Document(document) => {
                let bytes = document.render();
                let rest = bytes.get(to_usize(offset)..).unwrap_or_default();
                let len = rest.len().min(into.len());
                into[..len].copy_from_slice(&rest[..len]);
                Ok(len)
            }
            Content::Directory => Err(Errno::EISDIR),
        }
    }

    fn read_disk(
        &self,
        ino: u64,
        disk: &Disk,
        offset: u64,
        direct: bool,
        into: &mut [u8],
    ) -> Result<usize, Errno> {
        let outcome = disk.read(offset, into);
        if let Some(cluster) = outcome.left_over.filter(|_| !direct) {
            let answered = offset..offset.saturating_add(into.len() as u64);
            self.storing.put(INodeNo(ino), cluster, answered);
        }
        match outcome.stopped {
            Some(stop) if !direct || outcome.filled == 0 => Err(errno::of_stop(&stop)),
            _ => Ok(outcome.filled),
        }
    }

    /// Asks for rings, as far as the kernel offers them.
    fn ask_for_rings(&self, config: &mut KernelConfig) {
        let Some(agreed) = &self.rings else { return };
        let is_offered = config.add_capabilities(InitFlags::FUSE_OVER_IO_URING).is_ok();
        // The kernel wants room for the largest write in each slot, though nobody can write.
        agreed.store(is_offered && config.set_max_write(PAYLOAD_BYTES).is_ok(), Ordering::Release);
    }

    fn attr(&self, ino: u64, content: &Content) -> (Duration, FileAttr) {
        let (ttl, kind, size, used) = match content {
            Content::Directory => (FOREVER, FileType::Directory, 0, 0),
            Content::Disk { disk, allocated_bytes } => {
                let size = disk.size_bytes();
                let allocated = allocated_bytes.unwrap_or_else(|| disk.data_bytes());
                (FOREVER, FileType::RegularFile, size, allocated.min(size))
            }
            Content::Document(document) => {
                let size = document.render().len() as u64;
                (Duration::ZERO, FileType::RegularFile, size, size)
            }
        };
        let is_folder = kind == FileType::Directory;
        let search = if is_folder { (self.tree.file_mode & 0o444) >> 2 } else { 0 };
        let modified = self.tree.modified;
        let attr = FileAttr {
            ino: INodeNo(ino),
            size,
            blocks: used.div_ceil(512),
            atime: modified,
            mtime: modified,
            ctime: modified,
            crtime: modified,
            kind,
            perm: self.tree.file_mode | search,
            nlink: if is_folder { 2 } else { 1 },
            uid: self.tree.uid,
            gid: self.tree.gid,
            rdev: 0,
            blksize: BLOCK_BYTES,
            flags: 0,
        };
        (ttl, attr)
    }
}

fn seek_disk(disk: &Disk, offset: i64, whence: i32) -> Result<i64, Errno> {
    let from = u64::try_from(offset).map_err(|_| Errno::ENXIO)?;
    if from >= disk.size_bytes() {
        return Err(Errno::ENXIO);
    }
    let found = match whence {
        libc::SEEK_DATA => disk.seek(from, true).map(|at| at.ok_or(Errno::ENXIO)),
        libc::SEEK_HOLE => disk.seek(from, false).map(|at| Ok(at.unwrap_or(disk.size_bytes()))),
        _ => return Err(Errno::EINVAL),
    };
    let found = found.map_err(|stop| errno::of_stop(&stop))??;
    i64::try_from(found).map_err(|_| Errno::EOVERFLOW)
}

/// Answers with a value, with its length where only that is asked for, or that it does not fit.
fn give_attribute(value: &[u8], size: u32, reply: ReplyXattr) {
    match u32::try_from(value.len()) {
        Ok(len) if size == 0 => reply.size(len),
        Ok(len) if len <= size => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
        ];
        for wanted in wanted {
            if let Err(missing) = config.add_capabilities(wanted) {
                tracing::debug!(?missing, "the kernel's FUSE does not know a capability");
            }
        }
        if let Err(nearest) = config.set_max_background(BACKGROUND_REQUESTS) {
            tracing::debug!(nearest, "the kernel's FUSE allows fewer background requests");
        }
        self.ask_for_rings(config);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.tree.child(parent.0, name) {
            Some((ino, node)) => {
                let (ttl, attr) = self.attr(ino, &node.content);
                reply.entry_with_ttls(&FOREVER, &ttl, &attr, Generation(0));
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.content(ino) {
            Ok(content) => {
                let (ttl, attr) = self.attr(ino.0, content);
                reply.attr(&ttl, &attr);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let flags = match self.content(ino) {
            // Past the page cache, which would lose a whole page.
            Ok(Content::Disk { disk, .. }) if disk.splits_pages() => {
                FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH
            }
            Ok(Content::Disk { .. }) => FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH,
            // Its length may change between two looks.
            Ok(Content::Document(_)) => FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH,
            Ok(Content::Directory) => return reply.error(Errno::EISDIR),
            Err(errno) => return reply.error(errno),
        };
        reply.opened(FileHandle(0), flags);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        REPLY.with_borrow_mut(|buffer| {
            let size = to_usize(u64::from(size));
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            let into = &mut buffer[..size];
            match self.read_into(ino.0, offset, lock_owner.is_some(), into) {
                Ok(filled) => reply.data(&into[..filled]),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let Some(node) = self.tree.node(ino.0) else { return reply.error(Errno::ENOENT) };
        if !matches!(node.content, Content::Directory) {
            return reply.error(Errno::ENOTDIR);
        }
        let dots = [(ino.0, OsStr::new(".")), (node.parent, OsStr::new(".."))];
        let dots = dots.into_iter().map(|(ino, name)| (ino, name, FileType::Directory));
        let children = self.tree.children(ino.0).map(|(ino, node)| {
            let kind = match node.content {
                Content::Directory => FileType::Directory,
                Content::Disk { .. } | Content::Document(_) => FileType::RegularFile,
            };
            (ino, node.name.as_os_str(), kind)
        });
        for (next, (ino, name, kind)) in (1..).zip(dots.chain(children)).skip(to_usize(offset)) {
            if reply.add(INodeNo(ino), next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        match self.tree.attributes_of(ino.0).iter().find(|(own, _)| own == name) {
            Some((_, value)) => give_attribute(value, size, reply),
            None => reply.error(Errno::ENODATA),
        }
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let mut names = Vec::new();
        for (name, _) in self.tree.attributes_of(ino.0) {
            names.extend_from_slice(name.as_bytes());
            names.push(0);
        }
        give_attribute(&names, size, reply);
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let blocks = self.tree.disk_bytes().div_ceil(u64::from(BLOCK_BYTES));
        reply.statfs(blocks, 0, 0, self.tree.len(), 0, BLOCK_BYTES, 255, BLOCK_BYTES);
    }

    fn lseek(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let found = match self.content(ino) {
            Ok(Content::Disk { disk, .. }) => seek_disk(disk, offset, whence),
            Ok(Content::Document(_) | Content::Directory) => Err(Errno::EINVAL),
            Err(errno) => Err(errno),
        };
        match found {
            Ok(offset) => reply.offset(offset),
            Err(errno) => reply.error(errno),
        }
    }
}

const _: () = assert!(ROOT == INodeNo::ROOT.0);
