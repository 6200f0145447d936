//! Healthy images of many flavours, made by the real `qemu-img` and `qemu-io`, with a model of what the guest
//! must read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{pattern, tools};

/// Passphrase of encrypted images.
const SECRET: &str = "secret,id=sec0,data=instar";

/// What an image is made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flavour {
    /// Version 3: data in three L2 tables, zero, preallocated zero and compressed clusters.
    Plain,
    /// Version 2.
    V2,
    /// Two internal snapshots that share clusters with the active disk.
    Snapshots,
    /// The same in version 2.
    SnapshotsV2,
    /// Data only in an overlay's backing file, in the overlay, and in both.
    Backing,
    /// Two persistent bitmaps, one of them disabled.
    Bitmaps,
    /// LUKS.
    Luks,
    /// External data file.
    DataFile,
    /// External data file that is a raw image.
    DataFileRaw,
    /// Extended L2 entries with subclusters of each kind.
    ExtendedL2,
    /// Lazy refcounts.
    Lazy,
    /// Refcounts of 1 bit.
    Refcount1,
    /// Refcounts of 2 bits.
    Refcount2,
    /// Refcounts of 4 bits.
    Refcount4,
    /// Refcounts of 8 bits.
    Refcount8,
    /// Refcounts of 32 bits.
    Refcount32,
    /// Refcounts of 64 bits.
    Refcount64,
    /// Zstandard.
    Zstd,
    /// All metadata allocated beforehand.
    Preallocated,
    /// Snapshots, bitmaps, backing file, compressed and zero clusters at once.
    Rich,
}

impl Flavour {
    /// Every flavour.
    pub const ALL: [Self; 20] = [
        Self::Plain,
        Self::V2,
        Self::Snapshots,
        Self::SnapshotsV2,
        Self::Backing,
        Self::Bitmaps,
        Self::Luks,
        Self::DataFile,
        Self::DataFileRaw,
        Self::ExtendedL2,
        Self::Lazy,
        Self::Refcount1,
        Self::Refcount2,
        Self::Refcount4,
        Self::Refcount8,
        Self::Refcount32,
        Self::Refcount64,
        Self::Zstd,
        Self::Preallocated,
        Self::Rich,
    ];

    fn is_v2(self) -> bool {
        matches!(self, Self::V2 | Self::SnapshotsV2)
    }

    fn has_snapshots(self) -> bool {
        matches!(self, Self::Snapshots | Self::SnapshotsV2 | Self::Rich)
    }

    /// True where guest data lies in a file of its own.
    pub fn has_data_file(self) -> bool {
        matches!(self, Self::DataFile | Self::DataFileRaw)
    }

    fn compresses(self) -> bool {
        !self.has_data_file() && self != Self::Luks && self != Self::Preallocated
    }

    /// False where qemu-img refuses the combination.
    pub fn allows(self, cluster_bytes: u64) -> bool {
        self != Self::ExtendedL2 || cluster_bytes >= 16_384
    }

    fn create_options(self) -> &'static [&'static str] {
        match self {
            Self::Plain | Self::Snapshots | Self::Backing | Self::Bitmaps | Self::Rich => &[],
            Self::V2 | Self::SnapshotsV2 => &["compat=0.10"],
            Self::Luks => &["encrypt.format=luks", "encrypt.key-secret=sec0", "encrypt.iter-time=10"],
            Self::DataFile => &[],
            Self::DataFileRaw => &["data_file_raw=on"],
            Self::ExtendedL2 => &["extended_l2=on"],
            Self::Lazy => &["lazy_refcounts=on"],
            Self::Refcount1 => &["refcount_bits=1"],
            Self::Refcount2 => &["refcount_bits=2"],
            Self::Refcount4 => &["refcount_bits=4"],
            Self::Refcount8 => &["refcount_bits=8"],
            Self::Refcount32 => &["refcount_bits=32"],
            Self::Refcount64 => &["refcount_bits=64"],
            Self::Zstd => &["compression_type=zstd"],
            Self::Preallocated => &["preallocation=metadata"],
        }
    }
}

/// What a guest cluster holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// [`pattern::bytes`] of this generation.
    Data { generation: u32, compressible: bool },
    /// Zeros.
    Zero,
}

/// Guest cluster to content; clusters that are not in it are not told about.
pub type Model = BTreeMap<u64, Content>;

/// A healthy image.
#[derive(Debug)]
pub struct TestImage {
    /// The image.
    pub path: PathBuf,
    /// What it was made with.
    pub flavour: Flavour,
    /// Bytes of a cluster.
    pub cluster_bytes: u64,
    /// Entries of an L2 table.
    pub l2_entries: u64,
    /// Bytes of the disk.
    pub virtual_bytes: u64,
    /// What the active disk holds.
    pub model: Model,
    /// What each snapshot holds, by name.
    pub snapshots: BTreeMap<String, Model>,
}

