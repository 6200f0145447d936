//! Which system calls a server has left, and who needs each: the data that [`super::filter`] makes filters of. The
//! other programs have these and those in [`super::tools`].
//!
//! Everything that opens, creates, executes, connects, mounts, traces or signals is missing. The exceptions are the
//! rows for process cages: a cage that is a process is started anew by starting a process. Its program is the
//! payload, in memory and sealed; other files cannot be executed, as Landlock has closed them by then.

use crate::sandbox::cage::CageKind;

/// With which arguments a call is allowed. Looked at are the low 32 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// With any.
    Always,
    /// Where the argument, masked, has a value.
    Bits {
        /// Which argument.
        index: u8,
        /// Its bits that count.
        mask: u64,
        /// What they are.
        value: u64,
    },
    /// Where the argument is one of these values.
    OneOf {
        /// Which argument.
        index: u8,
        /// The values.
        values: &'static [u64],
    },
}

/// A system call that is left.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// Its name.
    pub name: &'static str,
    /// Its number.
    pub number: i64,
    /// With which arguments.
    pub when: When,
    /// Also left to the thread of a cage, while it serves it.
    pub in_cage_threads: bool,
    /// Only where the cages are of this kind.
    pub only_for: Option<CageKind>,
    /// Only where requests come through rings.
    pub only_with_rings: bool,
    /// What makes it.
    pub caller: &'static str,
}

impl Call {
    /// Whether a server whose cages are of this kind, with rings or without, needs the call.
    pub(super) fn is_for(&self, cages: CageKind, rings: bool) -> bool {
        self.only_for.is_none_or(|kind| kind == cages) && (rings || !self.only_with_rings)
    }

    /// Not left to the threads of cages.
    pub(super) const fn but_cages(self) -> Self {
        Self { in_cage_threads: false, ..self }
    }

    const fn rings(self) -> Self {
        Self { only_with_rings: true, ..self }
    }

    const fn kvm(self) -> Self {
        Self { only_for: Some(CageKind::Kvm), ..self }
    }

    const fn process(self) -> Self {
        Self { only_for: Some(CageKind::Process), ..self }
    }
}

const NOT_EXECUTABLE: When = When::Bits { index: 2, mask: bits(libc::PROT_EXEC), value: 0 };
const THREADS_ONLY: When =
    When::Bits { index: 0, mask: bits(libc::CLONE_THREAD), value: bits(libc::CLONE_THREAD) };
/// Of an open descriptor, not of a path.
const fn of_descriptor(index: u8) -> When {
    When::Bits { index, mask: bits(libc::AT_EMPTY_PATH), value: bits(libc::AT_EMPTY_PATH) }
}

/// Making a virtual machine, running it, and telling how it ended. The numbers are the kernel's, which no crate of
/// ours has as constants; a wrong one keeps a dead cage from being started anew, which a test does.
const KVM_REQUESTS: When = When::OneOf {
    index: 1,
    values: &[
        0xae01,      // KVM_CREATE_VM
        0xae03,      // KVM_CHECK_EXTENSION
        0xae04,      // KVM_GET_VCPU_MMAP_SIZE
        0xc008_ae05, // KVM_GET_SUPPORTED_CPUID
        0xae41,      // KVM_CREATE_VCPU
        0x4020_ae46, // KVM_SET_USER_MEMORY_REGION
        0xae80,      // KVM_RUN
        0x8090_ae81, // KVM_GET_REGS
        0x4090_ae82, // KVM_SET_REGS
        0x8138_ae83, // KVM_GET_SREGS
        0x4138_ae84, // KVM_SET_SREGS
        0x41a0_ae8d, // KVM_SET_FPU
        0x4008_ae90, // KVM_SET_CPUID2
        0x8040_ae9f, // KVM_GET_VCPU_EVENTS
    ],
};

pub(super) const fn bits(flag: i32) -> u64 {
    flag.cast_unsigned() as u64
}

pub(super) const fn call(number: i64, name: &'static str, when: When, caller: &'static str) -> Call {
    Call { name, number, when, in_cage_threads: true, only_for: None, only_with_rings: false, caller }
}

