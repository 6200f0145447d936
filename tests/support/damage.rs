//! Named damage: one recipe for each problem that can be made with a file, and what the check must say of it.

use std::path::Path;

use super::image::{self, Flavour, TestImage};
use super::raw::{COMPRESSED, COPIED, OFFSET, Raw, extension, field};

/// How to damage a healthy image, and what must be found then.
#[derive(Debug, Clone, Copy)]
pub struct Recipe {
    /// Its name: the problem that it is made for, then what sets it apart.
    pub name: &'static str,
    /// What is damaged.
    pub flavour: Flavour,
    /// Bytes of a cluster.
    pub cluster_bytes: u64,
    /// Problem ids that must be among the findings.
    pub problems: &'static [&'static str],
    /// Options of `instar check` that it takes to find it.
    pub options: &'static [&'static str],
    /// Exit code of `instar check`.
    pub exit: i32,
    /// The damage.
    apply: fn(&TestImage, &Raw),
}

impl Recipe {
    /// Makes the damaged image in `folder`. Needs [`super::tools::qemu`].
    pub fn make(&self, folder: &Path) -> TestImage {
        self.make_as(folder, self.flavour, self.cluster_bytes)
    }

    /// The same damage to an image of another make.
    pub fn make_as(&self, folder: &Path, flavour: Flavour, cluster_bytes: u64) -> TestImage {
        let image = image::make(folder, self.name, flavour, cluster_bytes);
        self.damage(&image);
        image
    }

    /// Damages an image that may be damaged already. Panics, perhaps half-way, where what it damages is not there.
    pub fn damage(&self, image: &TestImage) {
        (self.apply)(image, &Raw::open(&image.path));
    }

    /// Whether images of this flavour have what it damages.
    pub fn fits(&self, flavour: Flavour) -> bool {
        let also: &[Flavour] = match self.flavour {
            Flavour::Plain => &Flavour::ALL,
            Flavour::Snapshots => &[Flavour::SnapshotsV2, Flavour::Rich],
            Flavour::Backing | Flavour::Bitmaps => &[Flavour::Rich],
            Flavour::DataFile => &[Flavour::DataFileRaw],
            _ => &[],
        };
        flavour == self.flavour || also.contains(&flavour)
    }
}

/// The recipe with this name.
pub fn recipe(name: &str) -> &'static Recipe {
    RECIPES.iter().find(|recipe| recipe.name == name).unwrap_or_else(|| panic!("no recipe {name}"))
}

/// Problems that no file can show, with the reason.
pub const UNREACHABLE: &[(&str, &str)] = &[
    ("l1-table-unreadable", "needs storage that fails"),
    ("l2-table-unreadable", "needs storage that fails"),
    ("read-error", "needs storage that fails"),
];

const fn plain(name: &'static str, problems: &'static [&'static str], apply: fn(&TestImage, &Raw)) -> Recipe {
    with(Flavour::Plain, name, problems, apply)
}

const fn with(
    flavour: Flavour,
    name: &'static str,
    problems: &'static [&'static str],
    apply: fn(&TestImage, &Raw),
) -> Recipe {
    Recipe { name, flavour, cluster_bytes: 65_536, problems, options: &[], exit: 2, apply }
}

/// The payload of a compressed cluster overwritten, which only inflating can show.
const fn deep(flavour: Flavour, name: &'static str) -> Recipe {
    let damage = |_: &TestImage, raw: &Raw| {
        let payload = raw.number(raw.l2_entry(20), 8) & PAYLOAD_OFFSET;
        raw.write(payload, &[0xff; 16]);
    };
    Recipe { options: &["--deep"], ..with(flavour, name, &["compressed-damaged"], damage) }
}

/// The payload's offset in the L2 entry of a compressed cluster of 64 KiB.
const PAYLOAD_OFFSET: u64 = (1 << 54) - 1;

