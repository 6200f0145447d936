//! The problem table: one row for each kind of thing that can be wrong with an image.
//!
//! A row holds the permanent id, severity, disposition, cost of the cure, and the sentence that a finding of
//! this kind is told in. It stands here rather than in `guest/qcow2` because the host must not take an
//! inmate's word for what a finding means (`docs/adr/0001-problem-table-in-abi.md`).
//!
//! Adding a problem: give it the next free number and a new id; never reuse either. [`Disposition`] has no
//! default, so a row without one does not compile.
//!
//! Sentences may hold these place-holders, filled from the finding: `{host}` (file offset), `{table}` (with
//! its owner), `{index}`, `{count}`, `{guest}` (guest range), `{stored}`, `{expected}` (hexadecimal),
//! `{stored:d}`, `{expected:d}` (decimal), `{stored:bytes}`, `{expected:bytes}` (a size), `{snapshots}` (how many and
//! which ones stand before `{index}`).

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Space is lost, nothing else.
    Leak,
    /// Metadata contradicts itself or the format; guest data is lost or in danger.
    Corruption,
    /// The image cannot be looked at as a whole.
    Fatal,
}

/// What a repair may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Tier {
    /// Free what a complete walk proved unreferenced.
    Leaks = 1,
    /// Besides, mend what the rest of the metadata determines.
    All = 2,
}

impl Tier {
    /// The tier with this number, or `None`.
    #[must_use]
    pub const fn from_u32(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Leaks,
            2 => Self::All,
            _ => return None,
        })
    }
}

/// Who decides about a cure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// Mechanically determined: cured by this tier and the ones above it.
    Curable(Tier),
    /// Several outcomes, each of which gives something up: never guessed.
    Choice,
    /// Not determined; acting could lose what a person could still save.
    Refuse,
}

/// What a cure costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cost {
    /// Nothing.
    Lossless,
    /// Guest bytes that could not be read before stay unreadable, now for certain.
    DropsData,
    /// Traces that a person could have used are gone.
    DestroysEvidence,
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// The problem itself.
    pub problem: Problem,
    /// Permanent kebab-case id.
    pub id: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// Who decides about a cure.
    pub disposition: Disposition,
    /// What the cure costs; [`Cost::Lossless`] where there is no cure.
    pub cost: Cost,
    /// The finding's sentence, with place-holders.
    pub sentence: &'static str,
    /// What it means for the user of the disk.
    pub meaning: &'static str,
}

macro_rules! problems {
    ($($number:literal $name:ident $id:literal $severity:ident [$disposition:expr] $cost:ident
        $sentence:literal; $meaning:literal)*) => {
        /// The kinds of thing that can be wrong with an image.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum Problem {
            $(#[doc = $sentence] $name = $number,)*
        }

        /// Every row, in the order of the problems' numbers.
        pub static PROBLEMS: &[Row] = &[$(Row {
            problem: Problem::$name,
            id: $id,
            severity: Severity::$severity,
            disposition: $disposition,
            cost: Cost::$cost,
            sentence: $sentence,
            meaning: $meaning,
        },)*];

        impl Problem {
            /// The problem with this number, or `None`.
            #[must_use]
            pub const fn from_u32(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// The problem's row.
            #[must_use]
            pub const fn row(self) -> &'static Row {
                let mut at = 0;
                while at < PROBLEMS.len() {
                    if PROBLEMS[at].problem as u32 == self as u32 {
                        return &PROBLEMS[at];
                    }
                    at += 1;
                }
                // Not reached: the enum and the table come from the same rows.
                &PROBLEMS[0]
            }
        }
    };
}

use Disposition::{Choice, Curable, Refuse};

