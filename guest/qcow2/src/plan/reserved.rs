//! `ClearReserved`: clears bits of an entry that the format reserves; the rest of the entry stays.
//!
//! Invariant: the mapping that the entry decodes to is the same before and after.

use instar_abi::problem::{Problem, Problem as P};

use super::doubt::Doubt;
use crate::ondisk::l1::L1Entry;
use crate::ondisk::l2::{L2Entry, L2Format, RESERVED, ZERO};

/// What this mends.
pub const PROBLEMS: &[Problem] =
    &[P::L1EntryReserved, P::L2EntryReserved, P::ExtendedReservedBit, P::ExtendedBitmapOnCompressed];

/// An L1 entry without the bits that may be cleared.
#[must_use]
pub fn l1(entry: L1Entry, doubt: &Doubt) -> L1Entry {
    if doubt.may_mend(P::L1EntryReserved) { L1Entry(entry.0 & !L1Entry::RESERVED) } else { entry }
}

/// An L2 entry without the bits that may be cleared.
#[must_use]
pub fn l2(entry: L2Entry, format: &L2Format, doubt: &Doubt) -> L2Entry {
    let (_, faults) = entry.decode(format);
    faults.iter().filter(|problem| doubt.may_mend(*problem)).fold(entry, |entry, problem| match problem {
        P::L2EntryReserved => L2Entry { raw: entry.raw & !RESERVED, ..entry },
        P::ExtendedReservedBit => L2Entry { raw: entry.raw & !ZERO, ..entry },
        P::ExtendedBitmapOnCompressed => L2Entry { bitmap: 0, ..entry },
        _ => entry,
    })
}

#[cfg(test)]
mod tests {
    use instar_abi::choice::Decisions;

    use super::*;
    use crate::check::Problems;
    use crate::ondisk::l1::COPIED;
    use crate::ondisk::l2::COMPRESSED;
    use crate::ondisk::units::ClusterSize;

    fn doubt() -> Doubt {
        Doubt::new(Problems::default(), Decisions::default())
    }

    fn format(extended: bool) -> L2Format {
        L2Format { cluster: ClusterSize::new(16).unwrap(), extended, zero_flag: true, data_file: false }
    }

    #[test]
    fn reserved_bits_go_and_the_mapping_stays() {
        let entries = [
            (false, COPIED | 0x5_0000 | 0x1e, 0, COPIED | 0x5_0000, 0),
            (false, COPIED | 0x5_0001 | (1 << 57), 0, COPIED | 0x5_0001, 0),
            (true, COPIED | 0x5_0001, 7, COPIED | 0x5_0000, 7),
            (true, COMPRESSED | 0x5_0003, 7, COMPRESSED | 0x5_0003, 0),
        ];
        for (extended, raw, bitmap, raw_after, bitmap_after) in entries {
            let (format, entry) = (format(extended), L2Entry { raw, bitmap });
            let after = l2(entry, &format, &doubt());
            assert_eq!(after, L2Entry { raw: raw_after, bitmap: bitmap_after });
            assert_eq!(after.decode(&format).0, entry.decode(&format).0);
            assert!(after.decode(&format).1.is_empty());
        }
        assert_eq!(l1(L1Entry(COPIED | 0x5_0000 | 3), &doubt()), L1Entry(COPIED | 0x5_0000));
    }

    #[test]
    fn reserved_bits_stay_while_evidence_hangs_on_them() {
        let mut found = Problems::default();
        [P::OrphanData, P::L2EntryReserved].iter().for_each(|problem| found.insert(*problem));
        let doubt = Doubt::new(found, Decisions::default());
        let entry = L2Entry { raw: 0x5_0002, bitmap: 0 };
        assert_eq!(l2(entry, &format(false), &doubt), entry);
    }
}
