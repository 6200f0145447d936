//! `instar status`: our mounts, their images and how they fare.

mod look;

use std::fs::Permissions;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::options::{OutputFormat, StatusArgs};
use super::say;
use crate::error::Error;
use crate::exit::Exit;
use crate::fuse;
use crate::report::{status_json, status_metrics, write_status};

/// Who may read a metrics file: the program that collects it is another user's.
const METRICS_MODE: u32 = 0o644;

/// Runs it. What fares badly is told and does not change the exit code.
///
/// # Errors
/// [`Error::MountList`], [`Error::Metrics`], and those of printing.
pub fn run(args: &StatusArgs) -> Result<Exit, Error> {
    let mounts = look::look_at(fuse::ours().map_err(Error::MountList)?);
    if let Some(path) = &args.metrics {
        replace(path, &status_metrics(&mounts))
            .map_err(|source| Error::Metrics { path: path.clone(), source })?;
        return Ok(Exit::Consistent);
    }
    match args.output {
        OutputFormat::Json => say::document(&status_json(&mounts))?,
        OutputFormat::Human => say::result(|out| write_status(&mounts, out))?,
    }
    Ok(Exit::Consistent)
}

/// Puts a file in the place of another one at once, so that who reads it never sees half of it.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut file = tempfile::Builder::new().prefix(".instar-").tempfile_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.as_file().set_permissions(Permissions::from_mode(METRICS_MODE))?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_file_is_replaced_whole_and_readable_for_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("instar.prom");
        std::fs::write(&path, "the one before, which was longer").unwrap();
        replace(&path, "new\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new\n");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(folder.path().read_dir().unwrap().count(), 1);
        assert!(replace(&folder.path().join("no/instar.prom"), "new").is_err());
    }
}
