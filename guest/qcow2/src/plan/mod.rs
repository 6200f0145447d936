//! The plan: proposes the writes that cure what a tier promises to cure.
//!
//! The tier `all` is planned in rounds. Each round is a plan of its own, made from the image with the writes of the
//! rounds before in place; the first class of cures that has something to do is the round's, and an empty round
//! is the last one:
//!
//! ```text
//! field      one header field, by decision, on whatever can be looked at                  restore
//! items      entries and fields wrong by themselves         orphans, entries, snapshots, bitmaps, features
//! links      clusters that are used as two things                                            copies
//! refcounts  blocks and table that cannot be used, made anew at the end of the file          refcounts
//! in place   counts, COPIED flags, frees                                                     counts, copied, leaks
//! header     feature bits                                                                    guard
//! ```
//!
//! Invariant: every plan begins with a whole check of its own, and proposes nothing but a header field unless that was
//! complete; each step names its write scope before its first write; the same bytes give the same plan. A cure is a
//! module. What this does not do: write, or decide whether what it proposes is done; the host proves every plan with
//! another cage first.

mod bitmaps;
mod copied;
mod copies;
mod counts;
mod diff;
mod doubt;
mod drop;
mod entries;
mod features;
mod guard;
mod leaks;
mod lost_bitmaps;
mod marks;
mod orphans;
mod payload;
mod places;
mod refcounts;
mod reserved;
mod restore;
mod round;
mod snapshot_count;
mod snapshots;
mod unmap;

use instar_abi::choice::Decisions;
use instar_abi::problem::Tier;
use instar_abi::summary::{Outcome, Summary};

use crate::check::leaks::ClusterSet;
use crate::check::reader::Reader;
use crate::check::recount::{overlaps, recount};
use crate::check::{self, Checked};
use crate::host::Host;
use copied::FixCopied;
use counts::FixCounts;
use doubt::Doubt;
use guard::Guard;
use round::Round;

/// The clusters of a window whose counts stay wrong may take the memory budget divided by this.
const UNSETTLED_PART: usize = 12;

/// What to plan for.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// What is to be cured.
    pub tier: Tier,
    /// What the user has decided.
    pub decisions: Decisions,
}

/// Proposes a plan; for [`Tier::All`] that of one round. The summary is that of the check it begins with.
pub fn run<H: Host>(host: &mut H, options: &Options) -> Summary {
    let silent = check::Options { silent: true, ..check::Options::default() };
    let mut checked = check::inspect(host, &silent);
    if options.tier == Tier::All && restore::propose(host, &checked, options.decisions) {
        return checked.summary;
    }
    if checked.summary.outcome == Outcome::Complete as u32 {
        match options.tier {
            Tier::Leaks => leaks::propose(&mut Round::new(host, None), &checked),
            Tier::All => mend(host, &mut checked, options.decisions),
        }
    }
    checked.summary
}

/// One round: the first class of cures that has something to do.
fn mend<H: Host>(host: &mut H, checked: &mut Checked, decisions: Decisions) {
    let doubt = Doubt::new(checked.problems, decisions);
    orphans::free_decided(checked, &doubt);
    let checked = &*checked;
    let mut round = Round::new(host, Guard::of(checked));
    let classes: [fn(&mut Round<'_, H>, &Checked, &Doubt); 5] = [items, links, structures, in_place, header];
    for class in classes {
        class(&mut round, checked, &doubt);
        if round.is_begun() {
            break;
        }
    }
    round.finish();
}

/// What is wrong with an entry or a field by itself.
fn items<H: Host>(round: &mut Round<'_, H>, checked: &Checked, doubt: &Doubt) {
    orphans::attach(round, checked, doubt);
    if round.is_begun() {
        return;
    }
    entries::propose(round, checked, doubt);
    snapshot_count::propose(round, checked, doubt);
    snapshots::propose(round, checked, doubt);
    let trust = bitmaps::propose(round, checked, doubt);
    features::propose(round, checked, doubt, trust);
}

/// Clusters that are used as two things.
fn links<H: Host>(round: &mut Round<'_, H>, checked: &Checked, doubt: &Doubt) {
    copies::propose_overlapping(round, checked, doubt);
    if !round.is_begun() {
        copies::propose_shared(round, checked, doubt);
    }
}

/// Refcount blocks and table.
fn structures<H: Host>(round: &mut Round<'_, H>, checked: &Checked, doubt: &Doubt) {
    refcounts::propose(round, checked, doubt);
}

/// Counts, flags and frees. Proven leaks go along with other counts, which may stand in the same byte.
fn in_place<H: Host>(round: &mut Round<'_, H>, checked: &Checked, doubt: &Doubt) {
    let has_counts = FixCounts::is_wanted(checked, doubt);
    let copied = FixCopied::wanted(checked, doubt);
    if has_counts || copied.is_some() {
        set(round, checked, doubt, copied);
    }
    if !has_counts {
        leaks::propose(round, checked);
    }
}

/// Sets counts and flags, as far as it is known what else is written with them.
fn set<H: Host>(round: &mut Round<'_, H>, checked: &Checked, doubt: &Doubt, copied: Option<FixCopied>) {
    let (Some(image), roots) = (&checked.image, &checked.roots) else { return };
    let mut reader = Reader::new(image.bounds.len);
    let Some(overlaps) = overlaps(round, &mut reader, image, roots, &checked.problems) else { return };
    let counts = FixCounts::new(checked, image, &overlaps, doubt);
    recount(round, &mut reader, image, roots, |round, reader, window| {
        let mut unsettled = ClusterSet::new(round.memory_budget() / UNSETTLED_PART);
        counts.window(round, reader, window, &mut unsettled);
        if let Some(copied) = copied {
            copied.window(round, reader, (checked, image), window, (&overlaps, &unsettled));
        }
    });
}

/// Feature bits of the header.
fn header<H: Host>(round: &mut Round<'_, H>, _: &Checked, _: &Doubt) {
    round.mend_guard();
}
