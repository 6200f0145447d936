//! A second opinion on an image: slow, strict, and written without a look at the product's own code.
//!
//! [`examine`] counts every user of every cluster one by one in a map, compares with what is stored, and reads
//! what each disk maps. It stops at the first thing that it does not like: it is asked about images that
//! somebody else called healthy.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher as _};

/// Bytes of a file. What is past the end reads as zeros.
pub trait Bytes {
    /// Length in bytes.
    fn length(&self) -> u64;
    /// Bytes at a place.
    fn at(&self, offset: u64, len: u64) -> Vec<u8>;

    /// The big-endian number of `len` bytes at a place.
    fn number(&self, offset: u64, len: u64) -> u64 {
        self.at(offset, len).iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }
}

impl Bytes for Vec<u8> {
    fn length(&self) -> u64 {
        self.len() as u64
    }

    fn at(&self, offset: u64, len: u64) -> Vec<u8> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.len());
        let end = usize::try_from(offset.saturating_add(len)).unwrap_or(usize::MAX).min(self.len());
        let mut bytes = self[start..end].to_vec();
        bytes.resize(usize::try_from(len).expect("small"), 0);
        bytes
    }

    fn number(&self, offset: u64, len: u64) -> u64 {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.len());
        (0..usize::try_from(len).expect("small"))
            .fold(0, |value, at| value << 8 | u64::from(self.get(start + at).copied().unwrap_or(0)))
    }
}

impl Bytes for std::fs::File {
    fn length(&self) -> u64 {
        self.metadata().expect("an open file").len()
    }

    fn at(&self, offset: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(len).expect("small")];
        let mut done = 0;
        while done < bytes.len() {
            let place = offset + done as u64;
            match std::os::unix::fs::FileExt::read_at(self, &mut bytes[done..], place).expect("readable") {
                0 => break,
                got => done += got,
            }
        }
        bytes
    }
}

/// What a guest cluster reads as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Zeros by decree: these do not show what is behind them in a backing file.
    Zero,
    /// Bytes with this hash.
    Data(u64),
    /// A packed cluster: hash of its payload from the first byte on.
    Packed(u64),
}

/// What a disk reads as. What is not named is a hole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Bytes of the disk.
    pub bytes: u64,
    /// Guest subclusters (clusters, where entries are not extended) by offset.
    pub content: BTreeMap<u64, Content>,
}

/// What is known of an image that has nothing wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The active disk, then the snapshots in the order of their table.
    pub disks: Vec<Reading>,
    /// One past the last cluster with a user.
    pub clusters_used: u64,
    /// What else decides what a guest reads: encryption, kind of packing, backing file.
    pub manner: Manner,
}

/// How the bytes of clusters become bytes of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manner {
    /// Encryption method.
    pub crypt: u64,
    /// Compression type.
    pub packing: u64,
    /// Backing file name.
    pub backing: Vec<u8>,
    /// Texts of the extensions that name the backing file's format and the data file.
    pub names: Vec<Vec<u8>>,
}

fn manner(file: &impl Bytes, head: &Head) -> Manner {
    let named =
        extensions(file, head).into_iter().filter(|found| [0xe279_2aca, 0x4441_5441].contains(&found.0));
    let has_type = head.version >= 3 && head.header_bytes > 104;
    let backing_len = if head.backing_offset == 0 { 0 } else { file.number(16, 4).min(4096) };
    Manner {
        crypt: head.crypt,
        packing: if has_type { file.number(104, 1) } else { 0 },
        backing: file.at(head.backing_offset, backing_len),
        names: named.map(|(_, at, len)| file.at(at, len)).collect(),
    }
}

/// The header fields that this needs.
#[derive(Debug, Clone, Copy)]
pub struct Head {
    /// 2 or 3.
    pub version: u64,
    /// log2 of the cluster size.
    pub cluster_bits: u64,
    /// Bytes of the active disk.
    pub size: u64,
    /// 0, 1, 2.
    pub crypt: u64,
    /// Entries of the active L1 table.
    pub l1_entries: u64,
    /// Its place.
    pub l1_offset: u64,
    /// Place of the refcount table.
    pub refcount_table: u64,
    /// Its clusters.
    pub refcount_table_clusters: u64,
    /// Snapshots.
    pub snapshots: u64,
    /// Place of their table.
    pub snapshots_offset: u64,
    /// Incompatible feature bits.
    pub incompatible: u64,
    /// log2 of the bits of a reference count.
    pub refcount_order: u64,
    /// Bytes of the fixed header.
    pub header_bytes: u64,
    /// Place of the backing file name.
    pub backing_offset: u64,
}

