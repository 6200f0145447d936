//! Changes fields of an image rather than bytes of a file, or the fuzzer stays at the magic bytes.
//!
//! Half of all mutations are libFuzzer's own. The other half puts into a word of the file what a word like it could
//! hold: a flipped bit, a neighbour's value, the place of some cluster of the file or behind it, nothing, the largest
//! number. Words are drawn from the clusters that the header and the tables name more often than from elsewhere.

use libfuzzer_sys::fuzzer_mutate;

/// Bytes of the smallest cluster, which the seeds have.
const CLUSTER: usize = 512;

/// A generator of numbers that is good enough to choose with (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, end: usize) -> usize {
        (self.roll() % end.max(1) as u64) as usize
    }
}

fn word(image: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(image.get(at..at + 8)?.try_into().expect("eight bytes")))
}

/// Where a word to change lies: in the header, in a table that it names, in one that a table names, or anywhere.
fn place(image: &[u8], dice: &mut Dice) -> usize {
    // The fields of the header that are offsets of tables: refcount table, L1 table, snapshots.
    let table = [48, 40, 64][dice.below(3)];
    let within =
        |start: u64, dice: &mut Dice| (start & 0x00ff_ffff_ffff_fe00) as usize + dice.below(CLUSTER / 8) * 8;
    let root = word(image, table).map_or(0, |start| within(start, dice));
    match dice.below(8) {
        0 => dice.below(16) * 8,
        1 | 2 => root,
        3..=5 => word(image, root).map_or(root, |entry| within(entry, dice)),
        _ => dice.below(image.len() / 8) * 8,
    }
}

/// For `fuzz_mutator!`.
pub fn mutate(image: &mut [u8], size: usize, size_max: usize, seed: u32) -> usize {
    let mut dice = Dice(u64::from(seed));
    if size < CLUSTER || dice.below(2) == 0 {
        return fuzzer_mutate(image, size, size_max);
    }
    for _ in 0..=dice.below(3) {
        let at = place(&image[..size], &mut dice);
        let Some(old) = word(&image[..size], at) else { continue };
        let clusters = size / CLUSTER;
        let offset = |which: usize| (which * CLUSTER) as u64;
        let new = match dice.below(9) {
            0 | 1 => old ^ 1 << dice.below(64),
            2 => word(&image[..size], at + 8).unwrap_or(0),
            3 => old & 0xff00_0000_0000_01ff | offset(dice.below(clusters + 2)),
            4 => old.wrapping_add(CLUSTER as u64),
            5 => 0,
            6 => u64::MAX >> dice.below(64),
            7 => 0x8000_0000_0000_0000 | offset(dice.below(clusters)),
            _ => old.wrapping_add(1 << (8 * dice.below(8))),
        };
        image[at..at + 8].copy_from_slice(&new.to_be_bytes());
    }
    size
}
