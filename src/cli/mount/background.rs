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
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Signal, set_parent_process_death_signal};

use crate::exit::Exit;
use crate::sandbox::lockdown;

/// The hidden option that makes a server of a program.
pub const SERVER_OPTION: &str = "--background-server";
/// What the server writes to its stdout, which is a pipe to the caller, when the mount answers.
const READY: u8 = b'+';

/// In the caller: a server that was started.
#[derive(Debug)]
pub struct Server(Child);

impl Server {
    /// Runs this program once more, with the same arguments and, if it was given none, the mount point `point`.
    ///
    /// # Errors
    /// Where the program cannot be started.
    pub fn start(point: Option<&Path>) -> io::Result<Self> {
        lockdown::pass_nothing_on()?;
        let mut arguments = std::env::args_os();
        let name = arguments.next().unwrap_or_else(|| "instar-mount".into());
        // The path would name another file if the program was replaced in the meantime.
        let mut server = Command::new("/proc/self/exe");
        server.arg0(name).arg(SERVER_OPTION).args(arguments).args(point).stdout(Stdio::piped());
        Ok(Self(server.spawn()?))
    }

    /// Waits until the mount answers, or the server ends: with that exit.
    ///
    /// # Errors
    /// Those of the system.
    pub fn answered(&mut self) -> io::Result<Option<Exit>> {
        let mut said = Vec::new();
        if let Some(pipe) = self.0.stdout.take() {
            pipe.take(1).read_to_end(&mut said)?;
        }
        if said == [READY] { Ok(None) } else { self.0.wait().map(|status| Some(exit_of(status))) }
    }

    /// True once the server is no more.
    ///
    /// # Errors
    /// Those of the system.
    pub fn has_ended(&mut self) -> io::Result<bool> {
        Ok(self.0.try_wait()?.is_some())
    }
}

/// Leaves a server in the background: runs it, and waits until it answers or ends.
///
/// # Errors
/// Where the program cannot be started.
pub fn call_server() -> io::Result<Exit> {
    Ok(Server::start(None)?.answered()?.unwrap_or(Exit::Consistent))
}

/// The server's exit, as the caller's.
fn exit_of(status: ExitStatus) -> Exit {
    let code = status.code();
    Exit::ALL.into_iter().find(|exit| code == Some(i32::from(exit.code()))).unwrap_or(Exit::Failed)
}

/// In the server: takes the program's own name, which lists of processes would else show as that of the link it
/// was started through. A server that is `bound` is asked for its end when its caller ends.
///
/// # Errors
/// Those of the system.
pub fn become_server(bound: bool) -> io::Result<()> {
    rustix::thread::set_name(c"instar-mount")?;
    // A caller that is gone by now is found missing when it is to be answered.
    set_parent_process_death_signal(bound.then_some(Signal::TERM))?;
    Ok(())
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
