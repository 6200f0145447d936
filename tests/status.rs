//! `instar status`: what is mounted, and how it fares, whoever serves it.
#![allow(clippy::print_stderr, reason = "skips are printed")]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::damage::recipe;
use support::image::{self, Flavour, TestImage};
use support::mount::Mount;
use support::program::{document_of, instar};
use support::tools;
use tempfile::TempDir;

macro_rules! need_mounts {
    () => {
        need!(tools::fuse(), tools::qemu(), tools::program("fusermount3"));
    };
}

/// What the status says of the mount on `point`. The mount itself is not touched: it may give no answer.
fn status_of(point: &Path) -> Value {
    let output = tools::must(&mut instar(["status", "--output=json"]));
    let document = document_of(&output, "status");
    let mounts = document["mounts"].as_array().expect("a list of mounts").clone();
    let is_it = |mount: &Value| mount["mountpoint"] == point.to_str().expect("a plain name");
    mounts.into_iter().find(is_it).unwrap_or(Value::Null)
}

fn healthy_image(folder: &TempDir) -> TestImage {
    image::make(folder.path(), "healthy", Flavour::Plain, 65_536)
}

#[test]
fn healthy_mount_is_listed_with_its_image_and_gone_after_it() {
    need_mounts!();
    let images = tempfile::tempdir().expect("a folder");
    let image = healthy_image(&images);
    let mount = Mount::new(&image.path, ["-q"]);
    let status = status_of(mount.point());
    assert_eq!(status["state"], "serving", "{status:#}");
    let path = image.path.canonicalize().expect("the image is there");
    assert_eq!(status["health"]["image"], path.to_str().expect("a plain name"));
    assert_eq!(status["health"]["verdict"], "consistent");
    assert_eq!(status["health"]["healthy"], true);
    let point = mount.point().to_owned();
    let said = tools::stdout(&tools::must(&mut instar(["status"])));
    assert!(
        said.contains(&format!(
            "{}: serving\n  image: {}\n  check: consistent\n",
            point.display(),
            path.display()
        )),
        "{said}"
    );
    drop(mount);
    assert_eq!(status_of(&point), Value::Null);
}

#[test]
fn damage_that_was_read_is_told_in_status_and_metrics() {
    need_mounts!();
    let folder = tempfile::tempdir().expect("a folder");
    let image = recipe("l2-entry-past-eof").make(folder.path());
    let mount = Mount::new(&image.path, ["-q"]);
    drop(fs::read(mount.raw()).expect_err("the disk is damaged"));
    let status = status_of(mount.point());
    assert_eq!(
        (&status["health"]["verdict"], &status["health"]["healthy"]),
        (&"corruptions".into(), &false.into())
    );
    assert!(status["health"]["damaged-reads"].as_u64() > Some(0), "{status:#}");
    let file = folder.path().join("instar.prom");
    let output = tools::must(instar(["status", "--metrics"]).arg(&file));
    assert_eq!(tools::stdout(&output), "");
    let text = fs::read_to_string(&file).expect("the metrics");
    let of = |metric: &str| {
        let begin = format!("{metric}{{mountpoint=\"{}\"", mount.point().display());
        let line = text.lines().find(|line| line.starts_with(&begin)).unwrap_or_else(|| panic!("{text}"));
        line.rsplit(' ').next().expect("a value").parse::<u64>().expect("a number")
    };
    assert_eq!(
        (of("instar_mount_up"), of("instar_mount_healthy"), of("instar_mount_corruptions")),
        (1, 0, 1)
    );
    assert!(of("instar_mount_damaged_reads_total") > 0);
}

#[test]
fn disk_on_a_file_is_listed_with_what_its_attributes_tell() {
    need_mounts!();
    let images = tempfile::tempdir().expect("a folder");
    let image = healthy_image(&images);
    let folder = tempfile::tempdir().expect("a folder");
    let point = folder.path().join("disk.img");
    fs::write(&point, b"").expect("a file");
    tools::must(Command::new(env!("CARGO_BIN_EXE_instar-mount")).arg("-q").arg(&image.path).arg(&point));
    let status = status_of(&point);
    tools::must(Command::new("fusermount3").arg("-u").arg(&point));
    assert_eq!((&status["state"], &status["health"]["verdict"]), (&"serving".into(), &"consistent".into()));
    assert_eq!(status["health"]["healthy"], Value::Null);
}

