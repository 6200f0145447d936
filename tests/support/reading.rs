//! What the disks of an image that may be damaged read as, entry by entry.
//!
//! Invariant: a guest place is told only where its entry can be followed to bytes of the file, along tables that lie
//! in the file too; what cannot be followed is told as broken. Written without a look at the product's own code.
//! Says nothing of counts, flags and reserved bits: these change nothing about what is read.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hasher as _};
use std::ops::Range;

use super::reference::{self, Bytes, Content, Head, host_of};

/// What a guest place reads as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Its bytes.
    pub content: Content,
    /// Whether they are guest data only: neither they nor the table that leads to them are metadata of another kind.
    pub is_own: bool,
    /// Where in the file they are, and where they end; the same twice where they are nowhere in it.
    pub host: (u64, u64),
}

/// A disk. What is neither named nor broken is a hole.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    /// Guest subclusters (clusters, where entries are not extended) by offset.
    pub places: BTreeMap<u64, Seen>,
    /// Guest bytes whose entries cannot be followed, or not for certain.
    pub broken: Vec<Range<u64>>,
}

impl Disk {
    fn is_broken(&self, place: u64) -> bool {
        self.broken.iter().any(|range| range.contains(&place))
    }

    /// Places that read as in `other`.
    pub fn same(&self, other: &Self) -> BTreeSet<u64> {
        let is_same = |place: &u64, seen: &Seen| {
            other.places.get(place).is_some_and(|other| other.content == seen.content)
        };
        self.places.iter().filter(|(place, seen)| is_same(place, seen)).map(|(place, _)| *place).collect()
    }

    /// A place that could be read and reads otherwise in `after`, or where a hole is none there.
    pub fn lost(&self, after: &Self) -> Option<String> {
        let own = self.places.iter().filter(|(_, seen)| seen.is_own);
        for (place, seen) in own {
            let now = after.places.get(place).map(|seen| seen.content);
            if now != Some(seen.content) {
                return Some(format!("guest {place:#x}: {:?} became {now:?}", seen.content));
            }
        }
        let grown =
            after.places.keys().find(|place| !self.places.contains_key(place) && !self.is_broken(**place));
        grown.map(|place| format!("guest {place:#x}: a hole became {:?}", after.places[place].content))
    }
}

/// Says what can be read less well in `mended` than in the `damaged` image that was `healthy` once.
///
/// # Errors
/// The disk and the place.
pub fn compare(healthy: &impl Bytes, damaged: &impl Bytes, mended: &impl Bytes) -> Result<(), String> {
    let (healthy, damaged, mended) = (disks(healthy), disks(damaged), disks(mended));
    // An entry of the snapshot table that never was one leads to no disk.
    let is_kept =
        mended.len() <= damaged.len() && damaged[mended.len()..].iter().all(|disk| disk.places.is_empty());
    if !is_kept {
        return Err(format!("{} disks became {}", damaged.len(), mended.len()));
    }
    for (index, (before, after)) in damaged.iter().zip(&mended).enumerate() {
        if let Some(lost) = before.lost(after) {
            return Err(format!("disk {index}: {lost}"));
        }
    }
    // Also where somebody else has taken the same cluster for metadata.
    for (index, ((first, before), after)) in healthy.iter().zip(&damaged).zip(&mended).enumerate() {
        let is_right = first.same(after);
        if let Some(place) = first.same(before).difference(&is_right).next() {
            return Err(format!("disk {index}: guest {place:#x} was right"));
        }
    }
    Ok(())
}

/// Clusters in use, by what they are. Data is what no set names.
#[derive(Default)]
struct Metadata {
    /// How often each is something other than an L2 table.
    roots: BTreeMap<u64, u64>,
    tables: BTreeSet<u64>,
}

struct Reader<'f, F> {
    file: &'f F,
    head: Head,
    metadata: Metadata,
}

/// Reads the active disk, then the snapshots; nothing if the header does not allow it.
pub fn disks(file: &impl Bytes) -> Vec<Disk> {
    let head = Head::of(file);
    let is_known = (2..=3).contains(&head.version)
        && (9..=21).contains(&head.cluster_bits)
        && head.refcount_order <= 6
        && (!head.is_extended() || head.cluster_bits >= 14);
    if !is_known {
        return Vec::new();
    }
    let mut reader = Reader { file, head, metadata: Metadata::default() };
    let mut all = vec![(head.l1_offset, head.l1_entries)];
    let snapshots = reference::snapshots(file, &head);
    all.extend(snapshots.iter().map(|found| (found.l1_offset, found.l1_entries)));
    reader.find_roots(&snapshots);
    for (at, entries) in &all {
        reader.find_tables(*at, *entries);
    }
    all.into_iter().map(|(at, entries)| reader.disk(at, entries)).collect()
}

