//! `make bench`: reads through the mount, through qemu-storage-daemon's of the same image, and through a bare server of
//! the raw file, side by side in one run.
//!
//! All servers of an image are mounted at once and are asked in turn, so that what else the machine does falls on all of
//! them. Printed are medians, ratios of medians and their bounds: throughput, and processor time of the server for one
//! read. An argument picks the lines whose names contain it (`cargo bench --bench reads -- zlib`). BENCH_RUNS (3) says
//! how often each line is run. Needs root, and two gigabytes of the temporary folder.

#[path = "../mapped.rs"]
mod mapped;
#[path = "../../tests/support/mod.rs"]
mod support;

mod contestant;
mod disk;
mod fio;
mod passthrough;

use std::io::{self, Write as _};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use contestant::{Contestant, Kind};
use disk::{DISK_BYTES, Packing};
use fio::Line;
use support::{rings, tools};

const fn sequential(name: &'static str, is_direct: bool, is_cold: bool) -> Line {
    Line { name, order: "read", block: "1M", is_direct, depth: 1, jobs: 1, span_bytes: DISK_BYTES, is_cold }
}

const fn random(name: &'static str, is_direct: bool, depth: u32, jobs: u32) -> Line {
    Line {
        name,
        order: "randread",
        block: "4k",
        is_direct,
        depth,
        jobs,
        span_bytes: DISK_BYTES,
        is_cold: false,
    }
}

const LINES: &[Line] = &[
    sequential("1 MiB sequential", false, false),
    sequential("1 MiB sequential, cold", false, true),
    sequential("1 MiB sequential, direct", true, false),
    random("4 KiB random", false, 1, 1),
    Line { is_cold: true, ..random("4 KiB random, cold", false, 1, 1) },
    random("4 KiB random, direct, depth 1, 1 job", true, 1, 1),
    random("4 KiB random, direct, depth 1, 4 jobs", true, 1, 4),
    random("4 KiB random, direct, depth 32, 1 job", true, 32, 1),
    random("4 KiB random, direct, depth 32, 4 jobs", true, 32, 4),
];

/// Bytes that random reads of compressed images go to, as far as their names say nothing else: what the mount keeps
/// inflated unless it is told to keep less.
const PACKED_SPAN_BYTES: u64 = 32 << 20;
/// For compressed images besides: reads that go to far more than any server keeps.
const WHOLE_LINES: &[Line] = &[
    random("4 KiB random in the whole disk, direct, depth 1, 1 job", true, 1, 1),
    random("4 KiB random in the whole disk, direct, depth 32, 4 jobs", true, 32, 4),
];
/// Memory that an idle mount of a terabyte in one piece may hold, in KiB.
const IDLE_KIB_MAX: u64 = 32 << 10;
/// After so long a mount is idle.
const IDLE: Duration = Duration::from_secs(2);

/// The figures of one server on one line.
#[derive(Debug)]
struct Figures {
    kind: Kind,
    rates: Vec<f64>,
    us_per_read: Vec<f64>,
}

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [option, file, point, ..] = arguments.as_slice()
        && option == passthrough::OPTION
    {
        return passthrough::serve(Path::new(file), Path::new(point));
    }
    let needed = tools::qemu()
        .and_then(|()| tools::program("qemu-storage-daemon"))
        .and_then(|()| tools::program("fio"))
        .and_then(|()| tools::fuse())
        .and_then(|()| tools::root());
    if let Err(reason) = needed {
        return writeln!(io::stderr(), "make bench: reads skipped: {reason}");
    }
    let wanted = arguments.iter().find(|argument| !argument.starts_with('-')).map_or("", String::as_str);
    let folder = tempfile::tempdir()?;
    let raw = folder.path().join("disk.raw");
    writeln!(io::stderr(), "making a disk of {} MiB ...", DISK_BYTES >> 20)?;
    disk::write_raw(&raw)?;
    for packing in [Packing::Plain, Packing::Zlib, Packing::Zstd] {
        compare(packing, &raw, wanted)?;
    }
    if "first byte and idle memory".contains(wanted) {
        let image = folder.path().join("mapped.qcow2");
        first_byte(&image)?;
        idle_memory(&image)?;
    }
    Ok(())
}

/// The server that the mount is to beat by `factor`, and what of its processor time the mount may take.
fn bounds(packing: Packing, line: &Line) -> (f64, Option<f64>) {
    match packing {
        Packing::Plain => (2.0, Some(0.5)),
        _ if line.order == "randread" => (4.0, None),
        Packing::Zlib => (1.2, None),
        Packing::Zstd => (1.0, None),
    }
}

fn compare(packing: Packing, raw: &Path, wanted: &str) -> io::Result<()> {
    let called = |line: &&Line| format!("{}, {}", packing.name(), line.name).contains(wanted);
    let spanned = |line: &Line| match (packing, line.order) {
        (Packing::Zlib | Packing::Zstd, "randread") => Line { span_bytes: PACKED_SPAN_BYTES, ..*line },
        _ => *line,
    };
    let whole = if packing == Packing::Plain { &[] } else { WHOLE_LINES };
    let lines = LINES.iter().filter(called).map(spanned);
    let lines: Vec<Line> = lines.chain(whole.iter().filter(called).copied()).collect();
    if lines.is_empty() {
        return Ok(());
    }
    let image = packing.image(raw)?;
    let mut servers = vec![Contestant::start(Kind::Ours, &image, DISK_BYTES)];
    let with_rings = rings::with(|| Contestant::start(Kind::OursWithRings, &image, DISK_BYTES));
    match with_rings {
        Ok(server) => servers.push(server),
        Err(reason) => writeln!(io::stderr(), "without rings: {reason}")?,
    }
    servers.push(Contestant::start(Kind::Qemu, &image, DISK_BYTES));
    if packing == Packing::Plain {
        servers.push(Contestant::start(Kind::Passthrough, raw, DISK_BYTES));
    }
    for line in &lines {
        writeln!(io::stdout(), "{}, {}", packing.name(), line.name)?;
        let all = measure(line, &servers);
        print(&all, bounds(packing, line))?;
    }
    drop(servers);
    std::fs::remove_file(image)
}

