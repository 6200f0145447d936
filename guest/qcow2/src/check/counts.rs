//! True reference counts of host clusters, two bits a cluster in the usual case, exact in every case.
//!
//! Clusters are kept in chunks of [`CHUNK_CLUSTERS`]. A chunk that nothing refers to takes no memory, so that a
//! hole in a sparse file costs nothing. A chunk starts *narrow*: two bits say that a cluster has no user, or
//! exactly one of a kind that is fully described by the state. The first reference that does not fit makes the
//! chunk *wide*: exact counts (8 to 64 bits, widened on demand) beside one byte of [`flags`].
//!
//! Invariant: a cluster in a narrow chunk is beyond suspicion; whatever could be wrong with a cluster shows in
//! the count and flags of a wide one.
//!
//! Memory: chunks never take more than the cap. Where they would, the window of counted clusters shrinks from
//! its top, and [`Counts::next_window`] says where the next pass has to begin.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::Range;

/// log2 of [`CHUNK_CLUSTERS`].
pub const CHUNK_BITS: u32 = 14;
/// Clusters in one chunk.
pub const CHUNK_CLUSTERS: u64 = 1 << CHUNK_BITS;

const CHUNK_LEN: usize = 1 << CHUNK_BITS;
const WORDS: usize = CHUNK_LEN / 32;
/// Bytes of a narrow chunk.
const NARROW_BYTES: usize = WORDS * 8;

/// What is known of a cluster's users; or-ed over all of them.
pub mod flags {
    /// An entry of the active disk refers to it and has COPIED set.
    pub const ACTIVE_COPIED: u8 = 1 << 0;
    /// An entry of the active disk refers to it and has COPIED clear.
    pub const ACTIVE_CLEAR: u8 = 1 << 1;
    /// An L1 entry uses it as an L2 table.
    pub const L2: u8 = 1 << 2;
    /// Metadata that has exactly one user: anything but L2 tables; bitmap data too.
    pub const META: u8 = 1 << 3;
    /// An L2 entry uses it as a data cluster.
    pub const DATA: u8 = 1 << 4;
    /// An L2 entry's compressed payload touches it.
    pub const COMPRESSED: u8 = 1 << 5;
    /// Two entries of the active disk use it as what only one of them can: data of two guest clusters, or the
    /// L2 table of two guest ranges.
    pub const CROSS: u8 = 1 << 6;

    /// Any entry of the active disk.
    pub const ACTIVE: u8 = ACTIVE_COPIED | ACTIVE_CLEAR;
    /// What a cluster is used as.
    pub const KINDS: u8 = L2 | META | DATA | COMPRESSED;
}

/// Narrow states. Zero is "no user".
const ACTIVE_DATA: u64 = 1;
const METADATA: u64 = 2;
const SNAPSHOT_DATA: u64 = 3;

/// Clusters in a word of a narrow chunk.
const SLOTS: u64 = 32;
/// A word of such that are all metadata.
const METADATA_WORD: u64 = METADATA * 0x5555_5555_5555_5555;

/// Count and flags of one cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Users.
    pub count: u64,
    /// [`flags`] of all users.
    pub flags: u8,
}

impl Usage {
    /// Whether it is used as two things, or more often than its one kind allows.
    #[must_use]
    pub const fn is_overlap(self) -> bool {
        (self.flags & flags::KINDS).count_ones() > 1
            || (self.flags & flags::META != 0 && self.count > 1)
            || self.flags & flags::CROSS != 0
    }

    /// Whether an entry of the active disk says a wrong thing about being the only user.
    #[must_use]
    pub const fn is_copied_wrong(self) -> bool {
        (self.flags & flags::ACTIVE_COPIED != 0 && self.count > 1)
            || (self.flags & flags::ACTIVE_CLEAR != 0 && self.count == 1)
    }
}

#[derive(Debug)]
enum Exact {
    Bits8(Vec<u8>),
    Bits16(Vec<u16>),
    Bits32(Vec<u32>),
    Bits64(Vec<u64>),
}