impl Head {
    /// Reads the header.
    pub fn of(file: &impl Bytes) -> Self {
        let version = file.number(4, 4);
        let v3 = |at, len, v2| if version >= 3 { file.number(at, len) } else { v2 };
        Self {
            version,
            cluster_bits: file.number(20, 4),
            size: file.number(24, 8),
            crypt: file.number(32, 4),
            l1_entries: file.number(36, 4),
            l1_offset: file.number(40, 8),
            refcount_table: file.number(48, 8),
            refcount_table_clusters: file.number(56, 4),
            snapshots: file.number(60, 4),
            snapshots_offset: file.number(64, 8),
            incompatible: v3(72, 8, 0),
            refcount_order: v3(96, 4, 4),
            header_bytes: v3(100, 4, 72),
            backing_offset: file.number(8, 8),
        }
    }

    /// Bytes of a cluster.
    pub fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Whether L2 entries have subcluster bitmaps.
    pub fn is_extended(&self) -> bool {
        self.incompatible & 16 != 0
    }

    /// Whether guest data is elsewhere.
    pub fn has_data_file(&self) -> bool {
        self.incompatible & 4 != 0
    }

    /// Bytes of an L2 entry.
    pub fn entry_bytes(&self) -> u64 {
        if self.is_extended() { 16 } else { 8 }
    }

    /// Entries of an L2 table.
    pub fn table_entries(&self) -> u64 {
        self.cluster() / self.entry_bytes()
    }

    /// Guest bytes of an L1 entry.
    pub fn reach(&self) -> u64 {
        self.table_entries() << self.cluster_bits
    }

    /// First byte and end of a packed cluster's sectors; `None` for any other entry.
    pub fn packed(&self, entry: u64) -> Option<(u64, u64)> {
        let offset_bits = 70 - self.cluster_bits;
        let start = entry & ((1 << offset_bits) - 1);
        let sectors = entry << 2 >> 2 >> offset_bits;
        (entry >> 62 & 1 == 1).then(|| (start, (start & !511) + (sectors + 1) * 512))
    }

    /// Bits of a reference count.
    pub fn count_bits(&self) -> u64 {
        1 << self.refcount_order
    }

    /// Reference counts of a block.
    pub fn per_block(&self) -> u64 {
        self.cluster() * 8 / self.count_bits()
    }
}

/// A snapshot table entry.
#[derive(Debug, Clone, Copy)]
pub struct Snapshot {
    /// Where the entry is.
    pub at: u64,
    /// Bytes of it without padding.
    pub len: u64,
    /// Place of its L1 table.
    pub l1_offset: u64,
    /// Entries of that.
    pub l1_entries: u64,
    /// Bytes of the disk.
    pub size: u64,
    /// Bytes of extra data.
    pub extra: u64,
}

/// Reads the snapshot table of a file with this header.
pub fn snapshots(file: &impl Bytes, head: &Head) -> Vec<Snapshot> {
    let mut at = head.snapshots_offset.min(file.length());
    (0..head.snapshots.min(100))
        .map(|_| {
            let extra = file.number(at + 36, 4);
            let len = 40 + extra + file.number(at + 12, 2) + file.number(at + 14, 2);
            let size = if extra >= 16 { file.number(at + 48, 8) } else { head.size };
            let (l1_offset, l1_entries) = (file.number(at, 8), file.number(at + 8, 4));
            let found = Snapshot { at, len, l1_offset, l1_entries, size, extra };
            at += len.next_multiple_of(8);
            found
        })
        .collect()
}

/// Header extensions: type, place of the data, length.
pub fn extensions(file: &impl Bytes, head: &Head) -> Vec<(u64, u64, u64)> {
    let mut at = head.header_bytes;
    let end = if head.backing_offset == 0 { head.cluster() } else { head.backing_offset };
    let mut found = Vec::new();
    while at + 8 <= end {
        let (kind, len) = (file.number(at, 4), file.number(at + 4, 4));
        if kind == 0 {
            break;
        }
        found.push((kind, at + 8, len));
        at += 8 + len.next_multiple_of(8);
    }
    found
}

