//! What can be asked of the commands that look at an image and change nothing in it. Help texts stand here and nowhere
//! else.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::options::{CageArgs, OutputFormat};

const MAP_EXAMPLES: &str = "\
The image is checked first, and the exit codes are those of `instar check`.

Examples:
  instar map disk.qcow2                       draw it
  instar map --output=json disk.qcow2         the same for programs
  instar map --output=ddrescue disk.qcow2     which ranges of the disk cannot be read";

const DUMP_EXAMPLES: &str = "\
`instar check` and `qemu-img check` find the same in the copy as in the image. What cannot be told from guest data is
left out, which is said. What --deep finds is not kept: compressed clusters are guest data. The keys of an encrypted
image and the bits of bitmaps are not copied either, so that qemu-img cannot open the copy of an encrypted image.

Exit codes: 0 the copy is there, 1 it is not, 63 the image is no QCOW2 image.

Examples:
  instar dump disk.qcow2 disk.dump                 everything but guest data
  instar dump --mask-names disk.qcow2 disk.dump    and no names either
  tar -Scaf disk.dump.tar.zst disk.dump            small enough to send";

/// `instar info`.
#[derive(Debug, Args)]
pub struct InfoArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "the type says it")]
    pub cage: CageArgs,
    /// How to print the result.
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: OutputFormat,
    /// The image.
    #[arg(value_name = "IMAGE")]
    pub image: PathBuf,
}

/// `instar map`.
#[derive(Debug, Args)]
#[command(after_help = MAP_EXAMPLES)]
pub struct MapArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "the type says it")]
    pub cage: CageArgs,
    /// How to print the map.
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: MapFormat,
    /// Columns to draw in, 40 to 200. [default: those of the terminal, else 80]
    #[arg(long, value_name = "COLUMNS", value_parser = clap::value_parser!(u16).range(40..=200))]
    pub width: Option<u16>,
    /// When to draw in colour; `auto` does on a terminal, unless NO_COLOR is set.
    #[arg(long, value_enum, default_value_t, value_name = "WHEN")]
    pub color: ColourWhen,
    /// The image.
    #[arg(value_name = "IMAGE")]
    pub image: PathBuf,
}

/// How a map is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum MapFormat {
    /// For people: characters in rows.
    #[default]
    Human,
    /// For programs: sums in buckets.
    Json,
    /// The damaged ranges of the disk as a mapfile of ddrescue.
    Ddrescue,
}

/// When colour is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum ColourWhen {
    /// On a terminal.
    #[default]
    Auto,
    /// In any case.
    Always,
    /// Not at all.
    Never,
}

/// `instar dump`.
#[derive(Debug, Args)]
#[command(after_help = DUMP_EXAMPLES)]
pub struct DumpArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "the type says it")]
    pub cage: CageArgs,
    /// Put something as long in place of every name: of snapshots, bitmaps, backing and data file, and what unknown
    /// header extensions hold.
    #[arg(long)]
    pub mask_names: bool,
    /// The image.
    #[arg(value_name = "IMAGE")]
    pub image: PathBuf,
    /// The copy, which must not be there yet. It is as long as the image, and sparse.
    #[arg(value_name = "OUT")]
    pub out: PathBuf,
}
