//! Inflated clusters: kept for a while, bounded in bytes, shared by all disks and readers of an image.
//!
//! Invariants: no lock is held while a cage works but that cage's own; a payload is in work at most once at a time,
//! and who else wants it waits for that; what could not be read is not kept, so that it is tried again. What was not
//! used since the hand last passed is dropped first (CLOCK).

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::sync::Arc;

use instar_abi::extent::{INFLATED_BYTES_MAX, REQUESTS_MAX};
use instar_abi::problem::Problem;
use instar_abi::to_usize;
use parking_lot::{Condvar, Mutex};
use tracing::warn;

use super::health::CacheCounts;
use super::source::{ExtentSource, Inflated, Payload};
use crate::sandbox::error::SandboxError;

/// A source that several disks ask, one at a time.
pub type SharedSource = Arc<Mutex<Box<dyn ExtentSource>>>;

/// Memory that an entry costs besides its cluster.
const ENTRY_BYTES: usize = 128;
/// Payloads that are worth a second source's time.
const SHARED_MIN: usize = 4;

#[derive(Debug)]
struct Entry {
    cluster: Arc<Inflated>,
    /// Hit since the hand last passed.
    used: bool,
}

#[derive(Debug, Default)]
struct Kept {
    entries: HashMap<Payload, Entry>,
    /// The entries' keys; the hand stands at the front.
    queue: VecDeque<Payload>,
    bytes: usize,
    added: u64,
    dropped: u64,
    /// What cages are inflating now.
    in_work: HashSet<Payload>,
}

/// Inflates through one source or several, and keeps what came out.
#[derive(Debug)]
pub struct Unpacker {
    sources: Vec<SharedSource>,
    cluster_bytes: u64,
    bytes_max: usize,
    kept: Mutex<Kept>,
    done: Condvar,
}

impl Unpacker {
    /// An unpacker for the clusters of one image that keeps about `bytes_max` bytes, and always what it inflated
    /// last. `sources` all speak for that image; there is at least one.
    #[must_use]
    pub fn new(sources: Vec<SharedSource>, cluster_bytes: u64, bytes_max: usize) -> Self {
        Self { sources, cluster_bytes, bytes_max, kept: Mutex::default(), done: Condvar::new() }
    }

    /// How many payloads are worth being named at once.
    #[must_use]
    pub fn batch_max(&self) -> usize {
        let clusters = INFLATED_BYTES_MAX.checked_div(self.cluster_bytes).unwrap_or(0);
        to_usize(clusters).clamp(1, REQUESTS_MAX)
    }

    /// What a payload inflates to, if that is kept.
    pub fn kept(&self, payload: Payload) -> Option<Arc<Inflated>> {
        self.kept.lock().get(payload)
    }

    /// Whether what a payload inflates to is kept.
    pub fn holds(&self, payload: Payload) -> bool {
        self.kept.lock().entries.contains_key(&payload)
    }

    /// What a payload inflates to; those in `ahead` will be wanted next, and are inflated with it if they are
    /// neither kept nor in work.
    ///
    /// # Errors
    /// Those of the source.
    pub fn inflate(&self, payload: Payload, ahead: &[Payload]) -> Result<Arc<Inflated>, SandboxError> {
        let mut kept = self.kept.lock();
        loop {
            if let Some(cluster) = kept.get(payload) {
                return Ok(cluster);
            }
            if !kept.in_work.contains(&payload) {
                break;
            }
            self.done.wait(&mut kept);
        }
        let claim = Claim::new(self, &mut kept, payload, ahead);
        drop(kept);
        let inflated = self.work(&claim.payloads)?;
        let mut wanted = None;
        let mut kept = self.kept.lock();
        for (&payload, cluster) in claim.payloads.iter().zip(inflated) {
            let cluster = Arc::new(cluster);
            wanted.get_or_insert_with(|| cluster.clone());
            if !matches!(*cluster, Err(Problem::ReadError)) {
                kept.put(payload, cluster);
            }
        }
        kept.evict(self.bytes_max, claim.payloads.len());
        drop(kept);
        Ok(wanted.unwrap_or_else(|| Arc::new(Err(Problem::ReadError))))
    }

    /// Drops what was not read since this was called last, and says how many clusters that were.
    pub fn forget_unused(&self) -> usize {
        self.kept.lock().forget_unused()
    }

    /// What is kept, how many clusters were inflated, and how many of those dropped.
    #[must_use]
    pub fn counts(&self) -> CacheCounts {
        let kept = self.kept.lock();
        CacheCounts { bytes: kept.bytes as u64, added: kept.added, dropped: kept.dropped }
    }

