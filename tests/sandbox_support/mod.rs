//! What the tests of the cages share: the payload of bad will, images in memory, calls as bytes.
#![allow(dead_code, reason = "each test program uses its part")]

use std::io;
use std::sync::Arc;
use std::time::Duration;

use instar_abi::boot::JobKind;
use instar_abi::call::{CallHeader, Op};
use instar_mount::image::Backend;
use instar_mount::sandbox::error::SandboxError;
use instar_mount::sandbox::job::Job;
use instar_mount::sandbox::observer::Observer;
use instar_mount::sandbox::{JobResult, SandboxChoice, run_elf};
use zerocopy::{Immutable, IntoBytes};

/// `Summary::passes` of an inmate that got through its deed.
pub const SURVIVED: u32 = 0x600d;
/// Bytes of the image that hold one call (`guest/payload/src/evil.rs`).
pub const CALL_IMAGE_BYTES: usize = 4096;
/// Arena of the jobs in here.
pub const ARENA_BYTES: u64 = 8 << 20;

/// The deeds, as `guest/payload/src/evil.rs` numbers them.
pub mod deed {
    pub const GOOD: u64 = 0;
    pub const SPIN: u64 = 1;
    pub const READ: u64 = 2;
    pub const WRITE: u64 = 3;
    pub const JUMP: u64 = 4;
    pub const RECURSE: u64 = 5;
    pub const PRIVILEGED: u64 = 6;
    pub const FORGE: u64 = 7;
    pub const FLOOD: u64 = 8;
    pub const PANIC: u64 = 9;
    pub const OUT_OF_MEMORY: u64 = 10;
    pub const RESIDENT: u64 = 11;
    pub const HEAP: u64 = 12;
}

pub fn evil_elf() -> Vec<u8> {
    std::fs::read(env!("INSTAR_EVIL_ELF")).unwrap()
}

/// The cages that this machine can build; says which one it skips.
pub fn cages() -> Vec<SandboxChoice> {
    let mut cages = vec![SandboxChoice::Process];
    match std::fs::File::open("/dev/kvm") {
        Ok(_) => cages.push(SandboxChoice::Kvm),
        Err(error) => eprintln!("skipped: the KVM cage, /dev/kvm: {error}"),
    }
    cages
}

/// An image in memory; reads that touch `bad` fail with EIO.
#[derive(Debug)]
pub struct Bytes {
    pub bytes: Vec<u8>,
    pub bad: std::ops::Range<u64>,
}

impl Backend for Bytes {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset + into.len() as u64;
        if offset < self.bad.end && end > self.bad.start {
            return Err(io::Error::from_raw_os_error(5));
        }
        let from = usize::try_from(offset).unwrap();
        into.copy_from_slice(&self.bytes[from..from + into.len()]);
        Ok(())
    }

    fn write_at(&self, _bytes: &[u8], _offset: u64) -> io::Result<()> {
        unreachable!("a cage writes to no image")
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        unreachable!("a cage resizes no image")
    }

    fn sync(&self) -> io::Result<()> {
        unreachable!("a cage has nothing to sync")
    }
}

/// A job for the payload of bad will.
pub fn evil_job(kind: JobKind, params: [u64; 2], image: Vec<u8>) -> Job {
    let mut job = Job::new(kind, Arc::new(Bytes { bytes: image, bad: 0..0 }));
    job.params[..2].copy_from_slice(&params);
    job.limits.arena_bytes = ARENA_BYTES;
    job.limits.silence = Duration::from_secs(20);
    job
}

/// One call as the payload finds it in the image.
pub fn call<T: IntoBytes + Immutable>(op: Op, count: u32, records: &[T]) -> Vec<u8> {
    raw_call(CallHeader { op: op as u32, count, reserved: [0; 3] }, records.as_bytes())
}

/// One call with any header.
pub fn raw_call(header: CallHeader, records: &[u8]) -> Vec<u8> {
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(records);
    assert!(bytes.len() <= CALL_IMAGE_BYTES);
    bytes.resize(CALL_IMAGE_BYTES, 0);
    bytes
}

/// Runs a job of the payload of bad will.
pub fn run(job: &Job, choice: SandboxChoice, observer: &mut dyn Observer) -> Result<JobResult, SandboxError> {
    run_elf(&evil_elf(), job, choice, observer)
}
