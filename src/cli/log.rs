//! Logs, off unless asked for.
//!
//! What an operator may want to act on carries an `event`, an id of [`crate::event`] that stays what it is.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::options::{LogArgs, LogTo};
use crate::error::Error;

/// What goes to the journal unless something else is asked for.
const JOURNAL_FILTER: &str = "info";
/// Field names in the journal begin with this.
const JOURNAL_PREFIX: &str = "INSTAR";

/// Sends what matches the filter to where it was asked for.
///
/// # Errors
/// [`Error::LogFilter`], [`Error::Journal`].
pub fn start(options: &LogArgs) -> Result<(), Error> {
    let filter = match (&options.log, options.log_to) {
        (Some(filter), _) => filter.as_str(),
        (None, LogTo::Journal) => JOURNAL_FILTER,
        (None, LogTo::Stderr) => return Ok(()),
    };
    let parsed = EnvFilter::try_new(filter)
        .map_err(|source| Error::LogFilter { filter: filter.to_owned(), source })?;
    let logs = tracing_subscriber::registry().with(parsed);
    let started = match options.log_to {
        LogTo::Stderr => logs.with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr)).try_init(),
        LogTo::Journal => {
            let journal = tracing_journald::layer().map_err(Error::Journal)?;
            logs.with(journal.with_field_prefix(Some(JOURNAL_PREFIX.to_owned()))).try_init()
        }
    };
    if started.is_err() {
        tracing::warn!("logging had been started before; --log={filter} has no effect");
    }
    Ok(())
}