    /// Inflates through a source that nobody uses, and where there is much to do through another such one too.
    fn work(&self, payloads: &[Payload]) -> Result<Vec<Inflated>, SandboxError> {
        let mut free = (0..self.sources.len()).filter(|&index| !self.sources[index].is_locked());
        let first = free.next().unwrap_or(0);
        let Some(second) = free.next().filter(|_| payloads.len() >= SHARED_MIN) else {
            return self.ask(first, payloads);
        };
        let (own, others) = payloads.split_at(payloads.len().div_ceil(2));
        std::thread::scope(|scope| {
            let others = std::thread::Builder::new().spawn_scoped(scope, || self.ask(second, others));
            let others = match others {
                Ok(others) => others,
                Err(error) => {
                    warn!(%error, "no thread to share the inflating with");
                    return self.ask(first, payloads);
                }
            };
            let mut inflated = self.ask(first, own)?;
            let died = |_| host("inflate on another thread, which panicked", io::ErrorKind::Other.into());
            inflated.extend(others.join().map_err(died)??);
            Ok(inflated)
        })
    }

    /// Asks one source, and the first one in its place if it cannot.
    fn ask(&self, index: usize, payloads: &[Payload]) -> Result<Vec<Inflated>, SandboxError> {
        let answer = self.sources[index].lock().inflate(payloads, self.cluster_bytes);
        match answer {
            Err(error) if index > 0 => {
                warn!(%error, "one cage less inflates");
                self.sources[0].lock().inflate(payloads, self.cluster_bytes)
            }
            answer => answer,
        }
    }
}

fn host(action: &str, source: io::Error) -> SandboxError {
    SandboxError::Host { action: action.into(), source }
}

/// Payloads in work; they no longer are when this is dropped.
struct Claim<'a> {
    unpacker: &'a Unpacker,
    payloads: Vec<Payload>,
}

impl<'a> Claim<'a> {
    fn new(unpacker: &'a Unpacker, kept: &mut Kept, payload: Payload, ahead: &[Payload]) -> Self {
        let mut payloads = Vec::with_capacity(unpacker.batch_max());
        for &payload in std::iter::once(&payload).chain(ahead).take(unpacker.batch_max()) {
            if !kept.entries.contains_key(&payload) && kept.in_work.insert(payload) {
                payloads.push(payload);
            }
        }
        Self { unpacker, payloads }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut kept = self.unpacker.kept.lock();
        for payload in &self.payloads {
            kept.in_work.remove(payload);
        }
        self.unpacker.done.notify_all();
    }
}

impl Kept {
    fn get(&mut self, payload: Payload) -> Option<Arc<Inflated>> {
        let entry = self.entries.get_mut(&payload)?;
        entry.used = true;
        Some(entry.cluster.clone())
    }

    fn put(&mut self, payload: Payload, cluster: Arc<Inflated>) {
        let bytes = bytes_of(&cluster);
        if self.entries.insert(payload, Entry { cluster, used: false }).is_none() {
            self.queue.push_back(payload);
            self.bytes += bytes;
            self.added += 1;
        }
    }

    /// Drops entries until the rest fits, but never the `newest` ones. Two rounds of the hand are enough: the first
    /// takes every mark away.
    fn evict(&mut self, bytes_max: usize, newest: usize) {
        let mut steps = self.queue.len().saturating_sub(newest).saturating_mul(2);
        while self.bytes > bytes_max && steps > 0 {
            steps -= 1;
            let Some(payload) = self.queue.pop_front() else { return };
            match self.entries.get_mut(&payload) {
                Some(entry) if entry.used => {
                    entry.used = false;
                    self.queue.push_back(payload);
                }
                _ => self.drop_entry(payload),
            }
        }
    }

    /// One round of the hand, whatever the budget.
    fn forget_unused(&mut self) -> usize {
        let queued = std::mem::take(&mut self.queue);
        let before = queued.len();
        for payload in queued {
            match self.entries.get_mut(&payload) {
                Some(entry) if entry.used => {
                    entry.used = false;
                    self.queue.push_back(payload);
                }
                _ => self.drop_entry(payload),
            }
        }
        before - self.queue.len()
    }

    fn drop_entry(&mut self, payload: Payload) {
        if let Some(entry) = self.entries.remove(&payload) {
            self.bytes -= bytes_of(&entry.cluster);
            self.dropped += 1;
        }
    }
}

