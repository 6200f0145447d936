//! How far a job is: a bar on a terminal, now and then a line where there is none, JSON for programs that ask.
//!
//! Invariant: a job that ends within a moment shows nothing, and nobody who stops listening can stop a job.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use instar_abi::call::{Phase, ProgressRecord};
use serde::Serialize;

/// A job that ends before this shows no bar.
const PATIENCE: Duration = Duration::from_millis(700);
/// Most redraws of the bar a second.
const REDRAWS_PER_SECOND: u8 = 8;
/// Time between two lines where stderr is no terminal, and before the first.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
/// Least time between two events of one phase.
const EVENT_INTERVAL: Duration = Duration::from_millis(100);

/// True if an open descriptor of this process may be written.
fn is_writable(fd: u32) -> io::Result<bool> {
    const ACCESS_MODE: u32 = 0o3;
    const READ_ONLY: u32 = 0;
    let facts =
        fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => io::Error::new(io::ErrorKind::NotFound, "it is not open"),
            _ => error,
        })?;
    let flags = facts.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    Ok(flags.is_some_and(|flags| flags & ACCESS_MODE != READ_ONLY))
}

/// Who wants to know how far jobs are.
#[derive(Debug, Clone, Default)]
pub struct Watch {
    quiet: bool,
    events: Option<Arc<File>>,
}

impl Watch {
    /// People at stderr, unless `quiet`.
    #[must_use]
    pub const fn people(quiet: bool) -> Self {
        Self { quiet, events: None }
    }

    /// Besides, a program at the other end of this open descriptor.
    ///
    /// # Errors
    /// If the process has no such descriptor, or it cannot be written (a socket cannot be opened anew).
    /// `PermissionDenied` for one that was opened for reading only: opened anew, it could be written.
    pub fn and_program(mut self, fd: u32) -> io::Result<Self> {
        if !is_writable(fd)? {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it was opened for reading only"));
        }
        self.events = Some(Arc::new(OpenOptions::new().append(true).open(format!("/proc/self/fd/{fd}"))?));
        Ok(self)
    }

    /// The progress of a new job.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let now = Instant::now();
        let display = if self.quiet {
            Display::Nothing
        } else if io::stderr().is_terminal() {
            Display::Bar { started: now, bar: None }
        } else {
            Display::Lines { last: now }
        };
        let events = self.events.clone().map(|file| Events { file, last: None });
        Progress { display, events }
    }
}

/// The progress of one job.
#[derive(Debug, Default)]
pub struct Progress {
    display: Display,
    events: Option<Events>,
}

#[derive(Debug, Default)]
enum Display {
    #[default]
    Nothing,
    Bar {
        started: Instant,
        bar: Option<ProgressBar>,
    },
    Lines {
        last: Instant,
    },
}

#[derive(Debug)]
struct Events {
    file: Arc<File>,
    last: Option<(Phase, Instant)>,
}

/// One line on `--progress-fd`.
#[derive(Debug, Serialize)]
struct Event {
    /// "roots", "mappings", "refcounts", "owners", "triage", "planning" or "inflate".
    phase: &'static str,
    /// Which pass over the image, from 0.
    pass: u32,
    /// Bytes of metadata done in this phase.
    done: u64,
    /// Bytes of metadata in this phase, as far as known.
    total: u64,
}

impl Progress {
    /// Takes note of where the job is.
    pub fn update(&mut self, phase: Phase, record: &ProgressRecord) {
        let total = record.total.max(record.done);
        self.display.update(phase, record.done, total);
        let gone = self.events.as_mut().is_some_and(|events| events.update(phase, record, total).is_err());
        if gone {
            self.events = None;
        }
    }
}

impl Display {
    fn update(&mut self, phase: Phase, done: u64, total: u64) {
        match self {
            Self::Nothing => {}
            Self::Bar { started, bar } if bar.is_some() || started.elapsed() >= PATIENCE => {
                let bar = bar.get_or_insert_with(new_bar);
                bar.set_message(sentence(phase));
                bar.set_length(total);
                bar.set_position(done);
            }
            Self::Lines { last } if last.elapsed() >= LINE_INTERVAL => {
                *last = Instant::now();
                let percent = u128::from(done) * 100 / u128::from(total.max(1));
                let line = format!("{}: {percent} %\n", sentence(phase));
                if io::stderr().lock().write_all(line.as_bytes()).is_err() {
                    *self = Self::Nothing;
                }
            }
            Self::Bar { .. } | Self::Lines { .. } => {}
        }
    }
}

impl Events {
    fn update(&mut self, phase: Phase, record: &ProgressRecord, total: u64) -> io::Result<()> {
        let now = Instant::now();
        let recent = |&(last, at): &(Phase, Instant)| last == phase && now - at < EVENT_INTERVAL;
        if record.done < total && self.last.as_ref().is_some_and(recent) {
            return Ok(());
        }
        self.last = Some((phase, now));
        let event = Event { phase: name(phase), pass: record.pass, done: record.done, total };
        let mut line = serde_json::to_vec(&event)?;
        line.push(b'\n');
        (&*self.file).write_all(&line)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Display::Bar { bar: Some(bar), .. } = &self.display {
            bar.finish_and_clear();
        }
    }
}

fn new_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} [{wide_bar}] {bytes}/{total_bytes}, {eta} left");
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(REDRAWS_PER_SECOND));
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

const fn sentence(phase: Phase) -> &'static str {
    match phase {
        Phase::Roots => "reading header and tables",
        Phase::Mappings => "walking mappings",
        Phase::Refcounts => "comparing reference counts",
        Phase::Owners => "finding owners",
        Phase::Triage => "looking at leaks",
        Phase::Planning => "planning",
        Phase::Inflate => "inflating",
        Phase::Survey => "surveying the file",
    }
}

const fn name(phase: Phase) -> &'static str {
    match phase {
        Phase::Roots => "roots",
        Phase::Mappings => "mappings",
        Phase::Refcounts => "refcounts",
        Phase::Owners => "owners",
        Phase::Triage => "triage",
        Phase::Planning => "planning",
        Phase::Inflate => "inflate",
        Phase::Survey => "survey",
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use super::*;

    fn record(done: u64, total: u64) -> ProgressRecord {
        ProgressRecord { phase: 0, pass: 1, done, total }
    }

    #[test]
    fn events_are_lines_of_json_and_few() {
        let mut file = tempfile::tempfile().unwrap();
        let fd = u32::try_from(file.as_raw_fd()).unwrap();
        let mut progress = Watch::people(true).and_program(fd).unwrap().progress();
        for done in 0..1000 {
            progress.update(Phase::Mappings, &record(done, 1000));
        }
        progress.update(Phase::Mappings, &record(1000, 1000));
        drop(progress);
        io::Seek::rewind(&mut file).unwrap();
        let text = io::read_to_string(file).unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(lines.len() >= 2 && lines.len() < 100, "{}", lines.len());
        assert_eq!(lines[0]["phase"], "mappings");
        assert_eq!(lines.last().unwrap()["done"], 1000);
    }

    #[test]
    fn listener_that_goes_away_stops_nothing() {
        let (reader, writer) = io::pipe().unwrap();
        let fd = u32::try_from(writer.as_raw_fd()).unwrap();
        let mut progress = Watch::people(true).and_program(fd).unwrap().progress();
        drop((reader, writer));
        progress.update(Phase::Roots, &record(1, 1));
        progress.update(Phase::Roots, &record(1, 1));
        assert!(progress.events.is_none());
    }

    #[test]
    fn descriptor_that_is_not_open_is_refused() {
        assert!(Watch::people(true).and_program(987_654).is_err());
    }
}
