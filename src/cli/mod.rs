//! The command lines: arguments in, one [`Exit`] out.
//!
//! Invariant: what is offered here works. What is not possible is refused by name.
//! Nothing in this folder interprets an image or decides what a finding means.

use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind};

use clap::Parser;

use crate::error::Error;
use crate::exit::Exit;
use crate::sandbox::lockdown;

pub mod access;
pub mod cache;
pub mod chain;
pub mod check;
pub mod confine;
pub mod decide;
pub mod discard;
pub mod dump;
mod follower;
pub mod history;
pub mod info;
pub mod inspect;
pub mod log;
pub mod look_options;
pub mod map;
pub mod memory;
pub mod mount;
pub mod options;
pub mod output_file;
pub mod page;
pub mod picture;
pub mod repair;
pub mod say;
pub mod size;
pub mod status;
pub mod transport;
pub mod undo;

/// A whole program: parses the process's arguments, does `work`, explains what went wrong. A panic, which is a
/// bug, ends with [`Exit::Failed`] after the panic's own message.
pub fn run<T: Parser>(name: &str, work: impl FnOnce(&T) -> Result<Exit, Error>) -> Exit {
    let options = match parse::<T>(std::env::args_os()) {
        Ok(options) => options,
        Err(exit) => return exit,
    };
    match catch_unwind(AssertUnwindSafe(|| {
        lockdown::keep_memory_private()?;
        work(&options)
    })) {
        Ok(Ok(exit)) => exit,
        Ok(Err(error)) => {
            say::to_person(&format!("{name}: {}", error.explain()));
            error.exit()
        }
        Err(_) => Exit::Failed,
    }
}

/// Parses `arguments`. Help and version end with [`Exit::Consistent`]; wrong usage ends with
/// [`Exit::Failed`], because the parser's own code for it would read as "corruptions".
///
/// # Errors
/// The exit that the program is to end with; what is to be said about it has been printed.
pub fn parse<T: Parser>(arguments: impl IntoIterator<Item = OsString>) -> Result<T, Exit> {
    T::try_parse_from(arguments).map_err(|error| {
        // A closed stdout or stderr cannot be reported anywhere.
        let printed = error.print();
        if error.use_stderr() || printed.is_err() { Exit::Failed } else { Exit::Consistent }
    })
}
