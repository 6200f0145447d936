//! The disk that is read, raw and as images of each kind.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::support::tools;

/// Bytes of the disk: far more than what any server keeps inflated.
pub const DISK_BYTES: u64 = 512 << 20;
/// Words that the disk's text is made of, by number.
const WORDS: u64 = 1 << 14;
/// Bytes written at once.
const BLOCK_BYTES: usize = 1 << 20;

/// How an image packs its clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Not at all.
    Plain,
    /// Deflate.
    Zlib,
    /// Zstandard.
    Zstd,
}

impl Packing {
    /// What it is called in print.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "uncompressed",
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
        }
    }

    /// Makes an image of the raw disk.
    pub fn image(self, raw: &Path) -> io::Result<PathBuf> {
        let path = raw.with_extension(self.name());
        let mut command = tools::qemu_img(["convert", "-q", "-f", "raw", "-O", "qcow2", "-W", "-m", "4"]);
        match self {
            Self::Plain => {}
            Self::Zlib => drop(command.args(["-c", "-o", "compression_type=zlib"])),
            Self::Zstd => drop(command.args(["-c", "-o", "compression_type=zstd"])),
        }
        tools::must(command.arg(raw).arg(&path));
        Ok(path)
    }
}

/// Writes the raw disk: text of numbered words in no order, which packs to about a third, as text does.
pub fn write_raw(path: &Path) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut block = Vec::with_capacity(BLOCK_BYTES + 32);
    for _ in 0..DISK_BYTES / BLOCK_BYTES as u64 {
        block.clear();
        while block.len() < BLOCK_BYTES {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // The product of two numbers prefers small words, as languages do.
            let word = ((state >> 40) % WORDS) * ((state >> 20) % WORDS) / WORDS;
            write!(block, "{} ", word * 2_654_435_761 % 9_999_991)?;
        }
        file.write_all(&block[..BLOCK_BYTES])?;
    }
    file.sync_all()
}
