//! What the host's own processes give up.
//!
//! The cage holds the program that interprets image bytes; this holds the programs round it, for the case that
//! a record from a cage or a request from the kernel finds a hole in them. Rights go in steps, each when nothing later
//! needs them:
//!
//! 1. [`keep_memory_private`], first of all: no core dumps, no debugger of another process.
//! 2. [`give_up_rights`], per thread: no capabilities, no new ones, no file but those in [`places`]. A resident
//!    cage's thread does so before its cage exists, a server's main thread before the threads that answer requests.
//! 3. [`serve_only`], for all threads at once: no system calls but those in [`calls`].
//! 4. From then on a thread that keeps a cage narrows itself further, to what serving a cage takes.
//!
//! A program of the command line does [`work_only`] in place of the second and third step, before an image's first
//! byte is given to a cage; it keeps the places that it names. In every program the thread that serves a job which
//! ends gives up all of its rights before the cage is built, and all calls but those in [`serve_only_a_job`] before it
//! serves.
//!
//! Invariant: every step only takes away, none can be undone, and what is left stands in two tables. What is
//! deliberately left out: who may reach the mount, which is the kernel's and the mount options' matter.

mod calls;
mod filter;
mod places;
mod rights;
#[cfg(test)]
mod tests;
mod tools;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use thiserror::Error;

use super::cage::CageKind;
pub use places::{Place, Reach};
pub use rights::{keep_mount_capabilities, pass_nothing_on};

/// Why a right could not be given up. Nothing is served then.
#[derive(Debug, Error)]
#[error("cannot lock the program down: cannot {action}")]
pub struct LockdownError {
    action: &'static str,
    #[source]
    source: io::Error,
}

fn cannot(action: &'static str) -> impl Fn(io::Error) -> LockdownError {
    move |source| LockdownError { action, source }
}

/// True from the moment in which all threads are filtered.
static FILTERED: AtomicBool = AtomicBool::new(false);

/// What this process has in memory is for nobody else: no core dump, no reading through `/proc`, no debugger but
/// root's.
///
/// # Errors
/// [`LockdownError`].
pub fn keep_memory_private() -> Result<(), LockdownError> {
    rights::dump_nothing().map_err(cannot("turn core dumps off"))
}

/// Takes all capabilities from the calling thread and from the threads that it will start, keeps programs that it
/// may start from giving any, and closes the file system to them. What is open stays open.
///
/// # Errors
/// [`LockdownError`]. A kernel without Landlock is no error: the system call filter forbids opening files too.
pub fn give_up_rights() -> Result<(), LockdownError> {
    rights::drop_capabilities().map_err(cannot("give up capabilities"))?;
    rights::take_no_new_privileges().map_err(cannot("rule out new privileges"))?;
    places::close().map_err(cannot("close the file system"))
}

/// [`give_up_rights`] for a thread that is to serve a cage, with no file left to open. Behind a server's filter there is
/// nothing left to give up: such a thread was started by one that had none.
///
/// # Errors
/// [`LockdownError`].
pub(super) fn give_up_rights_for_cage() -> Result<(), LockdownError> {
    if FILTERED.load(Ordering::Acquire) { Ok(()) } else { keep_places(&[]) }
}

/// Leaves the calling thread and the threads that it will start these places, and as root the rights on files of others
/// that it takes to use them.
fn keep_places(places: &[Place]) -> Result<(), LockdownError> {
    rights::keep_file_capabilities(reach_of(places)).map_err(cannot("give up capabilities"))?;
    rights::take_no_new_privileges().map_err(cannot("rule out new privileges"))?;
    places::close_but_places(places).map_err(cannot("close the file system"))
}

fn reach_of(places: &[Place]) -> Reach {
    places.iter().map(|place| place.reach).max().unwrap_or(Reach::Nothing)
}

/// Leaves a program of the command line, which has no other threads yet, what working on images takes: cages of this
/// kind, these places, and what is open.
///
/// # Errors
/// [`LockdownError`]. A kernel without Landlock is no error, but keeps no file closed that is to be read, or
/// written, where any is.
pub fn work_only(cages: CageKind, places: &[Place]) -> Result<(), LockdownError> {
    keep_places(places)?;
    filter::install_for_all(filter::for_tool(cages, reach_of(places))).map_err(cannot("filter system calls"))
}

/// Leaves the calling thread what serving one job takes, and telling what comes of it.
///
/// # Errors
/// [`LockdownError`].
pub(super) fn serve_only_a_job(kind: CageKind) -> Result<(), LockdownError> {
    filter::install_for_job(kind).map_err(cannot("filter the job's system calls"))
}

/// Allows all threads only what serving takes, with cages of this kind to start anew, through rings or without.
///
/// # Errors
/// [`LockdownError`].
pub fn serve_only(cages: CageKind, rings: bool) -> Result<(), LockdownError> {
    filter::install_for_all(filter::for_server(cages, rings)).map_err(cannot("filter system calls"))?;
    FILTERED.store(true, Ordering::Release);
    Ok(())
}

/// In a thread that keeps a cage: once the process serves, only what keeping a cage takes. Cheap before and after.
#[derive(Debug, Default)]
pub(super) struct Narrowing {
    is_done: bool,
}

impl Narrowing {
    /// To be called before each request to the cage.
    ///
    /// # Errors
    /// [`LockdownError`].
    pub(super) fn when_serving(&mut self, kind: CageKind) -> Result<(), LockdownError> {
        if self.is_done || !FILTERED.load(Ordering::Acquire) {
            return Ok(());
        }
        filter::install_for_cage(kind).map_err(cannot("filter the cage thread's system calls"))?;
        self.is_done = true;
        Ok(())
    }
}
