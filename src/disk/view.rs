//! One disk (the active one or a snapshot) as an array of bytes.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use instar_abi::boot::FILES_MAX;
use instar_abi::extent::Extent;
use instar_abi::problem::Problem;
use instar_abi::to_usize;
use tracing::warn;

use super::cache::Cache;
use super::extent::{Piece, Place, checked};
use super::health::{Event, Health};
use super::source::Payload;
use super::unpack::{SharedSource, Unpacker};
use crate::image::Backend;

/// Clusters that one question to the source is about: 64 KiB of plain L2 entries, whatever the cluster size.
const WINDOW_CLUSTERS: u64 = 8192;
/// A window is doubled at most this many times, as long as the answers stay small.
const WINDOW_DOUBLINGS_MAX: u32 = 6;
/// An answer of up to this many runs is small.
const SMALL_ANSWER_RUNS: usize = 8;
/// Memory for the inflated clusters of a disk that shares them with no other.
const UNPACKED_BYTES: usize = 4 << 20;
/// Cluster sizes of the format, as log2.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;

/// What a read of a damaged range gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnDamage {
    /// An error: nothing wrong is ever served.
    #[default]
    Eio,
    /// Zeros.
    Zero,
}

/// The files below a disk, by file index.
pub type DiskFiles = [Option<Arc<dyn Backend>>; FILES_MAX];

/// A disk that can be read from any number of threads at once.
#[derive(Debug)]
pub struct Disk {
    files: DiskFiles,
    source: SharedSource,
    unpacker: Arc<Unpacker>,
    cache: Cache,
    snapshot: u32,
    size_bytes: u64,
    cluster_bytes: u64,
    window_bytes: u64,
    doublings: AtomicU32,
    on_damage: OnDamage,
    health: Health,
}

/// Why a read stopped before its end.
#[derive(Debug)]
pub enum Stop {
    /// The bytes cannot be told.
    Damaged(Problem),
    /// An encrypted cluster.
    Encrypted,
    /// A file below failed, or has become too short.
    Io(io::Error),
    /// The source gave no answer that can be believed.
    Source,
}

