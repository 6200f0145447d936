//! Whatever is changed in an image of whatever shape: the repair of the tier `all` ends without a quarantine, writes
//! within its plan, keeps every guest byte that could be read, finds nothing to do the second time, and can be undone.
//!
//! The input is read as shape and changes, one number after the other, so that a changed byte is a changed choice.
//! Planner, staging, proof and landing are the product's own, on a disk in memory. What the image holds is known from
//! how it was built.
#![no_main]

#[path = "../../tests/native/mod.rs"]
mod native;
#[path = "shared/script.rs"]
mod script;
#[path = "../../tests/check_property/shapes.rs"]
#[allow(dead_code, reason = "each program uses its own part of this")]
mod shapes;
#[path = "../../tests/simdisk/mod.rs"]
mod simdisk;
#[path = "../../tests/heal_mixed/subject.rs"]
#[allow(dead_code, reason = "each program uses its own part of this")]
mod subject;
#[path = "shared/support.rs"]
mod support;

use libfuzzer_sys::fuzz_target;
use script::Script;
use shapes::Choice;
use subject::Subject;
use support::builder::{Shape, Step};
use support::fields::Change;

const CHOICES_MAX: u64 = 6;
const STEPS_MAX: u64 = 12;

fn step(script: &mut Script<'_>) -> Step {
    let kind = script.byte();
    let at = script.below(4096);
    let count = if script.one_in(8) { 1 + script.below(60) } else { 1 + script.below(4) };
    let number = |script: &mut Script<'_>| script.word() as u32;
    match kind % 20 {
        0..=5 => Step::Write { at, count },
        6 | 7 => Step::Zero { at, count, keep: kind >= 128 },
        8 | 9 => Step::Subclusters { at, allocated: number(script), zero: number(script) },
        10..=12 => Step::Compress { at, bytes: u64::from(number(script)) },
        13 | 14 => Step::Discard { at, count },
        15 => Step::VmState { clusters: at % 20 },
        16 => Step::Apply { which: (at % 8) as usize },
        17 => Step::Delete { which: (at % 8) as usize },
        18 => Step::Resize { tables: 1 + at % 3, short_sectors: count * 3 },
        _ => Step::Snapshot,
    }
}

/// Small images only: more of the same costs time and finds nothing new.
fn shape(script: &mut Script<'_>) -> Shape {
    let version = if script.one_in(5) { 2 } else { 3 };
    let v3 = version == 3;
    let cluster_bits = match script.byte() {
        0..=219 => 9,
        220..=239 => 10,
        240..=249 => 11,
        250..=253 => 12,
        _ => 14,
    };
    // Narrow counts of large clusters are very many.
    let order_min = if cluster_bits > 11 { 3 } else { 0 };
    let data_file = script.one_in(9).then(|| script.one_in(2)).filter(|_| v3);
    let bitmaps = if v3 && script.one_in(5) { 1 + script.below(3) } else { 0 };
    let bitmap = |script: &mut Script<'_>| {
        let granularity = 9 + u32::from(script.byte() % 9);
        (granularity, (0..=script.below(3)).map(|_| script.byte() % 3).collect())
    };
    Shape {
        version,
        cluster_bits,
        refcount_order: if v3 { order_min.max(u32::from(script.byte() % 7)) } else { 4 },
        extended_l2: v3 && script.one_in(2),
        zstd: v3 && script.one_in(6),
        lazy: script.one_in(6),
        dirty: v3 && script.one_in(6),
        tables: if cluster_bits > 12 { 1 } else { 1 + script.below(3) },
        short_sectors: if script.one_in(2) { script.below(200) } else { 0 },
        spare_l1: if script.one_in(4) { script.below(40) } else { 0 },
        header_more: u32::from(script.byte() % 4) * 8,
        backing: script.one_in(6) && data_file != Some(true),
        data_file,
        luks_bytes: if v3 && script.one_in(9) { 1 + script.below(8000) } else { 0 },
        strange_extensions: script.one_in(6),
        bitmaps: (0..bitmaps).map(|_| bitmap(script)).collect(),
        steps: (0..script.below(STEPS_MAX)).map(|_| step(script)).collect(),
        seed: script.word(),
        gaps: if script.one_in(2) { script.byte() } else { 0 },
        gap_max: 4,
    }
}

fn change(script: &mut Script<'_>) -> Change {
    let kind = script.byte();
    match kind % 17 {
        0 | 1 => Change::Random(script.word()),
        2 | 3 => Change::Random(script.below(4096)),
        4..=8 => Change::Flip(script.below(64)),
        9 | 10 => Change::Swap,
        11 => Change::Zero,
        12 => Change::Ones,
        13 | 14 => Change::OffByOne { plus: kind >= 128 },
        _ => Change::Count { plus: kind >= 128 },
    }
}

fn choice(script: &mut Script<'_>) -> Choice {
    let change = change(script);
    Choice { kind: script.below(256), which: script.below(1 << 16), any: script.one_in(5), change }
}

fuzz_target!(|data: &[u8]| {
    let mut script = Script(data);
    let choices: Vec<Choice> = (0..=script.below(CHOICES_MAX)).map(|_| choice(&mut script)).collect();
    let shape = shape(&mut script);
    if let Err(error) = Subject::damaged(&shape, &choices).mend() {
        panic!("{error}\n{shape:?}\n{choices:?}");
    }
});
