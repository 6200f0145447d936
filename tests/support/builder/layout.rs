//! Gives every cluster of an image its place in the file, and counts who uses it.

use super::model::{Entry, Model, Users};
use super::{Dice, Shape, to_usize};

/// A thing that takes clusters which follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Object {
    /// L1 table of a snapshot, or of the active disk.
    L1(Option<usize>),
    L2(usize),
    Data(usize),
    Run(usize),
    RefcountTable,
    RefcountBlock(usize),
    SnapshotTable,
    BitmapDirectory,
    BitmapTable(usize),
    BitmapData(usize, usize),
    Luks,
}

/// Where everything is.
#[derive(Debug)]
pub(super) struct Layout {
    /// First cluster of each object that is in the file.
    places: Vec<(Object, u64)>,
    /// Clusters in the file.
    pub clusters: u64,
    /// True count of each.
    pub counts: Vec<u64>,
    pub refcount_table_clusters: u64,
    pub users: Users,
}

impl Layout {
    pub(super) fn of(shape: &Shape, model: &Model) -> Self {
        let users = model.users(shape);
        let mut objects = objects(shape, model, &users);
        let mut dice = Dice::new(shape.seed);
        let gaps: Vec<u64> = objects.iter().map(|_| gap(shape, &mut dice)).collect();
        let fixed: u64 = 1 + objects.iter().map(|object| object.1).sum::<u64>() + gaps.iter().sum::<u64>();
        let per_block = shape.cluster_bytes() * 8 / shape.refcount_bits();
        let (mut blocks, mut table) = (0, 0);
        loop {
            let total: u64 = fixed + blocks + table;
            let (need, per_table) = (total.div_ceil(per_block), shape.cluster_bytes() / 8);
            if need <= blocks && blocks.div_ceil(per_table).max(1) <= table {
                break;
            }
            (blocks, table) = (need.max(blocks), need.max(blocks).div_ceil(per_table).max(1));
        }
        objects.push((Object::RefcountTable, table));
        objects.extend((0..to_usize(blocks)).map(|index| (Object::RefcountBlock(index), 1)));
        shuffle(&mut objects, &mut dice);
        let mut layout = Self {
            places: Vec::new(),
            clusters: 1,
            counts: Vec::new(),
            refcount_table_clusters: table,
            users,
        };
        let mut gaps = gaps.into_iter();
        for (object, len) in objects {
            layout.places.push((object, layout.clusters));
            layout.clusters += len + gaps.next().unwrap_or(0);
        }
        layout.places.sort_unstable();
        layout.count(shape, model);
        layout.drop_blocks(&mut dice, per_block);
        layout
    }

    /// First cluster of an object that is in the file.
    pub(super) fn find(&self, object: Object) -> Option<u64> {
        let found = self.places.binary_search_by_key(&object, |place| place.0).ok()?;
        Some(self.places[found].1)
    }

    fn count(&mut self, shape: &Shape, model: &Model) {
        self.counts = vec![0; to_usize(self.clusters)];
        self.counts[0] = 1;
        for (object, first) in &self.places {
            let users: Vec<u64> = match *object {
                Object::L2(table) => vec![self.users.tables[table]],
                Object::Data(data) => vec![self.users.data[data]],
                Object::Run(run) => self.users.runs[run].clone(),
                _ => vec![1; to_usize(len_of(shape, model, *object, self.refcount_table_clusters))],
            };
            for (at, count) in users.into_iter().enumerate() {
                self.counts[to_usize(*first) + at] = count;
            }
        }
    }

    /// Some of the blocks that count nothing are left out; their clusters become gaps.
    fn drop_blocks(&mut self, dice: &mut Dice, per_block: u64) {
        let blocks: Vec<(usize, u64)> = self
            .places
            .iter()
            .filter_map(|(object, place)| match object {
                Object::RefcountBlock(index) => Some((*index, *place)),
                _ => None,
            })
            .collect();
        for (index, place) in blocks {
            let first = to_usize(index as u64 * per_block).min(self.counts.len());
            let end = to_usize((index as u64 + 1) * per_block).min(self.counts.len());
            let is_needless = self.counts[first..end].iter().all(|count| *count == 0);
            if is_needless && dice.below(4) > 0 {
                self.places.retain(|(object, _)| *object != Object::RefcountBlock(index));
                self.counts[to_usize(place)] = 0;
            }
        }
    }
}

