//! One disk (the active one or a snapshot) as an array of bytes.

use std::io;
use std::ops::Range;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, OnceLock};

use instar_abi::boot::FILES_MAX;
use instar_abi::problem::Problem;
use instar_abi::to_usize;
use tracing::warn;

use super::cache::Cache;
use super::extent::Place;
use super::health::{CacheCounts, Event, Health};
use super::source::{Inflated, Payload};
use super::unpack::{SharedSource, Unpacker};
use crate::image::Backend;

/// Clusters that one question to the source is about: 64 KiB of plain L2 entries, whatever the cluster size.
const WINDOW_CLUSTERS: u64 = 8192;
/// Memory for the inflated clusters of a disk that shares them with no other.
const UNPACKED_BYTES: usize = 4 << 20;
/// Cluster sizes of the format, as log2.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;

/// What the kernel reads at once where it keeps what it has read.
const PAGE_BYTES: u64 = 4096;

/// What a read of a damaged range gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnDamage {
    /// An error: nothing wrong is ever served.
    #[default]
    Eio,
    /// Zeros.
    Zero,
}

/// What shows where a disk has nothing allocated.
#[derive(Debug, Clone, Default)]
pub enum Backing {
    /// Zeros.
    #[default]
    None,
    /// Another disk, and zeros behind its end.
    Disk(Arc<Disk>),
    /// What nobody can tell: there is a disk, and it is not at hand.
    LeftOut,
}

/// The files below a disk, by file index.
pub type DiskFiles = [Option<Arc<dyn Backend>>; FILES_MAX];

/// A disk that can be read from any number of threads at once.
#[derive(Debug)]
pub struct Disk {
    pub(super) files: DiskFiles,
    pub(super) source: SharedSource,
    pub(super) unpacker: Arc<Unpacker>,
    pub(super) cache: Cache,
    pub(super) snapshot: u32,
    pub(super) size_bytes: u64,
    cluster_bytes: u64,
    pub(super) window_bytes: u64,
    pub(super) doublings: AtomicU32,
    on_damage: OnDamage,
    /// What unallocated ranges show.
    pub(super) backing: Backing,
    /// Bytes of the smallest part that is mapped by itself, here or in a backing disk.
    unit_bytes: u64,
    /// Damage is known of, here or in a backing disk.
    is_suspect: bool,
    pub(super) health: Health,
    /// Bytes that are data, once somebody wants to know.
    pub(super) data_bytes: OnceLock<u64>,
}

/// Why a read stopped before its end.
#[derive(Debug)]
pub enum Stop {
    /// The bytes cannot be told.
    Damaged(Problem),
    /// Nothing is allocated for them here, and what is below was left out.
    LeftOut,
    /// An encrypted cluster.
    Encrypted,
    /// A file below failed, or has become too short.
    Io(io::Error),
    /// The source gave no answer that can be believed.
    Source,
}

/// A cluster that a read inflated and of which it used a part.
#[derive(Debug, Clone)]
pub struct LeftOver {
    /// First guest byte.
    pub offset: u64,
    /// Guest bytes that the disk has of it.
    pub len: usize,
    /// Its bytes.
    pub cluster: Arc<Inflated>,
}

/// What a read came to: the first `filled` bytes of the buffer are right, and `stopped` says why it is not more.
/// Without `stopped`, the end of the disk is the reason, if the buffer is not full.
#[derive(Debug, Default)]
pub struct ReadOutcome {
    /// Bytes served.
    pub filled: usize,
    /// Why not more.
    pub stopped: Option<Stop>,
    /// More of this disk that is known now.
    pub left_over: Option<LeftOver>,
}

impl Disk {
    /// A disk of `size_bytes` bytes with clusters of `1 << cluster_bits`. A wrong cluster size costs speed, and makes
    /// compressed clusters read as damaged; `cache_bytes` bounds what the extents may take.
    #[must_use]
    pub fn new(
        files: DiskFiles,
        source: SharedSource,
        snapshot: u32,
        size_bytes: u64,
        cluster_bits: u32,
        cache_bytes: usize,
    ) -> Self {
        let cluster_bits = cluster_bits.clamp(*CLUSTER_BITS.start(), *CLUSTER_BITS.end());
        let cluster_bytes = 1 << cluster_bits;
        Self {
            files,
            unpacker: Arc::new(Unpacker::new(vec![source.clone()], cluster_bytes, UNPACKED_BYTES)),
            source,
            cache: Cache::new(cache_bytes),
            snapshot,
            size_bytes,
            cluster_bytes,
            window_bytes: WINDOW_CLUSTERS << cluster_bits,
            doublings: AtomicU32::new(0),
            on_damage: OnDamage::default(),
            backing: Backing::None,
            unit_bytes: cluster_bytes,
            is_suspect: false,
            data_bytes: OnceLock::new(),
            health: Health::default(),
        }
    }

