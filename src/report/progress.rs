//! How far a job is, on a terminal, and only when it takes longer than a moment.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use instar_abi::call::{Phase, ProgressRecord};

/// A job that ends before this shows nothing.
const PATIENCE: Duration = Duration::from_millis(700);
/// Most redraws a second.
const REDRAWS_PER_SECOND: u8 = 8;

/// A progress line, or none.
#[derive(Debug, Default)]
pub struct Progress {
    line: Option<Line>,
}

#[derive(Debug)]
struct Line {
    started: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Shows progress on stderr where that is a terminal and `quiet` is false.
    #[must_use]
    pub fn on_terminal(quiet: bool) -> Self {
        let wanted = !quiet && std::io::stderr().is_terminal();
        Self { line: wanted.then(|| Line { started: Instant::now(), bar: None }) }
    }

    /// Takes note of where the job is.
    pub fn update(&mut self, phase: Phase, record: &ProgressRecord) {
        let Some(line) = &mut self.line else { return };
        if line.started.elapsed() < PATIENCE {
            return;
        }
        let bar = line.bar.get_or_insert_with(new_bar);
        bar.set_message(phase_name(phase));
        bar.set_length(record.total.max(record.done));
        bar.set_position(record.done);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = self.line.take().and_then(|line| line.bar) {
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

const fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Roots => "reading header and tables",
        Phase::Mappings => "walking mappings",
        Phase::Refcounts => "comparing reference counts",
        Phase::Owners => "finding owners",
        Phase::Triage => "looking at leaks",
        Phase::Planning => "planning",
        Phase::Inflate => "inflating",
    }
}
