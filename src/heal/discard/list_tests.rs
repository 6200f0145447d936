use std::io;

use instar_abi::region::FREE;

use super::*;

const CLUSTER: u64 = 4096;

/// A file of nothing but data, but for a hole from 64 to 96 KiB.
#[derive(Debug)]
struct Holed(u64);

impl Backend for Holed {
    fn len(&self) -> u64 {
        self.0
    }
    fn read_at(&self, into: &mut [u8], _: u64) -> io::Result<()> {
        into.fill(1);
        Ok(())
    }
    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        panic!("a list wrote")
    }
    fn set_len(&self, _: u64) -> io::Result<()> {
        panic!("a list wrote")
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn data_ranges(&self, offset: u64, len: u64) -> io::Result<Vec<(u64, u64)>> {
        let (end, hole) = (offset + len, 64 << 10..96 << 10);
        let parts = [(offset, end.min(hole.start)), (offset.max(hole.end), end)];
        Ok(parts.into_iter().filter(|(from, to)| from < to).map(|(from, to)| (from, to - from)).collect())
    }
}

fn summary() -> Summary {
    Summary { cluster_bits: 12, image_end_offset: 512 << 10, ..Summary::default() }
}

fn list(told: &[(u64, u64)], unit_bytes: u64, is_file: bool) -> Result<Listed, ListError> {
    let image = Holed((1 << 20) + 100);
    let held_bytes = is_file.then_some(1 << 20);
    let mut lister = Lister::new(&image, &summary(), Storage { unit_bytes, held_bytes });
    for &(offset, len) in told {
        lister.region(Table::File, &Region { offset, len, table: Table::File as u32, flags: FREE });
    }
    lister.finish()
}

fn ranges(told: &[(u64, u64)], unit_bytes: u64, is_file: bool) -> Vec<(u64, u64)> {
    list(told, unit_bytes, is_file).unwrap().ranges().to_vec()
}

#[test]
fn ranges_that_cannot_be_are_not_believed() {
    for told in [
        &[(0, CLUSTER)][..],
        &[(CLUSTER + 512, CLUSTER)],
        &[(CLUSTER, 512)],
        &[(CLUSTER, 0)],
        &[(1 << 20, CLUSTER)],
        &[(CLUSTER, u64::MAX - 4095)],
        &[(2 * CLUSTER, CLUSTER), (CLUSTER, CLUSTER)],
        &[(2 * CLUSTER, CLUSTER), (2 * CLUSTER, CLUSTER)],
        &[(2 * CLUSTER, CLUSTER), (3 * CLUSTER, CLUSTER)],
    ] {
        let list = list(told, 4096, true);
        assert!(matches!(list, Err(ListError::Mistrust(Mistrust::Range { .. }))), "{told:?} {list:?}");
    }
}

#[test]
fn cluster_size_that_no_check_has_told_makes_no_list() {
    let image = Holed(1 << 20);
    for cluster_bits in [0, 8, 22, 64] {
        let storage = Storage { unit_bytes: 4096, held_bytes: Some(0) };
        let mut lister = Lister::new(&image, &Summary { cluster_bits, ..summary() }, storage);
        lister.region(Table::File, &Region { offset: 1 << 18, len: 1 << 18, table: 0, flags: FREE });
        assert!(matches!(lister.finish(), Err(ListError::Mistrust(_))), "{cluster_bits}");
    }
}

#[test]
fn holes_and_parts_of_units_are_left_out() {
    let told = [(CLUSTER, CLUSTER), (15 * CLUSTER, 10 * CLUSTER), (200 * CLUSTER, 8 * CLUSTER)];
    let first = (15 * CLUSTER, 10 * CLUSTER);
    assert_eq!(ranges(&told, 4096, true), [told[0], first, told[2]]);
    // The first is less than a unit, and of the second nothing but the hole is left.
    assert_eq!(ranges(&told, 32768, true), [(200 * CLUSTER, 8 * CLUSTER)]);
    assert_eq!(
        list(&told, 4096, true).unwrap().bytes(),
        told.iter().map(|told| told.1).sum::<u64>() - (32 << 10)
    );
    assert!(list(&[(16 * CLUSTER, 8 * CLUSTER)], 4096, true).unwrap().is_empty());
}

#[test]
fn nothing_behind_the_end_of_an_image_on_a_device_is_listed() {
    let told = [(100 * CLUSTER, 100 * CLUSTER), (210 * CLUSTER, CLUSTER)];
    assert_eq!(ranges(&told, 4096, true), told);
    assert_eq!(ranges(&told, 4096, false), [(100 * CLUSTER, 28 * CLUSTER)]);
}

#[test]
fn list_of_a_job_that_finds_something_is_none() {
    let image = Holed(1 << 20);
    let mut lister = Lister::new(&image, &summary(), Storage { unit_bytes: 4096, held_bytes: Some(0) });
    lister.region(Table::File, &Region { offset: CLUSTER, len: CLUSTER, table: 0, flags: FREE });
    let finding: Finding = zerocopy::FromZeros::new_zeroed();
    lister.finding(Problem::RefcountLeak, &finding);
    assert!(matches!(lister.finish(), Err(ListError::Mistrust(Mistrust::Found(Problem::RefcountLeak)))));
}