    /// The same disk, inflating through what it shares with other disks of the same image.
    #[must_use]
    pub fn with_unpacker(mut self, unpacker: Arc<Unpacker>) -> Self {
        self.unpacker = unpacker;
        self
    }

    /// The same disk over what shows where this one has nothing allocated.
    #[must_use]
    pub fn over(mut self, backing: Backing) -> Self {
        if let Backing::Disk(below) = &backing {
            self.unit_bytes = self.unit_bytes.min(below.unit_bytes);
            self.is_suspect |= below.is_suspect;
        }
        self.is_suspect |= matches!(backing, Backing::LeftOut);
        self.backing = backing;
        self
    }

    /// The same with what is known of its own image: bytes of the smallest part that is mapped by itself, and whether
    /// there is damage. To be said before [`Disk::over`].
    #[must_use]
    pub fn made_of(mut self, unit_bytes: u64, is_damaged: bool) -> Self {
        self.unit_bytes = unit_bytes;
        self.is_suspect = is_damaged;
        self
    }

    /// Whether a place that cannot be read may share a page of memory with one that can, so that reads by whole pages
    /// would lose the one with the other.
    #[must_use]
    pub fn splits_pages(&self) -> bool {
        self.unit_bytes < PAGE_BYTES && (self.is_suspect || self.health.has_bad_clusters())
    }

    /// The same disk with another policy.
    #[must_use]
    pub fn on_damage(mut self, policy: OnDamage) -> Self {
        self.on_damage = policy;
        self
    }

    /// Size in bytes, as the guest sees it.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Bytes of a cluster.
    #[must_use]
    pub fn cluster_bytes(&self) -> u64 {
        self.cluster_bytes
    }

    /// What went wrong so far.
    #[must_use]
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// What is known of this disk's extents.
    #[must_use]
    pub fn extent_counts(&self) -> CacheCounts {
        self.cache.counts()
    }