/// Every recipe, in the order of the problem table.
pub const RECIPES: &[Recipe] = &[
    Recipe { exit: 63, ..plain("not-qcow2", &["not-qcow2"], |_, raw| raw.write(0, &[0; 512])) },
    Recipe { exit: 63, ..plain("header-magic", &["header-magic"], |_, raw| raw.set(field::MAGIC, 0)) },
    plain("header-truncated", &["header-truncated"], |_, raw| raw.set_len(60)),
    Recipe { exit: 63, ..plain("header-version", &["header-version"], |_, raw| raw.set(field::VERSION, 1)) },
    plain("header-cluster-bits", &["header-cluster-bits"], |_, raw| raw.set(field::CLUSTER_BITS, 5)),
    plain("header-length", &["header-length"], |_, raw| raw.set(field::HEADER_LENGTH, 96)),
    plain("header-refcount-order", &["header-refcount-order"], |_, raw| raw.set(field::REFCOUNT_ORDER, 7)),
    Recipe {
        exit: 63,
        ..with(Flavour::Luks, "header-crypt-method", &["header-crypt-method"], |_, raw| {
            raw.set(field::CRYPT_METHOD, 9);
        })
    },
    Recipe {
        exit: 63,
        ..plain("header-incompatible-feature", &["header-incompatible-feature"], |_, raw| {
            raw.set(field::INCOMPATIBLE, 1 << 40);
        })
    },
    plain("header-compression-type", &["header-compression-type"], |_, raw| {
        raw.set(field::INCOMPATIBLE, 1 << 3);
        raw.set(field::COMPRESSION_TYPE, 9);
    }),
    Recipe {
        cluster_bytes: 4096,
        ..plain("header-extended-l2", &["header-extended-l2"], |_, raw| raw.set(field::INCOMPATIBLE, 1 << 4))
    },
    with(Flavour::ExtendedL2, "header-extended-l2-flag", &["header-extended-l2-flag"], |_, raw| {
        raw.set(field::INCOMPATIBLE, 0);
    }),
    plain("header-l1-size", &["header-l1-size"], |_, raw| raw.set(field::L1_SIZE, 1)),
    plain("header-l1-offset", &["header-l1-offset"], |_, raw| raw.set(field::L1_OFFSET, far(raw))),
    plain("header-refcount-table-offset", &["header-refcount-table-offset"], |_, raw| {
        raw.set(field::REFCOUNT_TABLE_OFFSET, far(raw));
    }),
    plain("header-refcount-table-size", &["header-refcount-table-size"], |_, raw| {
        raw.set(field::REFCOUNT_TABLE_CLUSTERS, 0);
    }),
    with(Flavour::Snapshots, "header-snapshots-offset", &["header-snapshots-offset"], |_, raw| {
        raw.set(field::SNAPSHOTS_OFFSET, far(raw));
    }),
    with(Flavour::Snapshots, "header-snapshots-count", &["header-snapshots-count"], |_, raw| {
        raw.set(field::SNAPSHOTS, 70_000);
    }),
    with(Flavour::Backing, "header-backing-name", &["header-backing-name"], |_, raw| {
        raw.set(field::BACKING_OFFSET, 2 * raw.cluster_bytes);
    }),
    with(Flavour::Lazy, "header-dirty", &["header-dirty", "refcount-too-low"], |_, raw| {
        raw.set(field::INCOMPATIBLE, 1);
        raw.set_refcount(data_cluster(raw), 0);
    }),
    plain("header-corrupt", &["header-corrupt"], |_, raw| raw.set(field::INCOMPATIBLE, 2)),
    plain("header-virtual-size", &["header-virtual-size"], |image, raw| {
        raw.set(field::SIZE, 4 * image.cluster_bytes);
    }),
    plain("extension-length", &["extension-length"], |_, raw| {
        raw.set_number(feature_table(raw).0 + 4, 4, 0x7fff_ffff);
    }),
    plain("extension-duplicate", &["extension-duplicate"], |_, raw| {
        let (at, len) = feature_table(raw);
        let table = raw.read(at, usize::try_from(8 + len).expect("small"));
        raw.write(at + 8 + len, &table);
        raw.set_number(at + 2 * (8 + len), 8, 0);
    }),
    plain("extension-feature-table", &["extension-feature-table"], |_, raw| {
        let (at, len) = feature_table(raw);
        raw.set_number(at + 4, 4, len - 1);
    }),
    with(Flavour::Bitmaps, "extension-bitmaps", &["extension-bitmaps"], |_, raw| {
        raw.set_number(raw.bitmaps_extension() + 4, 4, 0xdead);
    }),
    with(Flavour::Luks, "extension-crypto", &["extension-crypto"], |_, raw| {
        raw.change(crypto_extension(raw) + 8, |offset| offset + 512);
    }),
    with(Flavour::Luks, "extension-missing", &["extension-missing"], |_, raw| {
        raw.set_number(crypto_extension(raw), 4, 0x1111_1111);
    }),
    with(Flavour::Backing, "extension-backing-format", &["extension-backing-format"], |_, raw| {
        let name = raw.read(raw.get(field::BACKING_OFFSET), 256);
        raw.write(0x1000, &name);
        raw.set(field::BACKING_OFFSET, 0x1000);
        let at = raw.extension(extension::BACKING_FORMAT).expect("a backing format").0;
        raw.set_number(at + 4, 4, 20);
        raw.write(at + 8, b"qcow2qcow2qcow2qcow2\0\0\0\0\0\0\0\0\0\0\0\0");
    }),
    plain("autoclear-bitmaps", &["autoclear-bitmaps"], |_, raw| raw.set(field::AUTOCLEAR, 1)),
    plain("autoclear-data-file-raw", &["autoclear-data-file-raw"], |_, raw| raw.set(field::AUTOCLEAR, 2)),
    // Refcounts.
    Recipe {
        exit: 3,
        ..plain("refcount-leak-one", &["refcount-leak"], |_, raw| {
            raw.append_clusters(1, 1);
        })
    },
    Recipe {
        exit: 3,
        ..plain("refcount-leak-run", &["refcount-leak"], |_, raw| {
            raw.append_clusters(40, 1);
        })
    },
    Recipe {
        exit: 3,
        ..with(Flavour::V2, "refcount-leak-v2", &["refcount-leak"], |_, raw| {
            raw.append_clusters(3, 2);
        })
    },
    Recipe {
        exit: 3,
        ..with(Flavour::Refcount1, "refcount-leak-1-bit", &["refcount-leak"], |_, raw| {
            raw.append_clusters(3, 1);
        })
    },
    Recipe {
        exit: 3,
        ..with(Flavour::Refcount64, "refcount-leak-64-bits", &["refcount-leak"], |_, raw| {
            raw.append_clusters(3, u64::MAX);
        })
    },
    Recipe {
        exit: 3,
        ..with(Flavour::Snapshots, "refcount-leak-snapshots", &["refcount-leak"], |_, raw| {
            raw.append_clusters(3, 1);
        })
    },
    Recipe {
        exit: 3,
        cluster_bytes: 4096,
        ..plain("refcount-leak-4k", &["refcount-leak"], |_, raw| {
            raw.append_clusters(100, 1);
        })
    },
    Recipe {
        exit: 3,
        ..with(Flavour::Snapshots, "refcount-too-high", &["refcount-too-high"], |_, raw| {
            let shared = raw.host_offset(12) / raw.cluster_bytes;
            raw.set_refcount(shared, raw.refcount(shared) + 1);
        })
    },
    plain("refcount-contradicted", &["refcount-contradicted"], |_, raw| {
        raw.set_refcount(data_cluster(raw), 5);
    }),
    plain("refcount-too-low", &["refcount-too-low"], |_, raw| raw.set_refcount(data_cluster(raw), 0)),
    with(Flavour::Snapshots, "refcount-too-low-shared", &["refcount-too-low"], |_, raw| {
        let shared = raw.host_offset(12) / raw.cluster_bytes;
        raw.set_refcount(shared, raw.refcount(shared) - 1);
    }),
    with(Flavour::Refcount1, "refcount-overflow", &["refcount-overflow"], |_, raw| {
        let first = raw.number(raw.l2_entry(0), 8);
        raw.set_number(raw.l2_entry(1), 8, first);
    }),
    Recipe {
        exit: 3,
        ..plain("refcount-past-eof", &["refcount-past-eof"], |_, raw| {
            raw.set_refcount(raw.len() / raw.cluster_bytes + 10, 1);
        })
    },
    plain("refcount-table-entry-reserved", &["refcount-table-entry-reserved"], |_, raw| {
        raw.change(raw.refcount_table_entry(0), |entry| entry | 0x7);
    }),
    plain("refcount-table-entry-unaligned", &["refcount-table-entry-unaligned"], |_, raw| {
        raw.change(raw.refcount_table_entry(0), |entry| entry + 512);
    }),
    plain("refcount-table-entry-past-eof", &["refcount-table-entry-past-eof"], |_, raw| {
        raw.set_number(raw.refcount_table_entry(1), 8, far(raw));
    }),
    plain("refcount-block-shared", &["refcount-block-shared"], |_, raw| {
        raw.set_number(raw.refcount_table_entry(1), 8, raw.number(raw.refcount_table_entry(0), 8));
    }),
    plain("refcount-block-missing", &["refcount-block-missing"], |_, raw| {
        raw.set_number(raw.refcount_table_entry(0), 8, 0);
    }),
    // L1.
    plain("l1-entry-reserved", &["l1-entry-reserved"], |_, raw| {
        raw.change(raw.l1_entry(0), |entry| entry | 1 << 57);
    }),
    plain("l1-entry-unaligned", &["l1-entry-unaligned"], |_, raw| {
        raw.change(raw.l1_entry(0), |entry| entry + 512);
    }),
    plain("l1-entry-past-eof", &["l1-entry-past-eof"], |_, raw| {
        raw.set_number(raw.l1_entry(0), 8, far(raw) | COPIED);
    }),
    plain("l1-entry-overlap", &["l1-entry-overlap"], |_, raw| {
        raw.set_number(raw.l1_entry(1), 8, raw.number(raw.l1_entry(0), 8));
    }),
    plain("l1-copied-missing", &["l1-copied-missing"], |_, raw| {
        raw.change(raw.l1_entry(0), |entry| entry & !COPIED);
    }),
    with(Flavour::Snapshots, "l1-copied-wrong", &["l1-copied-wrong"], |_, raw| {
        raw.change(raw.l1_entry(2), |entry| entry | COPIED);
    }),
    plain("l1-table-truncated", &["l1-table-truncated"], |_, raw| {
        let moved = raw.append_clusters(1, 1) * raw.cluster_bytes;
        let table = raw.read(raw.get(field::L1_OFFSET), 8);
        raw.set(field::L1_OFFSET, moved);
        raw.set_len(moved + 8);
        raw.write(moved, &table);
    }),
    // L2.
    plain("l2-entry-reserved", &["l2-entry-reserved"], |_, raw| {
        raw.change(raw.l2_entry(0), |entry| entry | 1 << 1);
    }),
    plain("l2-entry-unaligned", &["l2-entry-unaligned"], |_, raw| {
        raw.change(raw.l2_entry(0), |entry| entry + 512);
    }),
    plain("l2-zero-place-lost", &["l2-zero-place-lost"], |_, raw| {
        raw.change(raw.l2_entry(18), |entry| entry + 512);
    }),
    plain("l2-entry-past-eof", &["l2-entry-past-eof"], |_, raw| {
        raw.set_number(raw.l2_entry(0), 8, far(raw) | COPIED);
    }),
    plain("l2-entry-overlaps-metadata", &["l2-entry-overlaps-metadata"], |_, raw| {
        raw.set_number(raw.l2_entry(0), 8, raw.get(field::L1_OFFSET) | COPIED);
    }),
    plain("l2-entry-shared", &["l2-entry-shared"], |_, raw| {
        raw.set_number(raw.l2_entry(1), 8, raw.number(raw.l2_entry(0), 8));
    }),
    plain("l2-copied-missing", &["l2-copied-missing"], |_, raw| {
        raw.change(raw.l2_entry(0), |entry| entry & !COPIED);
    }),
    with(Flavour::Snapshots, "l2-copied-wrong", &["l2-copied-wrong"], |_, raw| {
        raw.change(raw.l2_entry(12), |entry| entry | COPIED);
    }),
    plain("table-garbage", &["table-garbage"], |_, raw| {
        let table = raw.number(raw.l1_entry(0), 8) & OFFSET;
        for index in 0..raw.cluster_bytes / 8 {
            raw.set_number(table + index * 8, 8, (index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        }
    }),
    plain("l2-table-truncated", &["l2-table-truncated"], |_, raw| {
        let moved = raw.append_clusters(1, 1) * raw.cluster_bytes;
        let old = raw.number(raw.l1_entry(0), 8) & OFFSET;
        let table = raw.read(old, 200);
        raw.set_number(raw.l1_entry(0), 8, moved | COPIED);
        raw.set_len(moved + 200);
        raw.write(moved, &table);
    }),
    plain("l2-entry-partly-past-eof", &["l2-entry-partly-past-eof"], |_, raw| {
        let moved = raw.append_clusters(1, 1) * raw.cluster_bytes;
        raw.set_number(raw.l2_entry(0), 8, moved | COPIED);
        raw.set_len(moved + 1024);
    }),
    with(Flavour::V2, "l2-zero-flag-in-v2", &["l2-zero-flag-in-v2"], |_, raw| {
        raw.change(raw.l2_entry(0), |entry| entry | 1);
    }),
    plain("compressed-past-eof", &["compressed-past-eof"], |_, raw| {
        raw.set_number(raw.l2_entry(20), 8, COMPRESSED | far(raw));
    }),
    plain("compressed-copied", &["compressed-copied"], |_, raw| {
        raw.change(raw.l2_entry(20), |entry| entry | COPIED);
    }),
    plain("compressed-overlaps-metadata", &["compressed-overlaps-metadata"], |_, raw| {
        raw.set_number(raw.l2_entry(20), 8, COMPRESSED | raw.get(field::L1_OFFSET));
    }),
    with(Flavour::DataFile, "compressed-in-data-file", &["compressed-in-data-file"], |_, raw| {
        raw.change(raw.l2_entry(1), |entry| entry & !COPIED | COMPRESSED);
    }),
    deep(Flavour::Plain, "compressed-damaged"),
    deep(Flavour::Zstd, "compressed-damaged-zstd"),
    with(Flavour::ExtendedL2, "extended-bitmap-conflict", &["extended-bitmap-conflict"], |_, raw| {
        raw.change(raw.l2_entry(0) + 8, |bitmap| bitmap | 1 << 32);
    }),
    with(
        Flavour::ExtendedL2,
        "extended-bitmap-without-offset",
        &["extended-bitmap-without-offset"],
        |_, raw| {
            raw.set_number(raw.l2_entry(40), 8, 0);
            raw.set_number(raw.l2_entry(40) + 8, 8, 1);
        },
    ),
    with(
        Flavour::ExtendedL2,
        "extended-bitmap-on-compressed",
        &["extended-bitmap-on-compressed"],
        |_, raw| {
            raw.set_number(raw.l2_entry(20) + 8, 8, 1);
        },
    ),
    with(Flavour::ExtendedL2, "extended-reserved-bit", &["extended-reserved-bit"], |_, raw| {
        raw.change(raw.l2_entry(0), |entry| entry | 1);
    }),
    Recipe {
        exit: 3,
        ..plain("orphan-table", &["orphan-table"], |_, raw| raw.set_number(raw.l1_entry(0), 8, 0))
    },
    Recipe {
        exit: 3,
        ..plain("orphan-data", &["orphan-data"], |_, raw| {
            let table = raw.number(raw.l1_entry(0), 8) & OFFSET;
            raw.write(table, &vec![0; usize::try_from(raw.cluster_bytes).expect("small")]);
        })
    },
    // External data file.
    plain("data-file-missing", &["data-file-missing"], |_, raw| raw.set(field::INCOMPATIBLE, 1 << 2)),
    with(Flavour::DataFileRaw, "data-file-offset", &["data-file-offset"], |_, raw| {
        raw.change(raw.l2_entry(0), |entry| entry + 2 * 65_536);
    }),
    with(Flavour::DataFileRaw, "data-file-raw-backing", &["data-file-raw-backing"], |_, raw| {
        raw.write(0x1000, b"base.raw");
        raw.set(field::BACKING_OFFSET, 0x1000);
        raw.set(field::BACKING_SIZE, 8);
    }),
    with(Flavour::DataFile, "data-file-short", &["data-file-short"], |image, _| {
        let data = image.data_file().expect("the flavour has one");
        std::fs::File::options()
            .write(true)
            .open(data)
            .expect("it is there")
            .set_len(65_536)
            .expect("it is ours");
    }),
    with(Flavour::DataFile, "data-file-snapshots", &["data-file-snapshots"], |_, raw| {
        let table = raw.append_clusters(1, 1) * raw.cluster_bytes;
        raw.set(field::SNAPSHOTS_OFFSET, table);
        raw.set(field::SNAPSHOTS, 1);
    }),
    // Snapshots.
    with(Flavour::Snapshots, "snapshot-table-truncated", &["snapshot-table-truncated"], |_, raw| {
        let moved = raw.append_clusters(1, 1) * raw.cluster_bytes;
        let table = raw.read(raw.get(field::SNAPSHOTS_OFFSET), 20);
        raw.set(field::SNAPSHOTS_OFFSET, moved);
        raw.set_len(moved + 20);
        raw.write(moved, &table);
    }),
    with(Flavour::Snapshots, "snapshot-l1-offset", &["snapshot-l1-offset"], |_, raw| {
        raw.change(raw.snapshot_entry(0), |offset| offset + 512);
    }),
    with(Flavour::Snapshots, "snapshot-l1-size", &["snapshot-l1-size"], |_, raw| {
        raw.set_number(raw.snapshot_entry(0) + 8, 4, 0x7fff_ffff);
    }),
    with(Flavour::Snapshots, "snapshot-extra-data", &["snapshot-extra-data"], |_, raw| {
        raw.set_number(raw.snapshot_entry(1) + 36, 4, 8);
    }),
    with(Flavour::Snapshots, "snapshot-duplicate-id", &["snapshot-duplicate-id"], |_, raw| {
        let id = |index| {
            let entry = raw.snapshot_entry(index);
            entry + 40 + raw.number(entry + 36, 4)
        };
        raw.write(id(1), &raw.read(id(0), 1));
    }),
    with(Flavour::Snapshots, "snapshot-disk-size", &["snapshot-disk-size"], |_, raw| {
        raw.set_number(raw.snapshot_entry(0) + 48, 8, 1 << 60);
    }),
    with(Flavour::Snapshots, "snapshot-l1-shared", &["snapshot-l1-shared"], |_, raw| {
        raw.set_number(raw.snapshot_entry(0), 8, raw.number(raw.snapshot_entry(1), 8));
    }),
    with(Flavour::Snapshots, "snapshot-entry-empty", &["snapshot-entry-empty"], |_, raw| {
        raw.set(field::SNAPSHOTS, 3);
    }),
    with(
        Flavour::Snapshots,
        "snapshot-entry-empty-lost",
        &["snapshot-entry-empty", "orphan-data"],
        |_, raw| {
            raw.write(raw.snapshot_entry(1), &[0; 80]);
        },
    ),
    with(Flavour::Snapshots, "snapshot-table-overlap", &["snapshot-table-overlap"], |_, raw| {
        raw.set_number(raw.l2_entry(0), 8, raw.get(field::SNAPSHOTS_OFFSET) | COPIED);
    }),
    // Bitmaps.
    with(Flavour::Bitmaps, "bitmap-directory", &["bitmap-directory"], |_, raw| {
        raw.set_number(raw.bitmaps_extension(), 4, 3);
    }),
    with(Flavour::Bitmaps, "bitmap-entry", &["bitmap-entry"], |_, raw| {
        raw.set_number(raw.bitmap_entry(0) + 17, 1, 40);
    }),
    with(Flavour::Bitmaps, "bitmap-table", &["bitmap-table"], |_, raw| {
        raw.set_number(raw.bitmap_entry(0) + 8, 4, 9);
    }),
    with(Flavour::Bitmaps, "bitmap-table-entry", &["bitmap-table-entry"], |_, raw| {
        raw.change(raw.number(raw.bitmap_entry(0), 8), |entry| entry | 1 << 3);
    }),
    Recipe {
        exit: 3,
        ..with(Flavour::Bitmaps, "bitmap-in-use", &["bitmap-in-use"], |_, raw| {
            raw.set_number(raw.bitmap_entry(0) + 12, 4, 1);
        })
    },
    with(Flavour::Bitmaps, "bitmap-duplicate-name", &["bitmap-duplicate-name"], |_, raw| {
        raw.write(raw.bitmap_entry(1) + 24, b"bitmap-a");
    }),
    with(Flavour::Bitmaps, "bitmap-overlap", &["bitmap-overlap"], |_, raw| {
        raw.set_number(raw.number(raw.bitmap_entry(0), 8), 8, raw.host_offset(0));
    }),
    with(Flavour::Bitmaps, "bitmap-table-offset", &["bitmap-table-offset", "orphan-bitmap"], |_, raw| {
        raw.set_number(raw.bitmap_entry(0), 8, far(raw));
    }),
    with(Flavour::Bitmaps, "bitmap-table-shared", &["bitmap-table-shared", "orphan-bitmap"], |_, raw| {
        raw.set_number(raw.bitmap_entry(1), 8, raw.number(raw.bitmap_entry(0), 8));
    }),
    // Encryption header.
    with(Flavour::Luks, "crypto-header-range", &["crypto-header-range"], |_, raw| {
        raw.set_number(crypto_extension(raw) + 16, 8, 1 << 40);
    }),
    with(Flavour::Luks, "crypto-header-magic", &["crypto-header-magic"], |_, raw| {
        raw.write(raw.number(crypto_extension(raw) + 8, 8), &[0; 512]);
    }),
    with(Flavour::Luks, "crypto-header-overlap", &["crypto-header-overlap"], |_, raw| {
        raw.set_number(raw.l2_entry(0), 8, raw.number(crypto_extension(raw) + 8, 8) | COPIED);
    }),
    // The whole.
    plain("metadata-overlap", &["metadata-overlap"], |_, raw| {
        raw.set(field::REFCOUNT_TABLE_OFFSET, raw.get(field::L1_OFFSET));
    }),
    plain("l2-entry-past-eof-truncated", &["l2-entry-past-eof"], |_, raw| {
        raw.set_len(raw.len() - 4 * raw.cluster_bytes);
    }),
    plain("file-truncated", &["file-truncated", "l2-entry-past-eof"], |_, raw| {
        let lost = raw.append_clusters(1, 1) * raw.cluster_bytes;
        raw.set_number(raw.l2_entry(0), 8, lost | COPIED);
        raw.set_len(lost);
    }),
];

/// An aligned offset well past the end of the file.
fn far(raw: &Raw) -> u64 {
    (raw.len() / raw.cluster_bytes + 64) * raw.cluster_bytes
}

/// The host cluster of the first guest cluster.
fn data_cluster(raw: &Raw) -> u64 {
    raw.host_offset(0) / raw.cluster_bytes
}

/// Offset and data length of the feature name table.
fn feature_table(raw: &Raw) -> (u64, u64) {
    raw.extension(extension::FEATURE_NAMES).expect("qemu writes one")
}

/// Offset of the crypto header extension.
fn crypto_extension(raw: &Raw) -> u64 {
    raw.extension(extension::CRYPTO).expect("the image is encrypted").0
}
