//! `Unmap`: empties entries whose clusters are not in the file.
//!
//! What the guest wrote there cannot be read any more. What it reads instead must not pass for it: from version 3
//! on the entry becomes one of zeros, never a hole, through which a backing file's older bytes would show. Where
//! that cannot be said (an L1 entry, or version 2) an entry of an image with a backing file is emptied only if the
//! user has decided so.
//!
//! Nothing is lost, and nothing has to be decided, where the entry holds no data: a zero cluster that has lost
//! the place kept for it stays a zero cluster, an extended entry keeps its holes and zeros, and the length of a
//! compressed payload that is all there is taken back to what inflating takes.

use instar_abi::choice::Decision;
use instar_abi::problem::{Problem, Problem as P};

use super::doubt::Doubt;
use crate::check::roots::Image;
use crate::ondisk::l1::L1Entry;
use crate::ondisk::l2::{L2Entry, L2Format, Mapping, ZERO};
use crate::ondisk::units::Position;

/// What this mends.
pub const PROBLEMS: &[Problem] = &[
    P::L1EntryUnaligned,
    P::L1EntryPastEof,
    P::L2EntryUnaligned,
    P::L2EntryPastEof,
    P::CompressedPastEof,
    P::ExtendedBitmapWithoutOffset,
    P::L2ZeroPlaceLost,
];

/// An L2 entry that leads to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    /// In which way.
    pub problem: Problem,
    /// First byte and length of a compressed payload that begins in the file.
    pub payload: Option<(u64, u64)>,
}

/// Whether an L2 entry leads to nothing, and how.
#[must_use]
pub fn lost(image: &Image, entry: L2Entry) -> Option<Lost> {
    let (mapping, _) = entry.decode(&image.format);
    let of = |problem| Lost {
        problem: if entry.maps_no_data(&image.format) { P::L2ZeroPlaceLost } else { problem },
        payload: None,
    };
    match mapping {
        Mapping::Damaged(problem @ (P::L2EntryUnaligned | P::ExtendedBitmapWithoutOffset)) => {
            Some(of(problem))
        }
        Mapping::Damaged(_) => None,
        Mapping::Compressed { host, len } => {
            // The last sector of the file may be short.
            let is_inside =
                host < image.bounds.len && host.saturating_add(len) <= image.bounds.len.saturating_add(511);
            let payload = (host < image.bounds.len).then_some((host, len));
            (!is_inside).then_some(Lost { problem: P::CompressedPastEof, payload })
        }
        _ => {
            let place = image.bounds.position(entry.host_field());
            (place == Position::PastEof && !image.format.data_file).then(|| of(P::L2EntryPastEof))
        }
    }
}

/// The entry that takes a lost one's place: what held data reads as zeros, the rest as before.
#[must_use]
pub const fn emptied(entry: L2Entry, format: &L2Format) -> L2Entry {
    if format.extended {
        let zero = if entry.is_compressed() {
            u32::MAX as u64
        } else {
            (entry.bitmap >> 32) | (entry.bitmap & 0xffff_ffff)
        };
        return L2Entry { raw: 0, bitmap: zero << 32 };
    }
    L2Entry { raw: if format.zero_flag { ZERO } else { 0 }, bitmap: 0 }
}

/// Whether an L2 entry that leads to nothing may be emptied.
#[must_use]
pub fn may_empty_l2(image: &Image, lost: &Lost, doubt: &Doubt) -> bool {
    let is_decided = doubt.is_decided(Decision::UnmapLostData);
    let shows_backing = !image.format.zero_flag && image.header.backing_offset != 0;
    if lost.problem == P::L2ZeroPlaceLost {
        return doubt.may_mend(lost.problem);
    }
    doubt.may_mend(lost.problem) && (is_decided || !(shows_backing || image.format.data_file))
}

/// The problem of an L1 entry that leads to nothing.
#[must_use]
pub const fn lost_l1(image: &Image, entry: L1Entry) -> Option<Problem> {
    match image.bounds.position(entry.l2_offset()) {
        Position::Unaligned => Some(P::L1EntryUnaligned),
        Position::PastEof => Some(P::L1EntryPastEof),
        Position::Inside => None,
    }
}

/// Whether an L1 entry that leads to nothing may be emptied.
#[must_use]
pub fn may_empty_l1(image: &Image, problem: Problem, doubt: &Doubt) -> bool {
    let is_decided = doubt.is_decided(Decision::UnmapLostTables);
    doubt.may_mend(problem) && (is_decided || image.header.backing_offset == 0)
}

#[cfg(test)]
mod tests {
    use instar_abi::choice::Decisions;

