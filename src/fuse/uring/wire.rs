//! The records that the kernel and a ring exchange, as in `linux/fuse.h`, and classic messages made of them.
//!
//! A classic message is what is read from and written to `/dev/fuse`: a header and its arguments in one piece. In a slot
//! of a ring the same request lies in three: header, first argument, and everything else as payload.

use std::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `FUSE_READ`.
pub(super) const READ: u32 = 15;
/// `FUSE_INIT`.
pub(super) const INIT: u32 = 26;
/// `FUSE_READDIR`.
pub(super) const READDIR: u32 = 28;
/// `FUSE_DESTROY`.
pub(super) const DESTROY: u32 = 38;
/// `FUSE_READ_LOCKOWNER`: a read that names a lock owner.
const READ_LOCKOWNER: u32 = 1 << 1;
/// `FUSE_INIT_EXT`: the second word of flags is there.
const INIT_EXT: u32 = 1 << 30;
/// Interface that an own handshake tells of: old enough for every fuser, new enough for all that is used here.
const VERSION: (u32, u32) = (7, 36);

/// Bytes of a slot's header and of each of its first two parts.
pub(super) const SLOT_HEADER_BYTES: usize = size_of::<SlotHeader>();
const PART_BYTES: usize = 128;

/// `struct fuse_uring_req_header`.
#[derive(Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct SlotHeader {
    /// The request's header, and where the reply's goes.
    in_out: [u8; PART_BYTES],
    /// The first argument.
    argument: [u8; PART_BYTES],
    entry: Entry,
}

/// `struct fuse_uring_ent_in_out`.
#[derive(Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Entry {
    flags: u64,
    commit_id: u64,
    payload_bytes: u32,
    padding: u32,
    reserved: u64,
}

/// `struct fuse_in_header`.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Request {
    /// Bytes of the classic message, this header included.
    pub len: u32,
    pub opcode: u32,
    pub unique: u64,
    pub ino: u64,
    pub uid: u32,
    pub gid: u32,
    pub pid: u32,
    pub extension_units: u16,
    pub padding: u16,
}

/// `struct fuse_out_header`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Reply {
    /// Bytes of the classic message, this header included.
    pub len: u32,
    /// 0 or a negative errno.
    pub error: i32,
    pub unique: u64,
}

/// `struct fuse_read_in`, for reads and for the listing of folders.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct ReadArgument {
    handle: u64,
    offset: u64,
    size: u32,
    read_flags: u32,
    lock_owner: u64,
    flags: u32,
    padding: u32,
}

/// `struct fuse_init_in`.
#[derive(Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct InitArgument {
    major: u32,
    minor: u32,
    readahead_bytes_max: u32,
    flags: u32,
    flags2: u32,
    unused: [u32; 11],
}

/// `struct fuse_uring_cmd_req`, which goes with each command to the kernel.
#[derive(Debug, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Command {
    pub flags: u64,
    pub commit_id: u64,
    pub queue: u16,
    pub padding: [u8; 6],
}

const _: () =
    assert!(size_of::<SlotHeader>() == 288 && size_of::<Request>() == 40 && size_of::<Command>() == 24);
const _: () = assert!(size_of::<ReadArgument>() == 40 && size_of::<InitArgument>() == 64);

/// A read, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Read {
    pub ino: u64,
    pub offset: u64,
    pub size: u32,
    /// It bypasses the page cache: only such a read names a lock owner.
    pub direct: bool,
}

impl SlotHeader {
    /// What is asked.
    pub fn request(&self) -> Request {
        Request::read_from_prefix(&self.in_out).map_or_else(|_| Request::default(), |(request, _)| request)
    }

    /// What is to be given back with the reply.
    pub fn commit_id(&self) -> u64 {
        self.entry.commit_id
    }

    /// The request, if it is a read.
    pub fn read(&self) -> Option<Read> {
        let request = self.request();
        let (argument, _) = ReadArgument::read_from_prefix(&self.argument).ok()?;
        (request.opcode == READ).then_some(Read {
            ino: request.ino,
            offset: argument.offset,
            size: argument.size,
            direct: argument.read_flags & READ_LOCKOWNER != 0,
        })
    }

    /// A listing of a folder may ask for at most so many bytes from now on.
    pub fn limit_listing(&mut self, bytes_max: u32) {
        if self.request().opcode == READDIR
            && let Ok((argument, _)) = ReadArgument::mut_from_prefix(&mut self.argument)
        {
            argument.size = argument.size.min(bytes_max);
        }
    }

