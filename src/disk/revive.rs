//! A source that is started when it is first asked, and started anew when it dies.
//!
//! Invariant: the source is started at most [`RESTARTS_MAX`] times more in its life, and once for one request, so that
//! an image which kills every cage costs a bounded time and then reads as I/O errors. Each restart is counted, and so
//! is a first start that fails: the next question starts it anew.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{fmt, io};

use instar_abi::extent::Extent;
use tracing::warn;

use super::source::{ExtentSource, Inflated, Payload};
use crate::event::CAGE_RESTARTED;
use crate::sandbox::error::SandboxError;

/// Restarts in the life of a source.
pub const RESTARTS_MAX: u64 = 16;

/// Starts a source.
type Start = Box<dyn FnMut() -> Result<Box<dyn ExtentSource>, SandboxError> + Send>;

/// See the module's documentation.
pub struct Revived {
    start: Start,
    /// `None` before the first question.
    source: Option<Box<dyn ExtentSource>>,
    restarts: Arc<AtomicU64>,
}

impl fmt::Debug for Revived {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Revived").field("source", &self.source).field("restarts", &self.restarts).finish()
    }
}

impl Revived {
    /// A source that lives, and what starts another one in its place.
    #[must_use]
    pub fn new(
        source: Box<dyn ExtentSource>,
        start: impl FnMut() -> Result<Box<dyn ExtentSource>, SandboxError> + Send + 'static,
    ) -> Self {
        Self { start: Box::new(start), source: Some(source), restarts: Arc::default() }
    }

    /// A source that is started when somebody asks it.
    #[must_use]
    pub fn asleep(
        start: impl FnMut() -> Result<Box<dyn ExtentSource>, SandboxError> + Send + 'static,
    ) -> Self {
        Self { start: Box::new(start), source: None, restarts: Arc::default() }
    }

    /// How often it was, or has to be, started anew.
    #[must_use]
    pub fn restarts(&self) -> Arc<AtomicU64> {
        self.restarts.clone()
    }

    /// Asks, and asks once more if the source died of it.
    fn ask<T>(
        &mut self,
        mut question: impl FnMut(&mut dyn ExtentSource) -> Result<T, SandboxError>,
    ) -> Result<T, SandboxError> {
        let source = match &mut self.source {
            Some(source) => source,
            none => none.insert(first(&mut self.start, &self.restarts)?),
        };
        let error = match question(&mut **source) {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        if self.restarts.load(Ordering::Relaxed) >= RESTARTS_MAX {
            return Err(error);
        }
        warn!(event = CAGE_RESTARTED.id, %error, "the cage has ended and is started anew");
        self.restarts.fetch_add(1, Ordering::Relaxed);
        question(&mut **self.source.insert((self.start)()?))
    }
}

/// Starts a source that has slept so far, or was never to be had.
fn first(start: &mut Start, restarts: &AtomicU64) -> Result<Box<dyn ExtentSource>, SandboxError> {
    let failed = restarts.load(Ordering::Relaxed);
    if failed >= RESTARTS_MAX {
        let action = format!("start a cage, which has failed {failed} times");
        return Err(SandboxError::Host { action, source: io::ErrorKind::Other.into() });
    }
    start().inspect_err(|error| {
        warn!(event = CAGE_RESTARTED.id, %error, "a cage cannot be started");
        restarts.fetch_add(1, Ordering::Relaxed);
    })
}

impl ExtentSource for Revived {
    fn map(
        &mut self,
        snapshot: u32,
        guest_offset: u64,
        guest_len: u64,
        into: &mut Vec<Extent>,
    ) -> Result<(), SandboxError> {
        let known = into.len();
        self.ask(|source| {
            into.truncate(known);
            source.map(snapshot, guest_offset, guest_len, into)
        })
    }

    fn inflate(&mut self, payloads: &[Payload], cluster_bytes: u64) -> Result<Vec<Inflated>, SandboxError> {
        self.ask(|source| source.inflate(payloads, cluster_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers until its time has come.
    #[derive(Debug)]
    struct Mortal {
        answers_left: u64,
    }

    impl ExtentSource for Mortal {
        fn map(&mut self, _: u32, _: u64, _: u64, _: &mut Vec<Extent>) -> Result<(), SandboxError> {
            let source = io::ErrorKind::BrokenPipe.into();
            self.answers_left = self
                .answers_left
                .checked_sub(1)
                .ok_or(SandboxError::Host { action: "ask the dead".into(), source })?;
            Ok(())
        }

        fn inflate(&mut self, _: &[Payload], _: u64) -> Result<Vec<Inflated>, SandboxError> {
            Ok(Vec::new())
        }
    }

    fn mortal(answers_left: u64) -> Box<dyn ExtentSource> {
        Box::new(Mortal { answers_left })
    }

    #[test]
    fn source_that_dies_is_started_anew_and_asked_again() {
        let mut source = Revived::new(mortal(1), || Ok(mortal(2)));
        let restarts = source.restarts();
        for _ in 0..5 {
            source.map(0, 0, 1, &mut Vec::new()).unwrap();
        }
        assert_eq!(restarts.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn source_that_sleeps_is_started_by_the_first_question() {
        let mut source = Revived::asleep(|| Ok(mortal(2)));
        let restarts = source.restarts();
        for _ in 0..3 {
            source.map(0, 0, 1, &mut Vec::new()).unwrap();
        }
        assert_eq!(restarts.load(Ordering::Relaxed), 1, "the first start is none");
    }

    #[test]
    fn source_that_cannot_be_started_is_counted_and_given_up() {
        let starts = Arc::new(AtomicU64::new(0));
        let count = starts.clone();
        let mut source = Revived::asleep(move || {
            count.fetch_add(1, Ordering::Relaxed);
            Err(SandboxError::Host { action: "start".into(), source: io::ErrorKind::OutOfMemory.into() })
        });
        for asked in 1..=2 * RESTARTS_MAX {
            assert!(source.map(0, 0, 1, &mut Vec::new()).is_err());
            assert_eq!(source.restarts().load(Ordering::Relaxed), asked.min(RESTARTS_MAX));
        }
        assert_eq!(starts.load(Ordering::Relaxed), RESTARTS_MAX);
    }

    #[test]
    fn source_that_dies_of_every_question_is_given_up() {
        let mut source = Revived::new(mortal(0), || Ok(mortal(0)));
        for _ in 0..2 * RESTARTS_MAX {
            assert!(source.map(0, 0, 1, &mut Vec::new()).is_err());
        }
        assert_eq!(source.restarts().load(Ordering::Relaxed), RESTARTS_MAX);
    }
}
