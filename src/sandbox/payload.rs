//! The program that runs in the cage: an ELF file that `build.rs` made, checked all the same.
//!
//! Invariant: the segments of a [`Payload`] lie in the region that [`layout`] gives them, page by page apart,
//! none both writable and executable, and the entry point is in an executable one.

use std::io;

use elf::ElfBytes;
use elf::abi::{EM_X86_64, ET_EXEC, PF_W, PF_X, PT_LOAD};
use elf::endian::LittleEndian;
use instar_abi::layout;

use super::error::SandboxError;

/// The payload that belongs to this build.
pub(super) static EMBEDDED: &[u8] = include_bytes!(env!("INSTAR_PAYLOAD_ELF"));

/// One loadable part.
#[derive(Debug)]
pub(super) struct Segment<'a> {
    /// Inmate address, on a page boundary.
    pub addr: u64,
    /// Bytes in memory, a whole number of pages.
    pub len: u64,
    /// What it starts with; the rest is zero.
    pub bytes: &'a [u8],
    /// The inmate may write it.
    pub write: bool,
    /// The inmate may run it.
    pub execute: bool,
}

/// A checked program.
#[derive(Debug)]
pub(super) struct Payload<'a> {
    /// The whole ELF file.
    pub file: &'a [u8],
    /// Its parts, by address.
    pub segments: Vec<Segment<'a>>,
    /// Where it starts.
    pub entry: u64,
}

impl<'a> Payload<'a> {
    /// Checks an ELF file.
    ///
    /// # Errors
    /// [`SandboxError::Unavailable`], saying what is not as it must be.
    pub(super) fn parse(file: &'a [u8]) -> Result<Self, SandboxError> {
        parse(file).map_err(|what| SandboxError::Unavailable {
            action: "load the payload".into(),
            source: io::Error::new(io::ErrorKind::InvalidData, what),
        })
    }
}

fn parse(file: &[u8]) -> Result<Payload<'_>, String> {
    let elf = ElfBytes::<LittleEndian>::minimal_parse(file).map_err(|e| format!("not an ELF file: {e}"))?;
    if elf.ehdr.e_machine != EM_X86_64 || elf.ehdr.e_type != ET_EXEC {
        return Err("not a static x86-64 program".into());
    }
    let mut segments = Vec::new();
    let mut end = layout::SMALL_BASE;
    for header in elf.segments().into_iter().flatten().filter(|header| header.p_type == PT_LOAD) {
        let bytes = elf.segment_data(&header).map_err(|e| format!("segment: {e}"))?;
        let (addr, write, execute) = (header.p_vaddr, header.p_flags & PF_W != 0, header.p_flags & PF_X != 0);
        let len = header.p_memsz.checked_next_multiple_of(layout::PAGE).unwrap_or(u64::MAX);
        if addr < end || !addr.is_multiple_of(layout::PAGE) || len > layout::ELF_END.saturating_sub(addr) {
            return Err(format!("segment at {addr:#x} of {len:#x} bytes lies outside of its region"));
        }
        if write && execute || header.p_filesz > header.p_memsz {
            return Err(format!(
                "segment at {addr:#x} is writable and executable, or larger than its memory"
            ));
        }
        end = addr + len;
        segments.push(Segment { addr, len, bytes, write, execute });
    }
    let entry = elf.ehdr.e_entry;
    if !segments.iter().any(|s| s.execute && (s.addr..s.addr + s.len).contains(&entry)) {
        return Err(format!("entry point {entry:#x} is not in an executable segment"));
    }
    Ok(Payload { file, segments, entry })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payload_embedded_is_accepted_and_never_writable_and_executable() {
        let payload = Payload::parse(EMBEDDED).unwrap();
        assert!(payload.segments.iter().all(|s| !(s.write && s.execute)));
        assert_eq!(payload.entry, layout::SMALL_BASE);
    }

    #[test]
    fn payload_with_any_header_byte_flipped_is_refused_or_stays_in_its_region() {
        for at in 0..512.min(EMBEDDED.len()) {
            let mut file = EMBEDDED.to_vec();
            file[at] ^= 0xff;
            if let Ok(payload) = Payload::parse(&file) {
                for segment in &payload.segments {
                    assert!(segment.addr >= layout::SMALL_BASE);
                    assert!(segment.addr + segment.len <= layout::ELF_END);
                    assert!(!(segment.write && segment.execute));
                }
            }
        }
    }
}
