//! The two streams: results to stdout, everything said about them to stderr.

use std::io::{self, Write};

use crate::error::Error;

/// Says something to the person at the terminal. Where stderr is gone, nobody can be told.
pub fn to_person(message: &str) {
    if writeln!(io::stderr().lock(), "{message}").is_err() {
        tracing::debug!("stderr is closed");
    }
}

/// Prints a result through `print`. A reader that went away early (`| head`) wanted no more: no error.
///
/// # Errors
/// [`Error::Output`].
pub fn result(print: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), Error> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    match print(&mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Error::Output(error)),
        _ => Ok(()),
    }
}

/// Prints a document.
///
/// # Errors
/// [`Error::Output`], [`Error::Json`].
pub fn document(document: &impl serde::Serialize) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(document).map_err(Error::Json)?;
    result(|out| writeln!(out, "{text}"))
}
