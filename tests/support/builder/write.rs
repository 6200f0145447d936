//! Encodes an image whose clusters have their places.

use super::layout::{Layout, Object, bitmap_kinds, is_allocated};
use super::model::{Disk, Entry, Model};
use super::{Built, Shape, to_usize};

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;

/// Makes the file's bytes.
pub(super) fn encode(shape: &Shape, model: &Model, layout: &Layout) -> Built {
    let mut image = Image { shape, layout, bytes: vec![0; to_usize(layout.clusters << shape.cluster_bits)] };
    image.disks(model);
    image.refcounts();
    image.contents(model);
    image.roots(model);
    let allocated = active_entries(model).filter(|entry| is_allocated(*entry)).count() as u64;
    let compressed =
        active_entries(model).filter(|entry| matches!(entry, Entry::Compressed { .. })).count() as u64;
    let last = layout.counts.iter().rposition(|count| *count > 0).unwrap_or(0) as u64;
    let data_file_bytes = shape.has_data_file().then_some(model.active.bytes);
    let mut bytes = image.bytes;
    cut_tail(shape, model, layout, last, &mut bytes);
    Built {
        bytes,
        data_file_bytes,
        virtual_bytes: model.active.bytes,
        allocated: (allocated, compressed),
        end_bytes: (last + 1) << shape.cluster_bits,
        snapshots: model.snapshots.len(),
    }
}

fn active_entries(model: &Model) -> impl Iterator<Item = Entry> + '_ {
    model.active.l1.iter().flatten().flat_map(|table| model.tables[*table].iter().copied())
}

/// The last cluster of a file may be short where what is missing is not needed: here, in a compressed run.
fn cut_tail(shape: &Shape, model: &Model, layout: &Layout, last: u64, bytes: &mut Vec<u8>) {
    for run in 0..model.runs.len() {
        let Some(place) = layout.find(Object::Run(run)) else { continue };
        let end = (place << shape.cluster_bits) + model.runs[run].used_bytes;
        if last == (end - 1) >> shape.cluster_bits && place <= last && last < place + model.runs[run].clusters
        {
            bytes.truncate(to_usize(end));
        }
    }
}

struct Image<'a> {
    shape: &'a Shape,
    layout: &'a Layout,
    bytes: Vec<u8>,
}

