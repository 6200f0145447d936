//! What is forbidden is tried, each under the filter or the rules that forbid it, in a thread of its own.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use instar_abi::boot::JobKind;
use seccompiler::apply_filter;

use super::{FILTERED, Place, Reach, calls, filter, give_up_rights, keep_places, places, tools};
use crate::image::ImageFile;
use crate::sandbox::cage::CageKind;
use crate::sandbox::error::SandboxError;
use crate::sandbox::job::Job;
use crate::sandbox::{Resident, SandboxChoice};

const KINDS: [CageKind; 2] = [CageKind::Kvm, CageKind::Process];

/// Filters and rules hold for the thread that asks for them, so a test can give up what its program still needs.
fn alone<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(work).join().unwrap())
}

/// The server's filter, for the calling thread only. Cages of other tests take the process for a server from then on,
/// and narrow themselves, which is how they are to work anyway.
fn serve(kind: CageKind) {
    for program in filter::for_server(kind, true).unwrap() {
        apply_filter(&program).unwrap();
    }
    FILTERED.store(true, Ordering::Release);
}

/// What the kernel says to a system call.
fn tried(number: libc::c_long, args: [usize; 5]) -> io::Error {
    // SAFETY: each call here fails before it does anything; where one did not, it would be with null pointers, with
    // descriptors that do not exist, or with a process that does not.
    let result = unsafe { libc::syscall(number, args[0], args[1], args[2], args[3], args[4]) };
    assert_eq!(result, -1, "system call {number} was not refused");
    io::Error::last_os_error()
}

/// Calls that would be a way out, with arguments under which a kernel that allows them says something else than
/// "not permitted", or does no harm.
const FORBIDDEN: [(&str, libc::c_long); 31] = [
    ("open", libc::SYS_open),
    ("openat", libc::SYS_openat),
    ("openat2", libc::SYS_openat2),
    ("creat", libc::SYS_creat),
    ("open_by_handle_at", libc::SYS_open_by_handle_at),
    ("stat", libc::SYS_stat),
    ("unlink", libc::SYS_unlink),
    ("rename", libc::SYS_rename),
    ("pwrite64", libc::SYS_pwrite64),
    ("pwritev", libc::SYS_pwritev),
    ("fallocate", libc::SYS_fallocate),
    ("socket", libc::SYS_socket),
    ("connect", libc::SYS_connect),
    ("bind", libc::SYS_bind),
    ("ptrace", libc::SYS_ptrace),
    ("process_vm_readv", libc::SYS_process_vm_readv),
    ("process_vm_writev", libc::SYS_process_vm_writev),
    ("pidfd_open", libc::SYS_pidfd_open),
    ("pidfd_getfd", libc::SYS_pidfd_getfd),
    ("fork", libc::SYS_fork),
    ("vfork", libc::SYS_vfork),
    ("execveat", libc::SYS_execveat),
    ("mount", libc::SYS_mount),
    ("umount2", libc::SYS_umount2),
    ("unshare", libc::SYS_unshare),
    ("setns", libc::SYS_setns),
    ("bpf", libc::SYS_bpf),
    ("io_uring_setup", libc::SYS_io_uring_setup),
    ("io_uring_register", libc::SYS_io_uring_register),
    ("userfaultfd", libc::SYS_userfaultfd),
    ("keyctl", libc::SYS_keyctl),
];

#[test]
fn forbidden_calls_are_refused_under_every_filter() {
    let all_bits = [usize::MAX; 5];
    for kind in KINDS {
        for filters in [serve as fn(CageKind), |kind| filter::install_for_cage(kind).unwrap()] {
            alone(|| {
                filters(kind);
                for (name, number) in FORBIDDEN {
                    let error = tried(number, all_bits);
                    assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{name}: {error}");
                }
            });
        }
    }
}

