//! What an inmate says of its image: findings, owners, texts, progress, the summary, its failure. Checked for
//! form; whether it is true cannot be known here.

use instar_abi::call::{
    FailKind, Phase, ProgressRecord, SnapshotRecord, TEXT_BYTES_MAX, TextHeader, TextKind,
};
use instar_abi::choice::Decision;
use instar_abi::finding::{Finding, NONE, Owner, Table};
use instar_abi::problem::Problem;
use instar_abi::summary::{Stranger, Summary};
use instar_abi::to_usize;

use super::super::error::SandboxError;
use super::super::limits::Limits;
use super::super::observer::Observer;
use super::{charge, violation};

/// What was reported so far.
#[derive(Debug, Default)]
pub(super) struct Reports {
    findings: u64,
    owners: u64,
    text_bytes: u64,
}

/// Refuses ranges that overflow; [`NONE`] stands for no range.
fn check_range(what: &str, offset: u64, len: u64) -> Result<(), SandboxError> {
    if offset != NONE && offset.checked_add(len).is_none() {
        return Err(violation(format!("{what}: range {offset:#x} + {len:#x} overflows")));
    }
    Ok(())
}

fn check_table(what: &str, table: u32) -> Result<Table, SandboxError> {
    Table::from_u32(table).ok_or_else(|| violation(format!("{what}: unknown table {table}")))
}

fn check_finding(finding: &Finding) -> Result<Problem, SandboxError> {
    let problem = Problem::from_u32(finding.problem)
        .ok_or_else(|| violation(format!("finding: unknown problem {}", finding.problem)))?;
    check_table("finding", finding.table)?;
    let Finding { witnesses, count, .. } = *finding;
    let has_witnesses = witnesses > 0 && finding.expected != NONE;
    if count == 0 || witnesses > 0 && (Decision::restoring(problem).is_none() || !has_witnesses) {
        return Err(violation(format!(
            "finding of {}: count {count}, witnesses {witnesses}",
            problem.row().id
        )));
    }
    check_range("finding, host", finding.host_offset, finding.host_len)?;
    check_range("finding, guest", finding.guest_offset, finding.guest_len)?;
    check_range("finding, index", finding.index, finding.count)?;
    Ok(problem)
}

impl Reports {
    /// Findings reported, and those of them that were not kept.
    pub(super) fn counts(&self, kept: u64) -> (u64, u64) {
        (self.findings, self.findings.saturating_sub(kept))
    }

    pub(super) fn findings(
        &mut self,
        findings: &[Finding],
        limits: &Limits,
        observer: &mut dyn Observer,
    ) -> Result<(), SandboxError> {
        for finding in findings {
            let problem = check_finding(finding)?;
            charge(&mut self.findings, 1, limits.findings, "findings")?;
            if self.findings <= limits.findings_kept {
                observer.finding(problem, finding);
            } else {
                observer.finding_dropped(problem, finding);
            }
        }
        Ok(())
    }

    pub(super) fn owners(
        &mut self,
        owners: &[Owner],
        limits: &Limits,
        observer: &mut dyn Observer,
    ) -> Result<(), SandboxError> {
        for owner in owners {
            check_table("owner", owner.table)?;
            if owner.finding >= self.findings {
                return Err(violation(format!(
                    "owner of finding {}, reported were {}",
                    owner.finding, self.findings
                )));
            }
            charge(&mut self.owners, 1, limits.owners, "owners")?;
            if owner.finding < limits.findings_kept {
                observer.owner(owner);
            }
        }
        Ok(())
    }

    pub(super) fn text(
        &mut self,
        header: &TextHeader,
        bytes: &[u8],
        limits: &Limits,
        observer: &mut dyn Observer,
    ) -> Result<(), SandboxError> {
        let kind = TextKind::from_u32(header.kind)
            .ok_or_else(|| violation(format!("text: unknown kind {}", header.kind)))?;
        charge(&mut self.text_bytes, bytes.len() as u64, limits.text_bytes, "bytes of text")?;
        observer.text(kind, header.index, bytes);
        Ok(())
    }
}

/// Refuses a text header that is not well formed.
pub(super) fn check_text(header: &TextHeader) -> Result<(), SandboxError> {
    if header.reserved != 0 || to_usize(header.len.into()) > TEXT_BYTES_MAX {
        let TextHeader { len, reserved, .. } = header;
        return Err(violation(format!(
            "text of {len} bytes, at most {TEXT_BYTES_MAX}; reserved word {reserved:#x}"
        )));
    }
    Ok(())
}

/// Passes a snapshot on. Its size is the image's word, and any number will do.
pub(super) fn snapshot(record: &SnapshotRecord, observer: &mut dyn Observer) -> Result<(), SandboxError> {
    if record.reserved != 0 {
        return Err(violation(format!("snapshot: reserved word {:#x}, must be zero", record.reserved)));
    }
    observer.snapshot(record);
    Ok(())
}

/// Passes a progress record on.
pub(super) fn progress(record: &ProgressRecord, observer: &mut dyn Observer) -> Result<(), SandboxError> {
    let phase = Phase::from_u32(record.phase)
        .ok_or_else(|| violation(format!("progress: unknown phase {}", record.phase)))?;
    observer.progress(phase, record);
    Ok(())
}

/// Refuses a summary with numbers that nobody could use.
pub(super) fn check_summary(summary: &Summary) -> Result<(), SandboxError> {
    let Summary { unsupported, cluster_bits, refcount_bits, .. } = *summary;
    if unsupported != 0 && Problem::from_u32(unsupported).is_none() {
        return Err(violation(format!("done: unsupported for the unknown problem {unsupported}")));
    }
    let Summary { stranger, reserved, .. } = *summary;
    if reserved != 0 || stranger != 0 && Stranger::from_u32(stranger).is_none() {
        return Err(violation(format!("done: stranger {stranger}, reserved word {reserved:#x}")));
    }
    if cluster_bits > 63 || refcount_bits > 64 {
        return Err(violation(format!("done: cluster_bits {cluster_bits}, refcount_bits {refcount_bits}")));
    }
    Ok(())
}

/// The error that an inmate's own failure is.
pub(super) fn failure(header: &TextHeader, bytes: &[u8]) -> Result<SandboxError, SandboxError> {
    let kind = FailKind::from_u32(header.kind)
        .ok_or_else(|| violation(format!("fail: unknown kind {}", header.kind)))?;
    let message = String::from_utf8_lossy(bytes).chars().filter(|c| !c.is_control()).collect();
    Ok(SandboxError::Failed { message, out_of_memory: kind == FailKind::OutOfMemory })
}
