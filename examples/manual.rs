//! Writes the man pages and shell completions into a folder: `cargo run --example manual -- FOLDER`.
//!
//! They are made from the command lines themselves whenever the package is built, so that they cannot say anything else
//! than `--help` does. The page of mount.instar, which has no such command line, is written by hand.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use clap::CommandFactory as _;
use clap_complete::Shell;
use instar_mount::cli::options::{Instar, MountOptions};

const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Fish, Shell::Zsh];

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(std::env::args_os().nth(1).ok_or("usage: manual FOLDER")?);
    write(&folder)
}

/// Writes all of them, into the folders `man` and `completions` of `folder`.
///
/// # Errors
/// Those of writing files.
pub fn write(folder: &Path) -> Result<(), Box<dyn Error>> {
    let (pages, completions) = (folder.join("man"), folder.join("completions"));
    for folder in [&pages, &completions] {
        fs::create_dir_all(folder)?;
    }
    for mut command in [Instar::command(), MountOptions::command()] {
        clap_mangen::generate_to(command.clone(), &pages)?;
        for shell in SHELLS {
            let name = command.get_name().to_owned();
            clap_complete::generate_to(shell, &mut command, name, &completions)?;
        }
    }
    Ok(())
}
