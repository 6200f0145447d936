//! Logs, off unless asked for.

use tracing_subscriber::EnvFilter;

use super::options::LogArgs;
use crate::error::Error;

/// Sends to stderr what matches the filter.
///
/// # Errors
/// [`Error::LogFilter`].
pub fn start(options: &LogArgs) -> Result<(), Error> {
    let Some(filter) = &options.log else { return Ok(()) };
    let parsed =
        EnvFilter::try_new(filter).map_err(|source| Error::LogFilter { filter: filter.clone(), source })?;
    let logs = tracing_subscriber::fmt().with_env_filter(parsed).with_writer(std::io::stderr);
    if logs.try_init().is_err() {
        tracing::warn!("logging had been started before; --log={filter} has no effect");
    }
    Ok(())
}