/// What a read came to: the first `filled` bytes of the buffer are right, and `stopped` says why it is not more.
/// Without `stopped`, the end of the disk is the reason, if the buffer is not full.
#[derive(Debug)]
pub struct ReadOutcome {
    /// Bytes served.
    pub filled: usize,
    /// Why not more.
    pub stopped: Option<Stop>,
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
            health: Health::default(),
        }
    }

    /// The same disk, inflating through what it shares with other disks of the same image.
    #[must_use]
    pub fn with_unpacker(mut self, unpacker: Arc<Unpacker>) -> Self {
        self.unpacker = unpacker;
        self
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

    /// What went wrong so far.
    #[must_use]
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Reads from guest byte `offset` on until the buffer is full, the disk ends, or something stands in the way.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> ReadOutcome {
        let left = to_usize(self.size_bytes.saturating_sub(offset).min(into.len() as u64));
        let (mut filled, into) = (0, &mut into[..left]);
        while filled < into.len() {
            let at = offset + filled as u64;
            match self.read_piece(at, &mut into[filled..]) {
                Ok(bytes) => filled += bytes,
                Err(stop) => {
                    self.health.count(stop.event());
                    return ReadOutcome { filled, stopped: Some(stop) };
                }
            }
        }
        ReadOutcome { filled, stopped: None }
    }

    /// Reads from guest byte `at`, which is on the disk, to the end of what that byte is a part of.
    fn read_piece(&self, at: u64, into: &mut [u8]) -> Result<usize, Stop> {
        let piece = self.piece(at)?;
        if let Place::Compressed { offset, len } = piece.place {
            return self.read_compressed(at, Payload { offset, len }, piece.len, into);
        }
        let bytes = to_usize(piece.len.min(into.len() as u64));
        let into = &mut into[..bytes];
        match piece.place {
            Place::Data { file, offset } => self.read_file(file, offset, into)?,
            Place::Zero | Place::Hole => into.fill(0),
            Place::Damaged(problem) => self.read_damaged(problem, into)?,
            Place::Compressed { .. } => return Err(Stop::Source),
            Place::Encrypted => return Err(Stop::Encrypted),
        }
        Ok(bytes)
    }

    fn read_damaged(&self, problem: Problem, into: &mut [u8]) -> Result<(), Stop> {
        match self.on_damage {
            OnDamage::Eio => Err(Stop::Damaged(problem)),
            OnDamage::Zero => {
                self.health.count(Event::DamagedRead);
                into.fill(0);
                Ok(())
            }
        }
    }

    /// Reads from guest byte `at`, of which `len` bytes are made of a compressed cluster; the rest of `into` is what
    /// will be read next.
    fn read_compressed(&self, at: u64, payload: Payload, len: u64, into: &mut [u8]) -> Result<usize, Stop> {
        let skipped = at % self.cluster_bytes;
        let bytes = to_usize(len.min(self.cluster_bytes - skipped).min(into.len() as u64));
        let cluster = match self.unpacker.kept(payload) {
            Some(cluster) => cluster,
            None => {
                let ahead = self.payloads(at + bytes as u64..at + into.len() as u64);
                self.unpacker.inflate(payload, &ahead).map_err(|error| {
                    warn!(guest_offset = at, %error, "the cage inflated nothing");
                    Stop::Source
                })?
            }
        };
        let into = &mut into[..bytes];
        match &*cluster {
            Ok(cluster) => {
                let part = cluster.get(to_usize(skipped)..).and_then(|rest| rest.get(..bytes));
                into.copy_from_slice(part.ok_or(Stop::Source)?);
            }
            Err(Problem::ReadError) => return Err(Stop::Io(io::ErrorKind::Other.into())),
            Err(problem) => self.read_damaged(*problem, into)?,
        }
        Ok(bytes)
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
            warn!(file, offset, bytes = into.len(), %error, "cannot read the file under the disk");
            Stop::Io(error)
        })
    }

    /// What guest byte `at`, which is on the disk, is made of, and for how long.
    ///
    /// # Errors
    /// [`Stop::Source`] where the source gives no answer that can be believed.
    fn piece(&self, at: u64) -> Result<Piece, Stop> {
        match self.cache.piece(at) {
            Some(piece) => Ok(piece),
            None => self.ask(at),
        }
    }

    /// Asks the source about the window round guest byte `at`.
    fn ask(&self, at: u64) -> Result<Piece, Stop> {
        let mut source = self.source.lock();
        // Whoever held the lock before may have asked the same.
        if let Some(piece) = self.cache.piece(at) {
            return Ok(piece);
        }
        let range = self.window(at);
        let mut answer: Vec<Extent> = Vec::new();
        source.map(self.snapshot, range.start, range.end - range.start, &mut answer).map_err(|error| {
            warn!(guest_offset = range.start, %error, "the cage named no extents");
            Stop::Source
        })?;
        let runs = checked(&answer, range.clone(), |file| self.file_len(file)).map_err(|error| {
            warn!(%error, "the cage broke a rule of the extent list");
            Stop::Source
        })?;
        let small = runs.len() <= SMALL_ANSWER_RUNS;
        let doublings = self.doublings.load(Ordering::Relaxed);
        let next = if small { (doublings + 1).min(WINDOW_DOUBLINGS_MAX) } else { 0 };
        self.doublings.store(next, Ordering::Relaxed);
        self.cache.insert(range, runs);
        self.cache.piece(at).ok_or(Stop::Source)
    }

    /// The unknown range round guest byte `at` to ask for.
    fn window(&self, at: u64) -> Range<u64> {
        let start = at - at % self.window_bytes;
        let bytes = self.window_bytes << self.doublings.load(Ordering::Relaxed);
        self.cache.gap(at, start..start.saturating_add(bytes).min(self.size_bytes))
    }

    fn file_len(&self, file: u32) -> Option<u64> {
        let file = self.files.get(usize::try_from(file).ok()?)?.as_ref()?;
        Some(file.len())
    }

    /// The first byte at or behind `offset` that is (`data`) or is not data; `None` where there is none before the
    /// end of the disk. Zeros and unallocated ranges are holes, and so is what lies behind the end.
    ///
    /// # Errors
    /// [`Stop::Source`] where the source gives no answer that can be believed.
    pub fn seek(&self, offset: u64, data: bool) -> Result<Option<u64>, Stop> {
        let mut at = offset;
        while at < self.size_bytes {
            let piece = self.piece(at).inspect_err(|stop| self.health.count(stop.event()))?;
            if matches!(piece.place, Place::Zero | Place::Hole) != data {
                return Ok(Some(at));
            }
            at = at.saturating_add(piece.len);
        }
        Ok(None)
    }
}

