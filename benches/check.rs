//! `make bench`: times `instar check` against `qemu-img check` on images made for it, side by side in one run.
//!
//! Printed are medians, their ratio, and the peak memory of the largest process of each program. The environment
//! variables BENCH_SIZE (1T), BENCH_SHUFFLED_SIZE (100G) and BENCH_RUNS (5) change what is made and how often it
//! is timed. Images are sparse: a terabyte takes some hundred megabytes of disk.

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use support::raw::{COPIED, OFFSET, Raw, field};
use support::tools;

/// One program's figures.
struct Figures {
    seconds: f64,
    peak_kib: u64,
}

fn main() -> io::Result<()> {
    if let Err(reason) = tools::qemu().and_then(|()| tools::program("time")) {
        return writeln!(io::stderr(), "make bench: skipped: {reason}");
    }
    let folder = tempfile::tempdir()?;
    let ordered = setting("BENCH_SIZE", "1T");
    let shuffled = setting("BENCH_SHUFFLED_SIZE", "100G");
    let image = make(folder.path(), &ordered)?;
    compare(&format!("{ordered}, all mapped, in order"), &image)?;
    std::fs::remove_file(&image)?;
    let image = make(folder.path(), &shuffled)?;
    shuffle(&image);
    compare(&format!("{shuffled}, all mapped, in random order"), &image)
}

fn setting(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

/// An image with every cluster mapped and no data.
fn make(folder: &Path, size: &str) -> io::Result<PathBuf> {
    let path = folder.join(format!("{size}.qcow2"));
    writeln!(io::stderr(), "making {} ...", path.display())?;
    let options = ["create", "-q", "-f", "qcow2", "-o", "preallocation=metadata"];
    tools::must(tools::qemu_img(options).arg(&path).arg(size));
    Ok(path)
}

/// Deals the host clusters out to the guest clusters anew.
fn shuffle(path: &Path) {
    let raw = Raw::open(path);
    let table_bytes = usize::try_from(raw.cluster_bytes).expect("clusters fit memory");
    let tables: Vec<u64> = (0..raw.get(field::L1_SIZE))
        .map(|index| raw.number(raw.l1_entry(index), 8) & OFFSET)
        .filter(|offset| *offset != 0)
        .collect();
    let mut entries: Vec<u64> = tables
        .iter()
        .flat_map(|offset| raw.read(*offset, table_bytes))
        .collect::<Vec<u8>>()
        .chunks_exact(8)
        .map(|bytes| bytes.iter().fold(0, |entry, byte| entry << 8 | u64::from(*byte)))
        .collect();
    let used = entries.iter().filter(|entry| **entry & COPIED != 0).count();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for at in (1..used).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let other = usize::try_from(state % (at as u64 + 1)).expect("an index");
        entries.swap(at, other);
    }
    for (table, offset) in tables.iter().enumerate() {
        let per_table = table_bytes / 8;
        let bytes: Vec<u8> =
            entries[table * per_table..][..per_table].iter().flat_map(|entry| entry.to_be_bytes()).collect();
        raw.write(*offset, &bytes);
    }
}

/// Times both programs on one image and prints a line for each.
fn compare(what: &str, image: &Path) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{what}")?;
    let qemu = median("qemu-img", image);
    writeln!(out, "  qemu-img check            {:>9.3} s {:>9} KiB", qemu.seconds, qemu.peak_kib)?;
    let instar = env!("CARGO_BIN_EXE_instar");
    for cage in support::program::cages() {
        let ours = median_with(instar, &["--quiet", "--sandbox", cage], image);
        writeln!(
            out,
            "  instar check, {cage:<8}    {:>9.3} s {:>9} KiB   time x {:.3}, memory x {:.2}",
            ours.seconds,
            ours.peak_kib,
            ours.seconds / qemu.seconds.max(0.001),
            ratio(ours.peak_kib, qemu.peak_kib)
        )?;
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn ratio(ours: u64, theirs: u64) -> f64 {
    ours as f64 / theirs.max(1) as f64
}

fn median(program: &str, image: &Path) -> Figures {
    median_with(program, &[], image)
}

fn median_with(program: &str, options: &[&str], image: &Path) -> Figures {
    let runs: usize = setting("BENCH_RUNS", "5").parse().expect("BENCH_RUNS is a number");
    let mut figures: Vec<Figures> = (0..runs.max(1)).map(|_| timed(program, options, image)).collect();
    figures.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    let peak_kib = figures.iter().map(|f| f.peak_kib).max().unwrap_or(0);
    Figures { seconds: figures[figures.len() / 2].seconds, peak_kib }
}

fn timed(program: &str, options: &[&str], image: &Path) -> Figures {
    let account = tempfile::NamedTempFile::new().expect("a temporary file");
    let mut command = Command::new("time");
    command.args(["-f", "%e %M", "-o"]).arg(account.path());
    let began = std::time::Instant::now();
    tools::must(command.arg(program).arg("check").args(options).arg(image));
    let seconds = began.elapsed().as_secs_f64();
    let told = std::fs::read_to_string(account.path()).expect("time has written it");
    let peak = told.split_whitespace().nth(1).and_then(|kib| kib.parse().ok());
    Figures { seconds, peak_kib: peak.expect("time tells the peak memory") }
}
