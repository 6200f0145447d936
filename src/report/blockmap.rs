//! The picture of an image in characters: one for each bucket, in rows with the offset of their first bucket.
//!
//! Every character means the same with and without colour; colour only helps the eye.

use std::io::{self, Write};

use super::escape::escape_path;
use super::human::headline;
use super::model::CheckReport;
use super::picture::{Bucket, Buckets, DiskUse, FileUse, Picture};
use super::units::bytes;

/// Least and most columns of a map.
pub const COLUMNS: std::ops::RangeInclusive<usize> = 40..=200;
/// Columns of a row's offset and the space behind it.
const LABEL_COLUMNS: usize = 12;
/// Most rows of one map.
const ROWS_MAX: usize = 16;
/// Characters of a row are a multiple of this, so that offsets stay round.
const ROW_UNIT: usize = 4;

/// How a map is drawn.
#[derive(Debug, Clone, Copy)]
pub struct MapStyle {
    /// Width in columns; anything outside of [`COLUMNS`] is taken for the nearest that is allowed.
    pub columns: usize,
    /// Draw with colour.
    pub colour: bool,
}

/// What a character stands for: itself, its colour as a parameter of SGR, and its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Glyph {
    character: char,
    colour: &'static str,
}

const fn glyph(character: char, colour: &'static str) -> Glyph {
    Glyph { character, colour }
}

const DAMAGE: Glyph = glyph('!', "1;97;41");
const UNUSED: Glyph = glyph('.', "90");
/// Guest data in less than half of a bucket.
const SPARSE: char = '-';

const fn of_file(used_as: FileUse) -> Glyph {
    match used_as {
        FileUse::Header => glyph('H', "1;35"),
        FileUse::L1 => glyph('1', "1;36"),
        FileUse::L2 => glyph('2', "36"),
        FileUse::RefcountTable => glyph('R', "1;33"),
        FileUse::RefcountBlock => glyph('r', "33"),
        FileUse::Snapshots => glyph('S', "1;34"),
        FileUse::Bitmaps => glyph('B', "34"),
        FileUse::Encryption => glyph('E', "35"),
        FileUse::Data => glyph('#', "32"),
        FileUse::SnapshotData => glyph('s', "94"),
        FileUse::Compressed => glyph('z', "92"),
        FileUse::Leaked => glyph('?', "1;30;43"),
    }
}

const fn of_disk(used_as: DiskUse) -> Glyph {
    match used_as {
        DiskUse::Data => glyph('#', "32"),
        DiskUse::Compressed => glyph('z', "92"),
        DiskUse::Zero => glyph('0', "36"),
        DiskUse::Encrypted => glyph('E', "35"),
        DiskUse::Damaged => DAMAGE,
    }
}

/// Prints the map of an image.
///
/// # Errors
/// Those of `out`.
pub fn write_map(
    report: &CheckReport,
    picture: &Picture,
    style: MapStyle,
    out: &mut dyn Write,
) -> io::Result<()> {
    writeln!(out, "{}: {}", escape_path(&report.image), headline(report))?;
    let unit_bytes = report.cluster_bytes().unwrap_or(1);
    let canvas = Canvas { style, unit_bytes, out };
    file_map(canvas, &picture.file)?;
    let canvas = Canvas { style, unit_bytes, out };
    disk_map(canvas, &picture.disk)
}

fn file_map(mut canvas: Canvas<'_>, file: &Buckets<12>) -> io::Result<()> {
    let total = file.total();
    canvas.rows("file", file, |bucket, len| {
        if bucket.damage > 0 {
            return DAMAGE;
        }
        if bucket.bytes[FileUse::Leaked as usize] > 0 {
            return of_file(FileUse::Leaked);
        }
        let Some(used_as) = bucket.most().and_then(|most| FileUse::ALL.get(most)) else { return UNUSED };
        let drawn = of_file(*used_as);
        let is_data = matches!(used_as, FileUse::Data | FileUse::SnapshotData | FileUse::Compressed);
        if is_data && bucket.used() < len / 2 { Glyph { character: SPARSE, ..drawn } } else { drawn }
    })?;
    for used_as in FileUse::ALL {
        let size = total.bytes[used_as as usize];
        if size > 0 {
            canvas.legend(of_file(used_as), used_as.name(), &bytes(size))?;
        }
    }
    if total.damage > 0 {
        canvas.legend(DAMAGE, "damage", "")?;
    }
    canvas.legend(glyph(SPARSE, "32"), "less than half in use", "")?;
    let unused = file.len().saturating_sub(total.used());
    canvas.legend(UNUSED, "not in use", &bytes(unused))
}

fn disk_map(mut canvas: Canvas<'_>, disk: &Buckets<5>) -> io::Result<()> {
    let total = disk.total();
    canvas.rows("disk", disk, |bucket, len| {
        if bucket.bytes[DiskUse::Damaged as usize] > 0 {
            return DAMAGE;
        }
        let Some(used_as) = bucket.most().and_then(|most| DiskUse::ALL.get(most)) else { return UNUSED };
        let drawn = of_disk(*used_as);
        if bucket.used() < len / 2 { Glyph { character: SPARSE, ..drawn } } else { drawn }
    })?;
    for used_as in DiskUse::ALL {
        let size = total.bytes[used_as as usize];
        if size > 0 {
            canvas.legend(of_disk(used_as), used_as.name(), &bytes(size))?;
        }
    }
    canvas.legend(glyph(SPARSE, "32"), "less than half allocated", "")?;
    let unmapped = disk.len().saturating_sub(total.used());
    canvas.legend(UNUSED, "not allocated", &bytes(unmapped))
}

/// Where a map is drawn.
struct Canvas<'a> {
    style: MapStyle,
    unit_bytes: u64,
    out: &'a mut dyn Write,
}

