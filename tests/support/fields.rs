//! Every metadata field of a healthy image by name and place, and the ways in which one of them is changed.

use super::reference::{self, Bytes, Head};

/// What a field is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A fixed header field, by its offset.
    Header(u64),
    /// Bytes of the backing file name.
    BackingName,
    /// Type or length word of a header extension of this type.
    ExtensionHead(u64),
    /// Data of a header extension of this type.
    ExtensionData(u64),
    /// L1 entry of the active disk (0) or of snapshot n - 1.
    L1(usize),
    /// L2 entry.
    L2,
    /// Subcluster bitmap.
    L2Bitmap,
    /// Refcount table entry.
    RefcountTable,
    /// Reference count.
    Refcount,
    /// Snapshot table entry: offset of the field in its fixed part and extra data; 100 for its names.
    Snapshot(u64),
    /// Bitmap directory entry: offset of the field in its fixed part; 24 for its name.
    BitmapDirectory(u64),
    /// Bitmap table entry.
    BitmapTable,
    /// The first bytes of a LUKS header.
    LuksMagic,
}

/// A field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// What it is.
    pub kind: Kind,
    /// Bit offset in the file of its most significant bit's byte, for counts narrower than a byte of the count.
    pub bit: u64,
    /// Bits: a multiple of 8, or less than 8.
    pub bits: u64,
    /// Whether it is not zero.
    pub is_used: bool,
}

/// How a field is changed.
#[derive(Debug, Clone, Copy)]
pub enum Change {
    /// Another value.
    Random(u64),
    /// One bit.
    Flip(u64),
    /// The next field of the same kind changes places with it.
    Swap,
    /// Nothing but zeros.
    Zero,
    /// Nothing but ones.
    Ones,
    /// The cluster behind, or before.
    OffByOne { plus: bool },
    /// One more, or less.
    Count { plus: bool },
}

/// Bytes to write: place and bytes.
pub type Patch = Vec<(u64, Vec<u8>)>;

impl Field {
    /// Its value.
    pub fn get(&self, file: &impl Bytes) -> u64 {
        if self.bits >= 8 {
            return file.number(self.bit / 8, self.bits / 8);
        }
        file.number(self.bit / 8, 1) >> (self.bit % 8) & ((1 << self.bits) - 1)
    }

    /// The bytes that make its value this.
    pub fn set(&self, file: &impl Bytes, value: u64) -> Patch {
        let at = self.bit / 8;
        if self.bits >= 8 {
            let skip = usize::try_from(8 - self.bits / 8).expect("small");
            return vec![(at, value.to_be_bytes()[skip..].to_vec())];
        }
        let mask = ((1 << self.bits) - 1) << (self.bit % 8);
        let byte = (file.number(at, 1) & !mask) | (value << (self.bit % 8) & mask);
        vec![(at, vec![byte.to_be_bytes()[7]])]
    }

    fn max(&self) -> u64 {
        u64::MAX >> (64 - self.bits)
    }

    /// What a change does to the file; empty where it does nothing.
    pub fn change(&self, file: &impl Bytes, change: Change, next: Option<&Self>, cluster: u64) -> Patch {
        let old = self.get(file);
        let new = match change {
            Change::Random(value) => value & self.max(),
            Change::Flip(bit) => old ^ 1 << (bit % self.bits),
            Change::Zero => 0,
            Change::Ones => self.max(),
            Change::OffByOne { plus: true } => old.wrapping_add(cluster) & self.max(),
            Change::OffByOne { plus: false } => old.wrapping_sub(cluster) & self.max(),
            Change::Count { plus: true } => old.wrapping_add(1) & self.max(),
            Change::Count { plus: false } => old.wrapping_sub(1) & self.max(),
            Change::Swap => match next {
                Some(next) if next.bits == self.bits && next.get(file) != old => {
                    return self.swap(file, next);
                }
                _ => old,
            },
        };
        if new == old { Vec::new() } else { self.set(file, new) }
    }

    fn swap(&self, file: &impl Bytes, next: &Self) -> Patch {
        let (old, new) = (self.get(file), next.get(file));
        let mut patch = self.set(file, new);
        if self.bits < 8 && self.bit / 8 == next.bit / 8 {
            let mut both = file.at(self.bit / 8, 1);
            both[0] = patch[0].1[0];
            let local = Self { bit: next.bit % 8, ..*next };
            return vec![(self.bit / 8, local.set(&both, old).remove(0).1)];
        }
        patch.extend(next.set(file, old));
        patch
    }
}

/// Fixed header fields: offset and bytes.
const HEADER: &[(u64, u64)] = &[
    (0, 4),
    (4, 4),
    (8, 8),
    (16, 4),
    (20, 4),
    (24, 8),
    (32, 4),
    (36, 4),
    (40, 8),
    (48, 8),
    (56, 4),
    (60, 4),
    (64, 8),
    (72, 8),
    (80, 8),
    (88, 8),
    (96, 4),
    (100, 4),
    (104, 1),
];

/// Fields of a snapshot table entry: offset and bytes.
const SNAPSHOT: &[(u64, u64)] =
    &[(0, 8), (8, 4), (12, 2), (14, 2), (16, 4), (20, 4), (24, 8), (32, 4), (36, 4), (40, 8), (48, 8)];