impl Stop {
    fn event(&self) -> Event {
        match self {
            Self::Damaged(_) => Event::DamagedRead,
            Self::Encrypted => Event::UnsupportedRead,
            Self::Io(_) => Event::IoError,
            Self::Source => Event::SourceError,
        }
    }
}

#[cfg(test)]
mod tests {
    use instar_abi::extent::ExtentKind;
    use instar_abi::finding::ACTIVE;
    use proptest::prelude::*;

    use parking_lot::Mutex;

    use super::*;
    use crate::disk::{ExtentSource, Inflated};
    use crate::sandbox::error::SandboxError;

    const CLUSTER: u64 = 512;

    /// A file in memory, which may have shrunk since its length was told.
    #[derive(Debug)]
    struct Bytes {
        bytes: Vec<u8>,
        told_len: u64,
    }

    impl Backend for Bytes {
        fn len(&self) -> u64 {
            self.told_len
        }

        fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
            let from = to_usize(offset);
            let bytes = self.bytes.get(from..from + into.len());
            into.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        }

        fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
            Err(io::ErrorKind::ReadOnlyFilesystem.into())
        }

        fn set_len(&self, _: u64) -> io::Result<()> {
            Err(io::ErrorKind::ReadOnlyFilesystem.into())
        }

        fn sync(&self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Names one extent per cluster, and counts how often it is asked.
    #[derive(Debug)]
    struct Clusters {
        kinds: Vec<(ExtentKind, u64)>,
        asked: Arc<AtomicU32>,
        lies: bool,
    }

    impl ExtentSource for Clusters {
        fn map(
            &mut self,
            snapshot: u32,
            offset: u64,
            len: u64,
            into: &mut Vec<Extent>,
        ) -> Result<(), SandboxError> {
            assert_eq!(snapshot, ACTIVE);
            self.asked.fetch_add(1, Ordering::Relaxed);
            for at in offset / CLUSTER..(offset + len).div_ceil(CLUSTER) {
                let (kind, host) = self.kinds[to_usize(at)];
                into.push(Extent {
                    guest_offset: at * CLUSTER,
                    guest_len: CLUSTER,
                    host_offset: host * CLUSTER,
                    host_len: CLUSTER,
                    kind: kind as u32,
                    file: if self.lies { 3 } else { 0 },
                    problem: if kind == ExtentKind::Damaged { Problem::L2EntryPastEof as u32 } else { 0 },
                    reserved: 0,
                });
            }
            Ok(())
        }

        /// Every cluster is full of its payload's first cluster number; that of number 60 is damaged.
        fn inflate(&mut self, payloads: &[Payload], cluster: u64) -> Result<Vec<Inflated>, SandboxError> {
            assert_eq!(cluster, CLUSTER);
            self.asked.fetch_add(1, Ordering::Relaxed);
            let one = |payload: &Payload| match payload.offset / CLUSTER {
                60 => Err(Problem::CompressedDamaged),
                number => Ok(vec![number.to_le_bytes()[0]; to_usize(cluster)].into()),
            };
            Ok(payloads.iter().map(one).collect())
        }
    }

    fn file_bytes(clusters: u64) -> Vec<u8> {
        (0..clusters * CLUSTER).map(|at| u8::try_from((at / 7 + at) % 251 + 1).unwrap()).collect()
    }

    fn disk_of(kinds: &[(ExtentKind, u64)], size_bytes: u64, cache_bytes: usize) -> (Disk, Arc<AtomicU32>) {
        let bytes = file_bytes(64);
        let file: Arc<dyn Backend> = Arc::new(Bytes { told_len: bytes.len() as u64, bytes });
        let asked = Arc::new(AtomicU32::new(0));
        let source = Clusters { kinds: kinds.to_vec(), asked: asked.clone(), lies: false };
        let source: SharedSource = Arc::new(Mutex::new(Box::new(source)));
        (Disk::new([Some(file), None, None, None], source, ACTIVE, size_bytes, 0, cache_bytes), asked)
    }

    fn outcome(disk: &Disk, offset: u64, len: usize) -> (Vec<u8>, Option<Stop>) {
        let mut bytes = vec![0xee; len];
        let outcome = disk.read(offset, &mut bytes);
        bytes.truncate(outcome.filled);
        (bytes, outcome.stopped)
    }

    #[test]
    fn read_into_damage_serves_what_lies_before_it_and_neighbours_stay_readable() {
        let kinds = [(ExtentKind::Data, 1), (ExtentKind::Damaged, 0), (ExtentKind::Data, 2)];
        let (disk, _) = disk_of(&kinds, 3 * CLUSTER, 1 << 20);
        let (bytes, stopped) = outcome(&disk, 0, to_usize(3 * CLUSTER));
        assert_eq!(bytes, file_bytes(64)[512..1024]);
        assert!(matches!(stopped, Some(Stop::Damaged(Problem::L2EntryPastEof))));
        assert!(matches!(outcome(&disk, CLUSTER, 1), (_, Some(Stop::Damaged(_)))));
        let (bytes, stopped) = outcome(&disk, 2 * CLUSTER, 4096);
        assert_eq!(bytes, file_bytes(64)[1024..1536]);
        assert!(stopped.is_none(), "the end of the disk is no error");
        assert_eq!(disk.health().counts().damaged_reads, 2);
    }

    #[test]
    fn read_of_damage_as_zeros_is_counted() {
        let (disk, _) = disk_of(&[(ExtentKind::Damaged, 0)], CLUSTER, 1 << 20);
        let disk = disk.on_damage(OnDamage::Zero);
        let (bytes, stopped) = outcome(&disk, 0, 512);
        assert_eq!(bytes, [0; 512]);
        assert!(stopped.is_none());
        assert_eq!(disk.health().counts().damaged_reads, 1);
    }

    #[test]
    fn read_of_what_is_not_served_is_told_and_counted() {
        let (disk, _) = disk_of(&[(ExtentKind::Encrypted, 1)], CLUSTER, 1 << 20);
        assert!(matches!(outcome(&disk, 0, 1), (_, Some(Stop::Encrypted))));
        assert_eq!(disk.health().counts().unsupported_reads, 1);
    }

    #[test]
    fn read_of_compressed_clusters_inflates_them_together_and_once() {
        let kinds: Vec<_> = (0..8).map(|at| (ExtentKind::Compressed, at + 1)).collect();
        let (disk, asked) = disk_of(&kinds, 8 * CLUSTER - 5, 1 << 20);
        let (bytes, stopped) = outcome(&disk, 100, 8 * 512);
        assert!(stopped.is_none());
        let expected: Vec<u8> = (100..8 * 512 - 5).map(|at: u64| (at / 512 + 1).to_le_bytes()[0]).collect();
        assert_eq!(bytes, expected);
        assert_eq!(outcome(&disk, 1500, 20).0, expected[1400..1420]);
        assert_eq!(asked.load(Ordering::Relaxed), 2, "one map, one batch to inflate");
    }

    #[test]
    fn read_of_a_damaged_payload_costs_its_cluster_only() {
        let kinds = [(ExtentKind::Compressed, 1), (ExtentKind::Compressed, 60), (ExtentKind::Compressed, 2)];
        let (disk, _) = disk_of(&kinds, 3 * CLUSTER, 1 << 20);
        let (bytes, stopped) = outcome(&disk, 0, 3 * 512);
        assert_eq!(bytes, [1; 512]);
        assert!(matches!(stopped, Some(Stop::Damaged(Problem::CompressedDamaged))));
        assert_eq!(outcome(&disk, 2 * CLUSTER, 512).0, [2; 512]);
        assert_eq!(disk.health().counts().damaged_reads, 1);
    }

    #[test]
    fn read_of_a_shrunken_file_is_an_io_error() {
        let file: Arc<dyn Backend> = Arc::new(Bytes { bytes: file_bytes(1), told_len: 64 * CLUSTER });
        let (mut disk, _) = disk_of(&[(ExtentKind::Data, 9)], CLUSTER, 1 << 20);
        disk.files[0] = Some(file);
        assert!(matches!(outcome(&disk, 0, 1), (_, Some(Stop::Io(_)))));
        assert_eq!(disk.health().counts().io_errors, 1);
    }

    #[test]
    fn read_by_a_source_that_breaks_the_rules_serves_nothing() {
        let (mut disk, asked) = disk_of(&[], CLUSTER, 1 << 20);
        let source = Clusters { kinds: vec![(ExtentKind::Data, 0)], asked, lies: true };
        disk.source = Arc::new(Mutex::new(Box::new(source)));
        assert!(matches!(outcome(&disk, 0, 1), (bytes, Some(Stop::Source)) if bytes.is_empty()));
        assert_eq!(disk.health().counts().source_errors, 1);
    }

    #[test]
    fn read_again_does_not_ask_again() {
        let (disk, asked) = disk_of(&[(ExtentKind::Data, 1); 64], 64 * CLUSTER, 1 << 20);
        for at in 0..64 {
            assert!(outcome(&disk, at * CLUSTER, 512).1.is_none());
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn read_anywhere_agrees_with_the_model(
            clusters in prop::collection::vec((0u8..3, 0u64..64), 1..40_000),
            cut in 0u64..CLUSTER,
            reads in prop::collection::vec((any::<prop::sample::Index>(), 1usize..5000), 1..100),
            cache_bytes in prop::sample::select(vec![0usize, 4096, 1 << 20]),
        ) {
            let kinds: Vec<(ExtentKind, u64)> = clusters.iter().map(|&(kind, host)| match kind {
                0 => (ExtentKind::Data, host),
                1 => (ExtentKind::Zero, 0),
                _ => (ExtentKind::Hole, 0),
            }).collect();
            let file = file_bytes(64);
            let mut model: Vec<u8> = kinds.iter().flat_map(|&(kind, host)| match kind {
                ExtentKind::Data => file[to_usize(host * CLUSTER)..][..to_usize(CLUSTER)].to_vec(),
                _ => vec![0; to_usize(CLUSTER)],
            }).collect();
            model.truncate(model.len() - to_usize(cut));
            let (disk, _) = disk_of(&kinds, model.len() as u64, cache_bytes);
            for (index, len) in reads {
                let offset = index.index(model.len());
                let (bytes, stopped) = outcome(&disk, offset as u64, len);
                prop_assert!(stopped.is_none());
                prop_assert_eq!(&bytes, &model[offset..model.len().min(offset + len)]);
                let hole = disk.seek(offset as u64, false).unwrap().unwrap_or(model.len() as u64);
                prop_assert!(model[offset..to_usize(hole)].iter().all(|byte| *byte != 0));
                let data = disk.seek(offset as u64, true).unwrap().unwrap_or(model.len() as u64);
                prop_assert!(model[offset..to_usize(data)].iter().all(|byte| *byte == 0));
            }
        }
    }
}