impl TestImage {
    /// The external data file, where the flavour has one.
    pub fn data_file(&self) -> Option<PathBuf> {
        self.flavour.has_data_file().then(|| sibling(&self.path, "data.raw"))
    }

    /// Names the image to a qemu tool.
    pub fn qemu_arguments(&self) -> Vec<String> {
        qemu_arguments(&self.path, self.flavour)
    }

    /// Names a copy of the image to a qemu tool.
    pub fn qemu_arguments_for(&self, copy: &Path) -> Vec<String> {
        qemu_arguments(copy, self.flavour)
    }

    /// Exit code of `qemu-img check`.
    pub fn qemu_check(&self) -> i32 {
        let mut command = tools::qemu_img(["check"]);
        tools::code(&tools::run(command.args(self.qemu_arguments())))
    }

    /// What the model says that guest cluster `index` reads as.
    pub fn expected(&self, model: &Model, index: u64) -> Option<Vec<u8>> {
        let len = usize::try_from(self.cluster_bytes).expect("clusters fit memory");
        model.get(&index).map(|content| match *content {
            Content::Data { generation, compressible } => {
                pattern::bytes(generation, index * self.cluster_bytes, len, compressible)
            }
            Content::Zero => vec![0; len],
        })
    }

    /// Reads the active disk with qemu and fails where it differs from the model.
    pub fn assert_guest_intact(&self) {
        self.assert_reads(&self.model, &[]);
    }

    /// The same of an internal snapshot.
    pub fn assert_snapshot_intact(&self, name: &str) {
        self.assert_reads(&self.snapshots[name], &["-l", name]);
    }

    fn assert_reads(&self, model: &Model, options: &[&str]) {
        let raw = sibling(&self.path, "guest.raw");
        let mut command = tools::qemu_img(["convert", "-O", "raw"]);
        tools::must(command.args(options).args(self.qemu_arguments()).arg(&raw));
        let disk = std::fs::File::open(&raw).expect("qemu-img has just written it");
        for &index in model.keys() {
            let expected = self.expected(model, index).expect("the index is the model's");
            let mut got = vec![0; expected.len()];
            std::os::unix::fs::FileExt::read_exact_at(&disk, &mut got, index * self.cluster_bytes)
                .expect("the disk has this cluster");
            assert!(
                got == expected,
                "{}{options:?}: guest cluster {index} reads as something else",
                self.path.display()
            );
        }
        std::fs::remove_file(&raw).expect("it is ours");
    }
}

/// A file beside `path` with another ending.
pub fn sibling(path: &Path, ending: &str) -> PathBuf {
    path.with_extension(ending)
}

fn qemu_arguments(path: &Path, flavour: Flavour) -> Vec<String> {
    let path = path.to_str().expect("test paths are plain").to_owned();
    if flavour == Flavour::Luks {
        let options = format!("driver=qcow2,file.driver=file,file.filename={path},encrypt.key-secret=sec0");
        return ["--object", SECRET, "--image-opts", &options].map(str::to_owned).to_vec();
    }
    vec!["-f".to_owned(), "qcow2".to_owned(), path]
}

/// Makes a healthy image named `name` in `folder`. Needs [`tools::qemu`].
pub fn make(folder: &Path, name: &str, flavour: Flavour, cluster_bytes: u64) -> TestImage {
    assert!(flavour.allows(cluster_bytes), "{flavour:?} with clusters of {cluster_bytes}");
    let path = folder.join(name).with_extension("qcow2");
    let l2_entries = cluster_bytes / if flavour == Flavour::ExtendedL2 { 16 } else { 8 };
    // Large tables would make large disks; three tables' reach is enough where that is cheap.
    let tables = if flavour == Flavour::DataFileRaw && cluster_bytes > 65_536 { 1 } else { 3 };
    let mut image = TestImage {
        virtual_bytes: tables * l2_entries * cluster_bytes,
        path,
        flavour,
        cluster_bytes,
        l2_entries,
        model: Model::new(),
        snapshots: BTreeMap::new(),
    };
    create(&image);
    fill(&mut image);
    assert_eq!(image.qemu_check(), 0, "qemu does not like its own {flavour:?}");
    image
}

fn create(image: &TestImage) {
    let size = image.virtual_bytes.to_string();
    let mut options = vec![format!("cluster_size={}", image.cluster_bytes)];
    options.extend(image.flavour.create_options().iter().map(|&option| option.to_owned()));
    let mut command = tools::qemu_img(["create", "-q"]);
    if image.flavour == Flavour::Luks {
        command.args(["--object", SECRET]);
    }
    if let Some(data) = image.data_file() {
        options.push(format!("data_file={}", data.display()));
    }
    if matches!(image.flavour, Flavour::Backing | Flavour::Rich) {
        let base = sibling(&image.path, "base.qcow2");
        tools::must(tools::qemu_img(["create", "-q", "-f", "qcow2"]).arg(&base).arg(&size));
        let mut writes = Writes::new(&base, Flavour::Plain, image.cluster_bytes);
        writes.data(0, 4, 90, false);
        writes.data(24, 6, 90, false);
        writes.run();
        command.arg("-b").arg(&base).args(["-F", "qcow2"]);
    }
    tools::must(command.args(["-f", "qcow2", "-o", &options.join(",")]).arg(&image.path).arg(&size));
}

