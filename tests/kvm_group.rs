//! An ordinary user who reaches /dev/kvm through a group of his has the KVM cage, for checks, mounts and repairs of
//! his own images; one who is not in that group is told, and has the process cage.
//!
//! The device is a node of the test's own, made anew for a group that nothing else belongs to and put over /dev/kvm in
//! a mount namespace that only the programs under test see.
#![allow(clippy::print_stderr, reason = "skips are printed")]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use support::damage::recipe;
use support::image::TestImage;
use support::program::document;
use support::tools::{self, code, must, stderr, stdout};
use tempfile::TempDir;

/// Any user but root.
const USER: u32 = 65534;
/// The user's own group.
const GROUP: &str = "65534";
/// A group that owns nothing on any machine that we know of.
const OF_KVM: &str = "64055";

/// Run as root with the group, then as anybody: puts a node for the same device over /dev/kvm.
const WITH_OWN_NODE: &str = r#"
    set -e
    mount -t tmpfs -o mode=755 none "$1"
    mknod "$1/kvm" c $(stat -L -c '0x%t 0x%T' /dev/kvm)
    chown "0:$2" "$1/kvm"
    chmod 660 "$1/kvm"
    mount --bind "$1/kvm" /dev/kvm
    shift 2
    exec "$@"
"#;

/// An ordinary user with an image of his own, and programs that he may run.
struct User {
    folder: TempDir,
    image: TestImage,
}

impl User {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for program in [env!("CARGO_BIN_EXE_instar"), env!("CARGO_BIN_EXE_instar-mount")] {
            let copy = folder.path().join(Path::new(program).file_name().expect("a file's name"));
            fs::copy(program, &copy).expect("a program that everybody may run");
            fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).expect("its permissions");
        }
        for name in ["node", "mnt", "images"] {
            fs::create_dir(folder.path().join(name)).expect("a folder");
        }
        let image = recipe("refcount-leak-run").make(&folder.path().join("images"));
        for path in [folder.path(), &folder.path().join("mnt"), &folder.path().join("images"), &image.path] {
            chown(path, Some(USER), Some(USER)).expect("root may give files away");
        }
        fs::set_permissions(&image.path, fs::Permissions::from_mode(0o600)).expect("its permissions");
        Self { folder, image }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs a program of the user's folder, or of the system, as this user, besides in `groups`.
    fn run(&self, groups: &str, program: &str, arguments: &[&str]) -> Output {
        let own = self.path(program);
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation=private", "sh", "-c", WITH_OWN_NODE, "sh"]);
        command.arg(self.path("node")).arg(OF_KVM);
        command.args(["setpriv", "--reuid=65534", "--regid=65534", "--inh-caps=-all"]);
        command.arg(format!("--groups={groups}")).arg("--");
        command.arg(if own.exists() { own } else { program.into() }).args(arguments);
        command.env_remove("INSTAR_STATE_DIR").env_remove("XDG_STATE_HOME");
        tools::run(command.env("HOME", self.folder.path()).current_dir(self.folder.path()))
    }

    fn check(&self, groups: &str, options: &[&str]) -> Output {
        let image = self.image.path.to_str().expect("a plain name");
        self.run(groups, "instar", &[&["check"], options, &[image]].concat())
    }

    /// Mounts, prints what the mount says of itself and the sum of the disk, unmounts: all where the node is.
    fn mount(&self, groups: &str) -> String {
        let script = "./instar-mount --quiet \"$1\" mnt && cat mnt/.instar/report.json && \
            sha256sum <mnt/image.raw && fusermount3 -u mnt";
        let script = script.replace("image.raw", &format!("{}.raw", self.stem()));
        let image = self.image.path.to_str().expect("a plain name");
        let output = self.run(groups, "sh", &["-c", &script, "sh", image]);
        assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
        stdout(&output)
    }

    fn stem(&self) -> String {
        self.image.path.file_stem().expect("a name").to_string_lossy().into_owned()
    }

    /// The sum of the disk, as the image tools read it.
    fn sum(&self) -> String {
        let raw = self.path("raw");
        must(tools::qemu_img(["convert", "-O", "raw"]).arg(&self.image.path).arg(&raw));
        let told = stdout(&must(Command::new("sha256sum").arg(raw)));
        told.split(' ').next().expect("a sum").to_owned()
    }
}

macro_rules! need_a_node {
    () => {
        need!(
            tools::root(),
            tools::kvm(),
            tools::qemu(),
            tools::program("unshare"),
            tools::program("setpriv")
        );
    };
}

#[test]
fn user_in_the_group_of_kvm_checks_in_a_kvm_cage() {
    need_a_node!();
    let user = User::new();
    for choice in ["auto", "kvm"] {
        let output = user.check(OF_KVM, &["--output=json", "--sandbox", choice]);
        let report = document(&output);
        assert_eq!(code(&output), 3, "{}", stderr(&output));
        assert_eq!(report["sandbox"]["cage"], "kvm", "{report}");
        assert_eq!(stderr(&output), "");
    }
}

#[test]
fn user_outside_the_group_of_kvm_is_told_and_has_a_process_cage() {
    need_a_node!();
    let user = User::new();
    let output = user.check(GROUP, &["--output=json"]);
    let report = document(&output);
    assert_eq!(code(&output), 3, "{}", stderr(&output));
    assert_eq!(report["sandbox"]["cage"], "process", "{report}");
    assert!(
        stderr(&output).contains("no KVM cage (cannot open /dev/kvm: Permission denied"),
        "{}",
        stderr(&output)
    );

    let output = user.check(GROUP, &["--sandbox=kvm"]);
    assert_eq!(code(&output), 1, "{}", stdout(&output));
    for told in
        ["cannot open /dev/kvm: Permission denied", "join the group that owns /dev/kvm", "--sandbox=process"]
    {
        assert!(stderr(&output).contains(told), "{}", stderr(&output));
    }
}

#[test]
fn user_mounts_and_reads_with_and_without_the_group_of_kvm() {
    need_a_node!();
    need!(tools::fuse(), tools::program("fusermount3"));
    let user = User::new();
    let sum = user.sum();
    for (groups, cage) in [(OF_KVM, "kvm"), (GROUP, "process")] {
        let told = user.mount(groups);
        assert!(told.contains(&format!("\"cage\": \"{cage}\"")), "{told}");
        assert!(told.contains(&sum), "{told}");
    }
}

#[test]
fn user_repairs_an_image_of_his_own_and_takes_it_back() {
    need_a_node!();
    for groups in [OF_KVM, GROUP] {
        let user = User::new();
        let before = fs::read(&user.image.path).expect("the image");
        let output = user.check(groups, &["--quiet", "--repair=all"]);
        assert_eq!(code(&output), 0, "{}{}", stdout(&output), stderr(&output));
        assert_eq!(user.image.qemu_check(), 0);
        let undo = PathBuf::from(format!("{}.instar-undo", user.image.path.display()));
        let meta = undo.metadata().expect("an undo file");
        assert_eq!((meta.uid(), meta.mode() & 0o777), (USER, 0o600));
        let state = user.path(".local/state/instar").metadata().expect("a memory of repairs");
        assert_eq!((state.uid(), state.mode() & 0o777), (USER, 0o700));
        assert_eq!(fs::read_dir(user.path("images")).expect("a folder").count(), 2, "image and undo file");
        let image = user.image.path.to_str().expect("a plain name");
        let output = user.run(groups, "instar", &["undo", image]);
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(fs::read(&user.image.path).expect("the image") == before, "not every byte is back");
    }
}
