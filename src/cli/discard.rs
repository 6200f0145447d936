//! `instar check --discard`.

use super::check::examine;
use super::follower::Follower;
use super::inspect::Inspector;
use super::memory::{Ended, Memory};
use super::options::StateArgs;
use super::repair::Request;
use super::say;
use crate::error::Error;
use crate::heal::{self, DiscardOptions, DiscardReport, HealError};
use crate::history::judge;
use crate::image::ImageHandle;
use crate::report::{CheckReport, DiscardFacts, SandboxFacts, escape_path};

/// Repairs where that is asked for too, then gives back what nothing uses. The report is of the image as it is then.
///
/// # Errors
/// [`Error::DiscardDevice`]; those of a repair.
pub fn run(
    image: &ImageHandle,
    inspector: &Inspector,
    request: &Request,
    state: &StateArgs,
) -> Result<CheckReport, Error> {
    let options = DiscardOptions { preview: request.preview, side_folder: request.undo_dir.clone() };
    if image.file().is_block_device() && options.side_folder.is_none() {
        return Err(Error::DiscardDevice(image.path().to_owned()));
    }
    let repaired = match request.what {
        Some(_) => Some(examine(image, inspector, request, state)?.report),
        None => None,
    };
    let mut report = discard(image, inspector, &options, state)?;
    if let Some(repaired) = repaired {
        (report.repair, report.recurring) = (repaired.repair, repaired.recurring);
    } else {
        report.recurring = Memory::of(image, state).recurring(&report.tally);
    }
    Ok(report)
}

/// Says why nothing was given back, where the report will not be printed.
pub fn say_refusal(report: &CheckReport) {
    if let Some(refused) = report.discard.as_ref().and_then(DiscardFacts::refusal) {
        say::to_person(&format!("{}: {refused}", escape_path(&report.image)));
    }
}

/// Gives back what nothing uses, and remembers how that ended.
fn discard(
    image: &ImageHandle,
    inspector: &Inspector,
    options: &DiscardOptions,
    state: &StateArgs,
) -> Result<CheckReport, Error> {
    // Nothing is written by a preview, so there is nothing to remember.
    let attempt = match options.preview {
        true => None,
        false => Some(Memory::of(image, state).begin(inspector.request("discard"))?),
    };
    let mut cages = inspector.healers_cages();
    let mut follower = Follower::new(inspector);
    let result = heal::discard(image, options, &mut cages, &mut follower);
    if let Some(attempt) = attempt {
        attempt.end(&ended(&result, &follower));
    }
    let report = result.map_err(|source| Error::Heal { image: image.path().to_owned(), source })?;
    let Some((cage, fallback)) = cages.cage().cloned() else { return Err(Error::NothingRan) };
    inspector.warn_of_fallback(fallback.as_deref());
    let sandbox = SandboxFacts { cage, fallback, stats: report.last.stats };
    let mut told = CheckReport::new(image.path().to_owned(), report.last.summary, follower.seen, sandbox);
    told.discard = Some(DiscardFacts::from(&report));
    Ok(told)
}

/// What is to be remembered of an attempt.
fn ended<'a>(result: &'a Result<DiscardReport, HealError>, follower: &'a Follower) -> Ended<'a> {
    Ended {
        outcome: match result {
            Ok(report) => report.ending.id(),
            Err(error) => error.ending().id(),
        },
        failed: result.as_ref().is_err_and(judge::is_failure),
        plan_digest: None,
        attested: None,
        before: follower.found(),
        after: follower.found_after(),
    }
}
