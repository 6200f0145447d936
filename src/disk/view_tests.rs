//! A disk over a source and files in memory.

use std::sync::atomic::Ordering;

use instar_abi::extent::{Extent, ExtentKind};
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

/// The file's clusters 10, hole, 12 over a disk of 2 clusters and 100 bytes.
fn disk_over(backing_kinds: &[(ExtentKind, u64)]) -> Disk {
    let (backing, _) = disk_of(backing_kinds, 2 * CLUSTER + 100, 1 << 20);
    let kinds =
        [(ExtentKind::Data, 10), (ExtentKind::Hole, 0), (ExtentKind::Hole, 0), (ExtentKind::Data, 12)];
    disk_of(&kinds, 4 * CLUSTER, 1 << 20).0.over(Backing::Disk(Arc::new(backing)))
}

#[test]
fn read_of_a_hole_shows_the_backing_disk_and_zeros_behind_its_end() {
    let disk = disk_over(&[(ExtentKind::Data, 1), (ExtentKind::Zero, 0), (ExtentKind::Data, 3)]);
    let file = file_bytes(64);
    let cluster = |number: usize| &file[number * 512..(number + 1) * 512];
    let mut expected = [cluster(10), &[0; 512], cluster(3), cluster(12)].concat();
    expected[2 * 512 + 100..3 * 512].fill(0);
    assert_eq!(outcome(&disk, 0, 4 * 512).0, expected);
    assert_eq!(outcome(&disk, 1100, 300).0, expected[1100..1400]);
    assert_eq!(disk.seek(0, false).unwrap(), Some(512));
    assert_eq!(disk.seek(512, true).unwrap(), Some(1024));
    assert_eq!(disk.seek(1024, false).unwrap(), Some(1124));
    assert_eq!(disk.seek(1124, true).unwrap(), Some(1536));
}

#[test]
fn read_of_damage_in_the_backing_disk_is_counted_where_the_reader_is() {
    let disk = disk_over(&[(ExtentKind::Data, 1), (ExtentKind::Data, 2), (ExtentKind::Damaged, 0)]);
    let (bytes, stopped) = outcome(&disk, 0, 4 * 512);
    assert_eq!(bytes.len(), 1024);
    assert!(matches!(stopped, Some(Stop::Damaged(Problem::L2EntryPastEof))));
    assert_eq!(disk.health().counts().damaged_reads, 1);
    let Backing::Disk(backing) = &disk.backing else { panic!("it lies over a disk") };
    assert_eq!(backing.health().counts().damaged_reads, 0);
}

#[test]
fn read_of_a_hole_over_what_is_left_out_is_damage_and_never_zeros() {
    let kinds = [(ExtentKind::Data, 1), (ExtentKind::Hole, 0), (ExtentKind::Zero, 0)];
    let disk = || disk_of(&kinds, 3 * CLUSTER, 1 << 20).0.over(Backing::LeftOut);
    let left_out = disk();
    let (bytes, stopped) = outcome(&left_out, 0, 3 * 512);
    assert_eq!(bytes, file_bytes(64)[512..1024]);
    assert!(matches!(stopped, Some(Stop::LeftOut)));
    assert_eq!(outcome(&left_out, 2 * CLUSTER, 512).0, [0; 512]);
    let damaged = left_out.survey().damaged;
    assert!(damaged.len() == 1 && damaged[0] == (CLUSTER..2 * CLUSTER), "{damaged:?}");
    assert_eq!(left_out.health().counts().damaged_reads, 1);
    let as_zeros = disk().on_damage(OnDamage::Zero);
    assert_eq!(outcome(&as_zeros, CLUSTER, 512).0, [0; 512]);
    assert_eq!(as_zeros.health().counts().damaged_reads, 1);
}

#[test]
fn disk_splits_pages_where_damage_is_smaller_than_they_are() {
    let disk = |unit_bytes, is_damaged| disk_of(&[], CLUSTER, 0).0.made_of(unit_bytes, is_damaged);
    assert!(disk(512, true).splits_pages());
    assert!(!disk(512, false).splits_pages() && !disk(4096, true).splits_pages());
    let over = disk(65_536, false).over(Backing::Disk(Arc::new(disk(2048, true))));
    assert!(over.splits_pages(), "what is below shows through");
    let (found, _) = disk_of(&[(ExtentKind::Damaged, 0)], CLUSTER, 1 << 20);
    assert!(!found.splits_pages());
    outcome(&found, 0, 1);
    assert!(found.splits_pages(), "a read has found damage");
}
