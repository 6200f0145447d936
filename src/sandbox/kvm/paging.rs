//! The inmate's page tables, written by the host once and mapped nowhere in the inmate's own address space.
//!
//! Permissions in the small region are per 4 KiB page; the arena is mapped in 2 MiB pages. Everything that is
//! not listed is absent, and an access there ends the machine.

use instar_abi::layout::{
    ARENA_BASE, BOOT, CALL, CALL_BYTES, LARGE_PAGE, PAGE, PAGE_TABLES, SMALL_BASE, STACK_BASE, STACK_TOP,
    TASK_STATE,
};

use crate::sandbox::payload::Payload;

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
/// Set beforehand, so that the processor never writes to the tables.
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;

const ENTRIES: u64 = 512;
const GIB: u64 = 1 << 30;
/// What every page and table of the inmate has.
const BASIC: u64 = PRESENT | USER | ACCESSED;

/// Tables in their order in memory: level 4, level 3, level 2 of the small region's GiB, its level 1, then one
/// level 2 for each GiB of arena.
const LEVEL3: u64 = 1;
const SMALL_LEVEL2: u64 = 2;
const SMALL_LEVEL1: u64 = 3;
const ARENA_LEVEL2: u64 = 4;

/// Bytes that the tables take for an arena of this size.
pub(super) fn bytes(arena_bytes: u64) -> u64 {
    (ARENA_LEVEL2 + arena_bytes.div_ceil(GIB)) * PAGE
}

/// One entry: where it goes, as an offset from [`PAGE_TABLES`], and its value.
type Entry = (u64, u64);

/// Address of a table.
fn table(index: u64) -> u64 {
    PAGE_TABLES + index * PAGE
}

/// Offset of an entry.
fn slot(table: u64, index: u64) -> u64 {
    table * PAGE + index % ENTRIES * 8
}

/// All entries that are not zero.
pub(super) fn entries(payload: &Payload<'_>, arena_bytes: u64) -> Vec<Entry> {
    let mut entries = vec![
        (slot(0, 0), table(LEVEL3) | BASIC | WRITE),
        (slot(LEVEL3, SMALL_BASE / GIB), table(SMALL_LEVEL2) | BASIC | WRITE),
        (slot(SMALL_LEVEL2, SMALL_BASE / LARGE_PAGE), table(SMALL_LEVEL1) | BASIC | WRITE),
    ];
    for segment in &payload.segments {
        let write = if segment.write { WRITE | DIRTY } else { 0 };
        let execute = if segment.execute { 0 } else { NO_EXECUTE };
        small(&mut entries, segment.addr..segment.addr + segment.len, write | execute);
    }
    small(&mut entries, STACK_BASE..STACK_TOP, WRITE | DIRTY | NO_EXECUTE);
    small(&mut entries, BOOT..BOOT + PAGE, NO_EXECUTE);
    small(&mut entries, CALL..CALL + CALL_BYTES, WRITE | DIRTY | NO_EXECUTE);
    // For the processor's own look-ups only.
    small(&mut entries, TASK_STATE..TASK_STATE + PAGE, NO_EXECUTE);
    if let Some((_, entry)) = entries.last_mut() {
        *entry &= !USER;
    }
    for gib in 0..arena_bytes.div_ceil(GIB) {
        entries.push((slot(LEVEL3, ARENA_BASE / GIB + gib), table(ARENA_LEVEL2 + gib) | BASIC | WRITE));
    }
    for page in 0..arena_bytes / LARGE_PAGE {
        let addr = ARENA_BASE + page * LARGE_PAGE;
        let at = slot(ARENA_LEVEL2 + page / ENTRIES, page);
        entries.push((at, addr | BASIC | WRITE | DIRTY | LARGE | NO_EXECUTE));
    }
    entries
}

/// Maps a range of the small region, one to one.
fn small(entries: &mut Vec<Entry>, range: std::ops::Range<u64>, bits: u64) {
    for addr in range.step_by(instar_abi::to_usize(PAGE)) {
        entries.push((slot(SMALL_LEVEL1, (addr - SMALL_BASE) / PAGE), addr | BASIC | bits));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::payload::EMBEDDED;
    use std::collections::HashMap;

    fn find(entries: &HashMap<u64, u64>, addr: u64) -> Option<u64> {
        let mut at = 0;
        let mut level = 3;
        loop {
            let entry = *entries.get(&(at * PAGE + (addr >> (12 + 9 * level)) % ENTRIES * 8))?;
            if level == 0 || entry & LARGE != 0 {
                return Some(entry);
            }
            at = ((entry & 0xf_ffff_f000) - PAGE_TABLES) / PAGE;
            level -= 1;
        }
    }

    #[test]
    fn tables_map_what_the_layout_names_and_nothing_else() {
        let payload = Payload::parse(EMBEDDED).unwrap();
        let arena = 3 * GIB + LARGE_PAGE;
        let entries: HashMap<_, _> = entries(&payload, arena).into_iter().collect();
        assert!(entries.keys().all(|&at| at < bytes(arena)));
        assert!(entries.values().all(|e| e & (WRITE | NO_EXECUTE) != WRITE || e & LARGE == 0));
        for absent in
            [0, PAGE_TABLES, STACK_BASE - 1, STACK_TOP, BOOT - 1, BOOT + PAGE, CALL - 1, CALL + CALL_BYTES]
        {
            assert_eq!(find(&entries, absent), None, "{absent:#x}");
        }
        assert_eq!(find(&entries, ARENA_BASE - 1), None);
        assert_eq!(find(&entries, ARENA_BASE + arena), None);
        let last = find(&entries, ARENA_BASE + arena - 1).unwrap();
        assert_eq!(last & 0xf_ffff_f000, ARENA_BASE + arena - LARGE_PAGE);
        assert_eq!(find(&entries, BOOT).unwrap() & (WRITE | NO_EXECUTE), NO_EXECUTE);
        assert_eq!(find(&entries, SMALL_BASE).unwrap() & (WRITE | NO_EXECUTE), 0);
    }
}