impl<F: Bytes> Reader<'_, F> {
    fn root(&mut self, at: u64, len: u64) {
        let end = at.saturating_add(len).min(self.file.length());
        for cluster in at / self.head.cluster()..end.div_ceil(self.head.cluster()) {
            *self.metadata.roots.entry(cluster).or_default() += 1;
        }
    }

    fn find_roots(&mut self, snapshots: &[reference::Snapshot]) {
        let (file, head) = (self.file, self.head);
        self.root(0, 1);
        let table_bytes = head.refcount_table_clusters << head.cluster_bits;
        self.root(head.refcount_table, table_bytes);
        let present = file.length().saturating_sub(head.refcount_table).min(table_bytes);
        for index in 0..present / 8 {
            match host_of(file.number(head.refcount_table + index * 8, 8)) {
                0 => {}
                block => self.root(block, head.cluster()),
            }
        }
        if let Some(last) = snapshots.last() {
            self.root(head.snapshots_offset, last.at + last.len - head.snapshots_offset.min(last.at));
        }
        if let Some((at, len)) = reference::luks(file, &head) {
            self.root(at, len);
        }
        for (at, len, table, entries) in reference::bitmaps(file, &head) {
            self.root(at, len);
            self.root(table, entries * 8);
            for index in 0..entries.min(file.length() / 8) {
                match host_of(file.number(table.saturating_add(index * 8), 8)) {
                    0 => {}
                    data => self.root(data, head.cluster()),
                }
            }
        }
    }

    /// Entries of an L1 table that the file holds; none where it is not aligned.
    fn l1(&self, at: u64, entries: u64) -> u64 {
        let is_aligned = at.is_multiple_of(self.head.cluster()) && at > 0;
        if is_aligned { entries.min(self.file.length().saturating_sub(at) / 8) } else { 0 }
    }

    fn find_tables(&mut self, at: u64, entries: u64) {
        let present = self.l1(at, entries);
        self.root(at, present * 8);
        for index in 0..present {
            let table = host_of(self.file.number(at + index * 8, 8));
            self.metadata.tables.insert(table / self.head.cluster());
        }
    }

    fn disk(&self, at: u64, entries: u64) -> Disk {
        let (head, reach) = (self.head, self.head.reach());
        let mut disk = Disk::default();
        let present = self.l1(at, entries);
        disk.broken.push(present * reach..u64::MAX);
        let l1_clusters = at / head.cluster()..(at + present * 8).div_ceil(head.cluster());
        let is_l1_own = l1_clusters.clone().all(|cluster| {
            self.metadata.roots.get(&cluster) == Some(&1) && !self.metadata.tables.contains(&cluster)
        });
        for index in 0..present {
            let table = host_of(self.file.number(at + index * 8, 8));
            let guest = index * reach..(index + 1) * reach;
            if table == 0 {
                continue;
            }
            let is_table_own = is_l1_own && !self.metadata.roots.contains_key(&(table / head.cluster()));
            let is_readable = table.is_multiple_of(head.cluster())
                && table.saturating_add(head.cluster()) <= self.file.length();
            if !is_table_own || !is_readable {
                disk.broken.push(guest.clone());
            }
            for slot in 0..if is_readable { head.table_entries() } else { 0 } {
                self.entry(
                    guest.start + (slot << head.cluster_bits),
                    table + slot * head.entry_bytes(),
                    &mut disk,
                    is_table_own,
                );
            }
        }
        disk
    }

    fn entry(&self, guest: u64, at: u64, disk: &mut Disk, is_table_own: bool) {
        let head = self.head;
        let entry = self.file.number(at, 8);
        let bitmap = if head.is_extended() { self.file.number(at + 8, 8) } else { 0 };
        let mut put = |place: u64, content: Option<Content>, host: Range<u64>| {
            let len = if head.is_extended() { head.cluster() / 32 } else { head.cluster() };
            let Some(content) = content else {
                disk.broken.push(place..place + len);
                return;
            };
            let is_own = is_table_own && self.is_data(host.clone());
            disk.places.insert(place, Seen { content, is_own, host: (host.start, host.end) });
        };
        if let Some((start, end)) = head.packed(entry) {
            let is_here = start < self.file.length() && end <= self.file.length().next_multiple_of(512);
            if is_here && !head.has_data_file() {
                put(guest, Some(Content::Packed(self.hash(start, end - start))), start..end);
            } else {
                // All of the cluster, also where others are told by their parts.
                disk.broken.push(guest..guest + head.cluster());
            }
            return;
        }
        let host = host_of(entry);
        let is_there = host != 0 || (head.has_data_file() && entry >> 63 == 1);
        if !head.is_extended() && entry & 1 == 1 {
            put(guest, (head.version >= 3).then_some(Content::Zero), 0..0);
        } else if !head.is_extended() && is_there {
            put(guest, self.data(host, 0, head.cluster()), host..host + head.cluster());
        }
        let len = head.cluster() / 32;
        for sub in (0..32).filter(|_| head.is_extended()) {
            let place = guest + sub * len;
            match (bitmap >> (32 + sub) & 1, bitmap >> sub & 1) {
                (0, 0) => {}
                (1, 0) => put(place, Some(Content::Zero), 0..0),
                (0, 1) if is_there => {
                    put(place, self.data(host, sub * len, len), host..host + head.cluster())
                }
                _ => put(place, None, 0..0),
            }
        }
    }

    fn is_data(&self, host: Range<u64>) -> bool {
        let cluster = self.head.cluster();
        self.head.has_data_file()
            || (host.start / cluster..host.end.div_ceil(cluster)).all(|index| {
                !self.metadata.roots.contains_key(&index) && !self.metadata.tables.contains(&index)
            })
    }

    /// Bytes of a data cluster; `None` where it is not in the file.
    fn data(&self, host: u64, skip: u64, len: u64) -> Option<Content> {
        if !host.is_multiple_of(self.head.cluster()) {
            return None;
        }
        if self.head.has_data_file() {
            return Some(Content::Data(host + skip));
        }
        (host < self.file.length()).then(|| Content::Data(self.hash(host + skip, len)))
    }

    fn hash(&self, at: u64, len: u64) -> u64 {
        let mut hasher = DefaultHasher::new();
        hasher.write(&self.file.at(at, len));
        hasher.finish()
    }
}
