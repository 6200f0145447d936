//! The resident job that names the extents of guest ranges, and inflates compressed clusters.
//!
//! Invariant: every request is answered over its whole range, in guest order and without a gap, whatever the image
//! holds; what cannot be told is a damaged extent with the reason. Of an L2 table no more is read than the entries
//! asked for, and no more than [`walk::BATCH_BYTES`] of them at once, so that memory does not depend on the request.
//!
//! An entry that leads to metadata is damaged where the metadata is certain ([`structures`]). What this does not do:
//! it does not look for two guest ranges that share one cluster; both of them read what is stored there.

mod emit;
mod inflate;
mod l1;
mod structures;
mod walk;

use alloc::vec::Vec;

use instar_abi::extent::{MapOp, MapRequest};
use instar_abi::finding::ACTIVE;
use instar_abi::problem::Problem;
use instar_abi::summary::{Outcome, Summary};

use crate::describe::{self, Roots};
use crate::host::Host;
use crate::ondisk::Fault;
use crate::ondisk::l2::L2Format;
use emit::{Emitter, Plain};
use inflate::Clusters;
use l1::L1Table;
use structures::Structures;

/// Answers requests until told to exit. An image that has no disk to be found, or whose header contradicts itself in
/// the cluster size, is not waited for: the finding that says so comes first, and the job is over.
pub fn serve<H: Host>(host: &mut H) -> Summary {
    let roots = match Roots::load(host) {
        Ok(roots) => roots,
        Err(fault) => return describe::refused(host, &fault),
    };
    let active = match active_table(host, &roots) {
        Ok(table) => table,
        Err(fault) => {
            host.finding(&fault.finding());
            return Summary { outcome: Outcome::Incomplete as u32, findings: 1, ..roots.summary() };
        }
    };
    let mut snapshot: Option<(u32, L1Table)> = None;
    let mut clusters = Clusters::new(&roots.header);
    let mut structures = None;
    let mut requests: Vec<MapRequest> = Vec::new();
    loop {
        host.next(&mut requests);
        let Some(request) = requests.first() else { continue };
        match MapOp::from_u32(request.op) {
            Some(MapOp::Exit) => return roots.summary(),
            Some(MapOp::Map) => {}
            Some(MapOp::Inflate) => {
                clusters.inflate(host, &requests);
                continue;
            }
            // Not asked for by the host of this version; the request after it is waited for.
            None => continue,
        }
        let table = if request.snapshot == ACTIVE {
            Ok(&active)
        } else {
            snapshot_table(host, &roots, request.snapshot, &mut snapshot)
        };
        let range = request.guest_offset..request.guest_offset.saturating_add(request.guest_len);
        match table {
            Ok(table) => {
                let structures = structures.get_or_insert_with(|| Structures::load(host, &roots, &active));
                walk::translate(host, &roots.header, table, structures, range);
            }
            Err(problem) => {
                let mut out = Emitter::default();
                out.put(host, range, Plain::Damaged(problem));
                out.finish(host);
            }
        }
    }
}

/// Names all extents of the active disk, from its first byte to its last one or behind it. Nothing is named of an
/// image whose header cannot be read.
pub(crate) fn active_disk<H: Host>(host: &mut H) {
    let Ok(roots) = Roots::load(host) else { return };
    let size = roots.header.virtual_size;
    let (mapped, problem) = match active_table(host, &roots) {
        Err(fault) => (0, fault.problem),
        Ok(active) => {
            let mut structures = Structures::load(host, &roots, &active);
            let reach = L2Format::of(&roots.header).table_reach_bytes();
            let mapped = active.entries().saturating_mul(reach).min(size);
            walk::translate(host, &roots.header, &active, &mut structures, 0..mapped);
            (mapped, active.behind_end())
        }
    };
    // What no entry stands for is one extent, however much of it the header claims.
    let mut out = Emitter::default();
    out.put(host, mapped..size, Plain::Damaged(problem));
    out.finish(host);
}

/// The active disk's table. Where it is lost, there may be snapshots to serve.
fn active_table<H: Host>(host: &mut H, roots: &Roots) -> Result<L1Table, Fault> {
    if let Some(fault) = roots.header.geometry_fault() {
        return Err(fault);
    }
    L1Table::active(host, &roots.header).or_else(|fault| {
        let mut snapshots = 0;
        // However the walk ends: one is enough.
        match describe::each_snapshot(host, &roots.header, |_, _, _, _| snapshots += 1) {
            Ok(()) | Err(_) if snapshots > 0 => Ok(L1Table::lost(fault.problem)),
            Ok(()) | Err(_) => Err(fault),
        }
    })
}

/// The L1 table of a snapshot; the one used last is kept.
fn snapshot_table<'a, H: Host>(
    host: &mut H,
    roots: &Roots,
    index: u32,
    kept: &'a mut Option<(u32, L1Table)>,
) -> Result<&'a L1Table, Problem> {
    if kept.as_ref().is_none_or(|(kept, _)| *kept != index) {
        let mut found = None;
        // A table that is damaged behind the entry does no harm to it.
        let walked = describe::each_snapshot(host, &roots.header, |_, at, entry, _| {
            if at == index {
                found = Some((entry.l1_offset, entry.l1_entries));
            }
        });
        let why_not = walked.map_or_else(|fault| fault.problem, |()| Problem::SnapshotTableTruncated);
        let (offset, entries) = found.ok_or(why_not)?;
        *kept = Some((index, L1Table::snapshot(host, &roots.header, offset, entries)?));
    }
    kept.as_ref().map(|(_, table)| table).ok_or(Problem::SnapshotTableTruncated)
}
