//! Images of random shape with one to three fields changed.

use std::cell::RefCell;
use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestRunner};

use crate::shapes::{choices, shape, shape_of};
use crate::subject::{Subject, qemu_check};
use crate::support::builder::{Shape, Step};
use crate::support::{soak, tools};

use instar_mount::heal::Ending;

/// What came of all cases: how often, by ending.
type Tally = BTreeMap<String, u32>;

/// Shapes with clusters of 64 KiB and 2 MiB.
fn large() -> impl Strategy<Value = Shape> {
    shape_of(prop_oneof![4 => Just(16_u32), 1 => Just(21_u32)]).prop_map(|mut shape| {
        if shape.cluster_bits == 21 {
            shape.tables = 1;
            shape.data_file = None;
            shape.gap_max = 1;
            shape.steps.truncate(4);
            for step in &mut shape.steps {
                if let Step::Write { count, .. } | Step::Zero { count, .. } = step {
                    *count = 1 + *count % 2;
                }
            }
        }
        shape
    })
}

fn judge(subject: &Subject, has_qemu: bool) -> Result<String, TestCaseError> {
    let mended = subject.mend().map_err(TestCaseError::fail)?;
    if mended.ending != Ending::Repaired || !has_qemu {
        return Ok(mended.ending.id().to_owned());
    }
    match qemu_check(&mended.bytes) {
        (0, _) => Ok("repaired, clean for QEMU".to_owned()),
        (code @ (2 | 3), words) => {
            Err(TestCaseError::fail(format!("repaired, but QEMU says {code}: {words}")))
        }
        _ => Ok("repaired, without a verdict of QEMU".to_owned()),
    }
}

fn try_all(cases: u32, shapes: impl Strategy<Value = Shape>) -> Tally {
    let config = ProptestConfig { source_file: Some(file!()), ..soak::config(cases) };
    let tally = RefCell::new(Tally::new());
    let has_qemu = tools::qemu().inspect_err(|reason| eprintln!("without QEMU's opinion: {reason}")).is_ok();
    let result = TestRunner::new(config).run(&(shapes, choices(1..4)), |(shape, choices)| {
        let verdict = judge(&Subject::damaged(&shape, &choices), has_qemu)?;
        *tally.borrow_mut().entry(verdict).or_default() += 1;
        Ok(())
    });
    for (what, times) in &*tally.borrow() {
        eprintln!("{times:8} {what}");
    }
    result.unwrap_or_else(|error| panic!("{error}"));
    tally.into_inner()
}

#[test]
fn changed_fields_are_mended_without_loss_and_undone() {
    let tally = try_all(1000, shape());
    assert!(tally.keys().any(|ending| ending.starts_with("repaired")), "nothing was repaired: {tally:?}");
}

#[test]
fn changed_fields_of_images_with_large_clusters_are_mended_without_loss_and_undone() {
    let tally = try_all(24, large());
    assert!(tally.keys().any(|ending| ending.starts_with("repaired")), "nothing was repaired: {tally:?}");
}
