//! Images made to be slow: what they cost is bounded by what they hold, not by how often it is claimed.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use instar_mount::image::Backend;

use crate::checked::{Checked, Memory};
use crate::native;

const CLUSTER: usize = 65_536;
/// Entries of a large table.
const ENTRIES: u32 = 1 << 20;

/// A file in memory that counts what is asked of it; behind its bytes it is a hole.
#[derive(Debug)]
struct Counted {
    bytes: Memory,
    len: u64,
    read_bytes: AtomicU64,
    hole_questions: AtomicU64,
}

impl Counted {
    fn new(bytes: Vec<u8>) -> Arc<Self> {
        let len = bytes.len() as u64;
        Self::with_hole(bytes, len)
    }

    fn with_hole(bytes: Vec<u8>, len: u64) -> Arc<Self> {
        let bytes = Memory(parking_lot::RwLock::new(bytes));
        Arc::new(Self { bytes, len, read_bytes: AtomicU64::new(0), hole_questions: AtomicU64::new(0) })
    }

    fn check(self: &Arc<Self>) -> Checked {
        let image: Arc<dyn Backend> = Arc::<Self>::clone(self);
        Checked::of(&native::files(image))
    }
}

impl Backend for Counted {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_bytes.fetch_add(into.len() as u64, Ordering::Relaxed);
        let there = self.bytes.len().saturating_sub(offset).min(into.len() as u64);
        let (bytes, hole) = into.split_at_mut(usize::try_from(there).map_err(io::Error::other)?);
        hole.fill(0);
        if bytes.is_empty() { Ok(()) } else { self.bytes.read_at(bytes, offset) }
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.bytes.write_at(bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.bytes.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.bytes.sync()
    }

    fn data_ranges(&self, offset: u64, len: u64) -> io::Result<Vec<(u64, u64)>> {
        self.hole_questions.fetch_add(1, Ordering::Relaxed);
        let end = offset.saturating_add(len).min(self.bytes.len());
        Ok(if offset < end { vec![(offset, end - offset)] } else { Vec::new() })
    }
}

fn put(bytes: &mut [u8], at: usize, fields: &[&[u8]]) -> usize {
    let all = fields.concat();
    bytes[at..at + all.len()].copy_from_slice(&all);
    at + all.len()
}

/// An image of `clusters` clusters of 64 KiB: header, refcount table, one refcount block, L1 table of one entry,
/// one L2 table.
fn image(clusters: usize, virtual_size: u64) -> Vec<u8> {
    let mut bytes = vec![0; clusters * CLUSTER];
    let place = |index: usize| (index * CLUSTER) as u64;
    put(&mut bytes, 0, &[b"QFI\xfb", &3_u32.to_be_bytes()]);
    put(&mut bytes, 20, &[&16_u32.to_be_bytes(), &virtual_size.to_be_bytes()]);
    put(&mut bytes, 36, &[&1_u32.to_be_bytes(), &place(3).to_be_bytes(), &place(1).to_be_bytes()]);
    put(&mut bytes, 56, &[&1_u32.to_be_bytes()]);
    put(&mut bytes, 96, &[&4_u32.to_be_bytes(), &104_u32.to_be_bytes()]);
    put(&mut bytes, CLUSTER, &[&place(2).to_be_bytes()]);
    put(&mut bytes, 3 * CLUSTER, &[&(place(4) | 1 << 63).to_be_bytes()]);
    for index in 0..5 {
        put(&mut bytes, 2 * CLUSTER + index * 2, &[&1_u16.to_be_bytes()]);
    }
    bytes
}

#[test]
fn snapshots_that_share_one_l1_table_cost_one_walk() {
    let mut bytes = image(5 + 16 + 128, 512 << 20);
    let (table, l1, snapshots) = (5 * CLUSTER, 21 * CLUSTER, 10_000_u32);
    for entry in 0..1 << 20 {
        put(&mut bytes, l1 + entry * 8, &[&(4 * CLUSTER as u64).to_be_bytes()]);
    }
    let mut at = table;
    for index in 0..snapshots {
        let id = format!("{index:06}");
        let names = [0_u8, 6, 0, 2];
        at = put(&mut bytes, at, &[&(l1 as u64).to_be_bytes(), &ENTRIES.to_be_bytes(), &names, &[0; 20]]);
        at = put(&mut bytes, at, &[&16_u32.to_be_bytes(), &[0; 8], &(512_u64 << 20).to_be_bytes()]);
        at = put(&mut bytes, at, &[id.as_bytes(), b"ss"]);
    }
    put(&mut bytes, 60, &[&snapshots.to_be_bytes(), &(table as u64).to_be_bytes()]);
    let image = Counted::new(bytes);
    let checked = image.check();
    assert!(checked.ids().contains(&"snapshot-l1-shared"), "{:?}", checked.ids());
    let read_bytes = image.read_bytes.load(Ordering::Relaxed);
    assert!(read_bytes < 64 << 20, "{read_bytes} bytes read of a file of {}", image.len());
}