impl Image<'_> {
    fn offset(&self, object: Object) -> u64 {
        self.layout.find(object).expect("an object that is used has a place") << self.shape.cluster_bits
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        let at = to_usize(at);
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn put_u64(&mut self, at: u64, value: u64) {
        self.put(at, &value.to_be_bytes());
    }

    fn disks(&mut self, model: &Model) {
        self.l1(Object::L1(None), &model.active, true);
        for (index, disk) in model.snapshots.iter().enumerate() {
            self.l1(Object::L1(Some(index)), disk, false);
        }
        let is_active = |table| model.active.l1.contains(&Some(table));
        for (index, table) in model.tables.iter().enumerate() {
            if self.layout.users.tables[index] == 0 {
                continue;
            }
            let at = self.offset(Object::L2(index));
            for (slot, entry) in table.iter().enumerate() {
                let (raw, bitmap) = self.entry(model, index, slot, *entry, is_active(index));
                let place = at + slot as u64 * self.shape.entry_bytes();
                self.put_u64(place, raw);
                if self.shape.is_extended() {
                    self.put_u64(place + 8, bitmap);
                }
            }
        }
    }

    fn l1(&mut self, object: Object, disk: &Disk, is_active: bool) {
        let at = self.offset(object);
        for (index, table) in disk.l1.iter().enumerate() {
            let Some(table) = table else { continue };
            let copied = if is_active && self.layout.users.tables[*table] == 1 { COPIED } else { 0 };
            let l2 = self.offset(Object::L2(*table));
            self.put_u64(at + index as u64 * 8, l2 | copied);
        }
    }

    fn entry(&self, model: &Model, table: usize, slot: usize, entry: Entry, is_active: bool) -> (u64, u64) {
        let host = entry.data().map(|data| {
            if self.shape.has_data_file() {
                let index =
                    model.active.l1.iter().position(|found| *found == Some(table)).expect("no snapshots");
                let guest = index as u64 * self.shape.table_entries() + slot as u64;
                return (guest << self.shape.cluster_bits) | COPIED;
            }
            let copied = is_active && self.layout.users.data[data] == 1;
            self.offset(Object::Data(data)) | if copied { COPIED } else { 0 }
        });
        let raw = host.unwrap_or(0);
        let extended = self.shape.is_extended();
        match entry {
            Entry::Hole => (0, 0),
            Entry::Zero(_) if extended => (raw, u64::MAX << 32),
            Entry::Zero(_) => (raw | 1, 0),
            Entry::Data(_) => (raw, if extended { u64::from(u32::MAX) } else { 0 }),
            Entry::Subclusters { allocated, zero, .. } => {
                (raw, u64::from(zero) << 32 | u64::from(if host.is_some() { allocated } else { 0 }))
            }
            Entry::Compressed { run, start, bytes } => {
                let first = self.offset(Object::Run(run)) + start;
                let sectors = ((first + bytes - 1) >> 9) - (first >> 9);
                let offset_bits = 62 - (self.shape.cluster_bits - 8);
                (COMPRESSED | sectors << offset_bits | first, 0)
            }
        }
    }

    fn refcounts(&mut self) {
        let bits = self.shape.refcount_bits();
        let per_block = self.shape.cluster_bytes() * 8 / bits;
        let table = self.offset(Object::RefcountTable);
        for block in 0..self.layout.clusters.div_ceil(per_block) {
            let Some(place) = self.layout.find(Object::RefcountBlock(to_usize(block))) else { continue };
            let at = place << self.shape.cluster_bits;
            self.put_u64(table + block * 8, at);
            let first = to_usize(block * per_block);
            let counts = self.layout.counts[first..].iter().take(to_usize(per_block));
            for (index, count) in counts.copied().enumerate().collect::<Vec<_>>() {
                self.put_count(at, index as u64, count);
            }
        }
    }

    fn put_count(&mut self, block: u64, index: u64, count: u64) {
        let bits = self.shape.refcount_bits();
        if bits < 8 {
            let at = to_usize(block + index * bits / 8);
            let shifted = count << (index * bits % 8);
            self.bytes[at] |= u8::try_from(shifted).expect("the count fits its width");
            return;
        }
        let bytes = count.to_be_bytes();
        self.put(block + index * bits / 8, &bytes[8 - to_usize(bits / 8)..]);
    }

    /// Fills guest data, packed clusters and bitmaps with bytes that belong to one place only.
    fn contents(&mut self, model: &Model) {
        let cluster = self.shape.cluster_bytes();
        for data in 0..model.data_clusters {
            if let Some(place) = self.layout.find(Object::Data(data)) {
                self.fill(place << self.shape.cluster_bits, cluster, 0xd000 + data as u64);
            }
        }
        for (run, shape) in model.runs.iter().enumerate() {
            let at = self.offset(Object::Run(run));
            self.fill(at, shape.used_bytes, 0xc0_0000 + run as u64);
        }
        for (bitmap, _) in self.shape.bitmaps.iter().enumerate().filter(|_| self.shape.is_v3()) {
            let at = self.offset(Object::BitmapTable(bitmap));
            for (index, kind) in bitmap_kinds(self.shape, model, bitmap).into_iter().enumerate() {
                let entry = match kind {
                    2 => {
                        let data = self.offset(Object::BitmapData(bitmap, index));
                        self.fill(data, cluster, 0xb0_0000 + index as u64);
                        data
                    }
                    other => u64::from(other),
                };
                self.put_u64(at + index as u64 * 8, entry);
            }
        }
    }

    fn fill(&mut self, at: u64, len: u64, tag: u64) {
        let place = to_usize(at)..to_usize(at + len);
        for (index, byte) in self.bytes[place].iter_mut().enumerate() {
            let word = (tag.wrapping_mul(0x9e37_79b9) ^ (index as u64 >> 3)).to_le_bytes();
            *byte = word[index & 7] | 1;
        }
    }

    /// Snapshot table, bitmap directory, LUKS header, and the header itself.
    fn roots(&mut self, model: &Model) {
        let offset = |object| self.offset(object);
        let snapshots = snapshot_table(self.shape, model, &offset);
        let directory = bitmap_directory(self.shape, model, &offset);
        if !snapshots.is_empty() {
            self.put(self.offset(Object::SnapshotTable), &snapshots);
        }
        if !directory.is_empty() {
            self.put(self.offset(Object::BitmapDirectory), &directory);
        }
        if self.shape.is_v3() && self.shape.luks_bytes > 0 {
            let at = self.offset(Object::Luks);
            self.put(at, b"LUKS\xba\xbe\x00\x01");
        }
        let header = self.header(model, directory.len() as u64);
        self.put(0, &header);
    }

    fn header(&self, model: &Model, directory_bytes: u64) -> Vec<u8> {
        let shape = self.shape;
        let v3 = shape.is_v3();
        let luks = v3 && shape.luks_bytes > 0;
        let mut out = Vec::new();
        let u32s = |out: &mut Vec<u8>, value: u64| {
            out.extend_from_slice(&u32::try_from(value).expect("fits").to_be_bytes());
        };
        out.extend_from_slice(b"QFI\xfb");
        u32s(&mut out, u64::from(shape.version));
        out.extend_from_slice(&[0; 12]);
        u32s(&mut out, u64::from(shape.cluster_bits));
        out.extend_from_slice(&model.active.bytes.to_be_bytes());
        u32s(&mut out, if luks { 2 } else { 0 });
        u32s(&mut out, model.active.l1.len() as u64);
        out.extend_from_slice(&self.offset(Object::L1(None)).to_be_bytes());
        out.extend_from_slice(&self.offset(Object::RefcountTable).to_be_bytes());
        u32s(&mut out, self.layout.refcount_table_clusters);
        u32s(&mut out, model.snapshots.len() as u64);
        let table = if model.snapshots.is_empty() { 0 } else { self.offset(Object::SnapshotTable) };
        out.extend_from_slice(&table.to_be_bytes());
        if v3 {
            self.header_v3(&mut out, directory_bytes > 0);
        }
        self.extensions(&mut out, directory_bytes, luks);
        if shape.backing {
            let at = out.len() as u64;
            out[8..16].copy_from_slice(&at.to_be_bytes());
            out[16..20].copy_from_slice(&9_u32.to_be_bytes());
            out.extend_from_slice(b"base.file");
        }
        out
    }

    fn header_v3(&self, out: &mut Vec<u8>, has_bitmaps: bool) {
        let shape = self.shape;
        let bits = |flags: &[(bool, u64)]| {
            flags.iter().filter(|flag| flag.0).map(|flag| 1_u64 << flag.1).sum::<u64>()
        };
        let incompatible = bits(&[
            (shape.dirty, 0),
            (shape.data_file.is_some(), 2),
            (shape.zstd, 3),
            (shape.is_extended(), 4),
        ]);
        out.extend_from_slice(&incompatible.to_be_bytes());
        out.extend_from_slice(&bits(&[(shape.lazy, 0)]).to_be_bytes());
        out.extend_from_slice(&bits(&[(has_bitmaps, 0), (shape.data_file == Some(true), 1)]).to_be_bytes());
        out.extend_from_slice(&shape.refcount_order.to_be_bytes());
        let more = shape.header_more.max(if shape.zstd { 8 } else { 0 });
        out.extend_from_slice(&(104 + more).to_be_bytes());
        out.resize(104 + more as usize, 0);
        if shape.zstd {
            out[104] = 1;
        }
    }

    fn extensions(&self, out: &mut Vec<u8>, directory_bytes: u64, luks: bool) {
        let mut put = |kind: u32, data: &[u8]| {
            out.extend_from_slice(&kind.to_be_bytes());
            out.extend_from_slice(&u32::try_from(data.len()).expect("fits").to_be_bytes());
            out.extend_from_slice(data);
            out.resize(out.len().next_multiple_of(8), 0);
        };
        if self.shape.backing {
            put(0xe279_2aca, b"raw");
        }
        if self.shape.has_data_file() {
            put(0x4441_5441, b"data.raw");
        }
        if luks {
            let range = [self.offset(Object::Luks).to_be_bytes(), self.shape.luks_bytes.to_be_bytes()];
            put(0x0537_be77, &range.concat());
        }
        if self.shape.strange_extensions {
            let mut name = vec![0, 0];
            name.extend_from_slice(b"dirty bit");
            name.resize(48, 0);
            put(0x6803_f857, &name);
            put(0x7e57_0001, b"12345");
        }
        if directory_bytes > 0 {
            let count = (self.shape.bitmaps.len() as u64) << 32;
            let words = [count, directory_bytes, self.offset(Object::BitmapDirectory)];
            put(0x2385_2875, &words.map(u64::to_be_bytes).concat());
        }
        put(0, &[]);
    }
}

