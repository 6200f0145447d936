//! Which code answers which job.

use core::fmt::Arguments;

use instar_abi::boot::{BootPage, JobKind};
use instar_abi::call::FailKind;
use instar_qcow2::{describe, map};

use crate::gate::fail;
use crate::host::GateHost;

/// Does the job of this boot page.
pub fn dispatch(boot: BootPage) -> ! {
    let Some(kind) = JobKind::from_u32(boot.job) else {
        refuse(format_args!("job {} is not known", boot.job));
    };
    let mut host = GateHost::new(boot);
    let summary = match kind {
        JobKind::Map => map::serve(&mut host),
        JobKind::Describe => describe::run(&mut host),
        JobKind::Check | JobKind::Plan | JobKind::Evil => {
            refuse(format_args!("job {kind:?} is not built into this payload"))
        }
    };
    host.done(summary)
}

fn refuse(message: Arguments<'_>) -> ! {
    fail(FailKind::BadBoot, line!(), message)
}