#[test]
fn bitmaps_that_share_one_table_cost_one_walk() {
    let mut bytes = image(5 + 16 + 128, 512 << 20);
    let (directory, table, bitmaps) = (5 * CLUSTER, 21 * CLUSTER, 10_000_u32);
    let mut at = directory;
    for index in 0..bitmaps {
        let name = format!("{index:08}");
        at = put(&mut bytes, at, &[&(table as u64).to_be_bytes(), &ENTRIES.to_be_bytes(), &[0; 4]]);
        at = put(&mut bytes, at, &[&[1, 9, 0, 8], &[0; 4], name.as_bytes()]);
    }
    let len = (at - directory) as u64;
    put(&mut bytes, 88, &[&1_u64.to_be_bytes()]);
    put(&mut bytes, 104, &[&0x2385_2875_u32.to_be_bytes(), &24_u32.to_be_bytes(), &bitmaps.to_be_bytes()]);
    put(&mut bytes, 120, &[&len.to_be_bytes(), &(directory as u64).to_be_bytes()]);
    let image = Counted::new(bytes);
    let checked = image.check();
    assert!(checked.ids().contains(&"bitmap-table-shared"), "{:?}", checked.ids());
    let read_bytes = image.read_bytes.load(Ordering::Relaxed);
    assert!(read_bytes < 64 << 20, "{read_bytes} bytes read of a file of {}", image.len());
}

#[test]
fn leaks_between_clusters_in_use_are_not_asked_about_one_by_one() {
    let mut bytes = image(800, 512 << 20);
    for cluster in 5..800 {
        put(&mut bytes, 2 * CLUSTER + cluster * 2, &[&1_u16.to_be_bytes()]);
        // No data, so that what is not mapped is not worth keeping.
        if cluster % 2 == 0 {
            let entry = ((cluster * CLUSTER) as u64 | 1 << 63).to_be_bytes();
            put(&mut bytes, 4 * CLUSTER + (cluster - 5) * 8 * 4, &[&entry]);
        }
    }
    let image = Counted::new(bytes);
    let checked = image.check();
    let leaks: u64 = checked.findings.iter().map(|finding| finding.count).sum();
    // The one right behind the L2 table, whose first entry is empty, is kept back.
    assert_eq!((checked.ids(), leaks), (vec!["orphan-data", "refcount-leak"], 398));
    let questions = image.hole_questions.load(Ordering::Relaxed);
    assert!(questions <= 4, "asked {questions} times which parts of {} MiB are holes", image.len() >> 20);
}

#[test]
fn refcount_blocks_in_a_hole_are_not_read() {
    const BLOCKS: usize = 16 * CLUSTER / 8;
    let mut bytes = image(64, 512 << 20);
    let (table, hole) = (16 * CLUSTER, 64 * CLUSTER);
    put(&mut bytes, 48, &[&(table as u64).to_be_bytes(), &16_u32.to_be_bytes()]);
    put(&mut bytes, table, &[&(2 * CLUSTER as u64).to_be_bytes()]);
    for block in 1..BLOCKS {
        put(&mut bytes, table + block * 8, &[&((hole + block * CLUSTER) as u64).to_be_bytes()]);
    }
    let image = Counted::with_hole(bytes, (hole + BLOCKS * CLUSTER) as u64);
    let checked = image.check();
    assert!(checked.ids().contains(&"refcount-too-low"), "{:?}", checked.ids());
    let counted: u64 = checked.findings.iter().map(|finding| finding.count).sum();
    assert!(counted >= BLOCKS as u64, "{counted} of {BLOCKS} blocks told of, which nothing counts");
    let read_bytes = image.read_bytes.load(Ordering::Relaxed);
    assert!(read_bytes < 64 << 20, "{read_bytes} bytes read of a file of {}", image.len());
    let questions = image.hole_questions.load(Ordering::Relaxed);
    assert!(questions <= 64, "asked {questions} times which parts of {} GiB are holes", image.len() >> 30);
}
