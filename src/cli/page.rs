//! `instar check --html`.

use std::path::Path;

use super::inspect::Inspector;
use super::output_file::{OutputFile, is_same};
use super::picture;
use crate::error::Error;
use crate::image::{HandleError, ImageHandle};
use crate::report::{CheckReport, HTML_MAGIC, check_html};

/// Begins the page, before the image is looked at.
///
/// # Errors
/// [`Error::OutputFile`].
pub fn begin(path: &Path, image: &ImageHandle) -> Result<OutputFile, Error> {
    if is_same(path, image.file().identity()) {
        return OutputFile::new(path).map_err(Error::OutputFile);
    }
    OutputFile::replacing(path, HTML_MAGIC).map_err(Error::OutputFile)
}

/// Writes it, with pictures of the image as it is now.
///
/// # Errors
/// [`Error::Sandbox`], [`Error::OutputFile`].
pub fn write(
    mut page: OutputFile,
    image: &ImageHandle,
    inspector: Inspector,
    report: &CheckReport,
) -> Result<(), Error> {
    // A repair may have made the file longer.
    let inspector = inspector.of(image.now().map_err(HandleError::Open)?);
    let picture = picture::take(&inspector, report)?;
    page.write_all(check_html(report, picture.as_ref()).as_bytes()).map_err(Error::OutputFile)?;
    page.finish().map_err(Error::OutputFile)
}