    /// The parts of the classic message, of which `payload` holds the last; nothing where the lengths do not fit each
    /// other.
    pub fn classic<'a>(&'a self, payload: &'a [u8]) -> Option<[&'a [u8]; 3]> {
        let rest = payload.get(..usize::try_from(self.entry.payload_bytes).ok()?)?;
        let first = usize::try_from(self.request().len).ok()?;
        let first = first.checked_sub(size_of::<Request>())?.checked_sub(rest.len())?;
        Some([&self.in_out[..size_of::<Request>()], self.argument.get(..first)?, rest])
    }

    /// Puts the reply in: an error, or that the payload has `bytes` bytes.
    pub fn answer(&mut self, error: i32, bytes: u32) {
        let reply = Reply { len: bytes, error, unique: self.request().unique };
        self.entry.payload_bytes = bytes;
        self.in_out[..size_of::<Reply>()].copy_from_slice(reply.as_bytes());
    }
}

/// A classic message without arguments.
pub(super) fn bare_message(opcode: u32) -> Vec<u8> {
    message(opcode, &[])
}

/// The message that begins a session.
pub(super) fn init_message() -> Vec<u8> {
    let (major, minor) = VERSION;
    let argument =
        InitArgument { major, minor, readahead_bytes_max: 0, flags: INIT_EXT, flags2: 0, unused: [0; 11] };
    message(INIT, argument.as_bytes())
}

fn message(opcode: u32, argument: &[u8]) -> Vec<u8> {
    let len = u32::try_from(size_of::<Request>() + argument.len()).unwrap_or(u32::MAX);
    [Request { len, opcode, unique: 1, ..Request::default() }.as_bytes(), argument].concat()
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros as _;

    use super::*;

    fn slot(request: Request, argument: &[u8], payload_bytes: u32) -> SlotHeader {
        let mut slot = SlotHeader::new_zeroed();
        slot.in_out[..40].copy_from_slice(request.as_bytes());
        slot.argument[..argument.len()].copy_from_slice(argument);
        slot.entry.payload_bytes = payload_bytes;
        slot
    }

    #[test]
    fn classic_message_is_the_three_parts_in_order() {
        let slot = slot(Request { len: 40 + 3 + 2, opcode: 1, ..Request::default() }, b"abc", 2);
        let parts = slot.classic(b"de and what was there before").unwrap();
        assert_eq!(parts[0].len(), 40);
        assert_eq!(parts[1..], [&b"abc"[..], b"de"]);
    }

    #[test]
    fn lengths_that_do_not_fit_each_other_are_no_message() {
        let of = |len, payload_bytes| slot(Request { len, ..Request::default() }, b"", payload_bytes);
        let payload = [0; 4];
        assert!(of(40 + 4, 4).classic(&payload).is_some());
        assert!(of(40 + 4, 5).classic(&payload).is_none(), "more than the payload holds");
        assert!(of(40 + 3, 4).classic(&payload).is_none(), "more than the message holds");
        assert!(of(39, 0).classic(&payload).is_none(), "less than a header");
        assert!(of(40 + 129, 0).classic(&payload).is_none(), "a first argument that is too long");
    }

    #[test]
    fn read_past_the_page_cache_is_known_by_its_lock_owner() {
        let argument = |read_flags| ReadArgument {
            handle: 0,
            offset: 1 << 40,
            size: 4096,
            read_flags,
            lock_owner: 0,
            flags: 0,
            padding: 0,
        };
        let request = Request { len: 80, opcode: READ, ino: 3, ..Request::default() };
        let read = |flags| slot(request, argument(flags).as_bytes(), 0).read().unwrap();
        assert_eq!(read(2), Read { ino: 3, offset: 1 << 40, size: 4096, direct: true });
        assert!(!read(0).direct);
        let other = Request { opcode: READDIR, ..request };
        assert_eq!(slot(other, argument(2).as_bytes(), 0).read(), None);
    }

    #[test]
    fn listing_is_limited_and_nothing_else_is() {
        let mut listing = slot(Request { opcode: READDIR, ..Request::default() }, &[0xff; 40], 0);
        listing.limit_listing(4096);
        assert_eq!(listing.argument[16..20], 4096_u32.to_le_bytes());
        let mut read = slot(Request { opcode: READ, ..Request::default() }, &[0xff; 40], 0);
        read.limit_listing(4096);
        assert_eq!(read.argument[..40], [0xff; 40]);
    }
}