impl Exact {
    const fn bytes(&self) -> usize {
        CHUNK_LEN
            * match self {
                Self::Bits8(_) => 1,
                Self::Bits16(_) => 2,
                Self::Bits32(_) => 4,
                Self::Bits64(_) => 8,
            }
    }

    fn get(&self, at: usize) -> u64 {
        match self {
            Self::Bits8(counts) => counts.get(at).copied().map_or(0, u64::from),
            Self::Bits16(counts) => counts.get(at).copied().map_or(0, u64::from),
            Self::Bits32(counts) => counts.get(at).copied().map_or(0, u64::from),
            Self::Bits64(counts) => counts.get(at).copied().unwrap_or(0),
        }
    }

    /// Writes a count if it fits.
    fn set(&mut self, at: usize, value: u64) -> bool {
        fn put<T: TryFrom<u64>>(counts: &mut [T], at: usize, value: u64) -> bool {
            match (T::try_from(value), counts.get_mut(at)) {
                (Ok(value), Some(place)) => {
                    *place = value;
                    true
                }
                _ => false,
            }
        }
        match self {
            Self::Bits8(counts) => put(counts, at, value),
            Self::Bits16(counts) => put(counts, at, value),
            Self::Bits32(counts) => put(counts, at, value),
            Self::Bits64(counts) => put(counts, at, value),
        }
    }

    /// The same counts, twice as wide.
    fn widened(&self) -> Self {
        match self {
            Self::Bits8(counts) => Self::Bits16(counts.iter().map(|count| u16::from(*count)).collect()),
            Self::Bits16(counts) => Self::Bits32(counts.iter().map(|count| u32::from(*count)).collect()),
            Self::Bits32(counts) => Self::Bits64(counts.iter().map(|count| u64::from(*count)).collect()),
            Self::Bits64(counts) => Self::Bits64(counts.clone()),
        }
    }
}

/// A chunk with exact counts.
#[derive(Debug)]
pub struct Wide {
    counts: Exact,
    flags: Vec<u8>,
}

impl Wide {
    fn from_narrow(words: &[u64; WORDS]) -> Self {
        let mut counts = alloc::vec![0_u8; CHUNK_LEN];
        let mut flag_bytes = alloc::vec![0_u8; CHUNK_LEN];
        let slots = counts.chunks_exact_mut(32).zip(flag_bytes.chunks_exact_mut(32));
        for (word, (counts, flag_bytes)) in words.iter().zip(slots).filter(|(word, _)| **word != 0) {
            for (slot, (count, flags)) in counts.iter_mut().zip(flag_bytes).enumerate() {
                let usage = narrow_usage((word >> (slot * 2)) & 3);
                *count = u8::from(usage.count != 0);
                *flags = usage.flags;
            }
        }
        Self { counts: Exact::Bits8(counts), flags: flag_bytes }
    }

    const fn bytes(&self) -> usize {
        self.counts.bytes() + CHUNK_LEN
    }

    /// Count and flags of the cluster at this place of the chunk.
    #[must_use]
    pub fn usage(&self, at: usize) -> Usage {
        Usage { count: self.counts.get(at), flags: self.flags.get(at).copied().unwrap_or(0) }
    }
}

/// The state of one chunk.
#[derive(Debug)]
pub enum Chunk {
    /// Nothing refers to it.
    Empty,
    /// Two bits a cluster, 32 clusters a word, from the least significant bits up.
    Narrow(Box<[u64; WORDS]>),
    /// Exact counts.
    Wide(Box<Wide>),
}

impl Chunk {
    fn bytes(&self) -> usize {
        match self {
            Self::Empty => 0,
            Self::Narrow(_) => NARROW_BYTES,
            Self::Wide(wide) => wide.bytes(),
        }
    }

    /// Count and flags of the cluster at this place of the chunk.
    #[must_use]
    pub fn usage(&self, at: usize) -> Usage {
        match self {
            Self::Empty => narrow_usage(0),
            Self::Narrow(words) => narrow_usage((words[(at / 32) % WORDS] >> ((at % 32) * 2)) & 3),
            Self::Wide(wide) => wide.usage(at),
        }
    }
}