    use super::*;
    use crate::check::Problems;
    use crate::ondisk::Header;
    use crate::ondisk::extensions::Extensions;
    use crate::ondisk::header::{FIXED_BYTES, MAGIC};
    use crate::ondisk::l1::COPIED;
    use crate::ondisk::l2::COMPRESSED;

    /// An image of a megabyte in clusters of 64 KiB.
    fn image(version: u8, incompatible: u8, backing: u8) -> Image {
        let mut bytes = [0_u8; FIXED_BYTES];
        bytes[..4].copy_from_slice(&MAGIC.to_be_bytes());
        bytes[7] = version;
        bytes[14] = backing;
        bytes[23] = 16;
        bytes[29] = 1 << 4;
        bytes[79] = incompatible;
        bytes[99] = 4;
        bytes[103] = 104;
        let header = Header::decode(&bytes).unwrap().0;
        let (bounds, format) = (header.bounds(1 << 20), L2Format::of(&header));
        Image { header, extensions: Extensions::default(), bounds, format, data_file_len: None }
    }

    fn doubt(found: &[Problem], decisions: &[Decision]) -> Doubt {
        let mut problems = Problems::default();
        found.iter().for_each(|problem| problems.insert(*problem));
        Doubt::new(problems, decisions.iter().fold(Decisions::default(), |all, one| all.with(*one)))
    }

    fn entry(raw: u64, bitmap: u64) -> L2Entry {
        L2Entry { raw, bitmap }
    }

    #[test]
    fn entries_within_the_file_are_not_lost() {
        let image = image(3, 0, 0);
        for raw in [0, 1, COPIED | 0x5_0000, 0x5_0001, COMPRESSED | 0x5_0010, COPIED | 0xf_0000] {
            assert_eq!(lost(&image, entry(raw, 0)), None, "{raw:#x}");
        }
    }

    #[test]
    fn lost_entries_are_told_from_those_that_map_no_data() {
        let image = image(3, 0, 0);
        let of = |raw| lost(&image, entry(raw, 0)).map(|lost| lost.problem);
        assert_eq!(of(COPIED | 0x5_0200), Some(P::L2EntryUnaligned));
        assert_eq!(of(0x5_0201), Some(P::L2ZeroPlaceLost));
        assert_eq!(of(COPIED | 0x10_0000), Some(P::L2EntryPastEof));
        assert_eq!(of(0x10_0001), Some(P::L2ZeroPlaceLost));
        let past = lost(&image, entry(COMPRESSED | (3 << 54) | 0xf_fe00, 0)).unwrap();
        assert_eq!((past.problem, past.payload), (P::CompressedPastEof, Some((0xf_fe00, 4 * 512))));
        assert_eq!(lost(&image, entry(COMPRESSED | 0x20_0000, 0)).unwrap().payload, None);
    }

    #[test]
    fn emptied_entry_reads_zeros_where_there_was_data_and_as_before_elsewhere() {
        let (v3, v2, extended) = (image(3, 0, 0), image(2, 0, 0), image(3, 16, 0));
        assert_eq!(emptied(entry(COPIED | 0x5_0200, 0), &v3.format), entry(1, 0));
        assert_eq!(emptied(entry(COPIED | 0x5_0200, 0), &v2.format), entry(0, 0));
        let mixed = entry(COPIED | 0x5_0200, (0xf0 << 32) | 0x0f);
        assert_eq!(emptied(mixed, &extended.format), entry(0, 0xff << 32));
        let compressed = entry(COMPRESSED | 0x20_0000, 0);
        assert_eq!(emptied(compressed, &extended.format), entry(0, u64::from(u32::MAX) << 32));
    }

    #[test]
    fn what_a_backing_file_would_show_through_is_emptied_by_decision_only() {
        let lost = Lost { problem: P::L2EntryPastEof, payload: None };
        let (open, decided) = (
            doubt(&[P::L2EntryPastEof, P::L1EntryPastEof], &[]),
            doubt(
                &[P::L2EntryPastEof, P::L1EntryPastEof],
                &[Decision::UnmapLostData, Decision::UnmapLostTables],
            ),
        );
        for (version, backing, may_l2, may_l1) in
            [(3, 0, true, true), (2, 0, true, true), (3, 1, true, false), (2, 1, false, false)]
        {
            let image = image(version, 0, backing);
            assert_eq!(may_empty_l2(&image, &lost, &open), may_l2, "{version}, {backing}");
            assert_eq!(may_empty_l1(&image, P::L1EntryPastEof, &open), may_l1, "{version}, {backing}");
            assert!(
                may_empty_l2(&image, &lost, &decided) && may_empty_l1(&image, P::L1EntryPastEof, &decided)
            );
        }
    }
}