impl Canvas<'_> {
    fn rows<const N: usize>(
        &mut self,
        what: &str,
        buckets: &Buckets<N>,
        draw: impl Fn(&Bucket<N>, u64) -> Glyph,
    ) -> io::Result<()> {
        let columns = self.style.columns.clamp(*COLUMNS.start(), *COLUMNS.end());
        let in_row = (columns - LABEL_COLUMNS) / ROW_UNIT * ROW_UNIT;
        let coarse = buckets.coarse((in_row * ROWS_MAX) as u64, self.unit_bytes);
        writeln!(
            self.out,
            "\n{what}, {}: {} a character",
            bytes(buckets.len()),
            bytes(coarse.bucket_bytes())
        )?;
        for (row, part) in coarse.buckets().chunks(in_row).enumerate() {
            let first = row * in_row;
            write!(self.out, "{:>10}  ", bytes(coarse.range(first).start))?;
            let glyphs = part.iter().zip(first..).map(|(bucket, at)| {
                let range = coarse.range(at);
                draw(bucket, range.end - range.start)
            });
            self.draw(glyphs)?;
            writeln!(self.out)?;
        }
        Ok(())
    }

    /// Draws characters, with one change of colour for each run of one.
    fn draw(&mut self, glyphs: impl Iterator<Item = Glyph>) -> io::Result<()> {
        let mut now: Option<&str> = None;
        for glyph in glyphs {
            if self.style.colour && now != Some(glyph.colour) {
                write!(self.out, "\x1b[0;{}m", glyph.colour)?;
                now = Some(glyph.colour);
            }
            write!(self.out, "{}", glyph.character)?;
        }
        if now.is_some() { write!(self.out, "\x1b[0m") } else { Ok(()) }
    }

    fn legend(&mut self, glyph: Glyph, meaning: &str, size: &str) -> io::Result<()> {
        write!(self.out, "  ")?;
        self.draw(std::iter::once(glyph))?;
        match size {
            "" => writeln!(self.out, "  {meaning}"),
            _ => writeln!(self.out, "  {meaning}, {size}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use instar_abi::extent::{Extent, ExtentKind};
    use instar_abi::finding::Table;
    use instar_abi::problem::Problem;
    use instar_abi::region::Region;
    use instar_abi::summary::Outcome;
    use zerocopy::FromZeros as _;

    use super::super::samples;
    use super::*;
    use crate::sandbox::observer::Observer as _;

    fn picture(file_bytes: u64, disk_bytes: u64) -> Picture {
        let mut picture = Picture::new(file_bytes, disk_bytes);
        let region = |offset, len, table| Region { offset, len, table: table as u32, flags: 0 };
        picture.region(Table::Header, &region(0, 65_536, Table::Header));
        picture.region(Table::Data, &region(65_536, file_bytes / 2, Table::Data));
        picture.put(Problem::RefcountLeak, &samples::leak((file_bytes >> 16) - 1, 1));
        picture.put(Problem::L2EntryPastEof, &samples::past_eof(0));
        let len = disk_bytes / 4;
        let extent = |at: u64| Extent { guest_offset: at * len, guest_len: len, ..Extent::new_zeroed() };
        picture.extent(ExtentKind::Data, &extent(0));
        picture.extent(ExtentKind::Zero, &extent(1));
        picture.extent(ExtentKind::Damaged, &extent(2));
        picture.extent(ExtentKind::Hole, &extent(3));
        picture
    }

    fn drawn(picture: &Picture, columns: usize, colour: bool) -> String {
        let mut out = Vec::new();
        let report = samples::report(&[], Outcome::Complete);
        write_map(&report, picture, MapStyle { columns, colour }, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn map_is_legible_at_every_size_and_width() {
        for size in [1 << 20, 3 << 30, 1 << 40, 64 << 40] {
            for columns in [0, 40, 80, 133, 200, 1000] {
                let text = drawn(&picture(size, size), columns, false);
                let widest = text.lines().map(|line| line.chars().count()).max().unwrap();
                assert!(widest <= columns.clamp(40, 200), "{size} in {columns}: {widest}\n{text}");
                assert!(text.lines().count() < 64, "{text}");
                let is_row = |line: &&str| {
                    let digit = line.trim_start().starts_with(|first: char| first.is_ascii_digit());
                    digit && line.get(10..12) == Some("  ")
                };
                let rows: String = text.lines().filter(is_row).filter_map(|line| line.get(12..)).collect();
                for character in ['#', '!', '?', '0', '.'] {
                    assert!(rows.contains(character), "{size} in {columns}: no {character}\n{text}");
                }
            }
        }
    }

    #[test]
    fn colour_adds_nothing_but_escapes() {
        let picture = picture(1 << 30, 1 << 30);
        let (plain, coloured) = (drawn(&picture, 80, false), drawn(&picture, 80, true));
        let mut stripped = String::new();
        for part in coloured.split("\x1b[") {
            let rest = if stripped.is_empty() { part } else { part.split_once('m').unwrap().1 };
            stripped.push_str(rest);
        }
        assert!(!plain.contains('\x1b') && coloured.contains('\x1b'));
        assert_eq!(stripped, plain);
    }

    #[test]
    fn no_two_uses_look_alike() {
        let file: BTreeSet<char> = FileUse::ALL.iter().map(|used_as| of_file(*used_as).character).collect();
        let disk: BTreeSet<char> = DiskUse::ALL.iter().map(|used_as| of_disk(*used_as).character).collect();
        assert_eq!((file.len(), disk.len()), (FileUse::ALL.len(), DiskUse::ALL.len()));
        assert!([DAMAGE.character, UNUSED.character, SPARSE].iter().all(|other| !file.contains(other)));
    }
}
