//! Who uses which part of the file: everything but L2 tables.
//!
//! Invariant: within one window, every use of every cluster is told, cut to the window and to the file.

use core::ops::Range;

use instar_abi::finding::Table;
use instar_abi::region::{COPIED, DISPUTED, LEFT_OUT, Region, SNAPSHOT_ONLY};
use instar_abi::to_usize;

use super::judge;
use crate::check::bitmaps::{Data, data, for_each_entry_in_turn};
use crate::check::compare::block_offset;
use crate::check::counts::{Usage, flags};
use crate::check::reader::{BATCH_BYTES, Bytes, Reader};
use crate::check::recount::Window;
use crate::check::report::Report;
use crate::check::roots::{Image, Region as Root, Roots};
use crate::host::Host;
use crate::ondisk::header::FIXED_BYTES;
use crate::ondisk::{bitmaps, snapshots};

/// What may be done with metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// It reads like what it is.
    Metadata,
    /// It does not.
    Doubtful,
    /// No check reads it.
    Unread,
}

/// The users of the clusters of one window.
pub struct Places<'a> {
    /// The image.
    pub image: &'a Image,
    /// What its header leads to.
    pub roots: &'a Roots,
    /// What is used how often.
    pub window: &'a Window<'a>,
}

impl Places<'_> {
    /// Tells of a part of the file.
    fn put<H: Host>(&self, host: &mut H, table: Table, bytes: Range<u64>, flags: u32) {
        let end = bytes.end.min(self.image.bounds.len);
        if bytes.start < end {
            let (offset, len) = (bytes.start, end - bytes.start);
            host.region(&Region { offset, len, table: table as u32, flags });
        }
    }

    fn usage(&self, cluster: u64) -> Usage {
        self.window.counts.usage(cluster)
    }

    /// Tells of metadata, cut where its clusters' other users change.
    pub fn put_metadata<H: Host>(&self, host: &mut H, table: Table, bytes: Range<u64>, sharing: Sharing) {
        let cluster = self.image.header.cluster;
        let window = cluster.offset(self.window.clusters.start)..cluster.offset(self.window.clusters.end);
        let mut start = bytes.start.max(window.start);
        let end = bytes.end.min(window.end).min(self.image.bounds.len);
        let mut run: Option<(Range<u64>, u32)> = None;
        while start < end {
            let next = cluster.offset(cluster.index(start).saturating_add(1)).min(end);
            let flags = self.flags(cluster.index(start), sharing);
            match &mut run {
                Some((run, same)) if *same == flags => run.end = next,
                _ => {
                    if let Some((done, flags)) = run.replace((start..next, flags)) {
                        self.put(host, table, done, flags);
                    }
                }
            }
            start = next;
        }
        if let Some((done, flags)) = run {
            self.put(host, table, done, flags);
        }
    }

    /// What a cluster's other users make of metadata there.
    fn flags(&self, cluster: u64, sharing: Sharing) -> u32 {
        let usage = self.usage(cluster);
        let is_guests = usage.flags & (flags::DATA | flags::COMPRESSED) != 0;
        let copied = match sharing {
            Sharing::Metadata if !is_guests => COPIED,
            Sharing::Metadata | Sharing::Doubtful => LEFT_OUT,
            Sharing::Unread => 0,
        };
        copied | if usage.is_overlap() { DISPUTED } else { 0 }
    }

    /// Tells of guest data, as long runs as there are.
    pub fn tell_data<H: Host>(&self, host: &mut H) {
        let cluster = self.image.header.cluster;
        let mut run: Option<(Range<u64>, (Table, u32))> = None;
        for (clusters, chunk) in self.window.counts.used_chunks() {
            for (slot, index) in clusters.enumerate() {
                let Some(kind) = data_kind(chunk.usage(slot)) else { continue };
                match &mut run {
                    Some((run, same)) if *same == kind && run.end == index => run.end += 1,
                    _ => {
                        if let Some((done, (table, flags))) = run.replace((index..index + 1, kind)) {
                            self.put(
                                host,
                                table,
                                cluster.offset(done.start)..cluster.offset(done.end),
                                flags,
                            );
                        }
                    }
                }
            }
        }
        if let Some((done, (table, flags))) = run {
            self.put(host, table, cluster.offset(done.start)..cluster.offset(done.end), flags);
        }
    }

    /// Tells of the header's cluster: what of it says something, and the rest, which may be left over from anything.
    pub fn tell_header<H: Host>(&self, host: &mut H) {
        if self.window.clusters.start > 0 {
            return;
        }
        let end = self.image.header.cluster.bytes();
        let fields = self.header_end().min(end);
        let header = &self.image.header;
        let name = header.backing_offset..header.backing_offset.saturating_add(header.backing_len.into());
        let name = if name.start >= fields && name.end <= end { name } else { fields..fields };
        self.put_metadata(host, Table::Header, 0..fields, Sharing::Metadata);
        self.put_metadata(host, Table::Header, fields..name.start, Sharing::Unread);
        self.put_metadata(host, Table::Header, name.clone(), Sharing::Metadata);
        self.put_metadata(host, Table::Header, name.end..end, Sharing::Unread);
    }

    /// One past the mark that ends the extensions, or past the words that stand in its place.
    fn header_end(&self) -> u64 {
        let fixed = FIXED_BYTES as u64;
        let Some(header_bytes) = self.image.header.header_bytes else { return fixed };
        let last = self.image.extensions.seen.last();
        let end = last.map_or(header_bytes.into(), |(_, place)| place.end.next_multiple_of(8) as u64);
        end.saturating_add(8).max(fixed)
    }

    /// Tells of what the header leads to. A snapshot table or bitmap directory that ends too early is read a little
    /// further.
    pub fn tell_regions<H: Host>(&self, host: &mut H, reader: &mut Reader, has_cut_snapshots: bool) {
        for root in &self.roots.regions {
            let mut bytes = root.offset..root.offset.saturating_add(root.len);
            if root.table == Table::Header || root.weight == 0 {
                continue;
            }
            if root.table == Table::SnapshotTable && has_cut_snapshots {
                bytes.end = bytes.end.saturating_add(snapshots::FIXED_BYTES as u64);
            }
            if root.table == Table::BitmapDirectory {
                // What no entry is in may be anything.
                let known = self.roots.bitmap_entries_end.saturating_add(bitmaps::FIXED_BYTES as u64);
                let rest = known.min(bytes.end)..bytes.end;
                bytes.end = rest.start;
                self.put_metadata(host, root.table, rest, Sharing::Unread);
            }
            let sharing = self.sharing(host, reader, root);
            self.put_metadata(host, root.table, bytes, sharing);
        }
    }

    fn sharing<H: Host>(&self, host: &mut H, reader: &mut Reader, root: &Root) -> Sharing {
        let is_other: fn(&Image, &[u8]) -> bool = match root.table {
            Table::CryptoHeader => return Sharing::Unread,
            Table::L1 => judge::is_no_l1,
            Table::RefcountTable => judge::is_no_refcount_table,
            Table::BitmapTable => judge::is_no_bitmap_table,
            _ => return Sharing::Metadata,
        };
        // Its beginning says what it is.
        let len = to_usize(root.len).min(BATCH_BYTES);
        match reader.one(host, root.offset, len) {
            Bytes::Read(bytes) if !is_other(self.image, bytes) => Sharing::Metadata,
            Bytes::Read(_) | Bytes::Failed(_) => Sharing::Doubtful,
        }
    }

    /// Tells of refcount blocks.
    pub fn tell_blocks<H: Host>(&self, host: &mut H, reader: &mut Reader) {
        let cluster = self.image.header.cluster;
        for (index, entry) in (0..).zip(&self.roots.refcount_table) {
            let Some(offset) = block_offset(self.image, *entry) else { continue };
            if self.roots.is_block_repeated(index) || !self.window.clusters.contains(&cluster.index(offset)) {
                continue;
            }
            let sharing = match reader.one(host, offset, cluster.usize()) {
                Bytes::Read(bytes) if !judge::is_no_block(self.image, bytes) => Sharing::Metadata,
                Bytes::Read(_) | Bytes::Failed(_) => Sharing::Doubtful,
            };
            self.put_metadata(host, Table::RefcountBlock, offset..offset + cluster.bytes(), sharing);
        }
    }

    /// Tells of the clusters that hold the bits of bitmaps.
    pub fn tell_bitmap_data<H: Host>(&self, host: &mut H, reader: &mut Reader) {
        let cluster = self.image.header.cluster;
        let mut report = Report::new(true);
        report.set_muted(true);
        for bitmap in &self.roots.bitmaps {
            for_each_entry_in_turn(host, reader, &mut report, bitmap, |host, _, _, entry, _| {
                if let Data::At(offset) = data(self.image, self.roots, entry) {
                    let bytes = offset..offset + cluster.bytes();
                    self.put_metadata(host, Table::BitmapData, bytes, Sharing::Unread);
                }
            });
        }
    }
}

/// What a cluster is told as, where it is guest data and nothing else.
fn data_kind(usage: Usage) -> Option<(Table, u32)> {
    let disputed = if usage.is_overlap() { DISPUTED } else { 0 };
    if usage.flags & (flags::META | flags::L2) != 0 {
        None
    } else if usage.flags & flags::DATA != 0 {
        let only = if usage.flags & flags::ACTIVE == 0 { SNAPSHOT_ONLY } else { 0 };
        Some((Table::Data, disputed | only))
    } else if usage.flags & flags::COMPRESSED != 0 {
        Some((Table::CompressedData, disputed))
    } else {
        None
    }
}
