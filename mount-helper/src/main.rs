//! `mount.instar`: turns what mount(8) says into a call of `instar-mount`. Cargo allows no dot in a program's
//! name, so it is built as `mount-instar` and installed as `/sbin/mount.instar`.
//!
//! Invariant: it opens no image, reads no configuration and needs no privilege of its own. What it does not
//! know it refuses by name, unless mount(8) asked for sloppiness with `-s`.
//!
//! Exit codes are those that mount(8) asks of its helpers: 0 mounted, 1 wrong call, 2 the system failed
//! (`instar-mount` could not be started), 32 the mount failed.

mod options;
mod request;

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use request::Request;

const WRONG_CALL: u8 = 1;
const SYSTEM_FAILED: u8 = 2;
const MOUNT_FAILED: u8 = 32;

const USAGE: &str = "usage: mount.instar IMAGE MOUNTPOINT [-fnrsvw] [-t TYPE] [-o OPTION[,OPTION...]]";

fn main() -> ExitCode {
    match Request::parse(env::args_os().skip(1)) {
        Ok(request) => carry_out(&request),
        Err(error) => {
            say(&format!("mount.instar: {error}\n{USAGE}"));
            ExitCode::from(WRONG_CALL)
        }
    }
}

fn carry_out(request: &Request) -> ExitCode {
    let program = instar_mount();
    let arguments = request.instar_mount_arguments();
    if request.verbose {
        say(&format!("mount.instar: {}", shown(&program, &arguments)));
    }
    if request.fake {
        return ExitCode::SUCCESS;
    }
    match Command::new(&program).args(&arguments).status() {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(MOUNT_FAILED),
        Err(error) => {
            say(&format!("mount.instar: cannot start {}: {error}", program.display()));
            ExitCode::from(SYSTEM_FAILED)
        }
    }
}

/// The `instar-mount` that was installed with this helper: beside it, else in the folder for programs that
/// belongs to a helper in `/sbin`, else whatever the search path holds.
fn instar_mount() -> PathBuf {
    let name = Path::new("instar-mount");
    let own_folder = env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf));
    let beside = own_folder.map(|folder| folder.join(name));
    [beside, Some(Path::new("/usr/bin").join(name))]
        .into_iter()
        .flatten()
        .find(|candidate| candidate.is_file())
        .unwrap_or_else(|| name.to_path_buf())
}

fn shown(program: &Path, arguments: &[OsString]) -> String {
    let mut words = vec![format!("{:?}", program.as_os_str())];
    words.extend(arguments.iter().map(|argument| format!("{argument:?}")));
    words.join(" ")
}

#[expect(clippy::print_stderr, reason = "the helper's only way to speak to a person")]
fn say(message: &str) {
    eprintln!("{message}");
}