/// Fields of a bitmap directory entry: offset and bytes.
const BITMAP: &[(u64, u64)] = &[(0, 8), (8, 4), (12, 4), (16, 1), (17, 1), (18, 2), (20, 4)];

struct List<'f, F> {
    file: &'f F,
    found: Vec<Field>,
}

impl<F: Bytes> List<'_, F> {
    fn put(&mut self, kind: Kind, at: u64, bytes: u64) {
        self.put_bits(kind, at * 8, bytes * 8);
    }

    fn put_bits(&mut self, kind: Kind, bit: u64, bits: u64) {
        let mut field = Field { kind, bit, bits, is_used: false };
        field.is_used = field.get(self.file) != 0;
        self.found.push(field);
    }

    fn header(&mut self, head: &Head) {
        for (at, bytes) in HEADER.iter().filter(|(at, _)| *at < head.header_bytes) {
            self.put(Kind::Header(*at), *at, *bytes);
        }
        if head.backing_offset != 0 {
            for at in 0..self.file.number(16, 4) {
                self.put(Kind::BackingName, head.backing_offset + at, 1);
            }
        }
        for (kind, data, len) in reference::extensions(self.file, head) {
            self.put(Kind::ExtensionHead(kind), data - 8, 4);
            self.put(Kind::ExtensionHead(kind), data - 4, 4);
            for word in 0..len.div_ceil(8) {
                self.put(Kind::ExtensionData(kind), data + word * 8, 8);
            }
        }
    }

    fn disk(&mut self, head: &Head, disk: usize, at: u64, entries: u64, seen: &mut Vec<u64>) {
        for index in 0..entries {
            let place = at + index * 8;
            self.put(Kind::L1(disk), place, 8);
            let table = self.file.number(place, 8) & !(1 << 63);
            if table == 0 || seen.contains(&table) {
                continue;
            }
            seen.push(table);
            for slot in 0..head.table_entries() {
                let entry = table + slot * head.entry_bytes();
                self.put(Kind::L2, entry, 8);
                if head.is_extended() {
                    self.put(Kind::L2Bitmap, entry + 8, 8);
                }
            }
        }
    }

    fn refcounts(&mut self, head: &Head) {
        let bits = head.count_bits();
        for index in 0..head.refcount_table_clusters * head.cluster() / 8 {
            let at = head.refcount_table + index * 8;
            self.put(Kind::RefcountTable, at, 8);
            let block = self.file.number(at, 8);
            for slot in 0..if block == 0 { 0 } else { head.per_block() } {
                self.put_bits(Kind::Refcount, block * 8 + slot * bits, bits);
            }
        }
    }

    fn snapshots(&mut self, head: &Head, seen: &mut Vec<u64>) {
        for (index, found) in reference::snapshots(self.file, head).iter().enumerate() {
            for (at, bytes) in SNAPSHOT.iter().filter(|(at, _)| *at < 40 + found.extra) {
                self.put(Kind::Snapshot(*at), found.at + at, *bytes);
            }
            for at in 40 + found.extra..found.len {
                self.put(Kind::Snapshot(100), found.at + at, 1);
            }
            self.disk(head, index + 1, found.l1_offset, found.l1_entries, seen);
        }
    }

    fn bitmaps(&mut self, head: &Head) {
        for (at, len, table, entries) in reference::bitmaps(self.file, head) {
            for (field, bytes) in BITMAP {
                self.put(Kind::BitmapDirectory(*field), at + field, *bytes);
            }
            for name in 24..len {
                self.put(Kind::BitmapDirectory(24), at + name, 1);
            }
            for index in 0..entries {
                self.put(Kind::BitmapTable, table + index * 8, 8);
            }
        }
    }
}

/// Every metadata field of a healthy image, in the order of their kinds; within one, in the order of the file's
/// tables.
pub fn all(file: &impl Bytes) -> Vec<Field> {
    let head = Head::of(file);
    let mut list = List { file, found: Vec::new() };
    let mut seen = Vec::new();
    list.header(&head);
    list.disk(&head, 0, head.l1_offset, head.l1_entries, &mut seen);
    list.snapshots(&head, &mut seen);
    list.refcounts(&head);
    list.bitmaps(&head);
    if let Some((at, _)) = reference::luks(file, &head) {
        list.put(Kind::LuksMagic, at, 4);
    }
    let mut found = list.found;
    found.sort_by_key(|field| field.kind);
    found
}

/// Chooses a field: first its kind, then, mostly, one that is in use; also the field behind it.
pub fn choose(all: &[Field], kind: u64, which: u64, any: bool) -> (Field, Option<Field>) {
    let mut kinds: Vec<Kind> = all.iter().map(|field| field.kind).collect();
    kinds.dedup();
    let index = |value: u64, len: usize| usize::try_from(value % len.max(1) as u64).expect("small");
    let kind = kinds[index(kind, kinds.len())];
    let of_kind: Vec<usize> = (0..all.len()).filter(|at| all[*at].kind == kind).collect();
    let used: Vec<usize> = of_kind.iter().copied().filter(|at| all[*at].is_used).collect();
    let from = if any || used.is_empty() { &of_kind } else { &used };
    let at = from[index(which, from.len())];
    (all[at], all.get(at + 1).copied().filter(|next| next.kind == kind))
}