/// Entries of the bitmap directory: place, bytes, place of the table, entries of it.
pub fn bitmaps(file: &impl Bytes, head: &Head) -> Vec<(u64, u64, u64, u64)> {
    let Some((_, data, _)) = extensions(file, head).into_iter().find(|found| found.0 == 0x2385_2875) else {
        return Vec::new();
    };
    let mut at = file.number(data + 16, 8).min(file.length());
    (0..file.number(data, 4).min(100))
        .map(|_| {
            let len = (24 + file.number(at + 18, 2) + file.number(at + 20, 4)).next_multiple_of(8);
            let found = (at, len, file.number(at, 8), file.number(at + 8, 4));
            at += len;
            found
        })
        .collect()
}

/// Place and length of the LUKS header.
pub fn luks(file: &impl Bytes, head: &Head) -> Option<(u64, u64)> {
    let found = extensions(file, head).into_iter().find(|found| found.0 == 0x0537_be77)?;
    (head.crypt == 2).then(|| (file.number(found.1, 8), file.number(found.1 + 8, 8)))
}

struct Examiner<'f, F> {
    file: &'f F,
    head: Head,
    users: BTreeMap<u64, u64>,
}

type Verdict<T> = Result<T, String>;

fn want(is_good: bool, complaint: impl FnOnce() -> String) -> Verdict<()> {
    if is_good { Ok(()) } else { Err(complaint()) }
}

/// Reads everything and counts everything.
///
/// # Errors
/// The first thing that is not right.
pub fn examine(file: &impl Bytes) -> Verdict<Facts> {
    examined(file).map(|(facts, _)| facts)
}

/// How many users each cluster has that has any.
///
/// # Errors
/// The first thing that is not right.
pub fn users(file: &impl Bytes) -> Verdict<BTreeMap<u64, u64>> {
    examined(file).map(|(_, users)| users)
}

fn examined(file: &impl Bytes) -> Verdict<(Facts, BTreeMap<u64, u64>)> {
    want(file.length() >= 72 && file.number(0, 4) == 0x5146_49fb, || "no magic".to_owned())?;
    let head = Head::of(file);
    want((2..=3).contains(&head.version), || format!("version {}", head.version))?;
    want((9..=21).contains(&head.cluster_bits), || format!("cluster bits {}", head.cluster_bits))?;
    want(head.refcount_order <= 6 && head.crypt <= 2, || "width or encryption".to_owned())?;
    want(head.incompatible & !0x1d == 0, || format!("incompatible {:#x}", head.incompatible))?;
    want(head.header_bytes <= head.cluster(), || "header length".to_owned())?;
    let mut examiner = Examiner { file, head, users: BTreeMap::new() };
    examiner.roots()?;
    let snapshots = snapshots(file, &head);
    let mut disks = vec![(head.l1_offset, head.l1_entries, head.size)];
    disks.extend(snapshots.iter().map(|found| (found.l1_offset, found.l1_entries, found.size)));
    for (at, entries, _) in &disks {
        examiner.count_disk(*at, *entries)?;
    }
    examiner.refcounts()?;
    examiner.copied()?;
    let readings = disks.iter().map(|disk| examiner.read(*disk)).collect::<Verdict<Vec<_>>>()?;
    let clusters_used = examiner.users.keys().next_back().map_or(0, |last| last + 1);
    let facts = Facts { disks: readings, clusters_used, manner: manner(file, &head) };
    Ok((facts, examiner.users))
}

