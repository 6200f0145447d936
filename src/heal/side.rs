//! Writing and reading whole records.
//!
//! Invariant: under its final name a record is complete and durable. It is written under another name first,
//! its head last of all, and takes its name only after its bytes are durable; the name is durable before
//! [`SideWriter::finish`] returns.

use std::io;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use zerocopy::IntoBytes;

use super::record::{FileHead, GUARDED_RECORD_VERSION, RECORD_VERSION, Reader};
use super::site::{Folder, SideFile};
use crate::image::{Backend, Latch};

/// Longest record that is written or read, in bytes.
pub(super) const SIDE_BYTES_MAX: u64 = (1 << 30) + (1 << 28);
/// Bytes collected before they are written.
const CHUNK_BYTES: usize = 1 << 20;

/// A record being written.
pub(super) struct SideWriter<'a> {
    folder: &'a dyn Folder,
    file: SideFile,
    backend: Latch,
    pending: Vec<u8>,
    written: u64,
    hash: Sha256,
    error: Option<io::Error>,
}

impl<'a> SideWriter<'a> {
    /// Begins the record, after removing what an earlier attempt may have left unfinished.
    pub(super) fn create(folder: &'a dyn Folder, file: SideFile) -> io::Result<Self> {
        folder.remove(file.part())?;
        let backend = Latch::new(folder.create(file.part())?);
        let written = size_of::<FileHead>() as u64;
        Ok(Self { folder, file, backend, pending: Vec::new(), written, hash: Sha256::new(), error: None })
    }

    /// Appends to the body. An error is kept for [`SideWriter::finish`].
    pub(super) fn append(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= CHUNK_BYTES {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if self.error.is_none()
            && !self.pending.is_empty()
            && let Err(error) = self.backend.write_at(&self.pending, self.written)
        {
            self.error = Some(error);
        }
        self.written += self.pending.len() as u64;
        self.pending.clear();
    }

    /// Writes the head, its version included, makes everything durable and gives the record its name. Returns the head's digest.
    /// After an error nothing has the name that had not had it before, except if the very last sync failed.
    pub(super) fn finish(mut self, mut head: FileHead) -> io::Result<[u8; 32]> {
        self.flush();
        head.body_len = (self.written - size_of::<FileHead>() as u64).into();
        head.body_digest = std::mem::take(&mut self.hash).finalize().into();
        head.head_digest = digest_of(&head);
        let written = match self.error.take() {
            Some(error) => Err(error),
            None => self.backend.write_at(head.as_bytes(), 0).and_then(|()| self.backend.sync()),
        };
        match written.and_then(|()| self.folder.rename(self.file.part(), self.file)) {
            Ok(()) => self.folder.sync().map(|()| head.head_digest),
            Err(error) => {
                // The first error is the one to tell; a part that stays is removed by the next attempt.
                if let Err(second) = self.folder.remove(self.file.part()) {
                    let path = self.folder.path_of(self.file.part());
                    tracing::warn!(path = %path.display(), error = %second, "an unfinished record stays");
                }
                Err(error)
            }
        }
    }
}

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file cannot be read, or is not to be trusted.
    #[error("{what}: cannot be read or is not to be trusted")]
    Io {
        /// "journal" or "undo file".
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its content is not what this program writes.
    #[error("{what}: {why}")]
    Damaged {
        /// "journal" or "undo file".
        what: &'static str,
        /// Which rule it breaks.
        why: String,
    },
}

impl RecordError {
    pub(super) fn damaged(what: &'static str, why: impl Into<String>) -> Self {
        Self::Damaged { what, why: why.into() }
    }
}

/// A record's head and body, both proven by their digests; `None` if there is none.
pub(super) fn read_record(
    folder: &dyn Folder,
    file: SideFile,
    magic: [u8; 8],
    what: &'static str,
) -> Result<Option<(FileHead, Vec<u8>)>, RecordError> {
    let io_error = |source| RecordError::Io { what, source };
    let Some(backend) = folder.open(file).map_err(io_error)? else { return Ok(None) };
    if backend.len() > SIDE_BYTES_MAX {
        let why = format!("{} bytes long, at most {SIDE_BYTES_MAX} are allowed", backend.len());
        return Err(RecordError::damaged(what, why));
    }
    let bytes = read_all(&backend).map_err(io_error)?;
    let mut reader = Reader::new(&bytes);
    let head: FileHead =
        reader.take().ok_or_else(|| RecordError::damaged(what, "shorter than its own head"))?;
    if head.magic != magic {
        return Err(RecordError::damaged(what, "its first bytes are not those of such a file"));
    }
    if !(RECORD_VERSION..=GUARDED_RECORD_VERSION).contains(&head.version.get()) {
        let why =
            format!("version {}, known are {RECORD_VERSION} to {GUARDED_RECORD_VERSION}", head.version.get());
        return Err(RecordError::damaged(what, why));
    }
    if head.head_digest != digest_of(&head) {
        return Err(RecordError::damaged(what, "the digest of its head is wrong"));
    }
    let body_from = size_of::<FileHead>();
    if head.body_len.get() != (bytes.len() - body_from) as u64 {
        let why = format!(
            "{} bytes long, its head says {}",
            bytes.len(),
            head.body_len.get().saturating_add(body_from as u64)
        );
        return Err(RecordError::damaged(what, why));
    }
    let body = bytes[body_from..].to_vec();
    if head.body_digest != <[u8; 32]>::from(Sha256::digest(&body)) {
        return Err(RecordError::damaged(what, "the digest of its body is wrong"));
    }
    Ok(Some((head, body)))
}

fn read_all(backend: &Arc<dyn Backend>) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; instar_abi::to_usize(backend.len())];
    backend.read_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn digest_of(head: &FileHead) -> [u8; 32] {
    let bytes = head.as_bytes();
    Sha256::digest(&bytes[..bytes.len() - head.head_digest.len()]).into()
}
