//! Which code answers which job.

use core::fmt::Arguments;

use instar_abi::boot::{BootPage, FLAG_DEEP, FLAG_DUMP, FLAG_MASK_NAMES, JobKind};
use instar_abi::call::FailKind;
use instar_abi::choice::Decisions;
use instar_abi::problem::Tier;
use instar_qcow2::{check, describe, free, map, plan, survey};

use crate::gate::fail;
use crate::host::GateHost;

/// Does the job of this boot page.
pub fn dispatch(boot: BootPage) -> ! {
    let Some(kind) = JobKind::from_u32(boot.job) else {
        refuse(format_args!("job {} is not known", boot.job));
    };
    let mut host = GateHost::new(boot);
    let options = check::Options { deep: boot.flags & FLAG_DEEP != 0, ..check::Options::default() };
    let summary = match kind {
        JobKind::Check => check::run(&mut host, &options),
        JobKind::Map => map::serve(&mut host),
        JobKind::Free => free::run(&mut host),
        JobKind::Describe => match u32::try_from(boot.params[0]) {
            Ok(0) | Err(_) => describe::run(&mut host),
            Ok(listed_max) => describe::run_briefly(&mut host, listed_max),
        },
        JobKind::Survey if boot.flags & FLAG_DUMP != 0 => {
            survey::dump(&mut host, boot.flags & FLAG_MASK_NAMES != 0)
        }
        JobKind::Survey => survey::picture(&mut host),
        JobKind::Plan => match Tier::from_u32(boot.tier) {
            Some(tier) => plan::run(&mut host, &plan::Options { tier, decisions: Decisions(boot.decisions) }),
            None => refuse(format_args!("tier {} is not known", boot.tier)),
        },
        JobKind::Evil => refuse(format_args!("job {kind:?} is not built into this payload")),
    };
    host.done(summary)
}

fn refuse(message: Arguments<'_>) -> ! {
    fail(FailKind::BadBoot, line!(), message)
}
