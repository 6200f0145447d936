//! Damage to entries, snapshots, bitmaps and header fields that the tier `all` mends in full, and what the guest
//! reads afterwards.

use instar_abi::choice::Decision;

use super::image::{Content, Flavour, TestImage};
use super::raw::{COMPRESSED, COPIED, OFFSET, Raw, extension, field};

/// Damage that the tier `all` mends.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Its name.
    pub name: &'static str,
    /// What is damaged.
    pub flavour: Flavour,
    /// What has to be decided for that.
    pub decisions: &'static [Decision],
    /// Smallest clusters that an image can have which this can be done to.
    pub cluster_bytes_min: u64,
    /// The damage; the model holds what the guest is to read in the end.
    pub apply: fn(&mut TestImage, &Raw),
}

const fn case(name: &'static str, flavour: Flavour, apply: fn(&mut TestImage, &Raw)) -> Case {
    Case { name, flavour, decisions: &[], cluster_bytes_min: 512, apply }
}

/// An aligned offset well past the end of the file.
pub fn far(raw: &Raw) -> u64 {
    (raw.len() / raw.cluster_bytes + 64) * raw.cluster_bytes
}

/// Makes an entry lead past the end of the file, with nothing of its cluster left.
fn lose(image: &mut TestImage, raw: &Raw, index: u64) {
    raw.set_refcount(raw.host_offset(index) / raw.cluster_bytes, 0);
    raw.set_number(raw.l2_entry(index), 8, far(raw) | COPIED);
    image.model.insert(index, Content::Zero);
}

/// Makes one guest cluster use the host cluster of another, with counts that agree.
pub fn share(image: &mut TestImage, raw: &Raw, keeper: u64, other: u64) {
    let host = raw.host_offset(keeper);
    raw.set_refcount(raw.host_offset(other) / raw.cluster_bytes, 0);
    raw.set_refcount(host / raw.cluster_bytes, 2);
    raw.change(raw.l2_entry(keeper), |entry| entry & !COPIED);
    raw.set_number(raw.l2_entry(other), 8, host);
    image.model.remove(&other);
}

/// Takes the extra data of the last snapshot's entry away.
fn strip_extra(raw: &Raw) {
    let at = raw.snapshot_entry(1);
    let (extra, names) = (raw.number(at + 36, 4), raw.number(at + 12, 2) + raw.number(at + 14, 2));
    let strings = raw.read(at + 40 + extra, usize::try_from(names).expect("small"));
    raw.set_number(at + 36, 4, 0);
    raw.write(at + 40, &strings);
}

/// Puts an extension that nobody knows behind the bitmaps.
fn add_extension(raw: &Raw) {
    let at = raw.bitmaps_extension() + 24;
    assert_eq!(raw.number(at, 8), 0, "the bitmaps are the last extension");
    raw.set_number(at, 8, 0x1122_3344 << 32 | 5);
    raw.write(at + 8, b"hello");
}