/// The snapshot table, given where the L1 tables are.
pub(super) fn snapshot_table(shape: &Shape, model: &Model, offset: &dyn Fn(Object) -> u64) -> Vec<u8> {
    let mut out = Vec::new();
    for (index, disk) in model.snapshots.iter().enumerate() {
        let (id, name) = ((index + 1).to_string(), format!("snapshot {index}"));
        let short = |text: &str| u16::try_from(text.len()).expect("short names").to_be_bytes();
        let extra = match (shape.is_v3(), index % 2) {
            (false, 0) => 0_u32,
            (true, 1) => 24,
            _ => 16,
        };
        out.extend_from_slice(&offset(Object::L1(Some(index))).to_be_bytes());
        out.extend_from_slice(&u32::try_from(disk.l1.len()).expect("few").to_be_bytes());
        out.extend_from_slice(&short(&id));
        out.extend_from_slice(&short(&name));
        out.extend_from_slice(&1_700_000_000_u32.to_be_bytes());
        out.extend_from_slice(&[0; 12]);
        out.extend_from_slice(&u32::try_from(disk.vm_state_bytes).expect("small").to_be_bytes());
        out.extend_from_slice(&extra.to_be_bytes());
        let start = out.len();
        if extra > 0 {
            out.extend_from_slice(&disk.vm_state_bytes.to_be_bytes());
            out.extend_from_slice(&disk.bytes.to_be_bytes());
            out.resize(start + extra as usize, 0xff);
        }
        out.extend_from_slice(id.as_bytes());
        out.extend_from_slice(name.as_bytes());
        out.resize(out.len().next_multiple_of(8), 0);
    }
    out
}

/// The bitmap directory, given where the tables are.
pub(super) fn bitmap_directory(shape: &Shape, model: &Model, offset: &dyn Fn(Object) -> u64) -> Vec<u8> {
    let mut out = Vec::new();
    for (index, (granularity_bits, _)) in shape.bitmaps.iter().enumerate().filter(|_| shape.is_v3()) {
        let name = format!("bitmap {index}");
        let entries = bitmap_kinds(shape, model, index).len();
        out.extend_from_slice(&offset(Object::BitmapTable(index)).to_be_bytes());
        out.extend_from_slice(&u32::try_from(entries).expect("few").to_be_bytes());
        out.extend_from_slice(&2_u32.to_be_bytes());
        out.push(1);
        out.push(u8::try_from(*granularity_bits).expect("small"));
        out.extend_from_slice(&u16::try_from(name.len()).expect("short").to_be_bytes());
        out.extend_from_slice(&0_u32.to_be_bytes());
        out.extend_from_slice(name.as_bytes());
        out.resize(out.len().next_multiple_of(8), 0);
    }
    out
}
