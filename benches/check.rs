//! `make bench`: times `instar check` against `qemu-img check` on images made for it, side by side in one run.
//!
//! Printed are medians, their ratio and its bound, and the peak memory of the largest process of each program. An
//! argument picks the cases whose names contain it (`cargo bench --bench check -- "of 4 KiB"`). BENCH_RUNS (5) says
//! how often a program is timed; one that takes long is timed less often. Images are sparse: one of 8 TiB takes
//! 1.3 GB of the temporary folder.

mod mapped;
#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{self, Write as _};
use std::path::Path;
use std::process::Command;

use mapped::Mapped;
use support::tools;

/// Seconds after which a program is not timed again on the same image.
const ENOUGH_SECONDS: f64 = 30.0;

/// An image to check, and how much of QEMU's time and memory that may take.
struct Case {
    name: &'static str,
    image: Mapped,
    time_max: Option<f64>,
    memory_max: Option<f64>,
}

const fn case(name: &'static str, cluster_bits: u32, disk_bytes: u64, is_shuffled: bool) -> Case {
    let image = Mapped { cluster_bits, disk_bytes, is_shuffled };
    Case { name, image, time_max: None, memory_max: None }
}

/// Every cluster of each is mapped.
const CASES: &[Case] = &[
    case("100 GiB of 64 KiB clusters, in order", 16, 100 << 30, false),
    case("100 GiB of 64 KiB clusters, in random order", 16, 100 << 30, true),
    Case { time_max: Some(1.0 / 6.0), ..case("100 GiB of 4 KiB clusters, in order", 12, 100 << 30, false) },
    // QEMU needs twenty minutes for ten times as many.
    case("10 GiB of 4 KiB clusters, in random order", 12, 10 << 30, true),
    Case {
        time_max: Some(0.25),
        memory_max: Some(0.5),
        ..case("1 TiB of 64 KiB clusters, in order", 16, 1 << 40, false)
    },
    Case { time_max: Some(0.01), ..case("1 TiB of 64 KiB clusters, in random order", 16, 1 << 40, true) },
    Case {
        time_max: Some(0.25),
        memory_max: Some(0.25),
        ..case("8 TiB of 64 KiB clusters, in order", 16, 8 << 40, false)
    },
];

/// One program's figures.
struct Figures {
    seconds: f64,
    peak_kib: u64,
    runs: usize,
}

fn main() -> io::Result<()> {
    if let Err(reason) = tools::qemu().and_then(|()| tools::program("time")) {
        return writeln!(io::stderr(), "make bench: skipped: {reason}");
    }
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("bench.qcow2");
    for case in CASES.iter().filter(|case| case.name.contains(&wanted)) {
        writeln!(io::stderr(), "making {} ...", case.name)?;
        case.image.build(&path)?;
        compare(case, &path)?;
        std::fs::remove_file(&path)?;
    }
    Ok(())
}

/// Times both programs on one image and prints a line for each.
fn compare(case: &Case, image: &Path) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", case.name)?;
    let qemu = median("qemu-img", &[], image);
    writeln!(out, "  {:<24} {}", "qemu-img check", told(&qemu))?;
    let instar = env!("CARGO_BIN_EXE_instar");
    for cage in support::program::cages() {
        let ours = median(instar, &["--quiet", "--sandbox", cage], image);
        let time = share(ours.seconds, qemu.seconds.max(0.001), case.time_max);
        let memory = share(kib(ours.peak_kib), kib(qemu.peak_kib).max(1.0), case.memory_max);
        let name = format!("instar check, {cage}");
        writeln!(out, "  {name:<24} {}   time x {time}, memory x {memory}", told(&ours))?;
    }
    Ok(())
}

fn told(figures: &Figures) -> String {
    let Figures { seconds, peak_kib, runs } = figures;
    format!("{seconds:>9.3} s {peak_kib:>9} KiB ({runs} runs)")
}

/// A ratio, and its bound where it has one.
fn share(ours: f64, theirs: f64, most: Option<f64>) -> String {
    let ratio = ours / theirs;
    match most {
        None => format!("{ratio:.4}"),
        Some(most) if ratio <= most => format!("{ratio:.4} (at most {most:.3}: yes)"),
        Some(most) => format!("{ratio:.4} (at most {most:.3}: NO)"),
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
const fn kib(kib: u64) -> f64 {
    kib as f64
}

fn median(program: &str, options: &[&str], image: &Path) -> Figures {
    let runs_max =
        std::env::var("BENCH_RUNS").map_or(5, |runs| runs.parse().expect("BENCH_RUNS is a number"));
    let (mut seconds, mut peak_kib) = (Vec::new(), 0);
    while seconds.is_empty() || (seconds.len() < runs_max && seconds.iter().sum::<f64>() < ENOUGH_SECONDS) {
        let (took, peak) = timed(program, options, image);
        seconds.push(took);
        peak_kib = peak.max(peak_kib);
    }
    seconds.sort_by(f64::total_cmp);
    Figures { seconds: seconds[seconds.len() / 2], peak_kib, runs: seconds.len() }
}

/// Seconds and peak memory in KiB of one run.
fn timed(program: &str, options: &[&str], image: &Path) -> (f64, u64) {
    let account = tempfile::NamedTempFile::new().expect("a temporary file");
    let mut command = Command::new("time");
    command.args(["-f", "%e %M", "-o"]).arg(account.path());
    let began = std::time::Instant::now();
    tools::must(command.arg(program).arg("check").args(options).arg(image));
    let seconds = began.elapsed().as_secs_f64();
    let told = std::fs::read_to_string(account.path()).expect("time has written it");
    let peak = told.split_whitespace().nth(1).and_then(|kib| kib.parse().ok());
    (seconds, peak.expect("time tells the peak memory"))
}