fn fill(image: &mut TestImage) {
    let flavour = image.flavour;
    let path = image.path.clone();
    if matches!(flavour, Flavour::Backing | Flavour::Rich) {
        for index in 24..30 {
            image.model.insert(index, Content::Data { generation: 90, compressible: false });
        }
    }
    let step = |image: &mut TestImage, act: &dyn Fn(&mut Writes)| {
        let mut writes = Writes::new(&path, flavour, image.cluster_bytes);
        act(&mut writes);
        image.model.append(&mut writes.run());
    };
    let l2_entries = image.l2_entries;
    let tables = image.virtual_bytes / (l2_entries * image.cluster_bytes);
    step(image, &|w| {
        w.data(0, 8, 1, false);
        w.data(12, 4, 1, false);
        if tables > 1 {
            w.data(l2_entries, 4, 1, false);
            w.data(2 * l2_entries + 5, 3, 1, false);
        }
    });
    if !flavour.is_v2() {
        step(image, &|w| w.zero(16, 2));
        step(image, &|w| w.data(18, 2, 1, false));
        step(image, &|w| w.zero(18, 2));
    }
    if flavour.compresses() {
        step(image, &|w| w.data(20, 4, 1, true));
    }
    if flavour == Flavour::ExtendedL2 {
        let subcluster = image.cluster_bytes / 32;
        let offset = 28 * image.cluster_bytes;
        step(image, &|w| w.command(&format!("write -q -P 7 {offset} {}", 4 * subcluster)));
        step(image, &|w| w.command(&format!("write -q -z {} {}", offset + 8 * subcluster, 4 * subcluster)));
    }
    if flavour.has_snapshots() {
        snapshot(image, "s1");
        step(image, &|w| {
            w.data(0, 4, 2, false);
            w.data(l2_entries + 1, 2, 2, false);
        });
        snapshot(image, "s2");
        step(image, &|w| w.data(2, 4, 4, false));
    }
    if matches!(flavour, Flavour::Bitmaps | Flavour::Rich) {
        for name in ["bitmap-a", "bitmap-b"] {
            tools::must(tools::qemu_img(["bitmap", "--add", "-g", "65536"]).arg(&path).arg(name));
        }
        step(image, &|w| w.data(4, 2, 5, false));
        tools::must(tools::qemu_img(["bitmap", "--disable"]).arg(&path).arg("bitmap-b"));
    }
}

fn snapshot(image: &mut TestImage, name: &str) {
    tools::must(tools::qemu_img(["snapshot", "-c", name]).arg(&image.path));
    image.snapshots.insert(name.to_owned(), image.model.clone());
}

/// One run of `qemu-io`.
struct Writes {
    command: Command,
    arguments: Vec<String>,
    folder: tempfile::TempDir,
    cluster_bytes: u64,
    model: Model,
}

impl Writes {
    fn new(path: &Path, flavour: Flavour, cluster_bytes: u64) -> Self {
        Self {
            command: Command::new("qemu-io"),
            arguments: qemu_arguments(path, flavour),
            folder: tempfile::tempdir().expect("a temporary folder"),
            cluster_bytes,
            model: Model::new(),
        }
    }

    fn command(&mut self, text: &str) {
        self.command.arg("-c").arg(text);
    }

    fn data(&mut self, first: u64, count: u64, generation: u32, compressible: bool) {
        // qemu compresses one cluster for each write.
        let (writes, clusters) = if compressible { (count, 1) } else { (1, count) };
        for write in 0..writes {
            let offset = (first + write) * self.cluster_bytes;
            let len = clusters * self.cluster_bytes;
            let bytes =
                pattern::bytes(generation, offset, usize::try_from(len).expect("small"), compressible);
            let source = self.folder.path().join(format!("{offset}"));
            std::fs::write(&source, bytes).expect("a temporary file");
            let flag = if compressible { "-c " } else { "" };
            self.command(&format!("write -q {flag}-s {} {offset} {len}", source.display()));
        }
        for index in first..first + count {
            self.model.insert(index, Content::Data { generation, compressible });
        }
    }

    fn zero(&mut self, first: u64, count: u64) {
        let (offset, len) = (first * self.cluster_bytes, count * self.cluster_bytes);
        self.command(&format!("write -q -z {offset} {len}"));
        for index in first..first + count {
            self.model.insert(index, Content::Zero);
        }
    }

    fn run(mut self) -> Model {
        tools::must(self.command.args(&self.arguments));
        self.model
    }
}
