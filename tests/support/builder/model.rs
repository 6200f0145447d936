//! What the steps of a shape leave behind: disks, the L2 tables that they share, and what the tables name.

use super::{Shape, Step, to_usize};

/// What an L2 entry says. Clusters are named by number; their places come later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    Hole,
    Zero(Option<usize>),
    Data(usize),
    Compressed { run: usize, start: u64, bytes: u64 },
    Subclusters { data: Option<usize>, allocated: u32, zero: u32 },
}

impl Entry {
    /// The data cluster that it names.
    pub(super) fn data(self) -> Option<usize> {
        match self {
            Self::Zero(data) | Self::Subclusters { data, .. } => data,
            Self::Data(data) => Some(data),
            Self::Hole | Self::Compressed { .. } => None,
        }
    }
}

/// A disk: the active one or a snapshot's.
#[derive(Debug, Clone, Default)]
pub(super) struct Disk {
    /// L1 table, by number of the L2 table.
    pub l1: Vec<Option<usize>>,
    pub bytes: u64,
    pub vm_state_bytes: u64,
}

/// Host clusters that compressed clusters are packed into.
#[derive(Debug, Clone)]
pub(super) struct Run {
    pub clusters: u64,
    pub used_bytes: u64,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Model {
    pub active: Disk,
    pub snapshots: Vec<Disk>,
    /// L2 tables; some may have lost all their users.
    pub tables: Vec<Vec<Entry>>,
    pub runs: Vec<Run>,
    pub data_clusters: usize,
}

/// How often each thing is used.
#[derive(Debug, Default)]
pub(super) struct Users {
    pub tables: Vec<u64>,
    pub data: Vec<u64>,
    /// For each run, each of its clusters.
    pub runs: Vec<Vec<u64>>,
}

impl Users {
    fn max(&self) -> u64 {
        let all = self.tables.iter().chain(&self.data).chain(self.runs.iter().flatten());
        all.copied().max().unwrap_or(0)
    }
}

impl Model {
    /// Follows the steps from an empty disk.
    pub(super) fn follow(shape: &Shape) -> Self {
        let mut model = Self::default();
        model.resize(shape, shape.disk_bytes(shape.tables, shape.short_sectors));
        for step in &shape.steps {
            let before = model.clone();
            model.take(shape, step);
            if model.users(shape).max() > shape.count_max() {
                model = before;
            }
        }
        model
    }

    /// Counts users of everything, each L1 entry anew.
    pub(super) fn users(&self, shape: &Shape) -> Users {
        let mut users = Users {
            tables: vec![0; self.tables.len()],
            data: vec![0; self.data_clusters],
            runs: self.runs.iter().map(|run| vec![0; to_usize(run.clusters)]).collect(),
        };
        for disk in self.snapshots.iter().chain([&self.active]) {
            for table in disk.l1.iter().flatten() {
                users.tables[*table] += 1;
                for entry in &self.tables[*table] {
                    if let Some(data) = entry.data() {
                        users.data[data] += 1;
                    }
                    if let Entry::Compressed { run, start, bytes } = *entry {
                        let (first, last) =
                            (start >> shape.cluster_bits, (start + bytes - 1) >> shape.cluster_bits);
                        for cluster in first..=last {
                            users.runs[run][to_usize(cluster)] += 1;
                        }
                    }
                }
            }
        }
        users
    }

    fn take(&mut self, shape: &Shape, step: &Step) {
        match *step {
            Step::Write { at, count } => self.each(shape, at, count, |model, _| {
                model.data_clusters += 1;
                Entry::Data(model.data_clusters - 1)
            }),
            Step::Zero { at, count, keep } if shape.is_v3() => {
                self.each(shape, at, count, |_, old| match old {
                    Entry::Data(data)
                    | Entry::Zero(Some(data))
                    | Entry::Subclusters { data: Some(data), .. }
                        if keep =>
                    {
                        Entry::Zero(Some(data))
                    }
                    _ => Entry::Zero(None),
                })
            }
            Step::Subclusters { at, allocated, zero } if shape.is_extended() => {
                self.each(shape, at, 1, |model, old| model.subclusters(old, allocated, zero & !allocated));
            }
            Step::Compress { at, bytes } if !shape.has_data_file() && shape.luks_bytes == 0 => {
                self.each(shape, at, 1, |model, _| model.compress(shape, bytes));
            }
            Step::Discard { at, count } => self.each(shape, at, count, |_, _| Entry::Hole),
            Step::VmState { clusters } if !shape.has_data_file() => self.vm_state(shape, clusters),
            Step::Snapshot if !shape.has_data_file() => self.snapshots.push(self.active.clone()),
            Step::Apply { which } if !self.snapshots.is_empty() => {
                self.active = self.snapshots[which % self.snapshots.len()].clone();
                self.active.vm_state_bytes = 0;
                self.forget_vm_state(shape);
            }
            Step::Delete { which } if !self.snapshots.is_empty() => {
                self.snapshots.remove(which % self.snapshots.len());
            }
            Step::Resize { tables, short_sectors } if shape.is_v3() || self.snapshots.is_empty() => {
                self.resize(shape, shape.disk_bytes(tables, short_sectors));
            }
            _ => {}
        }
    }

