//! `instar`: checks QCOW2 images and heals them.

use instar_mount::cli;
use instar_mount::cli::options::{Command, Instar};
use instar_mount::exit::Exit;

fn main() -> Exit {
    cli::run("instar", |options: &Instar| {
        cli::log::start(&options.log)?;
        match &options.command {
            Command::Check(args) => cli::check::run(args),
            Command::Resume(args) => cli::undo::resume(args),
            Command::Undo(args) => cli::undo::undo(args),
            Command::Info(args) => cli::info::run(args),
            Command::Dump(args) => cli::dump::run(args),
            Command::Map(args) => cli::map::run(args),
            Command::History(args) => cli::history::run(args),
            Command::Status(args) => cli::status::run(args),
        }
    })
}
