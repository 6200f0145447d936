//! What a plan is going to do, as a list with prices.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::ops::Range;

use instar_abi::choice::Decision;
use instar_abi::cure::Cure;
use instar_abi::problem::{Cost, Problem};

use super::model::KeptFinding;
use super::names::Names;
use super::sentence::disk_name;
use super::touched::Touched;
use super::units::{bytes, counted};
use crate::heal::{Plan, option_of};

/// Guest ranges shown of one cure before the rest is only counted.
const RANGES_MAX: usize = 6;

/// What one cure is going to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TodoRow {
    /// The cure.
    pub cure: Cure,
    /// Items that it takes away; 0 where it only follows up what the others do.
    pub items: u64,
    /// Those of them with which traces of what was lost go.
    pub traces: u64,
    /// Bytes that it writes.
    pub write_bytes: u64,
    /// Guest ranges whose data it gives up, by snapshot. It could not be read before either.
    pub dropped: Vec<(u32, Range<u64>)>,
}

/// The list, in the order of the plan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Todo {
    /// The cures, each once.
    pub rows: Vec<TodoRow>,
    /// What is done because the user decided so, and how many items it takes away.
    pub decided: Vec<(Decision, u64)>,
    /// Other users are kept from writing to the image meanwhile.
    pub is_guarded: bool,
}

impl Todo {
    /// The list of a plan. `before` and `after` count the items of the image and of the proven copy by problem.
    #[must_use]
    pub fn of(
        plan: &Plan,
        before: &BTreeMap<Problem, u64>,
        after: &BTreeMap<Problem, u64>,
        findings: &[KeptFinding],
    ) -> Self {
        let mut rows: Vec<TodoRow> = Vec::new();
        for step in plan.steps() {
            let write_bytes = step.groups.iter().flatten().map(|write| write.bytes.len() as u64).sum();
            match rows.iter_mut().find(|row| row.cure == step.cure) {
                Some(row) => row.write_bytes = row.write_bytes.saturating_add(write_bytes),
                None => {
                    let (cure, dropped) = (step.cure, Vec::new());
                    rows.push(TodoRow { cure, items: 0, traces: 0, write_bytes, dropped });
                }
            }
        }
        let gone = |problem: Problem| {
            let count = |counts: &BTreeMap<Problem, u64>| counts.get(&problem).copied().unwrap_or(0);
            count(before).saturating_sub(count(after))
        };
        for row in &mut rows {
            let of_cure = |problem: &Problem| Cure::of(*problem) == Some(row.cure);
            for problem in before.keys().filter(|problem| of_cure(problem)) {
                row.items = row.items.saturating_add(gone(*problem));
                if problem.row().cost == Cost::DestroysEvidence {
                    row.traces = row.traces.saturating_add(gone(*problem));
                }
            }
            let dropping = |kept: &&KeptFinding| {
                of_cure(&kept.problem)
                    && kept.problem.row().cost == Cost::DropsData
                    && after.get(&kept.problem).is_none_or(|left| *left == 0)
            };
            let dropped: Vec<KeptFinding> = findings.iter().filter(dropping).cloned().collect();
            row.dropped = Touched::by(&dropped).ranges().map(|(disk, range)| (disk, range.clone())).collect();
        }
        let decided = Decision::ALL.iter().filter(|decision| plan.decisions().has(**decision));
        let decided = decided.map(|decision| (*decision, gone(decision.problem()))).collect();
        Self { rows, decided, is_guarded: plan.guard().is_some() }
    }

    /// Prints it.
    ///
    /// # Errors
    /// Those of `out`.
    pub(super) fn write(&self, names: &Names, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "  to do, in this order:")?;
        for (at, row) in self.rows.iter().enumerate() {
            row.write(at + 1, !self.decided.is_empty(), names, out)?;
        }
        for (decision, items) in &self.decided {
            let items = counted(*items, "item", "items");
            writeln!(out, "    you decided {}: {items}", option_of(*decision))?;
            writeln!(out, "       {}", decision.sentence())?;
        }
        if self.is_guarded {
            writeln!(out, "    meanwhile the image is marked as corrupt, so that nobody else writes to it")?;
        }
        Ok(())
    }
}

impl TodoRow {
    fn write(
        &self,
        number: usize,
        has_decisions: bool,
        names: &Names,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        let items = match self.items {
            0 => "follows from the others".to_owned(),
            items => counted(items, "item", "items"),
        };
        let price = match (self.dropped.is_empty(), self.items, self.traces) {
            (false, ..) => "drops data that cannot be read now",
            // What it follows up may be a decision, whose price is told with the decision.
            (true, 0, _) if has_decisions => "at the price of what you decided",
            (true, _, 0) => "loses nothing",
            (true, ..) => "loses traces of what is lost already",
        };
        let (id, size) = (self.cure.id(), bytes(self.write_bytes));
        writeln!(out, "    {number}. {id}: {items}, writes {size}, {price}")?;
        writeln!(out, "       {}", self.cure.sentence())?;
        for (disk, range) in self.dropped.iter().take(RANGES_MAX) {
            let (disk, size) = (disk_name(*disk, names), bytes(range.end - range.start));
            writeln!(out, "       drops {disk}: {:#x} to {:#x} ({size})", range.start, range.end)?;
        }
        match self.dropped.len().saturating_sub(RANGES_MAX) {
            0 => Ok(()),
            more => writeln!(out, "       and {}", counted(more as u64, "range more", "ranges more")),
        }
    }
}
