//! `instar-mount`: checks a QCOW2 image, heals it if asked to, and serves its disk as a raw file.

use instar_mount::exit::Exit;
use instar_mount::{cli, fuse};

fn main() -> Exit {
    match fuse::keeper_of(std::env::args_os()) {
        Some(point) => fuse::keep(&point),
        None => cli::run("instar-mount", cli::mount::run),
    }
}
