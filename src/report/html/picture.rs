//! The pictures of file and disk as vector graphics: one cell for each bucket, filled by what the bucket is used as.

use maud::{Markup, html};

use super::super::picture::{Bucket, Buckets, DiskUse, FileUse, Picture};
use super::super::units::bytes;

/// Cells of one row.
const COLUMNS: usize = 64;
/// Most rows.
const ROWS_MAX: usize = 16;
/// Width and height of a cell, and the gap between rows, in units of the drawing.
const CELL: (usize, usize) = (14, 20);
const GAP: usize = 4;
/// Width of the row's offset.
const LABEL: usize = 84;
/// Least height of a use that is there at all, so that a table among much data is still seen.
const SEEN_MIN: u64 = 3;

/// What a stretch can be used as.
struct Legend<'a, const N: usize> {
    /// Class and name of each use, in order.
    uses: &'a [(&'static str, &'static str); N],
    /// The use whose cells are marked wherever there is any of it, besides those with findings.
    marked: Option<usize>,
    unused: &'static str,
}

/// Both pictures.
pub fn pictures(picture: &Picture, cluster_bytes: Option<u64>) -> Markup {
    let unit = cluster_bytes.unwrap_or(1);
    let file = FileUse::ALL.map(|used_as| (used_as.id(), used_as.name()));
    let file = Legend { uses: &file, marked: None, unused: "not in use" };
    let disk = DiskUse::ALL.map(|used_as| (used_as.id(), used_as.name()));
    let disk = Legend { uses: &disk, marked: Some(DiskUse::Damaged as usize), unused: "not allocated" };
    html! {
        (section("The file", "owner of each region, damage in place", &picture.file, unit, &file))
        (section("The disk", "what the guest reads", &picture.disk, unit, &disk))
    }
}

fn section<const N: usize>(
    title: &str,
    what: &str,
    buckets: &Buckets<N>,
    unit: u64,
    legend: &Legend<'_, N>,
) -> Markup {
    let coarse = buckets.coarse((COLUMNS * ROWS_MAX) as u64, unit);
    let total = coarse.total();
    let rows = coarse.buckets().len().div_ceil(COLUMNS).max(1);
    let (width, height) = (LABEL + COLUMNS * CELL.0 + 4, rows * (CELL.1 + GAP) + 4);
    let left = coarse.len().saturating_sub(total.used());
    html! {
        div.picture {
            h2 { (title) }
            p.dim { (bytes(coarse.len())) ": " (what) "; one cell is " (bytes(coarse.bucket_bytes())) }
            svg viewBox=(format!("0 0 {width} {height}")) role="img" aria-label=(format!("{title}: {what}")) {
                @for (row, part) in coarse.buckets().chunks(COLUMNS).enumerate() {
                    @let top = row * (CELL.1 + GAP) + 2;
                    @let start = coarse.range(row * COLUMNS).start;
                    text x=(LABEL - 8) y=(top + 14) text-anchor="end" { (bytes(start)) }
                    @for (column, bucket) in part.iter().enumerate() {
                        (cell(&coarse, row * COLUMNS + column, bucket, (LABEL + column * CELL.0, top), legend))
                    }
                    @for (column, bucket) in part.iter().enumerate() {
                        @if is_marked(bucket, legend) { (mark(LABEL + column * CELL.0, top)) }
                    }
                }
            }
            ul.legend {
                @for ((class, name), size) in legend.uses.iter().zip(total.bytes) {
                    @if size > 0 { li { (swatch(class)) (name) ", " (bytes(size)) } }
                }
                li { (swatch("empty")) (legend.unused) ", " (bytes(left)) }
                @if total.damage > 0 { li { (swatch("mark")) "a finding of corruption" } }
            }
        }
    }
}

fn swatch(class: &str) -> Markup {
    html! {
        svg viewBox="0 0 10 10" aria-hidden="true" {
            @if class == "mark" { rect.mark x="1.5" y="1.5" width="7" height="7" {} }
            @else { rect.(class) style=(fill(class)) width="10" height="10" {} }
        }
    }
}

fn fill(class: &str) -> String {
    format!("fill:var(--{class})")
}

fn is_marked<const N: usize>(bucket: &Bucket<N>, legend: &Legend<'_, N>) -> bool {
    let marked = legend.marked.and_then(|used_as| bucket.bytes.get(used_as));
    bucket.damage > 0 || marked.is_some_and(|bytes| *bytes > 0)
}

/// A frame round a cell.
fn mark(x: usize, y: usize) -> Markup {
    let (width, height) = (CELL.0 - 1, CELL.1);
    html! {
        rect.halo x=(x) y=(y) width=(width) height=(height) {}
        rect.mark x=(x) y=(y) width=(width) height=(height) {}
    }
}

/// A cell: its uses from the bottom up, each as high as its share, and what they are when pointed at.
fn cell<const N: usize>(
    buckets: &Buckets<N>,
    position: usize,
    bucket: &Bucket<N>,
    (x, y): (usize, usize),
    legend: &Legend<'_, N>,
) -> Markup {
    let range = buckets.range(position);
    let shares = shares(bucket, range.end - range.start);
    let mut floor = y as u64 + CELL.1 as u64;
    let parts =
        shares.iter().zip(legend.uses).filter(|(height, _)| **height > 0).map(|(height, (class, _))| {
            floor -= height;
            (floor, *height, *class)
        });
    let parts: Vec<_> = parts.collect();
    html! {
        g {
            title { (range.start) " to " (range.end) (about(bucket, legend)) }
            rect.empty x=(x) y=(y) width=(CELL.0 - 1) height=(CELL.1) {}
            @for (top, height, class) in parts {
                rect style=(fill(class)) x=(x) y=(top) width=(CELL.0 - 1) height=(height) {}
            }
        }
    }
}

fn about<const N: usize>(bucket: &Bucket<N>, legend: &Legend<'_, N>) -> String {
    let mut text = String::new();
    for (size, (_, name)) in bucket.bytes.iter().zip(legend.uses).filter(|(size, _)| **size > 0) {
        text.push_str(&format!("; {name} {}", bytes(*size)));
    }
    if bucket.damage > 0 {
        text.push_str(&format!("; findings of corruption: {}", bucket.damage));
    }
    text
}

/// How high each use stands in a cell of `len` bytes: all of them together at most as high as the cell.
fn shares<const N: usize>(bucket: &Bucket<N>, len: u64) -> [u64; N] {
    let cell = CELL.1 as u64;
    let whole = len.max(bucket.used()).max(1);
    let share =
        |size: u64| u64::try_from(u128::from(size) * u128::from(cell) / u128::from(whole)).unwrap_or(cell);
    let mut heights = bucket.bytes.map(|size| if size == 0 { 0 } else { share(size).max(SEEN_MIN) });
    // What the small ones are drawn too high is taken from the highest.
    while heights.iter().sum::<u64>() > cell {
        let Some(highest) = heights.iter_mut().max() else { break };
        *highest -= 1;
    }
    heights
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_fit_the_cell_and_show_what_is_small() {
        let bucket = |bytes| Bucket { bytes, damage: 0 };
        assert_eq!(shares(&bucket([0, 1000, 0]), 1000), [0, 20, 0]);
        assert_eq!(shares(&bucket([1, 999, 0]), 1000), [3, 17, 0]);
        assert_eq!(shares(&bucket([u64::MAX, u64::MAX, 5]), 1000).iter().sum::<u64>(), 20);
        let many = shares(&Bucket { bytes: [1; 12], damage: 0 }, 1 << 40);
        assert!(many.iter().sum::<u64>() <= 20);
    }
}
