//! `instar history`: what is remembered of past repairs of an image.

use super::options::{HistoryArgs, OutputFormat};
use super::{memory, say};
use crate::error::Error;
use crate::exit::Exit;
use crate::history::{Attempt, Folder, HistoryError, ImageKey};
use crate::image::ImageFile;
use crate::report::{history_json, write_history};

/// Runs it. The image is not looked into; its file only tells which one it is.
///
/// # Errors
/// [`Error::NoImage`], [`Error::History`], and those of printing.
pub fn run(args: &HistoryArgs) -> Result<Exit, Error> {
    let file = ImageFile::open_read_only(&args.image).map_err(Error::NoImage)?;
    let key = ImageKey::of(&file);
    let attempts = match memory::folder(&args.state) {
        Some(folder) => read(&folder, &key).map_err(Error::History)?,
        None => Vec::new(),
    };
    match args.output {
        OutputFormat::Json => say::document(&history_json(&args.image, &attempts))?,
        OutputFormat::Human => say::result(|out| write_history(&args.image, &attempts, out))?,
    }
    Ok(Exit::Consistent)
}

fn read(folder: &std::path::Path, key: &ImageKey) -> Result<Vec<Attempt>, HistoryError> {
    let Some(folder) = Folder::find(folder)? else { return Ok(Vec::new()) };
    folder.existing_store()?.map_or(Ok(Vec::new()), |store| store.attempts(key))
}
