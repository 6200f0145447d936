//! The process cage, for hosts without KVM: the payload runs as a process of its own that has no memory but the
//! inmate's, no descriptors but two pipe ends, and no system calls but a byte on each and exit.
//!
//! The kernel loads the ELF file, so nothing of this process's memory is ever in the child. Limits and the death
//! signal are set before; the payload's own first steps (`guest/payload/src/process.rs`) map the shared memory,
//! unmap everything else and install the filter that stands in [`filter`], all before it sees a byte of an image.
//!
//! Invariant: the child is killed and reaped when the cage is dropped, whatever happened before.

mod filter;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;

use instar_abi::boot::{BootPage, GATE_PIPE};
use instar_abi::layout::{LARGE_PAGE, SHARED_ARENA, SHARED_BOOT, SHARED_CALL};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use zerocopy::IntoBytes;

use super::cage::{Cage, Deadline};
use super::error::SandboxError;
use super::memory::{InmateMemory, Region};
use super::payload::Payload;

/// Exit codes from here on up to [`SETUP_CODE_LAST`] name the step of the payload's set-up that failed.
const SETUP_CODE_FIRST: i32 = 65;
/// See [`SETUP_CODE_FIRST`].
const SETUP_CODE_LAST: i32 = 78;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct ProcessCage {
    child: Child,
    doorbell: File,
    answer: File,
    rung: bool,
    memory: Arc<InmateMemory>,
}

impl ProcessCage {
    /// A cage whose inmate is on its way to its first doorbell.
    ///
    /// # Errors
    /// [`SandboxError::Host`], saying which step failed.
    pub(super) fn new(payload: &Payload<'_>, mut boot: BootPage) -> Result<Self, SandboxError> {
        boot.gate = GATE_PIPE;
        let (shared, memory) = share(&boot).map_err(host("share memory with an inmate process"))?;
        let program = program(payload.file).map_err(host("keep the payload in memory"))?;
        let pipes = || pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from);
        let (doorbell, inmate_doorbell) = pipes().map_err(host("make a pipe"))?;
        let (inmate_answer, answer) = pipes().map_err(host("make a pipe"))?;
        rustix::io::ioctl_fionbio(&answer, true).map_err(io::Error::from).map_err(host("set up a pipe"))?;
        let mut command = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
        command
            .arg0("instar-inmate")
            .env_clear()
            .process_group(0)
            .stdin(Stdio::from(inmate_answer))
            .stdout(Stdio::from(inmate_doorbell))
            .stderr(Stdio::from(shared));
        let parent = std::process::id();
        // SAFETY: `confine` makes system calls only, which are all safe between fork and exec.
        unsafe { command.pre_exec(move || confine(parent)) };
        let child = command.spawn().map_err(host("start an inmate process"))?;
        let (doorbell, answer) = (File::from(doorbell), File::from(answer));
        Ok(Self { child, doorbell, answer, rung: false, memory: Arc::new(memory) })
    }

    /// Waits for a byte on the doorbell.
    fn wait(&mut self, deadline: &Deadline) -> Result<(), SandboxError> {
        loop {
            let left = Timespec::try_from(deadline.left()).map_err(io::Error::other).map_err(host("wait"))?;
            let mut polled = [PollFd::new(&self.doorbell, PollFlags::IN)];
            match poll(&mut polled, Some(&left)) {
                Ok(0) => return Err(deadline.passed()),
                Ok(_) => return self.take_ring(),
                Err(Errno::INTR) => {}
                Err(error) => return Err(host("wait for the inmate process")(error.into())),
            }
        }
    }

    /// Takes the byte that is there, or learns why there is none.
    fn take_ring(&mut self) -> Result<(), SandboxError> {
        let mut bytes = [0; 2];
        match self.doorbell.read(&mut bytes) {
            Ok(0) => Err(self.ended()),
            Ok(1) => {
                self.rung = true;
                Ok(())
            }
            Ok(_) => Err(SandboxError::Fault { what: "rang again before it was answered".into() }),
            Err(error) => Err(host("read the inmate's doorbell")(error)),
        }
    }

    /// Why the child closed its pipe.
    fn ended(&mut self) -> SandboxError {
        match self.child.kill().and_then(|()| self.child.wait()) {
            Ok(status) => explain(status, self.rung),
            Err(error) => host("learn how the inmate process ended")(error),
        }
    }
}