const fn narrow_usage(state: u64) -> Usage {
    match state {
        ACTIVE_DATA => Usage { count: 1, flags: flags::DATA | flags::ACTIVE_COPIED },
        METADATA => Usage { count: 1, flags: flags::META },
        SNAPSHOT_DATA => Usage { count: 1, flags: flags::DATA },
        _ => Usage { count: 0, flags: 0 },
    }
}

/// The narrow state for one user, if there is one. An L2 table that the active disk owns alone, and says so,
/// counts as metadata: whatever else refers to it is wrong in any case.
const fn narrow_state(users: u8, count: u64) -> Option<u64> {
    const DATA_COPIED: u8 = flags::DATA | flags::ACTIVE_COPIED;
    const L2_COPIED: u8 = flags::L2 | flags::ACTIVE_COPIED;
    if count != 1 {
        return None;
    }
    match users {
        DATA_COPIED => Some(ACTIVE_DATA),
        flags::META | L2_COPIED => Some(METADATA),
        flags::DATA => Some(SNAPSHOT_DATA),
        _ => None,
    }
}

/// A cluster's place in its chunk.
const fn slot_of(cluster: u64) -> usize {
    instar_abi::to_usize(cluster & (CHUNK_CLUSTERS - 1))
}

/// Counts of the clusters in a window.
#[derive(Debug)]
pub struct Counts {
    /// First cluster of the window, a multiple of [`CHUNK_CLUSTERS`].
    first: u64,
    /// Clusters in the window.
    span: u64,
    /// Clusters of the window that can be in use, from its start on.
    counted: u64,
    chunks: Vec<Chunk>,
    /// Chunks from here on are known to be empty.
    top: usize,
    used_bytes: usize,
    cap_bytes: usize,
    /// Lowest cluster past the window that is referred to.
    beyond: Option<u64>,
}

impl Counts {
    /// Counts for `clusters` clusters from cluster `first` on (rounded down to a chunk), in at most `cap_bytes`
    /// of memory.
    #[must_use]
    pub fn new(first: u64, clusters: u64, cap_bytes: usize) -> Self {
        let first = first & !(CHUNK_CLUSTERS - 1);
        let directory_max = cap_bytes / 4 / size_of::<Chunk>();
        let wanted = instar_abi::to_usize(clusters.saturating_sub(first).div_ceil(CHUNK_CLUSTERS).max(1));
        let len = wanted.min(directory_max.max(1));
        let mut chunks = Vec::with_capacity(len);
        chunks.resize_with(len, || Chunk::Empty);
        let used_bytes = len * size_of::<Chunk>();
        let span = len as u64 * CHUNK_CLUSTERS;
        let counted = clusters.saturating_sub(first).min(span);
        Self { first, span, counted, chunks, top: 0, used_bytes, cap_bytes, beyond: None }
    }

    /// First cluster of the window.
    #[must_use]
    pub const fn first(&self) -> u64 {
        self.first
    }

