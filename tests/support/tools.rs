//! Running programs, and knowing what the machine has.

use std::hash::{DefaultHasher, Hasher as _};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Ends a test with a printed reason where the machine lacks something: `need!(tools::kvm())`.
#[macro_export]
macro_rules! need {
    ($($what:expr),+ $(,)?) => {
        $(if let Err(reason) = $what {
            eprintln!("skipped: {reason}");
            return;
        })+
    };
}

/// The real image tools.
pub fn qemu() -> Result<(), String> {
    for tool in ["qemu-img", "qemu-io"] {
        let found = Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !found.is_ok_and(|status| status.success()) {
            return Err(format!("{tool} cannot be run (Debian package qemu-utils)"));
        }
    }
    Ok(())
}

/// A /dev/kvm that can be opened for writing.
pub fn kvm() -> Result<(), String> {
    device("/dev/kvm")
}

/// A /dev/fuse that can be opened for writing.
pub fn fuse() -> Result<(), String> {
    device("/dev/fuse")
}

/// A device that can be opened for writing.
pub fn device(path: &str) -> Result<(), String> {
    let opened = std::fs::OpenOptions::new().read(true).write(true).open(path);
    opened.map(drop).map_err(|error| format!("{path} cannot be opened: {error}"))
}

/// The rights of root.
pub fn root() -> Result<(), String> {
    // The owner of a process's own folder is its effective user.
    use std::os::unix::fs::MetadataExt as _;
    match std::fs::metadata("/proc/self") {
        Ok(own) if own.uid() == 0 => Ok(()),
        Ok(_) => Err("not run as root".to_owned()),
        Err(error) => Err(format!("/proc/self cannot be looked at: {error}")),
    }
}

/// A program that may not be installed.
pub fn program(name: &str) -> Result<(), String> {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(name).is_file()));
    if found { Ok(()) } else { Err(format!("{name} is not installed")) }
}

/// A program of the administrator's, which may not be in the search path of others.
pub fn sbin_program(name: &str) -> Result<(), String> {
    let is_there = ["/usr/sbin", "/sbin"].iter().any(|folder| Path::new(folder).join(name).is_file());
    if is_there { Ok(()) } else { program(name) }
}

/// Makes a script that can be run.
pub fn write_script(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, text).expect("a new file");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("an own file");
}

/// Runs `command` to its end without a terminal.
pub fn run(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output();
    output.unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// [`run`], and a panic with all that was printed unless it succeeded.
pub fn must(command: &mut Command) -> Output {
    let output = run(command);
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        stdout(&output),
        stderr(&output)
    );
    output
}

/// What a program printed.
pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a program said.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The exit code; a death by signal is a failure of the test.
pub fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("{}: {}", output.status, stderr(output)))
}

/// `qemu-img` with these arguments.
pub fn qemu_img<I: IntoIterator<Item = S>, S: AsRef<std::ffi::OsStr>>(arguments: I) -> Command {
    let mut command = Command::new("qemu-img");
    command.args(arguments);
    command
}

/// `qemu-io` with these commands; for a caller to say of which image and in which format.
pub fn qemu_io<'a>(format: &str, commands: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = Command::new("qemu-io");
    command.args(["-f", format]).args(commands.into_iter().flat_map(|one| ["-c", one]));
    command
}

/// Length and hash of a file's bytes, and when they were written last.
#[derive(Debug, PartialEq, Eq)]
struct Fingerprint {
    path: PathBuf,
    len: u64,
    hash: u64,
    written: Option<std::time::SystemTime>,
}

fn fingerprint(path: &Path) -> Fingerprint {
    let written = std::fs::metadata(path).and_then(|m| m.modified()).ok();
    let mut hasher = DefaultHasher::new();
    let mut len = 0;
    if let Ok(mut file) = std::fs::File::open(path) {
        let mut block = vec![0; 1 << 20];
        while let Ok(got @ 1..) = file.read(&mut block) {
            hasher.write(&block[..got]);
            len += got as u64;
        }
    }
    Fingerprint { path: path.to_owned(), len, hash: hasher.finish(), written }
}

/// Runs `action` and fails if any byte of `files`, or the time they were written last, is another one afterwards.
pub fn ensure_untouched<T>(files: &[&Path], action: impl FnOnce() -> T) -> T {
    let before: Vec<_> = files.iter().map(|path| fingerprint(path)).collect();
    let result = action();
    let after: Vec<_> = files.iter().map(|path| fingerprint(path)).collect();
    assert_eq!(before, after, "a file was written that nobody asked to write");
    result
}

/// Makes `image`, of a 64 MiB disk, and has qemu-io carry out `writes` on it.
pub fn make_disk<'a>(image: &Path, writes: impl IntoIterator<Item = &'a str>) {
    must(qemu_img(["create", "-q", "-f", "qcow2"]).arg(image).arg("64M"));
    must(qemu_io("qcow2", writes).arg(image));
}
