//! The host's side of the wire without an inmate: the caller says what is in its memory when the doorbell rings.
//!
//! For tests and fuzzers of the calls. What is served here is served by the same code as in a cage; what is left out is
//! the cage alone.

use std::io;
use std::sync::Arc;

use instar_abi::call::CallHeader;
use instar_abi::extent::MapRequest;
use instar_abi::layout::LARGE_PAGE;
use zerocopy::IntoBytes;

use super::calls::{Reply, Served, Server};
use super::error::SandboxError;
use super::job::Job;
use super::memory::{InmateMemory, Region};
use super::observer::{Observer, RunStats};

/// A server, and the memory of the inmate that it serves.
#[derive(Debug)]
pub struct Drill {
    server: Server,
    memory: Arc<InmateMemory>,
}

impl Drill {
    /// A server for one inmate's whole life. Its memory is zeros: a call area, and an arena of one large page.
    ///
    /// # Errors
    /// Those of the system: there is no memory to be had.
    pub fn new(job: &Job) -> io::Result<Self> {
        let (small, arena) = (Region::private(LARGE_PAGE)?, Region::private(LARGE_PAGE)?);
        let memory = Arc::new(InmateMemory::new(small, 0, arena, 0));
        Ok(Self { server: Server::new(job, memory.clone()), memory })
    }

    /// Puts a call into the call area: its header, and bytes behind it. False, with nothing put, where they do not fit.
    pub fn put_call(&self, op: u32, count: u32, records: &[u8]) -> bool {
        let header = CallHeader { op, count, reserved: [0; 3] };
        let len = header.as_bytes().len() as u64;
        let places = self.memory.call(0, len).zip(self.memory.call(len, records.len() as u64));
        let Some((head, rest)) = places else { return false };
        head.copy_from(header.as_bytes());
        rest.copy_from(records);
        true
    }

    /// Puts bytes at an address of the arena. False, with nothing put, where they do not fit.
    pub fn put_arena(&self, addr: u64, bytes: &[u8]) -> bool {
        let place = self.memory.arena(addr, bytes.len() as u64);
        place.map(|place| place.copy_from(bytes)).is_some()
    }

    /// Copies bytes of the arena. False where they are not all in it.
    pub fn get_arena(&self, addr: u64, into: &mut [u8]) -> bool {
        let place = self.memory.arena(addr, into.len() as u64);
        place.map(|place| place.copy_to(into)).is_some()
    }

    /// Rings the doorbell.
    ///
    /// # Errors
    /// As for a job in a cage. An error ends a job there; here it may go on.
    pub fn ring(&mut self, observer: &mut dyn Observer) -> Result<Served, SandboxError> {
        self.server.serve(observer)
    }

    /// Asks a resident job that waits ([`Served::Idle`]).
    ///
    /// # Errors
    /// Requests that do not fit the call area.
    pub fn ask(&mut self, requests: Vec<MapRequest>) -> Result<(), SandboxError> {
        self.server.ask(requests)
    }

    /// What it answered, once it waits again.
    ///
    /// # Errors
    /// An answer that is not whole, or to nothing.
    pub fn take_answer(&mut self) -> Result<Reply, SandboxError> {
        self.server.take_answer()
    }

    /// What the job cost so far.
    #[must_use]
    pub fn stats(&self) -> RunStats {
        self.server.stats()
    }
}
