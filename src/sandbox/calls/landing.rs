//! Where the payloads of clusters to inflate go before the inmate asks for them, which saves it a call.
//!
//! Invariant: the bytes go where the inmate said it has room, all of that lies in the arena, and a payload that is not
//! there as a whole is told to be missing. The inmate reads such a one itself, and judges it.

use instar_abi::boot::FILE_IMAGE;
use instar_abi::call::{LandingRange, ReadRange};
use instar_abi::extent::MapRequest;

use super::super::error::SandboxError;
use super::super::memory::InmateMemory;
use super::files::Files;
use super::violation;

/// The inmate's room, as it named it last.
#[derive(Debug, Clone, Copy)]
pub(super) struct Landing {
    dest: u64,
    len: u64,
}

impl Landing {
    /// The room of a record of the inmate's.
    ///
    /// # Errors
    /// A fault where it does not all lie in the arena.
    pub(super) fn new(range: LandingRange, memory: &InmateMemory) -> Result<Self, SandboxError> {
        let LandingRange { dest, len } = range;
        match memory.arena(dest, len) {
            Some(_) => Ok(Self { dest, len }),
            None => Err(violation(format!("next: room of {len:#x} bytes at {dest:#x} is not in the arena"))),
        }
    }

    /// Reads the payloads of requests to inflate, as far as there is room, and tells each request where its own is.
    /// Returns how many bytes came.
    pub(super) fn land(self, requests: &mut [MapRequest], files: &Files, memory: &InmateMemory) -> u64 {
        let mut ranges: Vec<ReadRange> = Vec::with_capacity(requests.len());
        let mut used = 0;
        for request in &mut *requests {
            let MapRequest { host_offset: offset, host_len: len, .. } = *request;
            if files.check(FILE_IMAGE, offset, len).is_ok() && len <= self.len - used {
                request.payload = self.dest + used;
                used += len;
                ranges.push(ReadRange { offset, len, dest: request.payload, file: FILE_IMAGE, error: 0 });
            }
        }
        let errors = files.read(&ranges, memory);
        let landed = requests.iter_mut().filter(|request| request.payload != 0);
        for (request, error) in landed.zip(errors) {
            if error != 0 {
                request.payload = 0;
            }
        }
        used
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use instar_abi::boot::JobKind;
    use instar_abi::extent::MapOp;
    use instar_abi::finding::ACTIVE;
    use instar_abi::layout::{ARENA_BASE, LARGE_PAGE};

    use super::super::super::job::Job;
    use super::super::super::memory::Region;
    use super::*;
    use crate::image::Backend;

    const IMAGE_BYTES: u64 = 1 << 16;
    /// What lies here cannot be read.
    const BAD_OFFSET: u64 = 0x8000;

    /// Each byte is its offset's low one, plus one.
    #[derive(Debug)]
    struct Counted;

    impl Backend for Counted {
        fn len(&self) -> u64 {
            IMAGE_BYTES
        }

        fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
            if (offset..offset + into.len() as u64).contains(&BAD_OFFSET) {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            for (at, byte) in (offset..).zip(into) {
                *byte = at.to_le_bytes()[0].wrapping_add(1);
            }
            Ok(())
        }

        fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn set_len(&self, _: u64) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn sync(&self) -> io::Result<()> {
            Ok(())
        }
    }

    fn memory() -> InmateMemory {
        let region = || Region::private(LARGE_PAGE).unwrap();
        InmateMemory::new(region(), 0, region(), 0)
    }

    fn request(host_offset: u64, host_len: u64) -> MapRequest {
        let op = MapOp::Inflate as u32;
        MapRequest {
            op,
            snapshot: ACTIVE,
            guest_offset: 0,
            guest_len: 512,
            host_offset,
            host_len,
            payload: 0,
        }
    }

    #[test]
    fn payloads_land_where_there_is_room_and_the_rest_is_told_to_be_missing() {
        let (memory, files) = (memory(), Files::new(&Job::new(JobKind::Map, Arc::new(Counted))));
        let landing = Landing::new(LandingRange { dest: ARENA_BASE + 64, len: 300 }, &memory).unwrap();
        let mut requests = [
            request(0x10, 100),
            request(BAD_OFFSET - 1, 2),
            request(IMAGE_BYTES - 1, 2),
            request(u64::MAX, u64::MAX),
            request(0x20, 199),
            request(0x30, 198),
        ];
        assert_eq!(landing.land(&mut requests, &files, &memory), 300);
        let start = ARENA_BASE + 64;
        assert_eq!(requests.map(|request| request.payload), [start, 0, 0, 0, 0, start + 102]);
        let mut bytes = [0_u8; 2];
        memory.arena(start + 102, 2).unwrap().copy_to(&mut bytes);
        assert_eq!(bytes, [0x31, 0x32]);
    }

    #[test]
    fn room_outside_of_the_arena_is_a_fault() {
        let memory = memory();
        for (dest, len) in [(ARENA_BASE - 1, 1), (ARENA_BASE, LARGE_PAGE + 1), (0, 1), (u64::MAX, 2)] {
            assert!(Landing::new(LandingRange { dest, len }, &memory).is_err(), "{dest:#x} {len:#x}");
        }
        assert!(Landing::new(LandingRange { dest: ARENA_BASE, len: LARGE_PAGE }, &memory).is_ok());
    }
}
