//! `instar-mount`: checks a QCOW2 image, heals it if asked to, and serves its disk as a raw file.

use instar_mount::cli;
use instar_mount::exit::Exit;

fn main() -> Exit {
    cli::run("instar-mount", cli::mount::run)
}
