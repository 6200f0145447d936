//! `instar map`.

use std::io::IsTerminal as _;

use super::inspect::Inspector;
use super::options::{ColourWhen, MapArgs, MapFormat};
use super::{confine, picture, say};
use crate::error::Error;
use crate::exit::Exit;
use crate::image::{ImageHandle, Mode};
use crate::report::{
    CheckReport, HumanOptions, MapStyle, Picture, Watch, map_json, mapfile, write_check, write_map,
};

/// Columns where nobody says how many there are.
const COLUMNS: usize = 80;

/// Runs it: a check, then a survey, each in a cage.
///
/// # Errors
/// Whatever kept the image from being looked at.
pub fn run(args: &MapArgs) -> Result<Exit, Error> {
    let image = ImageHandle::open(&args.image, Mode::Read)?;
    let inspector = Inspector::new(&image, &args.cage, Watch::people(false))?;
    confine::to_look(args.cage.sandbox)?;
    let report = inspector.check()?;
    match picture::take(&inspector, &report)? {
        Some(picture) => print(args, &report, &picture)?,
        None => {
            let mut text = Vec::new();
            write_check(&report, HumanOptions::default(), &mut text).map_err(Error::Output)?;
            say::to_person(String::from_utf8_lossy(&text).trim_end());
        }
    }
    Ok(report.exit(false))
}

fn print(args: &MapArgs, report: &CheckReport, picture: &Picture) -> Result<(), Error> {
    match args.output {
        MapFormat::Human => {
            let style = MapStyle { columns: columns(args), colour: is_coloured(args.color) };
            say::result(|out| write_map(report, picture, style, out))
        }
        MapFormat::Json => say::document(&map_json(report, picture)),
        MapFormat::Ddrescue => {
            let text = mapfile(picture.disk.len(), picture.seen_bytes, &picture.damaged);
            say::result(|out| out.write_all(text.as_bytes()))
        }
    }
}

/// The width that was asked for, or that of the terminal.
fn columns(args: &MapArgs) -> usize {
    let of_terminal = || rustix::termios::tcgetwinsize(std::io::stdout()).ok().map(|size| size.ws_col.into());
    args.width.map(usize::from).or_else(of_terminal).filter(|columns| *columns > 0).unwrap_or(COLUMNS)
}

/// By <https://no-color.org>, `NO_COLOR` with any content but none switches colour off.
fn is_coloured(when: ColourWhen) -> bool {
    let is_refused = || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let is_dumb = || std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    match when {
        ColourWhen::Always => true,
        ColourWhen::Never => false,
        ColourWhen::Auto => std::io::stdout().is_terminal() && !is_refused() && !is_dumb(),
    }
}
