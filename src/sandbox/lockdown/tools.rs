//! Which system calls a program of the command line has left besides those of a server, and who needs each.
//!
//! What may be opened is the business of [`super::places`]: a filter cannot see paths. Executing, connecting,
//! mounting, tracing and signalling are as closed as to a server, and by the same exceptions.

use super::calls::{Call, When, bits, call};
use super::places::Reach;

use Reach::{Nothing, Reading, Writing};
use When::Always;

/// All of them, each with the least reach that takes it.
pub(super) const CALLS: &[(Reach, Call)] = &[
    (Nothing, call(libc::SYS_ioctl, "ioctl", TERMINAL, "whether there is a terminal, and how wide it is")),
    (Nothing, call(libc::SYS_capget, "capget", Always, "a job's thread gives up the rest").but_cages()),
    (Nothing, call(libc::SYS_capset, "capset", Always, "the same").but_cages()),
    (Nothing, call(libc::SYS_prctl, "prctl", AMBIENT, "the same").but_cages()),
    (Nothing, of_landlock(libc::SYS_landlock_create_ruleset, "landlock_create_ruleset")),
    (Nothing, of_landlock(libc::SYS_landlock_add_rule, "landlock_add_rule")),
    (Nothing, of_landlock(libc::SYS_landlock_restrict_self, "landlock_restrict_self")),
    (Reading, read(libc::SYS_open, "open", only_to_read(1))),
    (Reading, read(libc::SYS_openat, "openat", only_to_read(2))),
    (
        Reading,
        call(libc::SYS_openat2, "openat2", Always, "members of a chain, beneath their folder").but_cages(),
    ),
    (Reading, read(libc::SYS_stat, "stat", Always)),
    (Reading, read(libc::SYS_lstat, "lstat", Always)),
    (Reading, read(libc::SYS_newfstatat, "newfstatat", Always)),
    (Reading, read(libc::SYS_statx, "statx", Always)),
    (Reading, read(libc::SYS_access, "access", Always)),
    (Reading, read(libc::SYS_faccessat, "faccessat", Always)),
    (Reading, read(libc::SYS_faccessat2, "faccessat2", Always)),
    (Reading, read(libc::SYS_readlink, "readlink", Always)),
    (Reading, read(libc::SYS_readlinkat, "readlinkat", Always)),
    (Reading, read(libc::SYS_getcwd, "getcwd", Always)),
    (Reading, read(libc::SYS_getuid, "getuid", Always)),
    (Reading, read(libc::SYS_geteuid, "geteuid", Always)),
    (Reading, call(libc::SYS_fcntl, "fcntl", LOCKS, "locks of image, claim and database").but_cages()),
    (Reading, call(libc::SYS_nanosleep, "nanosleep", Always, "waiting for the database").but_cages()),
    (Reading, call(libc::SYS_fstatfs, "fstatfs", Always, "the file system's room and units").but_cages()),
    (Writing, write(libc::SYS_open, "open")),
    (Writing, write(libc::SYS_openat, "openat")),
    (Writing, write(libc::SYS_mkdir, "mkdir")),
    (Writing, write(libc::SYS_mkdirat, "mkdirat")),
    (Writing, write(libc::SYS_unlink, "unlink")),
    (Writing, write(libc::SYS_unlinkat, "unlinkat")),
    (Writing, write(libc::SYS_rename, "rename")),
    (Writing, write(libc::SYS_renameat, "renameat")),
    (Writing, write(libc::SYS_renameat2, "renameat2")),
    (Writing, write(libc::SYS_ftruncate, "ftruncate")),
    (Writing, write(libc::SYS_fsync, "fsync")),
    (Writing, write(libc::SYS_fdatasync, "fdatasync")),
    (Writing, write(libc::SYS_fchmod, "fchmod")),
    (Writing, write(libc::SYS_fchown, "fchown")),
    (Writing, write(libc::SYS_fallocate, "fallocate")),
    (
        Writing,
        call(libc::SYS_pwrite64, "pwrite64", Always, "the image, its records, a dump that a job tells of"),
    ),
];

const fn read(number: i64, name: &'static str, when: When) -> Call {
    call(number, name, when, "the image once more, the memory of repairs").but_cages()
}

const fn write(number: i64, name: &'static str) -> Call {
    call(number, name, Always, "the image, its records, the memory of repairs, what was asked for")
        .but_cages()
}

const fn of_landlock(number: i64, name: &'static str) -> Call {
    call(number, name, Always, "a job's thread closes the file system to itself").but_cages()
}

const fn only_to_read(index: u8) -> When {
    When::Bits { index, mask: bits(libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC), value: 0 }
}

/// `TCGETS`, `TIOCGWINSZ`, `TCGETS2`.
const TERMINAL: When = When::OneOf { index: 1, values: &[0x5401, 0x5413, 0x802c_542a] };
const AMBIENT: When = When::OneOf { index: 0, values: &[bits(libc::PR_CAP_AMBIENT)] };
const LOCKS: When = When::OneOf {
    index: 1,
    values: &[
        bits(libc::F_DUPFD_CLOEXEC),
        bits(libc::F_GETLK),
        bits(libc::F_SETLK),
        bits(libc::F_SETLKW),
        bits(libc::F_OFD_GETLK),
        bits(libc::F_OFD_SETLK),
        bits(libc::F_OFD_SETLKW),
    ],
};
