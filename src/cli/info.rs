//! `instar info`.

use super::inspect::Inspector;
use super::options::{InfoArgs, OutputFormat};
use super::{confine, say};
use crate::error::Error;
use crate::exit::Exit;
use crate::image::{ImageHandle, Mode};
use crate::report::{Verdict, Watch, image_json, write_image};

/// Runs it. What is wrong with the image is told but does not change the exit code: that is for `check`.
///
/// # Errors
/// Whatever kept the image from being looked at.
pub fn run(args: &InfoArgs) -> Result<Exit, Error> {
    let image = ImageHandle::open(&args.image, Mode::Read)?;
    let inspector = Inspector::new(&image, &args.cage, Watch::default())?;
    confine::to_look(args.cage.sandbox)?;
    let report = inspector.describe()?;
    match args.output {
        OutputFormat::Json => say::document(&image_json(&report))?,
        OutputFormat::Human => say::result(|out| write_image(&report, out))?,
    }
    Ok(match report.verdict() {
        Verdict::NotQcow2 => Exit::NotChecked,
        _ => Exit::Consistent,
    })
}
