//! Gets a thread out of the vCPU at a deadline, by a signal whose handler does nothing.
//!
//! A signal that comes between the last look at the clock and the entry into the vCPU would be lost; so the alarm
//! rings again and again until it is turned off, and a lost ring costs one [`AGAIN`], not the deadline.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;
use std::time::Duration;

/// Time between rings, once the deadline has passed.
const AGAIN: Duration = Duration::from_millis(20);
/// Offset from the first real-time signal. The low ones are often taken.
const SIGNAL_OFFSET: i32 = 9;

extern "C" fn nothing(_signal: libc::c_int) {}

fn signal() -> libc::c_int {
    libc::SIGRTMIN() + SIGNAL_OFFSET
}

/// Installs the handler, once in a process. A signal without one would end the process.
fn install_handler() -> Result<(), i32> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    *INSTALLED.get_or_init(|| {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: all zeros is a sigaction with an empty mask; the handler touches nothing, so it is safe at any
        // point of any thread; restarting keeps other system calls from noticing.
        let result = unsafe {
            let action = action.assume_init_mut();
            action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as *const () as usize;
            action.sa_flags = libc::SA_RESTART;
            libc::sigaction(signal(), action, ptr::null_mut())
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)) }
    })
}

/// An alarm for the thread that made it.
#[derive(Debug)]
pub(super) struct Alarm {
    timer: libc::timer_t,
}

impl Alarm {
    /// An alarm that is off.
    pub(super) fn new() -> io::Result<Self> {
        install_handler().map_err(io::Error::from_raw_os_error)?;
        let mut event = MaybeUninit::<libc::sigevent>::zeroed();
        let mut timer = MaybeUninit::<libc::timer_t>::uninit();
        // SAFETY: all zeros is a sigevent; both pointers are to live locals; timer is read only when the kernel
        // has filled it.
        unsafe {
            let event = event.assume_init_mut();
            event.sigev_signo = signal();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_notify_thread_id = libc::gettid();
            let mut unblocked = MaybeUninit::<libc::sigset_t>::zeroed();
            libc::sigemptyset(unblocked.as_mut_ptr());
            libc::sigaddset(unblocked.as_mut_ptr(), signal());
            if libc::pthread_sigmask(libc::SIG_UNBLOCK, unblocked.as_ptr(), ptr::null_mut()) != 0
                || libc::timer_create(libc::CLOCK_MONOTONIC, event, timer.as_mut_ptr()) != 0
            {
                return Err(io::Error::last_os_error());
            }
            Ok(Self { timer: timer.assume_init() })
        }
    }

    /// Rings after `left`, then every [`AGAIN`].
    pub(super) fn set(&mut self, left: Duration) -> io::Result<()> {
        self.settime(left.max(Duration::from_nanos(1)), AGAIN)
    }

    /// Turns the alarm off.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        self.settime(Duration::ZERO, Duration::ZERO)
    }

    fn settime(&mut self, first: Duration, again: Duration) -> io::Result<()> {
        let times = libc::itimerspec { it_interval: timespec(again), it_value: timespec(first) };
        // SAFETY: the timer lives as long as self; the kernel only reads the local.
        if unsafe { libc::timer_settime(self.timer, 0, &times, ptr::null_mut()) } == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

fn timespec(duration: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        // SAFETY: the timer is this value's own and is not used after this.
        let deleted = unsafe { libc::timer_delete(self.timer) };
        debug_assert_eq!(deleted, 0);
    }
}
