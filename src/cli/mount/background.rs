//! Going to the background once the mount answers.
//!
//! The program that the user started (the caller) starts itself once more (the server) before it has made any
//! thread or cage, lends it its terminal, and waits. The server works as in the foreground; when the mount answers it
//! says so, lets go of the terminal, and the caller ends with success. If the server ends without having said so, the
//! caller ends with its exit code. Starting anew rather than forking keeps both processes free of state that a fork
//! would have copied half.
//!
//! ```text
//! caller: start server --- wait for the byte ------------> exit 0
//! server:  check, heal, mount ---> READY on stdout, stdio to /dev/null, own session ---> serve
//! ```

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};

use crate::exit::Exit;

/// The hidden option that makes a server of a program.
pub const SERVER_OPTION: &str = "--background-server";
/// What the server writes to its stdout, which is a pipe to the caller, when the mount answers.
const READY: u8 = b'+';

/// Runs this program once more as the server, and waits until it answers or ends.
///
/// # Errors
/// Where the program cannot be started.
pub fn call_server() -> io::Result<Exit> {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| "instar-mount".into());
    // The path would name another file if the program was replaced in the meantime.
    let mut server = Command::new("/proc/self/exe")
        .arg0(name)
        .arg(SERVER_OPTION)
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = Vec::new();
    if let Some(pipe) = server.stdout.take() {
        pipe.take(1).read_to_end(&mut said)?;
    }
    if said == [READY] { Ok(Exit::Consistent) } else { server.wait().map(exit_of) }
}

/// The server's exit, as the caller's.
fn exit_of(status: ExitStatus) -> Exit {
    let code = status.code();
    Exit::ALL.into_iter().find(|exit| code == Some(i32::from(exit.code()))).unwrap_or(Exit::Failed)
}

/// In the server: takes the program's own name, which lists of processes would else show as that of the link it
/// was started through.
///
/// # Errors
/// Those of the system.
pub fn take_name() -> io::Result<()> {
    Ok(rustix::thread::set_name(c"instar-mount")?)
}

/// In the server: tells the caller that the mount answers, and lets go of the terminal.
///
/// # Errors
/// Where the caller is gone, or the terminal cannot be let go of. Nobody waits for this mount then.
pub fn answer() -> io::Result<()> {
    // The system's null device takes the place of all three, so that nothing opened later is taken for one of them.
    let null = File::options().read(true).write(true).open("/dev/null")?;
    std::env::set_current_dir("/")?;
    rustix::process::setsid()?;
    let mut out = io::stdout();
    out.write_all(&[READY])?;
    out.flush()?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}
