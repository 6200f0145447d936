//! Mounts that are served through rings (FUSE over io_uring). That every mount behaves the same through them is the
//! matter of `make test-rings`, which runs the other tests of mounts while the kernel offers rings; here is what
//! only they have.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a failing helper fails its test; skips are printed"
)]

mod support;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_setaffinity};
use support::mount::Mount;
use support::rings::{self, Switched};
use support::scene::Scene;
use support::tools::{self, must};

/// Longer than any step here takes.
const PATIENCE: Duration = Duration::from_secs(20);
const CLUSTER: u64 = 65_536;
/// Memory that an idle mount may hold, in KiB.
const IDLE_KIB_MAX: u64 = 32 << 10;

macro_rules! need_rings {
    () => {
        need!(tools::fuse(), tools::qemu(), tools::program("fusermount3"), rings::with(|| ()));
    };
}

/// 64 MiB, of which the first half is data and 8 clusters behind it are packed.
fn scene() -> Scene {
    let scene = Scene::new("64M", "compat=1.1");
    scene.write(&["write -q -P 1 0 31M", "write -q -P 2 31M 1M", "write -q -c -P 3 40M 512k"]);
    scene
}

/// Mounted through rings.
fn mounted(scene: &Scene, options: &[&str]) -> Mount {
    let options = [&["--quiet", "--transport=uring"], options].concat();
    rings::with(|| Mount::new(&scene.image, options)).unwrap()
}

/// The server of a mount: the process that has its mount point, but for the keeper.
fn server(mount: &Mount) -> Pid {
    let point = mount.point().as_os_str().as_encoded_bytes();
    let has = |line: &[u8], word: &[u8]| line.windows(word.len()).any(|part| part == word);
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
    let mut serving = pids.filter(|pid| {
        let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
        has(&line, b"--background-server") && has(&line, point)
    });
    serving.next().unwrap()
}

fn field(mount: &Mount, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{}/status", server(mount).as_raw_nonzero())).unwrap();
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap().trim().to_owned()
}

fn read(path: &Path, offset: u64, len: usize, flags: i32) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0xee; len];
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let got = file.read_at(&mut bytes, offset)?;
    bytes.truncate(got);
    Ok(bytes)
}

#[test]
fn transport_is_what_was_chosen_and_told_of() {
    need_rings!();
    let scene = scene();
    for (option, transport) in [("auto", "uring"), ("uring", "uring"), ("fuse", "fuse")] {
        let option = format!("--transport={option}");
        let mount = rings::with(|| Mount::new(&scene.image, [&option])).unwrap();
        assert_eq!(mount.json("health")["transport"], transport, "{option}");
        let told = tools::stdout(&must(Command::new(env!("CARGO_BIN_EXE_instar")).arg("status")));
        let (_, of_mount) = told.split_once(&format!("{}: serving\n", mount.point().display())).unwrap();
        let lines: Vec<&str> = of_mount.lines().take(3).collect();
        assert_eq!(lines[2], format!("  transport: {transport}"), "{told}");
        assert_eq!(read(&mount.raw(), 31 << 20, 512, 0).unwrap(), [2; 512]);
    }
}

#[test]
fn kernel_without_rings_is_served_by_the_device_unless_rings_are_demanded() {
    need_rings!();
    let scene = scene();
    let off = Switched::off().unwrap();
    let mount = Mount::new(&scene.image, ["--transport=auto"]);
    assert_eq!(mount.json("health")["transport"], "fuse");
    drop(mount);
    let refused = Mount::try_new(&scene.image, ["--transport=uring"]).unwrap_err();
    drop(off);
    assert_eq!(tools::code(&refused), 1);
    let said = tools::stderr(&refused);
    assert!(said.contains("FUSE over io_uring is switched off") && said.contains("enable_uring"), "{said}");
}

#[test]
fn eight_readers_see_the_same_bytes_in_every_way() {
    need_rings!();
    let scene = scene();
    let expected = scene.expected(None);
    let mount = mounted(&scene, &[]);
    std::thread::scope(|scope| {
        for reader in 0..8_u64 {
            let (expected, raw) = (&expected, mount.raw());
            scope.spawn(move || {
                for step in 0..400 {
                    let offset = (step * 7_919 + reader * 1_013) * 4096 % (63 << 20);
                    let len = usize::try_from(512 << (step % 12)).unwrap();
                    let flags = if step % 3 == 0 { libc::O_DIRECT } else { 0 };
                    let from = usize::try_from(offset).unwrap();
                    let to = (from + len).min(expected.len());
                    let got = read(&raw, offset, len, flags).unwrap();
                    assert!(got == expected[from..to], "{offset:#x} {len}");
                }
            });
        }
    });
    assert!(fs::read(mount.raw()).unwrap() == expected);
    assert_eq!(mount.json("health")["healthy"], true);
}