fn gap(shape: &Shape, dice: &mut Dice) -> u64 {
    if dice.below(256) >= u64::from(shape.gaps) {
        return 0;
    }
    let most = if dice.below(16) == 0 { shape.gap_max } else { shape.gap_max.min(4) };
    dice.below(most + 1)
}

fn shuffle(objects: &mut [(Object, u64)], dice: &mut Dice) {
    for at in (1..objects.len()).rev() {
        objects.swap(at, to_usize(dice.below(at as u64 + 1)));
    }
}

/// Everything but what counts, with its length in clusters.
fn objects(shape: &Shape, model: &Model, users: &Users) -> Vec<(Object, u64)> {
    let mut all = vec![Object::L1(None)];
    all.extend((0..model.snapshots.len()).map(|index| Object::L1(Some(index))));
    let used = |counts: &[u64]| -> Vec<usize> {
        counts.iter().enumerate().filter(|(_, count)| **count > 0).map(|(index, _)| index).collect()
    };
    all.extend(used(&users.tables).into_iter().map(Object::L2));
    if !shape.has_data_file() {
        all.extend(used(&users.data).into_iter().map(Object::Data));
    }
    all.extend((0..model.runs.len()).map(Object::Run));
    if !model.snapshots.is_empty() {
        all.push(Object::SnapshotTable);
    }
    if shape.is_v3() && shape.luks_bytes > 0 {
        all.push(Object::Luks);
    }
    if shape.is_v3() && !shape.bitmaps.is_empty() {
        all.push(Object::BitmapDirectory);
        for bitmap in 0..shape.bitmaps.len() {
            all.push(Object::BitmapTable(bitmap));
            let kinds = bitmap_kinds(shape, model, bitmap);
            let data = kinds.iter().enumerate().filter(|(_, kind)| **kind == 2);
            all.extend(data.map(|(index, _)| Object::BitmapData(bitmap, index)));
        }
    }
    all.into_iter().map(|object| (object, len_of(shape, model, object, 0))).collect()
}

/// Clusters of an object.
fn len_of(shape: &Shape, model: &Model, object: Object, refcount_table_clusters: u64) -> u64 {
    let clusters = |bytes: u64| bytes.div_ceil(shape.cluster_bytes()).max(1);
    match object {
        Object::L1(None) => clusters(model.active.l1.len() as u64 * 8),
        Object::L1(Some(index)) => clusters(model.snapshots[index].l1.len() as u64 * 8),
        Object::Run(run) => model.runs[run].clusters,
        Object::RefcountTable => refcount_table_clusters,
        Object::SnapshotTable => clusters(super::write::snapshot_table(shape, model, &|_| 0).len() as u64),
        Object::BitmapDirectory => {
            clusters(super::write::bitmap_directory(shape, model, &|_| 0).len() as u64)
        }
        Object::BitmapTable(bitmap) => clusters(bitmap_kinds(shape, model, bitmap).len() as u64 * 8),
        Object::Luks => clusters(shape.luks_bytes),
        Object::L2(_) | Object::Data(_) | Object::RefcountBlock(_) | Object::BitmapData(..) => 1,
    }
}

/// What the entries of a bitmap's table are: as many as the disk needs.
pub(super) fn bitmap_kinds(shape: &Shape, model: &Model, bitmap: usize) -> Vec<u8> {
    let (granularity_bits, kinds) = &shape.bitmaps[bitmap];
    let bytes = model.active.bytes.div_ceil(1 << granularity_bits).div_ceil(8);
    let entries = bytes.div_ceil(shape.cluster_bytes()).max(1);
    (0..to_usize(entries))
        .map(|index| kinds.get(index % kinds.len().max(1)).map_or(0, |kind| kind % 3))
        .collect()
}

/// Whether an entry names a host cluster of the image file.
pub(super) const fn is_allocated(entry: Entry) -> bool {
    match entry {
        Entry::Hole | Entry::Zero(None) | Entry::Subclusters { data: None, .. } => false,
        Entry::Zero(Some(_)) | Entry::Data(_) | Entry::Compressed { .. } | Entry::Subclusters { .. } => true,
    }
}
