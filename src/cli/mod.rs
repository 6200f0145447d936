//! The command lines: arguments in, one [`Exit`] out.
//!
//! Invariant: what is offered here works. What is not built is refused by name, before any file is opened.
//! Nothing in this folder interprets an image or decides what a finding means.

use std::ffi::OsString;

use clap::Parser;

use crate::exit::Exit;

pub mod options;
pub mod size;

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
