//! `instar status`: our mounts, their images and how they fare.

mod look;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::options::{OutputFormat, StatusArgs};
use super::output_file::{OutputFile, OutputFileError};
use super::say;
use crate::error::Error;
use crate::exit::Exit;
use crate::fuse;
use crate::report::{METRICS_MAGIC, status_json, status_metrics, write_status};

/// Who may read a metrics file: the program that collects it is another user's.
const METRICS_MODE: u32 = 0o644;

/// Runs it. What fares badly is told and does not change the exit code.
///
/// # Errors
/// [`Error::MountList`], [`Error::OutputFile`], and those of printing.
pub fn run(args: &StatusArgs) -> Result<Exit, Error> {
    let mounts = look::look_at(fuse::ours().map_err(Error::MountList)?);
    if let Some(path) = &args.metrics {
        replace(path, &status_metrics(&mounts)).map_err(Error::OutputFile)?;
        return Ok(Exit::Consistent);
    }
    match args.output {
        OutputFormat::Json => say::document(&status_json(&mounts))?,
        OutputFormat::Human => say::result(|out| write_status(&mounts, out))?,
    }
    Ok(Exit::Consistent)
}

/// Puts a metrics file in the place of the one before at once, so that who reads it never sees half of it.
fn replace(path: &Path, text: &str) -> Result<(), OutputFileError> {
    let mut file = OutputFile::replacing(path, METRICS_MAGIC.as_bytes())?;
    file.write_all(text.as_bytes())?;
    let opened = file.file().set_permissions(Permissions::from_mode(METRICS_MODE));
    opened.map_err(|source| file.failed("open for others", source))?;
    file.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_file_is_replaced_whole_and_readable_for_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("instar.prom");
        std::fs::write(&path, format!("{}# the one before", status_metrics(&[]))).unwrap();
        replace(&path, &status_metrics(&[])).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), status_metrics(&[]));
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(folder.path().read_dir().unwrap().count(), 1);
        assert!(replace(&folder.path().join("no/instar.prom"), "new").is_err());
    }

    #[test]
    fn file_that_holds_no_metrics_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.qcow2");
        std::fs::write(&path, "QFI\u{fb}").unwrap();
        assert!(replace(&path, &status_metrics(&[])).unwrap_err().to_string().contains("not replaced"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "QFI\u{fb}");
    }
}
