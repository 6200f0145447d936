//! Damaged ranges as a mapfile of ddrescue: `+` is what can be read, `-` what cannot, `?` what was not looked at.

use std::fmt::Write as _;
use std::ops::Range;

/// A mapfile that covers `size` bytes, of which those from `seen` on are known as far as they are damaged. Damaged
/// ranges are in order and apart from each other.
#[must_use]
pub fn mapfile(size: u64, seen: u64, damaged: &[Range<u64>]) -> String {
    let mut text = String::from(
        "# Mapfile. Created by instar-mount\n\
         # current_pos  current_status  current_pass\n\
         0x00000000  +  1\n\
         #      pos        size  status\n",
    );
    let mut at = 0;
    for range in damaged {
        good(&mut text, at..range.start, seen);
        block(&mut text, range.clone(), '-');
        at = range.end;
    }
    good(&mut text, at..size, seen);
    text
}

/// A range without damage, as far as it was looked at.
fn good(text: &mut String, range: Range<u64>, seen: u64) {
    let known = seen.clamp(range.start, range.end.max(range.start));
    block(text, range.start..known, '+');
    block(text, known..range.end, '?');
}

fn block(text: &mut String, range: Range<u64>, status: char) {
    if range.start < range.end {
        let len = range.end - range.start;
        // A String takes every line.
        writeln!(text, "0x{:08X}  0x{len:08X}  {status}", range.start).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapfile_covers_the_disk_without_a_gap() {
        let text = mapfile(0x9000, 0x7000, &[0..0x1000, 0x2000..0x3000, 0x8000..0x8800]);
        let blocks: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).skip(1).collect();
        assert_eq!(
            blocks,
            [
                "0x00000000  0x00001000  -",
                "0x00001000  0x00001000  +",
                "0x00002000  0x00001000  -",
                "0x00003000  0x00004000  +",
                "0x00007000  0x00001000  ?",
                "0x00008000  0x00000800  -",
                "0x00008800  0x00000800  ?"
            ]
        );
    }
}