problems! {
    // File and header.
    1 NotQcow2 "not-qcow2" Fatal [Refuse] Lossless
        "the file does not begin with the QCOW2 magic: stored {stored}, expected {expected}";
        "This is no QCOW2 image, or its first bytes are lost."
    2 HeaderTruncated "header-truncated" Fatal [Refuse] Lossless
        "the file is {stored:bytes} long, shorter than its header of {expected:bytes}";
        "The file was cut; nothing of the disk can be found without the header."
    3 HeaderVersion "header-version" Fatal [Choice] Lossless
        "header: version stored {stored:d} is not that of this file, or not known (known are 2 and 3)";
        "The image is from another format or the field is damaged."
    4 HeaderClusterBits "header-cluster-bits" Fatal [Choice] Lossless
        "header: cluster_bits stored {stored:d} is not that of this file, or not allowed (allowed are 9 to 21)";
        "Every offset depends on the cluster size; without it nothing can be found."
    5 HeaderLength "header-length" Fatal [Choice] Lossless
        "header: header_length stored {stored:d}, needed is a multiple of 8 from 104 to the cluster size";
        "The header extensions cannot be found."
    6 HeaderRefcountOrder "header-refcount-order" Fatal [Choice] Lossless
        "header: refcount_order stored {stored:d}, the largest allowed is 6";
        "The width of the reference counts is unknown: they cannot be compared. Guest data is not touched by this."
    7 HeaderCryptMethod "header-crypt-method" Fatal [Choice] Lossless
        "header: crypt_method stored {stored:d}, known are 0, 1 and 2";
        "It is unknown how the guest's data is encrypted."
    8 HeaderIncompatibleFeature "header-incompatible-feature" Fatal [Refuse] Lossless
        "header: incompatible feature bit {index} is set and not known";
        "The image uses a feature of a newer format; nothing can be said about it."
    9 HeaderCompressionType "header-compression-type" Fatal [Refuse] Lossless
        "header: compression_type stored {stored:d}, known are 0 and 1, and the compression feature bit must agree";
        "Compressed clusters cannot be inflated."
    10 HeaderExtendedL2 "header-extended-l2" Fatal [Refuse] Lossless
        "header: extended L2 entries with clusters of {stored:bytes}, needed are at least {expected:bytes}";
        "The feature bit or the cluster size is damaged."
    11 HeaderL1Size "header-l1-size" Fatal [Choice] Lossless
        "header: l1_size stored {stored:d}, allowed or needed are {expected:d} entries";
        "The L1 table cannot map the whole disk, or is over the limit of 32 MiB."
    12 HeaderL1Offset "header-l1-offset" Fatal [Choice] Lossless
        "header: L1 table offset {stored} does not lead to the L1 table";
        "The active disk's mapping cannot be found."
    13 HeaderRefcountTableOffset "header-refcount-table-offset" Corruption [Curable(Tier::All)] Lossless
        "header: refcount table offset {stored} is not a usable cluster of the file";
        "Reference counts cannot be found. Guest data is not touched by this."
    14 HeaderRefcountTableSize "header-refcount-table-size" Corruption [Curable(Tier::All)] Lossless
        "header: refcount_table_clusters stored {stored:d}, allowed are 1 to {expected:d}";
        "Reference counts cannot be found. Guest data is not touched by this."
    15 HeaderSnapshotsOffset "header-snapshots-offset" Corruption [Choice] DropsData
        "header: snapshot table offset {stored} is not a usable cluster of the file";
        "The snapshots cannot be found; the active disk is not touched by this."
    16 HeaderSnapshotsCount "header-snapshots-count" Corruption [Choice] DestroysEvidence
        "header: nb_snapshots stored {stored:d}, the largest allowed is {expected:d}";
        "The snapshots cannot be counted; the active disk is not touched by this."
    17 HeaderBackingName "header-backing-name" Corruption [Refuse] Lossless
        "header: backing file name at offset {host}, {stored:d} bytes, is not within the header cluster or over 1023 bytes";
        "What the disk does not hold itself cannot be read."
    18 HeaderDirty "header-dirty" Corruption [Curable(Tier::All)] Lossless
        "header: the dirty bit is set and reference counts are not right";
        "The last user of the image did not close it; reference counts were not written."
    19 HeaderCorrupt "header-corrupt" Corruption [Curable(Tier::All)] Lossless
        "header: the corrupt bit is set";
        "A program found damage before and marked the image."
    20 HeaderVirtualSize "header-virtual-size" Corruption [Choice] Lossless
        "header: virtual size stored {stored:d}, but the disk is mapped up to {expected:d}, or cannot be that large";
        "The size field is damaged or the disk was shrunk without dropping what is behind its end."
    21 HeaderMagic "header-magic" Fatal [Choice] Lossless
        "header: the magic is lost: stored {stored}, expected {expected}; what follows is the header of a QCOW2 image";
        "No program takes the file for a QCOW2 image; nothing else of it is touched by this."
    22 HeaderExtendedL2Flag "header-extended-l2-flag" Fatal [Refuse] Lossless
        "header: incompatible features stored {stored}, but the L2 tables are those of an image with {expected}";
        "All clusters are looked up in the wrong places: nothing that is read from the disk can be trusted."
    // Header extensions.
    30 ExtensionLength "extension-length" Corruption [Refuse] Lossless
        "header extension at {host}: length {stored:d} does not fit ({expected:d} allowed)";
        "This and all later header extensions cannot be read."
    31 ExtensionDuplicate "extension-duplicate" Corruption [Refuse] Lossless
        "header extension at {host}: type {stored} stands there a second time";
        "It is unknown which of the two is meant."
    32 ExtensionFeatureTable "extension-feature-table" Corruption [Curable(Tier::All)] Lossless
        "header extension at {host}: feature name table of {stored:d} bytes is not a multiple of 48";
        "Names of features may be wrong; nothing depends on them."
    33 ExtensionBitmaps "extension-bitmaps" Corruption [Refuse] Lossless
        "header extension at {host}: bitmaps extension field {index} stored {stored}, expected {expected}";
        "The bitmaps (backup state) cannot be found."
    34 ExtensionCrypto "extension-crypto" Corruption [Refuse] Lossless
        "header extension at {host}: crypto header field {index} stored {stored}, expected {expected}";
        "The LUKS header cannot be found; without it the disk can never be decrypted."
    35 ExtensionMissing "extension-missing" Corruption [Refuse] Lossless
        "header: a feature asks for the header extension {expected}, which is not there";
        "The pointer to a part of the image is lost."
    36 ExtensionBackingFormat "extension-backing-format" Corruption [Refuse] Lossless
        "header extension at {host}: backing format name of {stored:d} bytes (at most {expected:d})";
        "The backing file's format is unknown; it is never probed."
    37 AutoclearBitmaps "autoclear-bitmaps" Corruption [Curable(Tier::All)] Lossless
        "header: the bitmaps bit and the bitmaps extension do not agree";
        "A program without bitmap support wrote to the image; its bitmaps are not to be trusted."
    38 AutoclearDataFileRaw "autoclear-data-file-raw" Corruption [Curable(Tier::All)] Lossless
        "header: the raw-data-file bit is set, but there is no external data file";
        "Leftover feature bit."
    // Refcount structures.
    50 RefcountLeak "refcount-leak" Leak [Curable(Tier::Leaks)] Lossless
        "cluster {index}: refcount stored {stored:d}, counted {expected:d}";
        "The cluster is held although nothing uses it: space is lost, nothing else."
    51 RefcountTooHigh "refcount-too-high" Leak [Curable(Tier::All)] Lossless
        "cluster {index}: refcount stored {stored:d}, counted {expected:d}";
        "The cluster would not be freed when its last user goes."
    52 RefcountTooLow "refcount-too-low" Corruption [Curable(Tier::All)] Lossless
        "cluster {index}: refcount stored {stored:d}, counted {expected:d}";
        "The cluster can be given away while it is in use: the next write may overwrite guest data."
    53 RefcountOverflow "refcount-overflow" Corruption [Choice] Lossless
        "cluster {index}: {expected:d} users, more than a refcount of this width can hold ({stored:d})";
        "Users beyond the limit are not protected."
    54 RefcountPastEof "refcount-past-eof" Leak [Curable(Tier::Leaks)] Lossless
        "cluster {index}, past the end of the file: refcount stored {stored:d}, counted {expected:d}";
        "A count is held for a cluster that is not there."
    55 RefcountTableEntryReserved "refcount-table-entry-reserved" Corruption [Curable(Tier::All)] Lossless
        "refcount table entry {index}: reserved bits set in {stored}";
        "Other programs may refuse the image."
    56 RefcountTableEntryUnaligned "refcount-table-entry-unaligned" Corruption [Curable(Tier::All)] Lossless
        "refcount table entry {index}: offset {stored} is not a multiple of the cluster size";
        "The block's reference counts cannot be read."
    57 RefcountTableEntryPastEof "refcount-table-entry-past-eof" Corruption [Curable(Tier::All)] Lossless
        "refcount table entry {index}: offset {stored} is past the end of the file ({expected})";
        "The block's reference counts cannot be read."
    58 RefcountBlockShared "refcount-block-shared" Corruption [Curable(Tier::All)] Lossless
        "refcount table entry {index}: refcount block at {stored} is used by something else too";
        "Whoever writes one of them destroys the other."
    59 RefcountBlockMissing "refcount-block-missing" Corruption [Curable(Tier::All)] Lossless
        "refcount table entry {index}: no refcount block, but {count} of its clusters are in use";
        "The clusters can be given away while they are in use."
    60 RefcountContradicted "refcount-contradicted" Corruption [Curable(Tier::All)] Lossless
        "cluster {index}: refcount stored {stored:d}, counted {expected:d}, and its user takes it for its own alone";
        "Programs differ in which of the two they believe: some refuse the image, some copy on every write."
    // L1.
    70 L1EntryReserved "l1-entry-reserved" Corruption [Curable(Tier::All)] Lossless
        "{table} entry {index}: reserved bits set in {stored}";
        "Other programs may refuse the image."
    71 L1EntryUnaligned "l1-entry-unaligned" Corruption [Curable(Tier::All)] DropsData
        "{table} entry {index}: L2 table offset {stored} is not a multiple of the cluster size";
        "The L2 table cannot be found: the guest range is not readable."
    72 L1EntryPastEof "l1-entry-past-eof" Corruption [Curable(Tier::All)] DropsData
        "{table} entry {index}: L2 table offset {stored} is past the end of the file ({expected})";
        "The L2 table is lost: the guest range is not readable."
    73 L1EntryOverlap "l1-entry-overlap" Corruption [Choice] DropsData
        "{table} entry {index}: L2 table at {stored} is used by something else too";
        "What is read there is not an L2 table, or belongs to another range."
    74 L1CopiedMissing "l1-copied-missing" Corruption [Curable(Tier::All)] Lossless
        "{table} entry {index}: COPIED is clear, but the L2 table has one user";
        "Writes are slower than they could be, nothing else."
    75 L1CopiedWrong "l1-copied-wrong" Corruption [Curable(Tier::All)] Lossless
        "{table} entry {index}: COPIED is set, but the L2 table has {expected:d} users";
        "A guest write would change the other users' data too."
    76 L1TableTruncated "l1-table-truncated" Corruption [Refuse] Lossless
        "{table} at {host}: the file ends {stored:bytes} into it, {expected:bytes} are needed";
        "What the missing entries mapped is not readable."
    77 L1TableUnreadable "l1-table-unreadable" Corruption [Refuse] Lossless
        "{table} at {host}: cannot be read (error {stored:d})";
        "The storage below failed; nothing can be said about this part."
    // L2.
    90 L2EntryReserved "l2-entry-reserved" Corruption [Curable(Tier::All)] Lossless
        "{table} entry {index}: reserved bits set in {stored} ({guest})";
        "Other programs may refuse the cluster."
    91 L2EntryUnaligned "l2-entry-unaligned" Corruption [Curable(Tier::All)] DropsData
        "{table} entry {index}: host offset {stored} is not a multiple of the cluster size ({guest})";
        "The cluster cannot be found: the guest range is not readable."
    92 L2EntryPastEof "l2-entry-past-eof" Corruption [Curable(Tier::All)] DropsData
        "{table} entry {index}: host offset {stored} is past the end of the file ({expected}; {guest})";
        "The guest data is not in the file (any more)."
    93 L2EntryOverlapsMetadata "l2-entry-overlaps-metadata" Corruption [Choice] DropsData
        "{table} entry {index}: host offset {stored} is metadata ({guest})";
        "The guest reads metadata instead of its data, and would overwrite it."
    94 L2EntryShared "l2-entry-shared" Corruption [Curable(Tier::All)] Lossless
        "{table} entry {index}: host cluster {stored} belongs to another guest range too ({guest})";
        "One of the two reads the other's data; a write to one changes both."
    95 L2CopiedMissing "l2-copied-missing" Corruption [Curable(Tier::All)] Lossless
        "{table} entry {index}: COPIED is clear in {stored}, but the cluster has one user ({guest})";
        "Writes are slower than they could be, nothing else."
    96 L2CopiedWrong "l2-copied-wrong" Corruption [Curable(Tier::All)] Lossless
        "{table} entry {index}: COPIED is set in {stored}, but the cluster has {expected:d} users ({guest})";
        "A guest write would change the other users' data too."
    97 L2TableTruncated "l2-table-truncated" Corruption [Refuse] Lossless
        "{table} at {host}: the file ends {stored:bytes} into it, {expected:bytes} are needed ({guest})";
        "What the missing entries mapped is not readable."
    98 L2TableUnreadable "l2-table-unreadable" Corruption [Refuse] Lossless
        "{table} at {host}: cannot be read (error {stored:d}; {guest})";
        "The storage below failed; nothing can be said about this part."
    99 L2EntryPartlyPastEof "l2-entry-partly-past-eof" Corruption [Refuse] DropsData
        "{table} entry {index}: the file ends at {expected}, within host cluster {stored} ({guest})";
        "The file was cut: the end of this guest range reads as zeros."
    100 L2ZeroFlagInV2 "l2-zero-flag-in-v2" Corruption [Choice] DropsData
        "{table} entry {index}: zero flag set in {stored}, which version 2 does not know ({guest})";
        "Programs differ in what they read there: zeros, or the cluster's data."
    101 CompressedPastEof "compressed-past-eof" Corruption [Curable(Tier::All)] DropsData
        "{table} entry {index}: compressed data {stored} reaches past the end of the file ({expected}; {guest})";
        "The compressed data is not in the file (any more)."
    102 CompressedCopied "compressed-copied" Corruption [Curable(Tier::All)] Lossless
        "{table} entry {index}: COPIED is set in the compressed entry {stored} ({guest})";
        "Other programs may refuse the cluster."
    103 CompressedOverlapsMetadata "compressed-overlaps-metadata" Corruption [Choice] DropsData
        "{table} entry {index}: compressed data {stored} lies in metadata ({guest})";
        "The cluster does not inflate to what the guest wrote."
    104 CompressedInDataFile "compressed-in-data-file" Corruption [Refuse] Lossless
        "{table} entry {index}: compressed entry {stored} in an image with an external data file ({guest})";
        "The format does not allow it; the guest range is not readable."
    105 CompressedDamaged "compressed-damaged" Corruption [Refuse] DropsData
        "{table} entry {index}: compressed data {stored} does not inflate to one cluster ({guest})";
        "The guest range is not readable."
    106 ExtendedBitmapConflict "extended-bitmap-conflict" Corruption [Choice] DropsData
        "{table} entry {index}: subclusters both allocated and zero in bitmap {stored} ({guest})";
        "It is unknown whether those bytes are data or zeros."
    107 ExtendedBitmapWithoutOffset "extended-bitmap-without-offset" Corruption [Curable(Tier::All)] DropsData
        "{table} entry {index}: subclusters allocated in bitmap {stored}, but there is no host cluster ({guest})";
        "The data of those subclusters cannot be found."
    108 ExtendedBitmapOnCompressed "extended-bitmap-on-compressed" Corruption [Curable(Tier::All)] Lossless
        "{table} entry {index}: bitmap {stored} on a compressed cluster ({guest})";
        "Other programs may refuse the cluster."
    109 ExtendedReservedBit "extended-reserved-bit" Corruption [Curable(Tier::All)] Lossless
        "{table} entry {index}: reserved bit 0 set in the extended entry {stored} ({guest})";
        "Other programs may refuse the cluster."
    110 OrphanTable "orphan-table" Leak [Choice] DestroysEvidence
        "cluster {index}: nothing points to it, but it reads like a lost L2 table ({expected:d} of its entries point to other leaked clusters)";
        "It may be the only way to a part of the guest's data: it is not freed."
    111 OrphanData "orphan-data" Leak [Choice] DestroysEvidence
        "cluster {index}: nothing points to it or to {count} like it, and a table of guest data nearby is empty or damaged";
        "They may be the guest's data: they are not freed."
    112 L2ZeroPlaceLost "l2-zero-place-lost" Corruption [Curable(Tier::All)] Lossless
        "{table} entry {index}: the place {stored} kept for a cluster of zeros is not a usable cluster of the file ({guest})";
        "The guest's zeros are not in doubt, but other programs refuse the cluster."
    // External data file.
    120 DataFileMissing "data-file-missing" Corruption [Refuse] Lossless
        "the image keeps its guest data in an external data file, which was not given";
        "Metadata was checked; guest data cannot be."
    121 DataFileOffset "data-file-offset" Corruption [Refuse] Lossless
        "{table} entry {index}: data file offset {stored}, expected {expected} ({guest})";
        "The guest reads another range's data."
    122 DataFileRawBacking "data-file-raw-backing" Corruption [Refuse] Lossless
        "header: a raw external data file and a backing file name exclude each other";
        "It is unknown what unallocated ranges read as."
    123 DataFileShort "data-file-short" Corruption [Refuse] DropsData
        "{table} entry {index}: data file offset {stored} is past the end of the data file ({expected}; {guest})";
        "The guest data is not in the file (any more)."
    124 DataFileSnapshots "data-file-snapshots" Corruption [Refuse] Lossless
        "header: an external data file and {stored:d} internal snapshots exclude each other";
        "Reference counts of the data file cannot be kept."
    // Snapshots.
    130 SnapshotTableTruncated "snapshot-table-truncated" Corruption [Choice] DestroysEvidence
        "snapshot table entry {index} at {host}: the table ends there; before it stand {snapshots}, {expected:d} of them sound";
        "This and later snapshots cannot be read, and other programs refuse the image."
    131 SnapshotL1Offset "snapshot-l1-offset" Corruption [Refuse] Lossless
        "snapshot table entry {index}: L1 table offset {stored} is not a usable cluster of the file";
        "The snapshot cannot be read."
    132 SnapshotL1Size "snapshot-l1-size" Corruption [Refuse] Lossless
        "snapshot table entry {index}: l1_size stored {stored:d}, allowed or needed are {expected:d} entries";
        "The snapshot cannot be read as a whole."
    133 SnapshotExtraData "snapshot-extra-data" Corruption [Curable(Tier::All)] Lossless
        "snapshot table entry {index}: extra data of {stored:d} bytes, expected {expected:d}";
        "The snapshot's own disk size is not stored or cannot be found."
    134 SnapshotDuplicateId "snapshot-duplicate-id" Corruption [Choice] Lossless
        "snapshot table entry {index}: its id is that of snapshot {expected:d}";
        "The two cannot be told apart by id."
    135 SnapshotDiskSize "snapshot-disk-size" Corruption [Refuse] Lossless
        "snapshot table entry {index}: disk size stored {stored:d}, its L1 table maps at most {expected:d}";
        "The snapshot cannot be restored as a whole."
    136 SnapshotTableOverlap "snapshot-table-overlap" Corruption [Choice] Lossless
        "snapshot table at {host}: cluster {stored} is used by something else too";
        "Whoever writes one of them destroys the other."
    137 SnapshotL1Shared "snapshot-l1-shared" Corruption [Choice] Lossless
        "snapshot table entry {index}: its L1 table at {stored} is used by something else too";
        "The snapshot shows another state of the disk than it was taken of."
    138 SnapshotEntryEmpty "snapshot-entry-empty" Corruption [Curable(Tier::All)] Lossless
        "snapshot table entry {index}: all zeros; the header counts {stored:d} snapshots, the table has {expected:d}";
        "The header counts a snapshot that is none; other programs refuse the image, or trip over it."
    // Bitmaps.
    150 BitmapDirectory "bitmap-directory" Corruption [Choice] DropsData
        "bitmap directory at {host}: entry {index} field stored {stored}, expected {expected}";
        "The bitmaps (backup state) cannot be read; the guest's data is not touched by this."
    151 BitmapEntry "bitmap-entry" Corruption [Choice] DropsData
        "bitmap {index}: a field at {host} stored {stored}, expected {expected}";
        "This bitmap cannot be used; the guest's data is not touched by this."
    152 BitmapTable "bitmap-table" Corruption [Choice] DropsData
        "bitmap {index}: bitmap table at {host}: stored {stored}, expected {expected}";
        "This bitmap cannot be used; the guest's data is not touched by this."
    153 BitmapTableEntry "bitmap-table-entry" Corruption [Curable(Tier::All)] Lossless
        "{table} entry {index} at {host}: stored {stored} is not a usable cluster of the file or has reserved bits";
        "What this part of the bitmap knew is lost; the guest's data is not touched by this."
    154 BitmapInUse "bitmap-in-use" Leak [Curable(Tier::All)] Lossless
        "bitmap {index}: in-use flag is set";
        "The bitmap was not saved; the next backup must be a full one."
    155 BitmapDuplicateName "bitmap-duplicate-name" Corruption [Choice] Lossless
        "bitmap {index}: its name is that of bitmap {expected:d}";
        "Other programs refuse the image."
    156 BitmapOverlap "bitmap-overlap" Corruption [Choice] DropsData
        "{table} entry {index}: cluster {stored} is used by something else too";
        "Whoever writes one of them destroys the other."
    157 BitmapTableOffset "bitmap-table-offset" Corruption [Curable(Tier::All)] Lossless
        "bitmap {index}: bitmap table offset {stored} at {host} is not a usable cluster of the file";
        "What this bitmap knew is lost; the guest's data is not touched by this."
    158 BitmapTableShared "bitmap-table-shared" Corruption [Curable(Tier::All)] DestroysEvidence
        "bitmap {index}: its table at {stored} is that of bitmap {expected:d}";
        "It is unknown whose the table is: neither bitmap can be trusted."
    159 OrphanBitmap "orphan-bitmap" Leak [Curable(Tier::All)] DestroysEvidence
        "cluster {index}: nothing points to it or to {count} like it, and nothing but bitmaps has lost anything";
        "They are what bitmaps have lost, or leaked before: they hold no guest data."
    // Encryption header.
    160 CryptoHeaderRange "crypto-header-range" Corruption [Refuse] Lossless
        "LUKS header at {host}: {stored:bytes} reach past the end of the file ({expected})";
        "Without its whole header the disk can never be decrypted."
    161 CryptoHeaderMagic "crypto-header-magic" Corruption [Refuse] Lossless
        "LUKS header at {host}: magic stored {stored}, expected {expected}";
        "Without its header the disk can never be decrypted."
    162 CryptoHeaderOverlap "crypto-header-overlap" Corruption [Refuse] Lossless
        "LUKS header: cluster {stored} is used by something else too";
        "Whoever writes one of them destroys the other."
    // Metadata onto metadata, and storage.
    170 MetadataOverlap "metadata-overlap" Corruption [Choice] Lossless
        "{table} at {host}: cluster {index} is used by something else too ({stored:d} users)";
        "Whoever writes one of them destroys the other."
    171 ReadError "read-error" Corruption [Refuse] Lossless
        "{table} at {host}: {expected:bytes} cannot be read (error {stored:d})";
        "The storage below failed; nothing can be said about this part."
    172 FileTruncated "file-truncated" Corruption [Refuse] DropsData
        "the file is {stored:bytes} long, but cluster {index} is in use, which ends at {expected}";
        "The end of the file is missing."
    173 TableGarbage "table-garbage" Corruption [Refuse] DropsData
        "{table} at {host}: {stored:d} faults among its {expected:d} entries, this is no such table ({guest})";
        "It was overwritten, or what points to it is wrong: what it mapped is not readable."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_ids_and_numbers_are_unique_and_kebab_case() {
        for (at, row) in PROBLEMS.iter().enumerate() {
            assert!(
                row.id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'),
                "{}",
                row.id
            );
            assert!(PROBLEMS[..at].iter().all(|other| other.id != row.id), "{} stands twice", row.id);
            assert!(
                PROBLEMS[..at].iter().all(|other| (other.problem as u32) < row.problem as u32),
                "{}",
                row.id
            );
        }
    }

    #[test]
    fn problem_from_u32_and_row_agree() {
        for row in PROBLEMS {
            assert_eq!(Problem::from_u32(row.problem as u32), Some(row.problem));
            assert_eq!(row.problem.row().id, row.id);
        }
        assert_eq!(Problem::from_u32(0), None);
    }
}