/// A stopped server stands for any that gives no answer, be it sick or of bad will.
#[test]
fn mount_that_gives_no_answer_is_told_of_in_bounded_time() {
    need_mounts!();
    let images = tempfile::tempdir().expect("a folder");
    let image = healthy_image(&images);
    let folder = tempfile::tempdir().expect("a folder");
    let mut server = Command::new(env!("CARGO_BIN_EXE_instar-mount"))
        .arg("-fq")
        .arg(&image.path)
        .arg(folder.path())
        .spawn()
        .expect("the program starts");
    let began = Instant::now();
    while status_of(folder.path())["state"] != "serving" {
        assert!(began.elapsed() < Duration::from_secs(20), "no mount");
        std::thread::sleep(Duration::from_millis(50));
    }
    let pid = Pid::from_child(&server);
    kill_process(pid, Signal::STOP).expect("the server is there");
    let asked = Instant::now();
    let status = status_of(folder.path());
    let took = asked.elapsed();
    kill_process(pid, Signal::CONT).expect("the server is there");
    kill_process(pid, Signal::TERM).expect("the server is there");
    assert!(server.wait().expect("the server ends").success());
    assert_eq!(status["state"], "silent", "{status:#}");
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[test]
fn metrics_that_cannot_be_written_fail_and_say_where() {
    let output = tools::run(&mut instar(["status", "--metrics", "/proc/no/instar.prom"]));
    assert_eq!(tools::code(&output), 1);
    assert!(tools::stderr(&output).contains("/proc/no/instar.prom"), "{}", tools::stderr(&output));
}

#[test]
fn logs_of_a_mount_carry_event_ids() {
    need_mounts!();
    let images = tempfile::tempdir().expect("a folder");
    let image = healthy_image(&images);
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(env!("CARGO_BIN_EXE_instar-mount"));
    command.args(["-q", "--log=info", "--exec", "true"]).arg(&image.path).env("TMPDIR", folder.path());
    let said = tools::stderr(&tools::must(&mut command));
    assert!(said.contains("event=\"mounted\"") && said.contains("verdict=\"consistent\""), "{said}");
}

/// The journal's socket is one of the test's own, over the system's place for it in a mount namespace.
#[test]
fn events_of_a_background_mount_reach_the_journal() {
    need_mounts!();
    need!(tools::root(), tools::program("unshare"));
    let images = tempfile::tempdir().expect("a folder");
    let image = healthy_image(&images);
    let folder = tempfile::tempdir().expect("a folder");
    let run = folder.path().join("run/systemd/journal");
    fs::create_dir_all(&run).expect("a folder");
    fs::create_dir(folder.path().join("mnt")).expect("a folder");
    let socket = std::os::unix::net::UnixDatagram::bind(run.join("socket")).expect("a socket");
    socket.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    let script = "set -e; mount --bind \"$1/run\" /run; \"$2\" -q --log-to=journal \"$3\" \"$1/mnt\"; umount \"$1/mnt\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation=private", "sh", "-c", script, "sh"]).arg(folder.path());
    tools::must(command.arg(env!("CARGO_BIN_EXE_instar-mount")).arg(&image.path));
    let mut seen = Vec::new();
    for wanted in ["mounted", "unmounted"] {
        // A name, the length of the value in eight bytes, the value.
        let field = [b"INSTAR_EVENT\n", &(wanted.len() as u64).to_le_bytes()[..], wanted.as_bytes()].concat();
        while !seen.windows(field.len()).any(|part| part == field) {
            let mut entry = vec![0; 1 << 16];
            let len = socket.recv(&mut entry).unwrap_or_else(|error| panic!("{wanted}: {error}"));
            seen.extend_from_slice(&entry[..len]);
        }
    }
}