impl<F: Bytes> Examiner<'_, F> {
    fn region(&mut self, what: &str, at: u64, len: u64) -> Verdict<()> {
        let cluster = self.head.cluster();
        want(at.is_multiple_of(cluster) && at > 0, || format!("{what} at {at:#x}"))?;
        let end = at.checked_add(len).ok_or_else(|| format!("{what} has no end"))?;
        let whole = self.file.length().next_multiple_of(cluster);
        want(end <= whole, || format!("{what} ends at {end:#x}, the file at {whole:#x}"))?;
        for index in at / cluster..end.div_ceil(cluster) {
            *self.users.entry(index).or_default() += 1;
        }
        Ok(())
    }

    fn roots(&mut self) -> Verdict<()> {
        let head = self.head;
        self.users.insert(0, 1);
        let table = head.refcount_table_clusters << head.cluster_bits;
        want(table > 0 && table <= 8 << 20, || "refcount table size".to_owned())?;
        self.region("refcount table", head.refcount_table, table)?;
        for block in self.blocks()? {
            self.region("refcount block", block.1, head.cluster())?;
        }
        if head.snapshots > 0 {
            let found = snapshots(self.file, &head);
            want(found.len() as u64 == head.snapshots, || "snapshots".to_owned())?;
            let end = found.last().map_or(0, |last| (last.at + last.len).next_multiple_of(8));
            self.region("snapshot table", head.snapshots_offset, end - head.snapshots_offset)?;
        }
        if let Some((at, len)) = luks(self.file, &head) {
            self.region("LUKS header", at, len)?;
        }
        let found = bitmaps(self.file, &head);
        if let (Some(first), Some(last)) = (found.first(), found.last()) {
            self.region("bitmap directory", first.0, last.0 + last.1 - first.0)?;
        }
        for (_, _, table, entries) in found {
            self.region("bitmap table", table, entries * 8)?;
            for index in 0..entries {
                let entry = self.file.number(table + index * 8, 8);
                want(entry == 1 || entry & 0xff00_0000_0000_01ff == 0, || {
                    format!("bitmap entry {entry:#x}")
                })?;
                if entry > 1 {
                    self.region("bitmap data", entry, head.cluster())?;
                }
            }
        }
        Ok(())
    }

    /// Refcount blocks that there are: index and place.
    fn blocks(&self) -> Verdict<Vec<(u64, u64)>> {
        let head = self.head;
        let entries = head.refcount_table_clusters * head.cluster() / 8;
        let mut found = Vec::new();
        for index in 0..entries {
            let entry = self.file.number(head.refcount_table + index * 8, 8);
            want(entry & 0x1ff == 0, || format!("refcount table entry {entry:#x}"))?;
            if entry != 0 {
                found.push((index, entry));
            }
        }
        Ok(found)
    }

    fn count_disk(&mut self, at: u64, entries: u64) -> Verdict<()> {
        want(entries <= 4 << 20, || format!("{entries} L1 entries"))?;
        if entries > 0 {
            self.region("L1 table", at, entries * 8)?;
        }
        for index in 0..entries {
            let entry = self.file.number(at + index * 8, 8);
            want(entry & 0x7f00_0000_0000_01ff == 0, || format!("L1 entry {entry:#x}"))?;
            let table = entry & !(1 << 63);
            if table != 0 {
                self.region("L2 table", table, self.head.cluster())?;
                want(table + self.head.cluster() <= self.file.length(), || "a short L2 table".to_owned())?;
                self.count_table(table)?;
            }
        }
        Ok(())
    }

    fn count_table(&mut self, table: u64) -> Verdict<()> {
        let head = self.head;
        for slot in 0..head.table_entries() {
            let entry = self.entry(table, slot);
            if let Some((start, end)) = self.head.packed(entry.0) {
                want(entry.0 >> 63 == 0 && entry.1 == 0, || format!("packed entry {:#x}", entry.0))?;
                // The last sector may be cut off by the end of the file.
                let end_max = self.file.length().next_multiple_of(512);
                want(start < self.file.length() && end <= end_max && !head.has_data_file(), || {
                    format!("packed cluster at {start:#x}")
                })?;
                for index in start / head.cluster()..end.div_ceil(head.cluster()) {
                    *self.users.entry(index).or_default() += 1;
                }
                continue;
            }
            let zero = if head.version >= 3 && !head.is_extended() { 1 } else { 0 };
            want(entry.0 & 0x3f00_0000_0000_01ff & !zero == 0, || format!("L2 entry {:#x}", entry.0))?;
            let (allocated, zeros) = (entry.1 & 0xffff_ffff, entry.1 >> 32);
            want(allocated & zeros == 0, || format!("bitmap {:#x}", entry.1))?;
            let host = host_of(entry.0);
            if head.has_data_file() {
                continue;
            }
            want(allocated == 0 || host != 0, || "subclusters of nothing".to_owned())?;
            want(entry.0 >> 63 == 0 || host != 0, || "COPIED of nothing".to_owned())?;
            if host != 0 {
                self.region("data cluster", host, head.cluster())?;
            }
        }
        Ok(())
    }

    fn entry(&self, table: u64, slot: u64) -> (u64, u64) {
        let at = table + slot * self.head.entry_bytes();
        let bitmap = if self.head.is_extended() { self.file.number(at + 8, 8) } else { 0 };
        (self.file.number(at, 8), bitmap)
    }

    fn refcounts(&self) -> Verdict<()> {
        let head = self.head;
        let mut users = self.users.clone();
        for (index, block) in self.blocks()? {
            let bytes = self.file.at(block, head.cluster());
            for slot in 0..head.per_block() {
                let cluster = index * head.per_block() + slot;
                let stored = count_at(&bytes, head.count_bits(), slot);
                let counted = users.remove(&cluster).unwrap_or(0);
                want(stored == counted, || format!("cluster {cluster}: stored {stored}, counted {counted}"))?;
            }
        }
        want(users.is_empty(), || format!("no counts for {users:?}"))
    }

    /// COPIED of the active disk.
    fn copied(&self) -> Verdict<()> {
        let head = self.head;
        let is_alone = |at: u64| self.users.get(&(at / head.cluster())).is_some_and(|count| *count == 1);
        for index in 0..head.l1_entries {
            let entry = self.file.number(head.l1_offset + index * 8, 8);
            let table = entry & !(1 << 63);
            if table == 0 {
                want(entry == 0, || "COPIED of nothing".to_owned())?;
                continue;
            }
            want((entry >> 63 == 1) == is_alone(table), || format!("COPIED of L1 entry {index}"))?;
            for slot in 0..head.table_entries() {
                let entry = self.entry(table, slot).0;
                let host = host_of(entry);
                if self.head.packed(entry).is_none() && host != 0 && !head.has_data_file() {
                    want((entry >> 63 == 1) == is_alone(host), || format!("COPIED of L2 entry {entry:#x}"))?;
                }
            }
        }
        Ok(())
    }

    fn read(&self, (at, entries, size): (u64, u64, u64)) -> Verdict<Reading> {
        want(entries * self.head.reach() >= size, || format!("{entries} L1 entries for {size} bytes"))?;
        let mut content = BTreeMap::new();
        for index in 0..entries {
            let table = self.file.number(at + index * 8, 8) & !(1 << 63);
            for slot in 0..if table == 0 { 0 } else { self.head.table_entries() } {
                let guest = index * self.head.reach() + (slot << self.head.cluster_bits);
                self.read_entry(guest, self.entry(table, slot), &mut content);
            }
        }
        Ok(Reading { bytes: size, content })
    }

    fn read_entry(&self, guest: u64, entry: (u64, u64), content: &mut BTreeMap<u64, Content>) {
        let head = self.head;
        if let Some((start, end)) = self.head.packed(entry.0) {
            content.insert(guest, Content::Packed(self.hash(start, end.min(self.file.length()) - start)));
            return;
        }
        let host = host_of(entry.0);
        let is_there = host != 0 || (head.has_data_file() && entry.0 >> 63 == 1);
        let data = |at, len| {
            if head.has_data_file() { Content::Data(at) } else { Content::Data(self.hash(at, len)) }
        };
        if !head.is_extended() {
            if entry.0 & 1 == 1 {
                content.insert(guest, Content::Zero);
            } else if is_there {
                content.insert(guest, data(host, head.cluster()));
            }
            return;
        }
        let len = head.cluster() / 32;
        for sub in 0..32 {
            if entry.1 >> (32 + sub) & 1 == 1 {
                content.insert(guest + sub * len, Content::Zero);
            } else if entry.1 >> sub & 1 == 1 {
                content.insert(guest + sub * len, data(host + sub * len, len));
            }
        }
    }

    fn hash(&self, at: u64, len: u64) -> u64 {
        let mut hasher = DefaultHasher::new();
        hasher.write(&self.file.at(at, len));
        hasher.finish()
    }
}

/// The place that an entry names.
pub fn host_of(entry: u64) -> u64 {
    entry & 0x00ff_ffff_ffff_fe00
}

/// A reference count out of a block.
pub fn count_at(block: &[u8], bits: u64, slot: u64) -> u64 {
    let index = |value: u64| usize::try_from(value).expect("small");
    if bits < 8 {
        return u64::from(block[index(slot * bits / 8)]) >> (slot * bits % 8) & ((1 << bits) - 1);
    }
    let bytes = bits / 8;
    block[index(slot * bytes)..index((slot + 1) * bytes)]
        .iter()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}