    fn subclusters(&mut self, old: Entry, allocated: u32, zero: u32) -> Entry {
        let data = if allocated == 0 {
            old.data()
        } else {
            self.data_clusters += 1;
            Some(self.data_clusters - 1)
        };
        Entry::Subclusters { data, allocated, zero }
    }

    fn compress(&mut self, shape: &Shape, bytes: u64) -> Entry {
        let bytes = 1 + bytes % (shape.cluster_bytes() - 1);
        let room = |run: &Run| (run.clusters << shape.cluster_bits) - run.used_bytes;
        if self.runs.last().is_none_or(|run| room(run) < bytes) {
            let clusters = 1 + bytes % 3;
            self.runs.push(Run { clusters, used_bytes: 0 });
        }
        let run = self.runs.len() - 1;
        let start = self.runs[run].used_bytes;
        self.runs[run].used_bytes += bytes;
        Entry::Compressed { run, start, bytes }
    }

    /// Changes `count` guest clusters from `at` on, as far as the disk has them.
    fn each(&mut self, shape: &Shape, at: u64, count: u64, mut to: impl FnMut(&mut Self, Entry) -> Entry) {
        let clusters = self.active.bytes.div_ceil(shape.cluster_bytes());
        let first = at % clusters.max(1);
        for guest in first..clusters.min(first + count) {
            self.change(shape, guest, &mut to);
        }
    }

    /// Changes one entry; its table is copied first where a snapshot shares it.
    fn change(&mut self, shape: &Shape, guest: u64, to: &mut impl FnMut(&mut Self, Entry) -> Entry) {
        let (index, slot) =
            (to_usize(guest / shape.table_entries()), to_usize(guest % shape.table_entries()));
        if self.active.l1.len() <= index {
            self.active.l1.resize(index + 1, None);
        }
        let own = match self.active.l1[index] {
            Some(table) if !self.snapshots.iter().any(|disk| disk.l1.contains(&Some(table))) => table,
            shared => {
                let copy = shared.map_or_else(
                    || vec![Entry::Hole; to_usize(shape.table_entries())],
                    |table| self.tables[table].clone(),
                );
                self.tables.push(copy);
                self.tables.len() - 1
            }
        };
        self.active.l1[index] = Some(own);
        let old = self.tables[own][slot];
        let new = to(self, old);
        self.tables[own][slot] = new;
    }

    fn vm_state(&mut self, shape: &Shape, clusters: u64) {
        let first =
            self.active.bytes.div_ceil(shape.table_entries() << shape.cluster_bits) * shape.table_entries();
        let clusters = 1 + clusters % shape.table_entries();
        for guest in first..first + clusters {
            self.change(shape, guest, &mut |model, _| {
                model.data_clusters += 1;
                Entry::Data(model.data_clusters - 1)
            });
        }
        self.active.vm_state_bytes = clusters * shape.cluster_bytes() - 7;
        self.snapshots.push(self.active.clone());
        self.active.vm_state_bytes = 0;
        self.forget_vm_state(shape);
    }

    fn forget_vm_state(&mut self, shape: &Shape) {
        let needed = self.active.bytes.div_ceil(shape.table_entries() << shape.cluster_bits);
        for table in self.active.l1.iter_mut().skip(to_usize(needed)) {
            *table = None;
        }
    }

    /// What lies behind the new end is given back first.
    fn resize(&mut self, shape: &Shape, bytes: u64) {
        let clusters = bytes.div_ceil(shape.cluster_bytes());
        let old = self.active.bytes.div_ceil(shape.cluster_bytes());
        self.active.bytes = bytes;
        for guest in clusters..old {
            let index = to_usize(guest / shape.table_entries());
            if self.active.l1.get(index).is_some_and(Option::is_some) {
                self.change(shape, guest, &mut |_, _| Entry::Hole);
            }
        }
        self.forget_vm_state(shape);
        let needed = to_usize(bytes.div_ceil(shape.table_entries() << shape.cluster_bits) + shape.spare_l1);
        if self.active.l1.len() < needed {
            self.active.l1.resize(needed, None);
        }
    }
}
