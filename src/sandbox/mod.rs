//! The cage: runs the payload, serves its calls, kills it. Interprets no image byte.
//!
//! What the rest of the program needs of it stands in [`job`] (what is asked), [`observer`] (what is told) and
//! [`error`] (how it can end badly); [`run`] does a job, [`Resident`] keeps one waiting for requests.
//!
//! Inside: `payload` checks the ELF file, `memory` is the inmate's memory, `kvm` and `process` are the two kinds
//! of `cage`, `calls` is the host's side of every call, the same for both.

mod cage;
mod calls;
mod drill;
pub mod error;
pub mod heap;
pub mod job;
mod kvm;
pub mod limits;
pub mod lockdown;
mod memory;
pub mod observer;
mod payload;
mod process;
mod resident;
mod run;
mod scope;

pub use cage::CageKind;
#[doc(hidden)]
pub use calls::{Reply, Served};
#[doc(hidden)]
pub use drill::Drill;
pub use resident::Resident;
pub use run::{JobResult, SandboxChoice, run, run_elf, settle};
pub use scope::Scope;