/// Reads on and on, in both ways, until a read fails, and counts those that did not.
fn read_on(raw: &Path, done: &AtomicU64, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let nth = done.load(Ordering::Relaxed);
        let flags = if nth.is_multiple_of(2) { libc::O_DIRECT } else { 0 };
        if read(raw, (nth * 7_919) % 500 * CLUSTER, 1 << 20, flags).is_err() {
            break;
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
}

fn is_mounted(point: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().any(|line| line.split(' ').nth(1).map(Path::new) == Some(point))
}

#[test]
fn mount_that_is_ended_while_it_is_read_leaves_nothing_behind() {
    need_rings!();
    let scene = scene();
    for how in [Some(Signal::KILL), Some(Signal::TERM), None] {
        for _ in 0..5 {
            let mount = mounted(&scene, &[]);
            let (pid, raw) = (server(&mount), mount.raw());
            let (done, stop) = (AtomicU64::new(0), AtomicBool::new(false));
            std::thread::scope(|scope| {
                let start = Instant::now();
                (0..3).for_each(|_| drop(scope.spawn(|| read_on(&raw, &done, &stop))));
                while done.load(Ordering::Relaxed) < 20 {
                    assert!(start.elapsed() < PATIENCE, "nothing is read");
                    std::thread::sleep(Duration::from_millis(1));
                }
                match how {
                    Some(signal) => kill_process(pid, signal).unwrap(),
                    None => drop(must(Command::new("umount").arg("-l").arg(mount.point()))),
                }
                let lives = || {
                    // A zombie has no command line.
                    let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero()));
                    line.is_ok_and(|line| !line.is_empty())
                };
                while is_mounted(mount.point()) || lives() {
                    assert!(start.elapsed() < PATIENCE, "{how:?}: mount or server is still there");
                    std::thread::sleep(Duration::from_millis(10));
                }
                stop.store(true, Ordering::Relaxed);
            });
            // It is gone already.
            std::mem::forget(mount);
        }
    }
}

/// Keeps the calling thread on one processor.
fn stay_on(processor: usize) {
    let mut one = CpuSet::new();
    one.set(processor);
    sched_setaffinity(None, &one).unwrap();
}

/// Process cages of a server.
fn cages(server: Pid) -> Vec<Pid> {
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
    let is_cage = |pid: &Pid| {
        let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap_or_default();
        let has = |line: String| status.lines().any(|found| found == line);
        has(format!("PPid:\t{}", server.as_raw_nonzero())) && has("Seccomp:\t2".to_owned())
    };
    pids.filter(is_cage).collect()
}

#[test]
fn request_that_waits_for_a_cage_holds_up_no_other() {
    need_rings!();
    let scene = scene();
    let mount = mounted(&scene, &["--sandbox=process"]);
    assert_eq!(read(&mount.raw(), 0, 4096, libc::O_DIRECT).unwrap(), [1; 4096]);
    let cages = cages(server(&mount));
    assert!(!cages.is_empty());
    for cage in &cages {
        kill_process(*cage, Signal::STOP).unwrap();
    }
    let processors = std::thread::available_parallelism().unwrap().get();
    std::thread::scope(|scope| {
        let packed: Vec<_> = (0..processors)
            .map(|processor| {
                let raw = mount.raw();
                scope.spawn(move || {
                    stay_on(processor);
                    read(&raw, 40 << 20, 4096, libc::O_DIRECT)
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(50));
        for processor in 0..processors {
            let raw = mount.raw();
            let start = Instant::now();
            let at_hand = scope.spawn(move || {
                stay_on(processor);
                read(&raw, 1 << 20, 4096, libc::O_DIRECT)
            });
            assert_eq!(at_hand.join().unwrap().unwrap(), [1; 4096]);
            assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        }
        assert!(packed.iter().all(|reader| !reader.is_finished()), "the cage is stopped");
        for cage in &cages {
            kill_process(*cage, Signal::CONT).unwrap();
        }
        for reader in packed {
            assert_eq!(reader.join().unwrap().unwrap(), [3; 4096]);
        }
    });
}

#[test]
fn idle_mount_gives_memory_back() {
    need_rings!();
    let scene = scene();
    let mount = mounted(&scene, &[]);
    for _ in 0..4 {
        let all = ["bs=1M", "iflag=direct", "of=/dev/null", "status=none"];
        must(Command::new("dd").arg(format!("if={}", mount.raw().display())).args(all));
    }
    let held = || field(&mount, "VmRSS").trim_end_matches(" kB").parse::<u64>().unwrap();
    let start = Instant::now();
    while held() > IDLE_KIB_MAX {
        assert!(start.elapsed() < PATIENCE, "{} KiB", held());
        std::thread::sleep(Duration::from_millis(100));
    }
}