/// Every such damage.
pub const CASES: &[Case] = &[
    case("l2-reserved", Flavour::Plain, |image, raw| {
        raw.change(raw.l2_entry(0), |entry| entry | 1 << 1);
        raw.change(raw.l2_entry(3), |entry| entry | 1 << 57);
        raw.change(raw.l2_entry(image.l2_entries), |entry| entry | 1 << 8);
    }),
    case("l2-reserved-version-2", Flavour::V2, |_, raw| {
        raw.change(raw.l2_entry(0), |entry| entry | 1 << 1);
    }),
    case("l1-reserved", Flavour::Plain, |_, raw| {
        raw.change(raw.l1_entry(0), |entry| entry | 0x7);
        raw.change(raw.l1_entry(1), |entry| entry | 1 << 60);
    }),
    case("snapshot-reserved", Flavour::Snapshots, |_, raw| {
        let table = raw.number(raw.snapshot_entry(0), 8);
        raw.change(raw.l2_entry_below(table, 1), |entry| entry | 1 << 3);
        raw.change(table, |entry| entry | 1);
    }),
    case("extended-reserved", Flavour::ExtendedL2, |_, raw| {
        raw.change(raw.l2_entry(0), |entry| entry | 1);
        raw.set_number(raw.l2_entry(20) + 8, 8, 1);
    }),
    case("lost-data", Flavour::Plain, |image, raw| {
        lose(image, raw, 0);
        lose(image, raw, 1);
        lose(image, raw, image.l2_entries);
    }),
    case("lost-data-version-2", Flavour::V2, |image, raw| lose(image, raw, 0)),
    // The backing file has other bytes there, which must not show.
    case("lost-data-backing", Flavour::Backing, |image, raw| lose(image, raw, 0)),
    case("lost-data-extended", Flavour::ExtendedL2, |image, raw| lose(image, raw, 0)),
    case("lost-table", Flavour::Plain, |image, raw| {
        let first = 2 * image.l2_entries;
        for index in first + 5..first + 8 {
            raw.set_refcount(raw.host_offset(index) / raw.cluster_bytes, 0);
            image.model.insert(index, Content::Zero);
        }
        raw.set_refcount((raw.number(raw.l1_entry(2), 8) & OFFSET) / raw.cluster_bytes, 0);
        raw.set_number(raw.l1_entry(2), 8, far(raw) | COPIED);
    }),
    case("lost-place-of-a-zero-cluster", Flavour::Plain, |_, raw| {
        raw.change(raw.l2_entry(18), |entry| entry + 512);
        raw.set_number(raw.l2_entry(19), 8, far(raw) | 1);
    }),
    case("compressed-length", Flavour::Plain, |_, raw| {
        // The payload moves to a cluster of its own at the end of the file, with the largest length.
        let bits = raw.get(field::CLUSTER_BITS) - 8;
        let entry = raw.number(raw.l2_entry(20), 8) & !COMPRESSED;
        let old = entry & ((1 << (62 - bits)) - 1);
        let sectors = (entry >> (62 - bits)) + 1;
        let payload = raw.read(old, usize::try_from(sectors * 512).expect("small"));
        let moved = raw.append_clusters(1, 1) * raw.cluster_bytes;
        raw.write(moved + old % 512, &payload);
        let cluster = old / raw.cluster_bytes;
        raw.set_refcount(cluster, raw.refcount(cluster) - 1);
        let longest = ((1 << bits) - 1) << (62 - bits);
        raw.set_number(raw.l2_entry(20), 8, COMPRESSED | longest | (moved + old % 512));
    }),
    case("shared", Flavour::Plain, |image, raw| share(image, raw, 0, 1)),
    case("shared-across-tables", Flavour::Plain, |image, raw| {
        share(image, raw, 2, image.l2_entries);
        share(image, raw, 4, 5);
    }),
    case("shared-version-2", Flavour::V2, |image, raw| share(image, raw, 0, 1)),
    case("shared-extended", Flavour::ExtendedL2, |image, raw| share(image, raw, 0, 1)),
    case("shared-beside-snapshots", Flavour::Snapshots, |image, raw| {
        let first = image.l2_entries + 1;
        share(image, raw, first, first + 1);
    }),
    case("snapshot-extra", Flavour::Snapshots, |_, raw| strip_extra(raw)),
    case("snapshot-count", Flavour::Snapshots, |_, raw| raw.set(field::SNAPSHOTS, 3)),
    case("snapshot-count-by-many", Flavour::Snapshots, |_, raw| raw.set(field::SNAPSHOTS, 8)),
    // The shortened entry leaves bytes behind it, which would make a third one.
    case("snapshot-count-and-extra", Flavour::Snapshots, |_, raw| {
        strip_extra(raw);
        raw.write(raw.snapshot_entry(2), &[0; 32]);
        raw.set(field::SNAPSHOTS, 3);
    }),
    case("bitmap-in-use", Flavour::Bitmaps, |_, raw| raw.set_number(raw.bitmap_entry(0) + 12, 4, 3)),
    case("bitmaps-not-trusted", Flavour::Bitmaps, |_, raw| raw.set(field::AUTOCLEAR, 0)),
    Case {
        decisions: &[Decision::DropBitmaps],
        ..case("bitmaps-dropped", Flavour::Bitmaps, |_, raw| {
            raw.set_number(raw.bitmap_entry(0) + 17, 1, 40);
        })
    },
    case("bitmap-table-offset", Flavour::Bitmaps, |_, raw| {
        raw.set_number(raw.bitmap_entry(0), 8, far(raw));
    }),
    case("bitmap-table-offsets", Flavour::Bitmaps, |_, raw| {
        raw.set_number(raw.bitmap_entry(0), 8, far(raw));
        raw.change(raw.bitmap_entry(1), |offset| offset + 8);
    }),
    case("bitmap-table-shared", Flavour::Bitmaps, |_, raw| {
        raw.set_number(raw.bitmap_entry(0), 8, raw.number(raw.bitmap_entry(1), 8));
    }),
    case("bitmap-table-entry-past-eof", Flavour::Bitmaps, |_, raw| {
        raw.set_number(raw.number(raw.bitmap_entry(0), 8), 8, far(raw));
    }),
    case("bitmap-table-entry-on-l1", Flavour::Bitmaps, |_, raw| {
        raw.set_number(raw.number(raw.bitmap_entry(0), 8), 8, raw.get(field::L1_OFFSET));
    }),
    case("bitmap-table-entry-reserved", Flavour::Bitmaps, |_, raw| {
        raw.change(raw.number(raw.bitmap_entry(0), 8), |entry| entry | 1 << 3);
        raw.change(raw.number(raw.bitmap_entry(1), 8), |entry| entry | 1 << 60);
    }),
    Case {
        decisions: &[Decision::DropBitmaps],
        ..case("bitmaps-dropped-before-another-extension", Flavour::Bitmaps, |_, raw| {
            raw.set_number(raw.bitmap_entry(0) + 17, 1, 40);
            add_extension(raw);
        })
    },
    case("lone-bitmaps-bit", Flavour::Plain, |_, raw| raw.set(field::AUTOCLEAR, 1)),
    case("lone-raw-data-bit", Flavour::Plain, |_, raw| raw.set(field::AUTOCLEAR, 2)),
    // Programs leave the table out of small header clusters.
    Case {
        cluster_bytes_min: 65_536,
        ..case("feature-table", Flavour::Plain, |_, raw| {
            let (at, len) = raw.extension(extension::FEATURE_NAMES).expect("qemu writes one");
            raw.set_number(at + 4, 4, len - 1);
        })
    },
    Case {
        cluster_bytes_min: 65_536,
        ..case("feature-table-before-another-extension", Flavour::Bitmaps, |_, raw| {
            let (at, len) = raw.extension(extension::FEATURE_NAMES).expect("programs write it");
            let behind = raw.read(at + 8 + len, 64);
            raw.set_number(at + 4, 4, len - 9);
            raw.write(at + len, &behind);
        })
    },
    case("several", Flavour::Snapshots, |image, raw| {
        raw.change(raw.l2_entry(7), |entry| entry | 1 << 4);
        let first = image.l2_entries + 1;
        share(image, raw, first, first + 1);
        strip_extra(raw);
    }),
];
