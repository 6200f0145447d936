//! A raw file as a source of extents: it is its own map.

use std::io;
use std::sync::Arc;

use instar_abi::boot::FILE_IMAGE;
use instar_abi::extent::{Extent, ExtentKind};

use super::source::{ExtentSource, Inflated, Payload};
use crate::image::Backend;
use crate::sandbox::error::SandboxError;

/// Names the bytes of a file as data, and its holes as zeros.
#[derive(Debug)]
pub struct RawFile {
    file: Arc<dyn Backend>,
}

impl RawFile {
    /// The file with index 0 of the disk.
    #[must_use]
    pub fn new(file: Arc<dyn Backend>) -> Self {
        Self { file }
    }
}

impl ExtentSource for RawFile {
    fn map(&mut self, _: u32, offset: u64, len: u64, into: &mut Vec<Extent>) -> Result<(), SandboxError> {
        let data = self
            .file
            .data_ranges(offset, len)
            .map_err(|source| host("ask for the holes of the raw file", source))?;
        let end = offset.saturating_add(len);
        let mut at = offset;
        for (start, len) in data {
            let (start, stop) = (start.clamp(at, end), start.saturating_add(len).clamp(at, end));
            push(into, ExtentKind::Zero, at, start);
            push(into, ExtentKind::Data, start, stop);
            at = stop;
        }
        push(into, ExtentKind::Zero, at, end);
        Ok(())
    }

    fn inflate(&mut self, _: &[Payload], _: u64) -> Result<Vec<Inflated>, SandboxError> {
        Err(host("inflate a cluster of a raw file", io::ErrorKind::Unsupported.into()))
    }
}

fn push(into: &mut Vec<Extent>, kind: ExtentKind, start: u64, end: u64) {
    if start < end {
        let is_data = kind == ExtentKind::Data;
        into.push(Extent {
            guest_offset: start,
            guest_len: end - start,
            host_offset: if is_data { start } else { 0 },
            host_len: if is_data { end - start } else { 0 },
            kind: kind as u32,
            file: FILE_IMAGE,
            problem: 0,
            reserved: 0,
        });
    }
}

fn host(action: &str, source: io::Error) -> SandboxError {
    SandboxError::Host { action: action.into(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use instar_abi::finding::ACTIVE;
    use parking_lot::Mutex;

    use super::*;
    use crate::disk::{Disk, SharedSource};
    use crate::image::ImageFile;

    #[test]
    fn raw_file_reads_as_it_is_and_its_holes_are_holes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(3 << 20).unwrap();
        file.as_file().write_all_at(&[7; 4096], 1 << 20).unwrap();
        let backend: Arc<dyn Backend> = Arc::new(ImageFile::open_read_only(file.path()).unwrap());
        let source: SharedSource = Arc::new(Mutex::new(Box::new(RawFile::new(backend.clone()))));
        let disk = Disk::new([Some(backend), None, None, None], source, ACTIVE, 3 << 20, 16, 1 << 20);
        let mut bytes = vec![1; 4 << 20];
        let outcome = disk.read(0, &mut bytes);
        assert!(outcome.stopped.is_none() && outcome.filled == 3 << 20);
        let expected = |at: usize| u8::from((1 << 20..(1 << 20) + 4096).contains(&at)) * 7;
        assert!(bytes[..3 << 20].iter().enumerate().all(|(at, byte)| *byte == expected(at)));
        assert_eq!(disk.seek(0, true).unwrap(), Some(1 << 20));
        assert_eq!(disk.seek(1 << 20, false).unwrap(), Some((1 << 20) + 4096));
        assert_eq!(disk.seek(2 << 20, true).unwrap(), None);
    }
}