fn bytes_of(cluster: &Inflated) -> usize {
    ENTRY_BYTES + cluster.as_ref().map_or(0, |bytes| bytes.len())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use instar_abi::extent::Extent;

    use super::*;

    const CLUSTER: u64 = 4096;

    /// Inflates a payload to its offset's low byte; odd offsets are damaged, offset 2 is never read.
    #[derive(Debug, Clone, Default)]
    struct Counting(Arc<AtomicU64>);

    impl ExtentSource for Counting {
        fn map(&mut self, _: u32, _: u64, _: u64, _: &mut Vec<Extent>) -> Result<(), SandboxError> {
            unreachable!("nothing is mapped in here")
        }

        fn inflate(
            &mut self,
            payloads: &[Payload],
            cluster_bytes: u64,
        ) -> Result<Vec<Inflated>, SandboxError> {
            assert!((1..=REQUESTS_MAX).contains(&payloads.len()));
            assert!(payloads.len() as u64 * cluster_bytes <= INFLATED_BYTES_MAX);
            self.0.fetch_add(payloads.len() as u64, Ordering::Relaxed);
            std::thread::sleep(std::time::Duration::from_millis(1));
            let one = |payload: &Payload| match payload.offset {
                2 => Err(Problem::ReadError),
                odd if odd % 2 == 1 => Err(Problem::CompressedDamaged),
                offset => Ok(vec![offset.to_le_bytes()[0]; to_usize(cluster_bytes)].into()),
            };
            Ok(payloads.iter().map(one).collect())
        }
    }

    fn unpacker(bytes_max: usize) -> (Unpacker, Arc<AtomicU64>) {
        let counting = Counting::default();
        let inflated = counting.0.clone();
        let source = || -> SharedSource { Arc::new(Mutex::new(Box::new(counting.clone()))) };
        (Unpacker::new(vec![source(), source()], CLUSTER, bytes_max), inflated)
    }

    fn payload(offset: u64) -> Payload {
        Payload { offset, len: 9 }
    }

    fn first_byte(unpacker: &Unpacker, offset: u64) -> Result<u8, Problem> {
        let cluster = unpacker.inflate(payload(offset), &[]).unwrap();
        cluster.as_ref().as_ref().map(|bytes| bytes[0]).map_err(|problem| *problem)
    }

    #[test]
    fn unpacker_inflates_a_payload_once_with_those_ahead_of_it() {
        let (unpacker, inflated) = unpacker(1 << 20);
        let ahead: Vec<Payload> = (2..20).map(|at| payload(at * 2)).collect();
        unpacker.inflate(payload(0), &ahead).unwrap();
        for at in [0, 4, 38, 4] {
            assert_eq!(first_byte(&unpacker, at), Ok(at.to_le_bytes()[0]));
        }
        assert_eq!(inflated.load(Ordering::Relaxed), 19);
    }

    #[test]
    fn unpacker_keeps_damage_but_tries_what_was_not_read_again() {
        let (unpacker, inflated) = unpacker(1 << 20);
        for _ in 0..3 {
            assert_eq!(first_byte(&unpacker, 1), Err(Problem::CompressedDamaged));
            assert_eq!(first_byte(&unpacker, 2), Err(Problem::ReadError));
        }
        assert_eq!(inflated.load(Ordering::Relaxed), 1 + 3);
    }

    #[test]
    fn unpacker_over_its_budget_drops_what_was_not_used() {
        let budget = 16 * to_usize(CLUSTER);
        let (unpacker, inflated) = unpacker(budget);
        for at in 2..200 {
            first_byte(&unpacker, at * 2).unwrap();
            first_byte(&unpacker, 4).unwrap();
            assert!(unpacker.kept.lock().bytes <= budget + to_usize(CLUSTER) + ENTRY_BYTES);
        }
        assert_eq!(inflated.load(Ordering::Relaxed), 198, "the cluster in use stays");
        assert!(unpacker.kept(payload(6)).is_none());
        let kept = unpacker.kept.lock();
        assert_eq!(kept.entries.len(), kept.queue.len());
    }

    #[test]
    fn unpacker_forgets_what_was_not_read_between_two_looks() {
        let (unpacker, inflated) = unpacker(1 << 20);
        for at in [0, 4, 8] {
            first_byte(&unpacker, at).unwrap();
        }
        first_byte(&unpacker, 4).unwrap();
        assert_eq!(unpacker.forget_unused(), 2);
        assert!(unpacker.kept(payload(4)).is_some() && unpacker.kept(payload(0)).is_none());
        assert_eq!((unpacker.forget_unused(), unpacker.forget_unused()), (0, 1), "read once, then no more");
        assert_eq!(unpacker.counts(), CacheCounts { bytes: 0, added: 3, dropped: 3 });
        first_byte(&unpacker, 4).unwrap();
        assert_eq!(inflated.load(Ordering::Relaxed), 4);
    }

    #[test]
    fn unpacker_inflates_for_many_readers_once() {
        let (unpacker, inflated) = unpacker(1 << 20);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for at in 2..20 {
                        let ahead: Vec<Payload> = (at..at + 4).map(|at| payload(at * 2)).collect();
                        let cluster = unpacker.inflate(payload(at * 2), &ahead).unwrap();
                        assert_eq!(cluster.as_ref().as_ref().unwrap()[9], (at * 2).to_le_bytes()[0]);
                    }
                });
            }
        });
        let kept = unpacker.kept.lock();
        assert_eq!(inflated.load(Ordering::Relaxed), kept.entries.len() as u64, "each one once");
        assert!(kept.in_work.is_empty());
    }
}
