//! The files of a job: bytes from them go into the arena, and nowhere else.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use instar_abi::boot::{FILE_ABSENT, FILES_MAX};
use instar_abi::call::{DataRange, DataRangesCall, ReadRange};
use instar_abi::to_usize;
use vm_memory::VolatileSlice;

use super::super::error::SandboxError;
use super::super::job::Job;
use super::super::memory::InmateMemory;
use super::violation;
use crate::image::Backend;

/// Bytes copied at once where a backend has no plain descriptor.
const BOUNCE_BYTES: usize = 256 << 10;
/// Runs that are announced to the kernel when one was found not to be in its cache.
const AHEAD_RUNS: usize = 64;

/// A file and the length that the inmate was told.
#[derive(Debug)]
struct File {
    backend: Arc<dyn Backend>,
    len: u64,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Files {
    files: [Option<File>; FILES_MAX],
}

/// Lengths of a job's files, as the boot page tells them.
pub(in super::super) fn lengths(job: &Job) -> [u64; FILES_MAX] {
    Files::new(job).files.each_ref().map(|file| file.as_ref().map_or(FILE_ABSENT, |file| file.len))
}

/// Ranges that one system call can read: neighbours in the file and in the arena.
#[derive(Debug)]
struct Run<'a> {
    ranges: &'a [ReadRange],
    file: u32,
    offset: u64,
    dest: u64,
    len: u64,
}

/// Cuts a vector into runs.
fn runs(ranges: &[ReadRange]) -> impl Iterator<Item = Run<'_>> {
    ranges
        .chunk_by(|a, b| {
            a.file == b.file
                && a.offset.checked_add(a.len) == Some(b.offset)
                && a.dest.checked_add(a.len) == Some(b.dest)
        })
        .map(|ranges| Run {
            ranges,
            file: ranges[0].file,
            offset: ranges[0].offset,
            dest: ranges[0].dest,
            len: ranges.iter().fold(0, |sum, range| sum.saturating_add(range.len)),
        })
}

impl Files {
    /// The files of a job, with their lengths as of now.
    pub(super) fn new(job: &Job) -> Self {
        let file =
            |backend: &Arc<dyn Backend>| Some(File { backend: Arc::clone(backend), len: backend.len() });
        Self { files: [file(&job.image), job.data_file.as_ref().and_then(file), None, None] }
    }

    fn get(&self, file: u32) -> Option<&File> {
        self.files.get(to_usize(file.into()))?.as_ref()
    }

    /// Refuses a range that is empty or not all in a file of the job.
    pub(super) fn check(&self, file: u32, offset: u64, len: u64) -> Result<(), SandboxError> {
        let Some(known) = self.get(file) else {
            return Err(violation(format!("there is no file {file}")));
        };
        if len == 0 || offset > known.len || len > known.len - offset {
            return Err(violation(format!(
                "range {offset:#x} + {len:#x} is empty or not all in file {file} of {:#x} bytes",
                known.len
            )));
        }
        Ok(())
    }

    /// Parts of a range that are not holes, at most `most`.
    pub(super) fn data_ranges(&self, asked: &DataRangesCall, most: usize) -> Vec<DataRange> {
        let DataRangesCall { offset, len, .. } = *asked;
        let everything = || vec![DataRange { offset, len }];
        let Some(file) = self.get(asked.file) else {
            return everything();
        };
        // Saying that all of it is data is always right, so a storage that cannot tell is no error.
        let Ok(found) = file.backend.data_ranges(offset, len) else {
            return everything();
        };
        let end = offset + len;
        let mut ranges: Vec<DataRange> = found
            .into_iter()
            .filter_map(|(from, bytes)| {
                let to = from.saturating_add(bytes).min(end);
                let from = from.max(offset);
                (from < to).then(|| DataRange { offset: from, len: to - from })
            })
            .collect();
        if ranges.len() > most {
            ranges.truncate(most);
            if let Some(last) = ranges.last_mut() {
                last.len = end - last.offset;
            }
        }
        ranges
    }

    /// Reads checked ranges into the arena. Returns an errno for each, 0 where all is well; the bytes of a range
    /// that could not be read are zero.
    pub(super) fn read(&self, ranges: &[ReadRange], memory: &InmateMemory) -> Vec<u32> {
        let mut errors = Vec::with_capacity(ranges.len());
        let mut announced = 0;
        let all: Vec<Run<'_>> = runs(ranges).collect();
        for (index, run) in all.iter().enumerate() {
            if index >= announced && !self.read_cached(run, memory) {
                announced = (index + AHEAD_RUNS).min(all.len());
                all[index..announced].iter().for_each(|run| self.announce(run));
            } else if index >= announced {
                errors.extend(run.ranges.iter().map(|_| 0));
                continue;
            }
            self.read_run(run, memory, &mut errors);
        }
        errors
    }

