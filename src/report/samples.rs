//! Reports made by hand, for tests of what is printed.

use std::path::PathBuf;

use instar_abi::call::TextKind;
use instar_abi::finding::{ACTIVE, Finding, NONE, Owner, Table};
use instar_abi::problem::{Problem, Tier};
use instar_abi::summary::{Outcome, Summary};

use super::collect::Collector;
use super::model::{CheckReport, RepairFacts, SandboxFacts};
use crate::heal::{Ending, PlanFacts};
use crate::sandbox::CageKind;
use crate::sandbox::observer::{Observer as _, RunStats};

pub(super) fn summary(outcome: Outcome) -> Summary {
    Summary {
        outcome: outcome as u32,
        version: 3,
        cluster_bits: 16,
        refcount_bits: 16,
        virtual_size: 1 << 30,
        total_clusters: 16_384,
        allocated_clusters: 100,
        image_end_offset: 7 << 20,
        ..Summary::default()
    }
}

pub(super) fn leak(index: u64, count: u64) -> Finding {
    Finding {
        problem: Problem::RefcountLeak as u32,
        table: Table::RefcountBlock as u32,
        snapshot: ACTIVE,
        witnesses: 0,
        host_offset: index << 16,
        host_len: count << 16,
        index,
        count,
        guest_offset: NONE,
        guest_len: 0,
        stored: 1,
        expected: 0,
    }
}

pub(super) fn past_eof(index: u64) -> Finding {
    Finding {
        problem: Problem::L2EntryPastEof as u32,
        table: Table::L2 as u32,
        host_offset: 0x5_0000 + 8 * index,
        host_len: 8,
        guest_offset: index << 16,
        guest_len: 1 << 16,
        stored: 0x900_0000,
        expected: 7 << 20,
        ..leak(index, 1)
    }
}

pub(super) fn report(findings: &[(Problem, Finding)], outcome: Outcome) -> CheckReport {
    let mut collector = Collector::default();
    collector.text(TextKind::SnapshotName, 0, b"evil\x1b[2J\n");
    for (problem, finding) in findings {
        collector.finding(*problem, finding);
    }
    let sandbox = SandboxFacts { cage: CageKind::Kvm, fallback: None, stats: RunStats::default() };
    CheckReport::new(PathBuf::from("disk.qcow2"), summary(outcome), collector, sandbox)
}

pub(super) fn leaky() -> CheckReport {
    report(&[(Problem::RefcountLeak, leak(77, 12))], Outcome::Complete)
}

pub(super) fn corrupt() -> CheckReport {
    let mut report = report(
        &[
            (Problem::RefcountLeak, leak(77, 12)),
            (Problem::L2EntryPastEof, past_eof(3)),
            (Problem::L2EntryShared, Finding { snapshot: 0, ..past_eof(4) }),
        ],
        Outcome::Complete,
    );
    report.findings[2].owners = vec![
        Owner {
            finding: 2,
            table: Table::Data as u32,
            snapshot: 0,
            entry_offset: 0x5_0020,
            guest_offset: 0x4_0000,
        },
        Owner {
            finding: 2,
            table: Table::L1 as u32,
            snapshot: ACTIVE,
            entry_offset: NONE,
            guest_offset: NONE,
        },
    ];
    report
}

pub(super) fn repaired() -> CheckReport {
    let before = leaky().tally;
    let plan = PlanFacts { steps: 1, writes: 2, write_bytes: 24, digest: [0xab; 32] };
    let mut report = report(&[], Outcome::Complete);
    report.repair = Some(RepairFacts {
        tier: Tier::Leaks,
        ending: Ending::Repaired,
        plan: Some(plan),
        attested: true,
        undo_file: Some(PathBuf::from("disk.qcow2.undo")),
        before,
        todo: None,
        left: Vec::new(),
        plan_file: None,
    });
    report
}
