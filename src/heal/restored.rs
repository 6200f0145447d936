//! Header fields that a plan restores: what the host holds them against.
//!
//! A cage has told of the field, of the value that the rest of the file asks for, and where the field is; another cage
//! has proposed the write. Invariant: no byte of a restored field is written but those of a finding with witnesses whose
//! problem the user has decided to restore, and each gets the value that the finding told. What the field means is the
//! cage's business.

use std::io;

use instar_abi::choice::{Decision, Decisions};
use instar_abi::finding::Finding;
use instar_abi::problem::Problem;
use instar_abi::to_usize;

use super::inspector::Inspection;
use super::plan::{Plan, PlanError};
use crate::image::Backend;

/// Holds the restored fields of a plan against what was found and decided.
///
/// # Errors
/// `FieldNotTold`; of the storage: while reading `image`.
pub(super) fn refuse_untold(
    plan: &Plan,
    found: &Inspection,
    decisions: Decisions,
    image: &dyn Backend,
) -> io::Result<Result<(), PlanError>> {
    let is_decided = |field: &&Finding| {
        let restoring = Problem::from_u32(field.problem).and_then(Decision::restoring);
        restoring.is_some_and(|decision| decisions.has(decision))
    };
    let fields: Vec<&Finding> = found.fields.iter().filter(is_decided).collect();
    let told = |at: u64| fields.iter().find_map(|field| byte_of(field, at));
    for write in plan.restored() {
        let mut before = vec![0; write.bytes.len()];
        image.read_at(&mut before, write.offset)?;
        for (at, (old, new)) in (write.offset..).zip(before.iter().zip(write.bytes.iter())) {
            if old != new && told(at) != Some(*new) {
                return Ok(Err(PlanError::FieldNotTold { offset: at }));
            }
        }
    }
    Ok(Ok(()))
}

/// The byte at `at` as a finding says that it should be, if it is one of its field.
fn byte_of(field: &Finding, at: u64) -> Option<u8> {
    let behind = field.host_offset.checked_add(field.host_len)?.checked_sub(at)?;
    let is_within = at >= field.host_offset && (1..=8).contains(&behind) && field.host_len <= 8;
    let place = 8_usize.checked_sub(to_usize(behind))?;
    field.expected.to_be_bytes().get(place).copied().filter(|_| is_within)
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros as _;

    #[test]
    fn byte_of_a_field_is_that_of_the_value_in_its_place() {
        let field = Finding { host_offset: 36, host_len: 4, expected: 0x1122_3344, ..Finding::new_zeroed() };
        let bytes: Vec<Option<u8>> = (35..41).map(|at| byte_of(&field, at)).collect();
        assert_eq!(bytes, [None, Some(0x11), Some(0x22), Some(0x33), Some(0x44), None]);
        let wide = Finding { host_offset: u64::MAX - 1, host_len: u64::MAX, ..field };
        assert_eq!(byte_of(&wide, u64::MAX), None);
    }
}