    /// Reads from guest byte `offset` on until the buffer is full, the disk ends, or something stands in the way.
    /// What goes wrong in a backing disk is counted here, where the reader is.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> ReadOutcome {
        let outcome = self.fill(offset, into, &self.health);
        if let Some(stop) = &outcome.stopped {
            self.health.count(stop.event());
            let at = offset.saturating_add(outcome.filled as u64);
            if matches!(stop, Stop::Damaged(_) | Stop::LeftOut | Stop::Io(_)) {
                self.health.note_bad(at - at % self.cluster_bytes);
            }
        }
        outcome
    }

    /// As [`Disk::read`] for a reader whose `health` is not this disk's; a stop is for the reader to count.
    fn fill(&self, offset: u64, into: &mut [u8], health: &Health) -> ReadOutcome {
        let left = to_usize(self.size_bytes.saturating_sub(offset).min(into.len() as u64));
        let into = &mut into[..left];
        let mut all = ReadOutcome::default();
        while all.filled < into.len() && all.stopped.is_none() {
            let at = offset + all.filled as u64;
            let part = self.read_piece(at, &mut into[all.filled..], health);
            all.filled += part.filled;
            all.stopped = part.stopped;
            all.left_over = part.left_over.or(all.left_over);
        }
        all
    }

    /// Reads from guest byte `at`, which is on the disk, to the end of what that byte is a part of.
    fn read_piece(&self, at: u64, into: &mut [u8], health: &Health) -> ReadOutcome {
        let piece = match self.piece(at) {
            Ok(piece) => piece,
            Err(stop) => return Err(stop).into(),
        };
        if let Place::Compressed { offset, len } = piece.place {
            return self.read_compressed(at, Payload { offset, len }, piece.len, into, health);
        }
        let bytes = to_usize(piece.len.min(into.len() as u64));
        let into = &mut into[..bytes];
        let done = match piece.place {
            Place::Data { file, offset } => self.read_file(file, offset, into),
            Place::Hole => return self.read_hole(at, into, health),
            Place::Zero => {
                into.fill(0);
                Ok(())
            }
            Place::Damaged(problem) => self.read_lost(at, Stop::Damaged(problem), into, health),
            Place::Compressed { .. } => Err(Stop::Source),
            Place::Encrypted => Err(Stop::Encrypted),
        };
        done.map(|()| bytes).into()
    }

    /// Reads what an unallocated range shows.
    fn read_hole(&self, at: u64, into: &mut [u8], health: &Health) -> ReadOutcome {
        let below = match &self.backing {
            Backing::Disk(backing) => backing.fill(at, into, health),
            Backing::None => ReadOutcome::default(),
            Backing::LeftOut => {
                return self.read_lost(at, Stop::LeftOut, into, health).map(|()| into.len()).into();
            }
        };
        if below.stopped.is_some() {
            return below;
        }
        into[below.filled..].fill(0);
        // What is left over below may lie under clusters of this disk.
        Ok(into.len()).into()
    }

    fn read_lost(&self, at: u64, why: Stop, into: &mut [u8], health: &Health) -> Result<(), Stop> {
        match self.on_damage {
            OnDamage::Eio => Err(why),
            OnDamage::Zero => {
                health.count(Event::DamagedRead);
                health.note_bad(at - at % self.cluster_bytes);
                into.fill(0);
                Ok(())
            }
        }
    }

    /// Reads from guest byte `at`, of which `len` bytes are made of a compressed cluster; the rest of `into` is what
    /// will be read next.
    fn read_compressed(
        &self,
        at: u64,
        payload: Payload,
        len: u64,
        into: &mut [u8],
        health: &Health,
    ) -> ReadOutcome {
        let skipped = at % self.cluster_bytes;
        let bytes = to_usize(len.min(self.cluster_bytes - skipped).min(into.len() as u64));
        let kept = self.unpacker.kept(payload);
        let is_new = kept.is_none();
        let inflated = kept.map_or_else(|| self.inflate(at, payload, at + bytes as u64, into.len()), Ok);
        let cluster = match inflated {
            Ok(cluster) => cluster,
            Err(stop) => return Err(stop).into(),
        };
        let into = &mut into[..bytes];
        let done = match &*cluster {
            Ok(cluster) => match cluster.get(to_usize(skipped)..).and_then(|rest| rest.get(..bytes)) {
                Some(part) => {
                    into.copy_from_slice(part);
                    Ok(())
                }
                None => Err(Stop::Source),
            },
            Err(Problem::ReadError) => Err(Stop::Io(io::ErrorKind::Other.into())),
            Err(problem) => self.read_lost(at, Stop::Damaged(*problem), into, health),
        };
        let left_over = (is_new && cluster.is_ok()).then(|| self.left_over(at - skipped, payload, cluster));
        ReadOutcome { left_over: left_over.flatten(), ..done.map(|()| bytes).into() }
    }

    /// Inflates what guest byte `at` is made of, together with what will be wanted after `next`: `wanted` bytes from
    /// `at` on.
    fn inflate(&self, at: u64, payload: Payload, next: u64, wanted: usize) -> Result<Arc<Inflated>, Stop> {
        let ahead = self.payloads(next..at + wanted as u64);
        self.unpacker.inflate(payload, &ahead).map_err(|error| {
            warn!(event = crate::event::CAGE_FAILED.id, guest_offset = at, %error, "the cage inflated nothing");
            Stop::Source
        })
    }

    /// The cluster from guest byte `start` on, if all of it is made of this payload.
    fn left_over(&self, start: u64, payload: Payload, cluster: Arc<Inflated>) -> Option<LeftOver> {
        let len = self.cluster_bytes.min(self.size_bytes.checked_sub(start)?);
        let piece = self.cache.piece(start)?;
        let is_whole = piece.place == Place::from(payload) && piece.len >= len;
        is_whole.then(|| LeftOver { offset: start, len: to_usize(len), cluster })
    }

    /// What is compressed in `range`, as far as its extents are known and it is worth asking for at once.
    fn payloads(&self, range: Range<u64>) -> Vec<Payload> {
        let mut found = Vec::new();
        let mut at = range.start;
        while at < range.end && found.len() < self.unpacker.batch_max() {
            let Some(piece) = self.cache.piece(at) else { break };
            if let Place::Compressed { offset, len } = piece.place {
                found.push(Payload { offset, len });
            }
            at = at.saturating_add(piece.len);
        }
        found
    }

    fn read_file(&self, file: u8, offset: u64, into: &mut [u8]) -> Result<(), Stop> {
        let backend = self.files.get(usize::from(file)).and_then(Option::as_ref).ok_or(Stop::Source)?;
        backend.read_at(into, offset).map_err(|error| {
            warn!(event = crate::event::FILE_FAILED.id, file, offset, bytes = into.len(), %error, "cannot read the file under the disk");
            Stop::Io(error)
        })
    }
}

impl From<Result<usize, Stop>> for ReadOutcome {
    fn from(done: Result<usize, Stop>) -> Self {
        match done {
            Ok(filled) => Self { filled, ..Self::default() },
            Err(stop) => Self { stopped: Some(stop), ..Self::default() },
        }
    }
}

impl Stop {
    /// What it is counted as.
    pub(super) fn event(&self) -> Event {
        match self {
            Self::Damaged(_) | Self::LeftOut => Event::DamagedRead,
            Self::Encrypted => Event::UnsupportedRead,
            Self::Io(_) => Event::IoError,
            Self::Source => Event::SourceError,
        }
    }
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
