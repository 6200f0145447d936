//! `mount.instar` under the real mount(8): by type, from an fstab, for users, and unmounted with umount(8).
//!
//! mount(8) looks for helpers in `/sbin` only, so each test runs in a mount namespace of its own in which the freshly
//! built helper lies over that folder. Nothing outside of the namespace changes.
#![allow(clippy::print_stderr, reason = "skips are printed")]

#[allow(dead_code, reason = "each test program uses its own part of this")]
#[path = "../../tests/support/tools.rs"]
mod tools;

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

const HELPER: &str = env!("CARGO_BIN_EXE_mount-instar");
/// Puts the helper where mount(8) looks for it. `$1` is the scene's folder.
const PREPARE: &str =
    "set -eu; cd \"$1\"; mount -t overlay -o \"lowerdir=$1/sbin:$(readlink -f /sbin)\" none /sbin\n";

/// A folder with an image `disk.qcow2` (a 64 MiB disk whose first MiB is ones), a mount point `mnt` and the helper.
struct Scene(TempDir);

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let image = folder.path().join("disk.qcow2");
        tools::make_disk(&image, ["write -q -P 1 0 1M"]);
        for name in ["sbin", "mnt"] {
            fs::create_dir(folder.path().join(name)).expect("a new folder");
        }
        symlink(HELPER, folder.path().join("sbin/mount.instar")).expect("a link to the helper");
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Runs a script in the scene's folder, in a mount namespace with the helper in `/sbin`.
    fn run(&self, script: &str) -> Output {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation=private", "sh", "-c", &format!("{PREPARE}{script}"), "sh"]);
        tools::run(command.arg(self.path()))
    }

    fn must(&self, script: &str) -> String {
        let output = self.run(script);
        assert!(output.status.success(), "{script}\n{}{}", tools::stdout(&output), tools::stderr(&output));
        tools::stdout(&output)
    }
}

/// The program that the helper starts, which is built with the workspace.
fn instar_mount() -> Result<(), String> {
    let program = PathBuf::from(HELPER).with_file_name("instar-mount");
    if program.is_file() { Ok(()) } else { Err(format!("{} is not built", program.display())) }
}

/// An overlay file system in a mount namespace.
fn overlay() -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    fs::create_dir(folder.path().join("sbin")).map_err(|error| error.to_string())?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation=private", "sh", "-c", PREPARE, "sh"]);
    let output = tools::run(command.arg(folder.path()));
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("no overlay: {}", tools::stderr(&output).trim()))
    }
}

macro_rules! need_mount8 {
    () => {
        need!(tools::root(), tools::fuse(), tools::qemu(), tools::program("unshare"));
        need!(tools::program("fusermount3"), instar_mount(), overlay());
    };
}

#[test]
fn mount_by_type_serves_the_disk_and_umount_ends_it() {
    need_mount8!();
    let said = Scene::new().must(
        "mount -t instar -o repair=leaks,nofail,x-systemd.automount,noatime disk.qcow2 mnt\n\
         findmnt -n -o FSTYPE,OPTIONS -M mnt\n\
         od -An -tu1 -N1 mnt/disk.raw\n\
         umount mnt\n\
         if findmnt -M mnt; then exit 1; fi",
    );
    assert!(said.contains("fuse.instar") && said.contains("ro,nosuid,nodev,noexec"), "{said}");
    assert!(said.trim_end().ends_with('1'), "{said}");
}

#[test]
fn fstab_line_with_a_name_in_quotes_and_a_space_is_mounted() {
    need_mount8!();
    let scene = Scene::new();
    let line = format!(
        "{0}/my\\040disk.qcow2 {0}/mnt instar ro,noauto,umask=022,uid=7,gid=9,allow_other 0 0\n",
        scene.path().display()
    );
    fs::write(scene.path().join("fstab"), line).unwrap();
    fs::rename(scene.path().join("disk.qcow2"), scene.path().join("my disk.qcow2")).unwrap();
    let said = scene.must(
        "mount --fstab \"$1/fstab\" \"$1/mnt\"\n\
         stat -c '%u %g %a' \"mnt/my disk.raw\" mnt mnt/.instar/health\n\
         umount mnt",
    );
    assert_eq!(said, "7 9 444\n7 9 555\n7 9 444\n");
}