    /// One past the last cluster of the window.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.first.saturating_add(self.span)
    }

    /// One past the last cluster of the window that can be in use.
    #[must_use]
    pub const fn counted_end(&self) -> u64 {
        self.first.saturating_add(self.counted)
    }

    /// Where the next window has to begin: the first cluster past this one that anything refers to.
    #[must_use]
    pub const fn next_window(&self) -> Option<u64> {
        self.beyond
    }

    /// Adds the usual reference: one entry of the active disk with COPIED set, as data.
    #[inline]
    pub fn add_active_copied(&mut self, cluster: u64) {
        let at = cluster.wrapping_sub(self.first);
        if at < self.counted
            && let Some(Chunk::Narrow(words)) = self.chunks.get_mut(instar_abi::to_usize(at >> CHUNK_BITS))
        {
            let slot = instar_abi::to_usize(at & (CHUNK_CLUSTERS - 1));
            let (word, shift) = (&mut words[slot / 32], (slot % 32) * 2);
            if *word >> shift & 3 == 0 {
                *word |= ACTIVE_DATA << shift;
                return;
            }
        }
        self.add(cluster, flags::DATA | flags::ACTIVE_COPIED, 1);
    }

    /// Adds `count` references of users with these flags.
    #[inline(never)]
    pub fn add(&mut self, cluster: u64, users: u8, count: u64) {
        let at = cluster.wrapping_sub(self.first);
        if cluster < self.first || count == 0 {
            return;
        }
        if at >= self.span {
            self.note_beyond(cluster);
            return;
        }
        self.counted = self.counted.max(at + 1);
        let index = instar_abi::to_usize(at >> CHUNK_BITS);
        let slot = instar_abi::to_usize(at & (CHUNK_CLUSTERS - 1));
        if let Some(state) = narrow_state(users, count)
            && self.add_narrow(index, slot, state)
        {
            return;
        }
        if self.span <= at || !self.make_wide(index) {
            self.note_beyond(cluster);
            return;
        }
        self.add_wide(index, slot, users, count);
    }

    /// Adds `count` references of metadata to each of a run of clusters.
    pub fn add_metadata(&mut self, first: u64, clusters: u64, count: u64) {
        let end = first.saturating_add(clusters);
        let mut cluster = first.max(self.first);
        while cluster < end && count > 0 {
            let at = cluster - self.first;
            if at >= self.span {
                self.note_beyond(cluster);
                return;
            }
            let is_counted = at.saturating_add(SLOTS) <= self.counted;
            let whole = is_counted && at.is_multiple_of(SLOTS) && end - cluster >= SLOTS && count == 1;
            let words = self.chunks.get_mut(instar_abi::to_usize(at >> CHUNK_BITS));
            if whole && let Some(Chunk::Narrow(words)) = words {
                let word = &mut words[instar_abi::to_usize(at / SLOTS) % WORDS];
                if *word == 0 {
                    *word = METADATA_WORD;
                    cluster += SLOTS;
                    continue;
                }
            }
            self.add(cluster, flags::META, count);
            cluster += 1;
        }
    }

    fn note_beyond(&mut self, cluster: u64) {
        self.beyond = Some(self.beyond.map_or(cluster, |lowest| lowest.min(cluster)));
    }

    /// Sets a narrow state where the cluster had none. False where the chunk has to be wide for it, or fell out
    /// of the window.
    fn add_narrow(&mut self, index: usize, slot: usize, state: u64) -> bool {
        if matches!(self.chunks.get(index), Some(Chunk::Empty)) {
            let Ok(words) = Box::<[u64; WORDS]>::try_from(alloc::vec![0; WORDS].into_boxed_slice()) else {
                return false;
            };
            if !self.make_room(index, NARROW_BYTES) {
                return false;
            }
            self.replace(index, Chunk::Narrow(words));
        }
        let Some(Chunk::Narrow(words)) = self.chunks.get_mut(index) else { return false };
        let (word, shift) = (&mut words[(slot / 32) % WORDS], (slot % 32) * 2);
        if *word >> shift & 3 != 0 {
            return false;
        }
        *word |= state << shift;
        true
    }

    /// Makes a chunk wide. False where it fell out of the window instead.
    fn make_wide(&mut self, index: usize) -> bool {
        let wide = match self.chunks.get(index) {
            None => return false,
            Some(Chunk::Wide(_)) => return true,
            Some(Chunk::Empty) => Wide::from_narrow(&[0; WORDS]),
            Some(Chunk::Narrow(words)) => Wide::from_narrow(words),
        };
        if !self.make_room(index, wide.bytes()) {
            return false;
        }
        self.replace(index, Chunk::Wide(Box::new(wide)));
        true
    }

    fn add_wide(&mut self, index: usize, slot: usize, users: u8, count: u64) {
        let Some(Chunk::Wide(wide)) = self.chunks.get_mut(index) else { return };
        let before = wide.usage(slot);
        let both = before.flags & users & (flags::DATA | flags::L2) != 0;
        let crossed = both && before.flags & flags::ACTIVE != 0 && users & flags::ACTIVE != 0;
        let total = before.count.saturating_add(count);
        if let Some(flags) = wide.flags.get_mut(slot) {
            *flags |= users | if crossed { flags::CROSS } else { 0 };
        }
        while let Some(Chunk::Wide(wide)) = self.chunks.get_mut(index) {
            if wide.counts.set(slot, total) || matches!(wide.counts, Exact::Bits64(_)) {
                return;
            }
            let wider = wide.counts.widened();
            let more = wider.bytes();
            if !self.make_room(index, more) {
                return;
            }
            if let Some(Chunk::Wide(wide)) = self.chunks.get_mut(index) {
                self.used_bytes = self.used_bytes.saturating_sub(wide.counts.bytes()).saturating_add(more);
                wide.counts = wider;
            }
        }
    }

    fn replace(&mut self, index: usize, chunk: Chunk) {
        if let Some(place) = self.chunks.get_mut(index) {
            self.used_bytes = self.used_bytes.saturating_sub(place.bytes()).saturating_add(chunk.bytes());
            *place = chunk;
            self.top = self.top.max(index + 1);
        }
    }

    /// Makes room for `bytes` more in chunk `index` by dropping chunks from the top of the window. False where
    /// `index` itself had to go. The lowest chunk is never dropped, so that every pass gets somewhere.
    fn make_room(&mut self, index: usize, bytes: usize) -> bool {
        while self.used_bytes.saturating_add(bytes) > self.cap_bytes && self.top.max(index + 1) > 1 {
            if self.top <= index {
                // The chunk that asks is the top one: it goes.
                self.cut(index);
                return false;
            }
            let last = self.top - 1;
            let is_used = !matches!(self.chunks.get(last), Some(Chunk::Empty) | None);
            if is_used && last == 0 {
                break;
            }
            self.top = last;
            if is_used {
                self.cut(last);
                if last <= index {
                    return false;
                }
            }
        }
        true
    }

    /// Ends the window below chunk `index`, which is referred to.
    fn cut(&mut self, index: usize) {
        self.replace(index, Chunk::Empty);
        self.top = self.top.min(index);
        self.span = (index as u64) * CHUNK_CLUSTERS;
        self.counted = self.counted.min(self.span);
        self.note_beyond(self.first.saturating_add(self.span));
    }

    /// The chunk that holds a cluster; `None` outside of the window.
    #[must_use]
    pub fn chunk_of(&self, cluster: u64) -> Option<&Chunk> {
        let at = cluster.checked_sub(self.first).filter(|at| *at < self.span)?;
        self.chunks.get(instar_abi::to_usize(at >> CHUNK_BITS))
    }

    /// Count and flags of a cluster; none outside of the window.
    #[must_use]
    pub fn usage(&self, cluster: u64) -> Usage {
        self.chunk_of(cluster).map_or(narrow_usage(0), |chunk| chunk.usage(slot_of(cluster)))
    }

    /// The first cluster of a range that is used as what only one can use it as.
    #[must_use]
    pub fn first_overlap(&self, clusters: Range<u64>) -> Option<(u64, Usage)> {
        let end = clusters.end.min(self.first.saturating_add(self.span));
        let mut cluster = clusters.start.max(self.first);
        while cluster < end {
            let next = (cluster | (CHUNK_CLUSTERS - 1)).saturating_add(1).min(end);
            if let Some(chunk @ Chunk::Wide(_)) = self.chunk_of(cluster) {
                let mut usages = (cluster..next).map(|at| (at, chunk.usage(slot_of(at))));
                if let Some(found) = usages.find(|(_, usage)| usage.is_overlap()) {
                    return Some(found);
                }
            }
            cluster = next;
        }
        None
    }

    /// The chunks of the window that anything refers to, in order, each with those of its clusters that can be in use:
    /// from its first one on.
    pub fn used_chunks(&self) -> impl Iterator<Item = (Range<u64>, &Chunk)> {
        let chunks = self.chunks.iter().enumerate().filter(|(_, chunk)| !matches!(chunk, Chunk::Empty));
        chunks.map(|(index, chunk)| {
            let start = index as u64 * CHUNK_CLUSTERS;
            let end = (start + CHUNK_CLUSTERS).min(self.counted).max(start);
            (self.first + start..self.first + end, chunk)
        })
    }
}

#[cfg(test)]
#[path = "counts_tests.rs"]
mod tests;