/// What the end of a process means.
fn explain(status: ExitStatus, rung: bool) -> SandboxError {
    let what = match (status.signal(), status.code()) {
        (Some(libc::SIGSYS), _) => "made a system call that it may not make (SIGSYS)".into(),
        (Some(libc::SIGSEGV), _) => "the inmate faulted (SIGSEGV)".into(),
        (Some(signal), _) => format!("the inmate was ended by signal {signal}"),
        (None, Some(step @ SETUP_CODE_FIRST..=SETUP_CODE_LAST)) if !rung => {
            return SandboxError::Host {
                action: format!("set up the process cage (step {step} of the inmate's own)"),
                source: io::ErrorKind::Other.into(),
            };
        }
        (None, code) => format!("the inmate ended itself with exit code {}", code.unwrap_or(-1)),
    };
    SandboxError::Fault { what }
}

impl Cage for ProcessCage {
    fn memory(&self) -> &Arc<InmateMemory> {
        &self.memory
    }

    fn enter(&mut self, deadline: &Deadline) -> Result<(), SandboxError> {
        if self.rung {
            match self.answer.write(&[0]) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(SandboxError::Fault { what: "does not take its answers".into() });
                }
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Err(self.ended()),
                Err(error) => return Err(host("answer the inmate process")(error)),
            }
        }
        self.wait(deadline)
    }
}

impl Drop for ProcessCage {
    fn drop(&mut self) {
        // A child that was reaped already makes both calls succeed without doing anything.
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            tracing::error!(%error, "cannot end the inmate process");
        }
    }
}

/// Memory for boot page, call area and arena, and our own view of it.
fn share(boot: &BootPage) -> io::Result<(OwnedFd, InmateMemory)> {
    let file = memfd_create("instar-inmate", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&file, SHARED_ARENA + boot.arena_bytes)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    let small = Region::shared(file.as_fd(), 0, LARGE_PAGE)?;
    for (offset, bytes) in [(SHARED_BOOT, boot.as_bytes()), (SHARED_CALL, &filter::image()?)] {
        small.slice(offset, bytes.len() as u64).ok_or(io::ErrorKind::InvalidInput)?.copy_from(bytes);
    }
    let arena = Region::shared(file.as_fd(), SHARED_ARENA, boot.arena_bytes)?;
    Ok((file, InmateMemory::new(small, SHARED_CALL, arena, 0)))
}

/// The ELF file as something that can be executed.
fn program(elf: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels before 6.3 do not know the flag, and need none.
    let file = match memfd_create("instar-payload", flags | MemfdFlags::EXEC) {
        Err(Errno::INVAL) => memfd_create("instar-payload", flags)?,
        other => other?,
    };
    let mut file = File::from(file);
    file.write_all(elf)?;
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file.into())
}

/// Runs in the child, between fork and exec.
fn confine(parent: u32) -> io::Result<()> {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let check = |result: libc::c_int| if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    // SAFETY: plain system calls on values; the one pointer is to a live local.
    unsafe {
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0))?;
        if u32::try_from(libc::getppid()) != Ok(parent) {
            // The parent died before the death signal was set.
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        for resource in [libc::RLIMIT_CORE, libc::RLIMIT_NPROC, libc::RLIMIT_FSIZE, libc::RLIMIT_MEMLOCK] {
            check(libc::setrlimit(resource, &none))?;
        }
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        // Marked rather than closed: the standard library reports a failed exec through one of them.
        let cloexec = libc::c_int::try_from(libc::CLOSE_RANGE_CLOEXEC).unwrap_or(0);
        check(libc::close_range(3, libc::c_uint::MAX, cloexec))?;
        check(libc::setrlimit(libc::RLIMIT_NOFILE, &none))
    }
}

fn host(action: &'static str) -> impl Fn(io::Error) -> SandboxError {
    move |source| SandboxError::Host { action: action.into(), source }
}