#[test]
fn files_are_for_others_only_where_both_mount_and_mask_allow() {
    need_mount8!();
    need!(tools::program("setpriv"));
    let scene = Scene::new();
    fs::set_permissions(scene.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let try_as_nobody = |options: &str| {
        scene.must(&format!(
            "mount -t instar -o {options} disk.qcow2 mnt\n\
             if setpriv --reuid=65534 --regid=65534 --clear-groups cat mnt/disk.raw >/dev/null 2>&1\n\
             then echo read; else echo refused; fi\n\
             umount mnt"
        ))
    };
    assert_eq!(try_as_nobody("umask=0"), "refused\n");
    assert_eq!(try_as_nobody("allow_other,umask=077"), "refused\n");
    assert_eq!(try_as_nobody("allow_other,umask=077,uid=65534"), "read\n");
    assert_eq!(try_as_nobody("allow_other,umask=0"), "read\n");
}

#[test]
fn user_may_mount_and_unmount_what_the_fstab_allows() {
    need_mount8!();
    need!(tools::program("setpriv"));
    if !Path::new("/etc/fstab").exists() {
        eprintln!("skipped: there is no /etc/fstab to put another one over");
        return;
    }
    let scene = Scene::new();
    let folder = scene.path().display();
    let line = format!(
        "{folder}/disk.qcow2 {folder}/mnt instar ro,user,noauto,sandbox=process,state-dir=none 0 0\n"
    );
    fs::write(scene.path().join("fstab"), line).unwrap();
    fs::set_permissions(scene.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // The programs lie where another user may not look.
    let folder = PathBuf::from(HELPER);
    for name in ["mount-instar", "instar-mount"] {
        fs::copy(folder.with_file_name(name), scene.path().join("sbin").join(name)).unwrap();
    }
    fs::remove_file(scene.path().join("sbin/mount.instar")).unwrap();
    symlink("mount-instar", scene.path().join("sbin/mount.instar")).unwrap();
    let said = scene.must(
        "mount --bind fstab /etc/fstab\n\
         chown 65534:65534 mnt disk.qcow2\n\
         mknod -m 666 fuse c 10 229; mount --bind fuse /dev/fuse\n\
         nobody() { setpriv --reuid=65534 --regid=65534 --clear-groups \"$@\"; }\n\
         nobody mount \"$1/mnt\"\n\
         nobody od -An -tu1 -N1 mnt/disk.raw\n\
         nobody umount \"$1/mnt\"\n\
         if findmnt -M mnt; then exit 1; fi",
    );
    assert_eq!(said.trim(), "1");
}

#[test]
fn failures_have_the_exit_codes_of_mount8() {
    need_mount8!();
    let scene = Scene::new();
    fs::write(scene.path().join("junk.qcow2"), [7; 4096]).unwrap();
    for (script, code, says) in [
        ("mount -t instar -o repiar=leaks disk.qcow2 mnt", 1, "repiar"),
        ("mount -t instar -o uid=nobody.at.all disk.qcow2 mnt", 32, "uid"),
        ("mount -t instar junk.qcow2 mnt", 32, "junk.qcow2"),
        ("mount -t instar missing.qcow2 mnt", 32, "missing.qcow2"),
        ("mount -f -v -t instar missing.qcow2 mnt", 0, "instar-mount"),
        ("mount -s -t instar -o repiar=leaks disk.qcow2 mnt && umount mnt", 0, ""),
    ] {
        let output = scene.run(script);
        let said = tools::stdout(&output) + &tools::stderr(&output);
        assert_eq!(tools::code(&output), code, "{script}: {said}");
        assert!(said.contains(says), "{script}: {said}");
    }
}