/// The filter of a program of the command line, for the calling thread only.
fn work(kind: CageKind, reach: Reach) {
    for program in filter::for_tool(kind, reach).unwrap() {
        apply_filter(&program).unwrap();
    }
}

#[test]
fn tools_and_their_jobs_open_what_they_need_and_leave_by_no_other_way() {
    let all_bits = [usize::MAX; 5];
    let of_reading = ["openat2", "stat"];
    let of_writing = ["open", "openat", "openat2", "stat", "unlink", "rename", "pwrite64", "fallocate"];
    let of_jobs = ["pwrite64"];
    type Filter = fn(CageKind);
    let filters: [(Filter, &[&str]); 4] = [
        (|kind| work(kind, Reach::Nothing), &[]),
        (|kind| work(kind, Reach::Reading), &of_reading),
        (|kind| work(kind, Reach::Writing), &of_writing),
        (|kind| filter::install_for_job(kind).unwrap(), &of_jobs),
    ];
    for kind in KINDS {
        for (filter, left) in filters {
            alone(|| {
                filter(kind);
                for (name, number) in FORBIDDEN {
                    let is_refused = tried(number, all_bits).raw_os_error() == Some(libc::EPERM);
                    assert_eq!(is_refused, !left.contains(&name), "{name}, where {left:?} is left");
                }
            });
        }
    }
}

#[test]
fn tool_that_reads_opens_nothing_to_write() {
    let flags = |flags: i32| [usize::MAX, 0, usize::try_from(flags).unwrap(), 0, 0];
    alone(|| {
        work(CageKind::Kvm, Reach::Reading);
        for writing in
            [libc::O_WRONLY, libc::O_RDWR, libc::O_CREAT, libc::O_TRUNC, libc::O_TMPFILE | libc::O_RDWR]
        {
            assert_eq!(
                tried(libc::SYS_openat, flags(writing)).raw_os_error(),
                Some(libc::EPERM),
                "{writing:#o}"
            );
        }
        let reading = tried(libc::SYS_openat, flags(libc::O_CLOEXEC));
        assert_ne!(reading.raw_os_error(), Some(libc::EPERM));
    });
}

#[test]
fn places_of_a_tool_are_open_as_far_as_they_were_named_and_all_else_is_closed() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for name in ["read", "write", "closed"] {
        fs::create_dir(at(name)).unwrap();
        fs::write(at(name).join("file"), b"text").unwrap();
    }
    fs::write(at("image"), b"text").unwrap();
    alone(|| {
        let places = [
            Place::to_read(at("read")),
            Place::to_write(at("write")),
            Place::to_read(at("image")),
            Place::to_write(at("missing")),
        ];
        keep_places(&places).unwrap();
        if !alone(|| places::are_closed().unwrap()) {
            println!("skipped: this kernel has no Landlock");
            return;
        }
        let refused = |error: io::Error| error.kind() == io::ErrorKind::PermissionDenied;
        assert!(fs::read(at("read").join("file")).is_ok() && fs::read(at("image")).is_ok());
        assert!(refused(fs::write(at("read").join("file"), b"").unwrap_err()));
        assert!(refused(fs::write(at("image"), b"").unwrap_err()));
        assert!(refused(fs::remove_file(at("read").join("file")).unwrap_err()));
        fs::write(at("write").join("new"), b"text").unwrap();
        fs::rename(at("write").join("new"), at("write").join("file")).unwrap();
        fs::remove_file(at("write").join("file")).unwrap();
        assert!(refused(fs::read(at("closed").join("file")).unwrap_err()));
        assert!(refused(fs::write(at("missing"), b"").unwrap_err()));
        assert!(refused(std::os::unix::net::UnixListener::bind(at("write").join("socket")).unwrap_err()));
        assert!(refused(std::os::unix::fs::symlink("/", at("write").join("link")).unwrap_err()));
    });
}