/// Runs a line through all servers in turn.
fn measure(line: &Line, servers: &[Contestant]) -> Vec<Figures> {
    let figures = |server: &Contestant| Figures { kind: server.kind, rates: vec![], us_per_read: vec![] };
    let mut all: Vec<Figures> = servers.iter().map(figures).collect();
    for _ in 0..runs() {
        for (server, figures) in servers.iter().zip(&mut all) {
            if line.is_cold {
                server.cool()
            } else {
                server.warm()
            }
            let before = server.processor_us();
            let run = fio::run(line, server.disk());
            figures.rates.push(run.rate);
            figures.us_per_read.push((server.processor_us() - before) / run.reads.max(1.0));
        }
    }
    all
}

fn print(all: &[Figures], (factor, processor): (f64, Option<f64>)) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let figures_of = |kind| all.iter().find(|figures| figures.kind == kind);
    for figures in all {
        let (rate, us) = (median(&figures.rates), median(&figures.us_per_read));
        let (megabytes, name) = (rate / 1e6, figures.kind.name());
        write!(out, "  {name:<20} {megabytes:>8.1} MB/s {us:>8.2} us/read")?;
        if figures.kind.is_ours() {
            if let Some(qemu) = figures_of(Kind::Qemu) {
                let ratio = us / median(&qemu.us_per_read);
                let time = processor.map_or(format!("{ratio:.2}"), |most| at_most(ratio, most));
                let rate = at_least(rate / median(&qemu.rates), factor);
                write!(out, "   x qemu {rate}, time x {time}")?;
            }
            if let Some(bare) = figures_of(Kind::Passthrough) {
                write!(out, "   x passthrough {}", at_least(rate / median(&bare.rates), 0.95))?;
            }
        }
        writeln!(out)?;
    }
    Ok(())
}

/// From the start of a program to the first byte of the disk, the check included.
fn first_byte(image: &Path) -> io::Result<()> {
    let disk_bytes = 10 << 30;
    mapped::Mapped { cluster_bits: 16, disk_bytes, is_shuffled: false }.build(image)?;
    let (mut ours, mut qemus) = (vec![], vec![]);
    for _ in 0..runs() {
        ours.push(Contestant::start(Kind::Ours, image, disk_bytes).first_byte.as_secs_f64());
        let began = Instant::now();
        tools::must(Command::new("qemu-img").args(["check", "-q"]).arg(image));
        let check = began.elapsed();
        qemus.push((check + Contestant::start(Kind::Qemu, image, disk_bytes).first_byte).as_secs_f64());
    }
    let (ours, qemus) = (median(&ours), median(&qemus));
    writeln!(io::stdout(), "10 GiB, every cluster mapped: check and mount to first byte")?;
    let ratio = at_most(ours / qemus, 1.0);
    writeln!(
        io::stdout(),
        "  instar-mount {ours:.3} s, qemu-img check and storage daemon {qemus:.3} s: x {ratio}"
    )?;
    std::fs::remove_file(image)
}

/// What an idle mount of a terabyte in one piece holds, once all of its extents are known and much of it was read.
fn idle_memory(image: &Path) -> io::Result<()> {
    let disk_bytes = 1 << 40;
    mapped::Mapped { cluster_bits: 16, disk_bytes, is_shuffled: false }.build(image)?;
    writeln!(io::stdout(), "1 TiB, every cluster mapped: memory of the idle mount, all extents known")?;
    let device = Contestant::start(Kind::Ours, image, disk_bytes);
    let with_rings = rings::with(|| Contestant::start(Kind::OursWithRings, image, disk_bytes));
    for server in std::iter::once(device).chain(with_rings) {
        let disk = std::fs::File::open(server.disk())?;
        let hole = rustix::fs::seek(&disk, rustix::fs::SeekFrom::Hole(0))?;
        assert_eq!(hole, disk_bytes, "all of the disk is data");
        fio::run(&sequential("", true, false), server.disk());
        std::thread::sleep(IDLE);
        let (held, name) = (server.resident_kib(), server.kind.name());
        let verdict = if held <= IDLE_KIB_MAX { "yes" } else { "NO" };
        writeln!(io::stdout(), "  {name:<20} {held} KiB (at most {IDLE_KIB_MAX}: {verdict})")?;
    }
    std::fs::remove_file(image)
}

fn at_least(ratio: f64, least: f64) -> String {
    format!("{ratio:.2} (at least {least}: {})", if ratio >= least { "yes" } else { "NO" })
}

fn at_most(ratio: f64, most: f64) -> String {
    format!("{ratio:.2} (at most {most}: {})", if ratio <= most { "yes" } else { "NO" })
}

fn runs() -> usize {
    std::env::var("BENCH_RUNS").map_or(3, |runs| runs.parse().expect("BENCH_RUNS is a number"))
}

fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