    /// Reads a run if the kernel has all of it in its cache.
    fn read_cached(&self, run: &Run<'_>, memory: &InmateMemory) -> bool {
        let (Some(file), Some(dest)) = (self.get(run.file), memory.arena(run.dest, run.len)) else {
            return false;
        };
        file.backend.plain_fd().is_some_and(|fd| read_nowait(fd, &dest, run.offset))
    }

    /// Tells the kernel that a run will be read soon.
    fn announce(&self, run: &Run<'_>) {
        if let Some(fd) = self.get(run.file).and_then(|file| file.backend.plain_fd())
            && let Err(error) = rustix::fs::fadvise(
                fd,
                run.offset,
                std::num::NonZeroU64::new(run.len),
                rustix::fs::Advice::WillNeed,
            )
        {
            tracing::trace!(%error, "read-ahead hint refused");
        }
    }

    fn read_run(&self, run: &Run<'_>, memory: &InmateMemory, errors: &mut Vec<u32>) {
        if self.read_range(run.file, run.offset, run.dest, run.len, memory).is_ok() {
            errors.extend(run.ranges.iter().map(|_| 0));
            return;
        }
        // Something in the run cannot be read: find out which ranges it is.
        for range in run.ranges {
            match self.read_range(range.file, range.offset, range.dest, range.len, memory) {
                Ok(()) => errors.push(0),
                Err(errno) => {
                    clear(memory, range.dest, range.len);
                    errors.push(errno);
                }
            }
        }
    }

    fn read_range(
        &self,
        file: u32,
        offset: u64,
        dest: u64,
        len: u64,
        memory: &InmateMemory,
    ) -> Result<(), u32> {
        let (Some(file), Some(dest)) = (self.get(file), memory.arena(dest, len)) else {
            // Not reached: the ranges were checked.
            return Err(libc::EINVAL.unsigned_abs());
        };
        match file.backend.plain_fd() {
            Some(fd) => read_plain(fd, &dest, offset),
            None => read_bounced(&*file.backend, &dest, offset),
        }
        .map_err(|error| error.raw_os_error().unwrap_or(libc::EIO).unsigned_abs())
    }
}

/// One pread at the start of `dest`; returns how many bytes came.
fn pread(fd: BorrowedFd<'_>, dest: &VolatileSlice<'_>, offset: u64) -> io::Result<usize> {
    let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the slice is bounded, mapped and writable for as long as it is borrowed; the kernel writes at most
    // its length, and nothing holds a reference into it.
    let got =
        unsafe { libc::pread(fd.as_raw_fd(), dest.ptr_guard_mut().as_ptr().cast(), dest.len(), offset) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

/// Fills `dest` from a descriptor.
fn read_plain(fd: BorrowedFd<'_>, dest: &VolatileSlice<'_>, offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < dest.len() {
        let rest = dest.offset(done).map_err(io::Error::other)?;
        match pread(fd, &rest, offset + done as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(got) => done += got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Fills `dest` if that needs no waiting for storage.
fn read_nowait(fd: BorrowedFd<'_>, dest: &VolatileSlice<'_>, offset: u64) -> bool {
    let Ok(offset) = i64::try_from(offset) else {
        return false;
    };
    let part = libc::iovec { iov_base: dest.ptr_guard_mut().as_ptr().cast(), iov_len: dest.len() };
    // SAFETY: as in `pread`; the one iovec is a live local.
    let got = unsafe { libc::preadv2(fd.as_raw_fd(), &part, 1, offset, libc::RWF_NOWAIT) };
    usize::try_from(got) == Ok(dest.len())
}

/// Fills `dest` through a buffer of our own.
fn read_bounced(backend: &dyn Backend, dest: &VolatileSlice<'_>, offset: u64) -> io::Result<()> {
    let mut buffer = vec![0; dest.len().min(BOUNCE_BYTES)];
    let mut done = 0;
    while done < dest.len() {
        let part = &mut buffer[..(dest.len() - done).min(BOUNCE_BYTES)];
        backend.read_at(part, offset + done as u64)?;
        dest.subslice(done, part.len()).map_err(io::Error::other)?.copy_from(part);
        done += part.len();
    }
    Ok(())
}

/// Zeroes a range of the arena.
fn clear(memory: &InmateMemory, dest: u64, len: u64) {
    let zeros = vec![0u8; to_usize(len).min(BOUNCE_BYTES)];
    for at in (0..len).step_by(BOUNCE_BYTES) {
        let part = (len - at).min(BOUNCE_BYTES as u64);
        if let Some(slice) = memory.arena(dest + at, part) {
            slice.copy_from(&zeros[..to_usize(part)]);
        }
    }
}