use When::Always;

/// All of them. A call that has two rows is allowed where one of them allows it.
pub const CALLS: &[Call] = &[
    call(libc::SYS_read, "read", Always, "requests of the kernel, pipes"),
    call(libc::SYS_write, "write", Always, "pipes, logs"),
    call(libc::SYS_writev, "writev", Always, "answers to the kernel").but_cages(),
    call(libc::SYS_readv, "readv", Always, "replies of fuser to what came through a ring")
        .but_cages()
        .rings(),
    call(
        libc::SYS_io_uring_enter,
        "io_uring_enter",
        Always,
        "requests and answers through rings, which take commands to the FUSE device and nothing else",
    )
    .but_cages()
    .rings(),
    call(libc::SYS_pread64, "pread64", Always, "the images' bytes"),
    call(libc::SYS_preadv, "preadv", Always, "the images' bytes"),
    call(libc::SYS_preadv2, "preadv2", Always, "the images' bytes"),
    call(libc::SYS_fadvise64, "fadvise64", Always, "readahead of the images' metadata"),
    call(libc::SYS_lseek, "lseek", Always, "holes of the images"),
    call(libc::SYS_fstat, "fstat", Always, "lengths of the images"),
    call(libc::SYS_newfstatat, "newfstatat", of_descriptor(3), "fstat of newer C libraries"),
    call(libc::SYS_statx, "statx", of_descriptor(2), "fstat of the standard library"),
    call(libc::SYS_fcntl, "fcntl", FCNTL, "checks of descriptors, the image's lock at the end"),
    call(libc::SYS_close, "close", Always, "a cage that ends, the end of the mount"),
    call(libc::SYS_poll, "poll", Always, "the end of the mount, a process cage's doorbell"),
    call(libc::SYS_ppoll, "ppoll", Always, "as poll"),
    call(libc::SYS_mmap, "mmap", NOT_EXECUTABLE, "memory, stacks, a cage's memory"),
    call(libc::SYS_mprotect, "mprotect", NOT_EXECUTABLE, "guard pages, the allocator"),
    call(libc::SYS_munmap, "munmap", Always, "memory"),
    call(libc::SYS_mremap, "mremap", Always, "the allocator"),
    call(libc::SYS_madvise, "madvise", Always, "the allocator, a cage's memory"),
    call(libc::SYS_brk, "brk", Always, "the allocator"),
    call(libc::SYS_futex, "futex", Always, "locks, the end of threads"),
    call(libc::SYS_sched_yield, "sched_yield", Always, "locks"),
    call(libc::SYS_sched_getaffinity, "sched_getaffinity", Always, "the allocator, new threads"),
    call(libc::SYS_clock_gettime, "clock_gettime", Always, "deadlines, where the vDSO has no clock"),
    call(libc::SYS_clock_nanosleep, "clock_nanosleep", Always, "waiting"),
    call(libc::SYS_restart_syscall, "restart_syscall", Always, "the kernel, after a stop"),
    call(libc::SYS_getrandom, "getrandom", Always, "seeds of hash tables"),
    call(libc::SYS_gettid, "gettid", Always, "alarms, logs"),
    call(libc::SYS_getpid, "getpid", Always, "as which process a signal is raised"),
    call(libc::SYS_rt_sigprocmask, "rt_sigprocmask", Always, "new threads, raised signals"),
    call(libc::SYS_rt_sigreturn, "rt_sigreturn", Always, "the end of a signal's handler"),
    call(libc::SYS_sigaltstack, "sigaltstack", Always, "begin and end of threads"),
    call(libc::SYS_exit, "exit", Always, "the end of a thread"),
    call(libc::SYS_exit_group, "exit_group", Always, "the end"),
    call(libc::SYS_tgkill, "tgkill", Always, "abort, and a second signal that ends the server on the spot"),
    call(libc::SYS_rt_sigaction, "rt_sigaction", Always, "the same"),
    call(
        libc::SYS_sendto,
        "sendto",
        Always,
        "a signal's handler to the thread that waits for it, logs to the journal",
    ),
    call(libc::SYS_recvfrom, "recvfrom", Always, "the thread that waits for signals").but_cages(),
    call(libc::SYS_clone, "clone", THREADS_ONLY, "the thread of a cage that is started anew").but_cages(),
    call(libc::SYS_set_robust_list, "set_robust_list", Always, "new threads").but_cages(),
    call(libc::SYS_rseq, "rseq", Always, "new threads").but_cages(),
    call(libc::SYS_prctl, "prctl", PRCTL_THREAD, "the name of a new thread").but_cages(),
    call(libc::SYS_seccomp, "seccomp", FILTERS_ONLY, "a cage's thread narrows itself").but_cages(),
    call(libc::SYS_ioctl, "ioctl", KVM_REQUESTS, "the virtual machine of a cage").kvm(),
    call(libc::SYS_timer_create, "timer_create", Always, "the alarm of a cage that is started anew")
        .but_cages()
        .kvm(),
    call(libc::SYS_timer_settime, "timer_settime", Always, "the deadline of a request to a cage").kvm(),
    call(libc::SYS_timer_delete, "timer_delete", Always, "the alarm of a cage that ends").kvm(),
    call(libc::SYS_memfd_create, "memfd_create", Always, "the memory and the program of a process cage")
        .but_cages()
        .process(),
    call(libc::SYS_ftruncate, "ftruncate", Always, "the same").but_cages().process(),
    call(libc::SYS_pipe2, "pipe2", Always, "its doorbell").but_cages().process(),
    call(libc::SYS_ioctl, "ioctl", PIPES, "the same").but_cages().process(),
    call(
        libc::SYS_socketpair,
        "socketpair",
        Always,
        "the standard library learns through it whether a program was started",
    )
    .but_cages()
    .process(),
    call(libc::SYS_clone, "clone", Always, "the process itself").but_cages().process(),
    call(libc::SYS_dup2, "dup2", Always, "the process, before its program").but_cages().process(),
    call(libc::SYS_dup3, "dup3", Always, "the same").but_cages().process(),
    call(libc::SYS_setpgid, "setpgid", Always, "the same").but_cages().process(),
    call(libc::SYS_getppid, "getppid", Always, "the same").but_cages().process(),
    call(libc::SYS_setrlimit, "setrlimit", Always, "the same").but_cages().process(),
    call(libc::SYS_prlimit64, "prlimit64", Always, "the same").but_cages().process(),
    call(libc::SYS_prctl, "prctl", PRCTL_INMATE, "the same").but_cages().process(),
    call(libc::SYS_close_range, "close_range", Always, "the same").but_cages().process(),
    call(libc::SYS_execve, "execve", Always, "its program: the payload, as no other can be opened")
        .but_cages()
        .process(),
    call(libc::SYS_kill, "kill", Always, "its end").process(),
    call(libc::SYS_wait4, "wait4", Always, "its end").process(),
    call(libc::SYS_waitid, "waitid", Always, "its end").process(),
    call(libc::SYS_pidfd_send_signal, "pidfd_send_signal", Always, "its end").process(),
];

const FCNTL: When = When::OneOf {
    index: 1,
    values: &[
        bits(libc::F_GETFD),
        bits(libc::F_SETFD),
        bits(libc::F_GETFL),
        bits(libc::F_SETFL),
        bits(libc::F_ADD_SEALS),
        bits(libc::F_OFD_SETLK),
    ],
};
const PRCTL_THREAD: When =
    When::OneOf { index: 0, values: &[bits(libc::PR_SET_NAME), bits(libc::PR_SET_NO_NEW_PRIVS)] };
/// What a process takes from itself before it is an inmate.
const PRCTL_INMATE: When = When::OneOf {
    index: 0,
    values: &[bits(libc::PR_SET_PDEATHSIG), bits(libc::PR_SET_DUMPABLE), bits(libc::PR_SET_TSC)],
};
/// `SECCOMP_SET_MODE_FILTER`: more filters only narrow.
const FILTERS_ONLY: When = When::OneOf { index: 0, values: &[1] };
/// `FIONBIO`.
const PIPES: When = When::OneOf { index: 1, values: &[0x5421] };