#[test]
fn programs_and_processes_are_started_only_where_a_cage_is_one() {
    alone(|| {
        serve(CageKind::Kvm);
        for (name, number) in
            [("execve", libc::SYS_execve), ("kill", libc::SYS_kill), ("clone", libc::SYS_clone)]
        {
            let error = tried(number, [0; 5]);
            assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{name}: {error}");
        }
        assert_eq!(tried(libc::SYS_clone3, [0; 5]).raw_os_error(), Some(libc::ENOSYS));
    });
}

#[test]
fn memory_never_becomes_executable() {
    let executable =
        [0, 4096, usize::try_from(libc::PROT_READ | libc::PROT_EXEC).unwrap(), usize::MAX, usize::MAX];
    for kind in KINDS {
        alone(|| {
            serve(kind);
            for number in [libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_pkey_mprotect] {
                assert_eq!(tried(number, executable).raw_os_error(), Some(libc::EPERM), "call {number}");
            }
        });
    }
}

#[test]
fn devices_take_only_what_a_cage_asks_of_them() {
    alone(|| {
        serve(CageKind::Kvm);
        // TIOCSTI puts bytes into a terminal's input; the second is no request of ours to KVM (KVM_CREATE_DEVICE).
        for request in [0x5412, 0xc00c_aee0] {
            let error = tried(libc::SYS_ioctl, [usize::MAX, request, 0, 0, 0]);
            assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{request:#x}: {error}");
        }
    });
}

#[test]
fn files_are_closed_to_a_thread_without_rights_and_those_it_starts() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, b"text").unwrap();
    let open = File::open(&file).unwrap();
    alone(|| {
        give_up_rights().unwrap();
        if !alone(|| places::are_closed().unwrap()) {
            println!("skipped: this kernel has no Landlock");
            return;
        }
        alone(|| {
            let refused = io::ErrorKind::PermissionDenied;
            assert_eq!(File::open(&file).unwrap_err().kind(), refused);
            assert_eq!(fs::write(folder.path().join("new"), b"").unwrap_err().kind(), refused);
            assert_eq!(fs::remove_file(&file).unwrap_err().kind(), refused);
            assert_eq!(fs::read_dir("/").unwrap_err().kind(), refused);
            assert_eq!(std::process::Command::new("/bin/true").spawn().unwrap_err().kind(), refused);
            assert!(open.metadata().is_ok_and(|open| open.len() == 4) && open.as_raw_fd() > 2);
            assert!(File::options().read(true).write(true).open("/dev/null").is_ok());
        });
    });
}

/// A server that has locked itself down starts the cage anew when it dies: whatever that takes is allowed, in both
/// kinds. The file is no image, which only an inmate that runs can find out.
#[test]
fn cage_is_started_anew_by_a_thread_that_is_locked_down() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    fs::write(&path, [7; 4096]).unwrap();
    let job = Job::new(JobKind::Map, Arc::new(ImageFile::open_read_only(&path).unwrap()));
    for (kind, choice) in [(CageKind::Kvm, SandboxChoice::Kvm), (CageKind::Process, SandboxChoice::Process)] {
        if kind == CageKind::Kvm
            && let Err(error) = crate::sandbox::kvm::device()
        {
            println!("skipped for the KVM cage: {error}");
            continue;
        }
        alone(|| {
            give_up_rights().unwrap();
            serve(kind);
            let error =
                Resident::start(&job, choice).map(|_| "a file that is no image is served").unwrap_err();
            assert!(matches!(error, SandboxError::NotMappable { .. }), "{error:?}");
        });
    }
}

#[test]
fn every_call_is_described_and_told_of_in_the_threat_model() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/threat-model.md");
    let document = fs::read_to_string(path).unwrap();
    for call in calls::CALLS.iter().chain(tools::CALLS.iter().map(|(_, call)| call)) {
        assert!(document.contains(&format!("`{}`", call.name)), "{} is not in {path}", call.name);
        assert!(!call.caller.is_empty());
    }
}
