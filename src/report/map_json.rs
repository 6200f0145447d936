//! The picture of an image for programs. `docs/map.schema.json` is generated from the types in here.

use std::collections::BTreeMap;

use serde::Serialize;

use super::escape::escape_path;
use super::ids::verdict_name;
use super::model::CheckReport;
use super::picture::{Bucket, Buckets, DiskUse, FileUse, Picture};

/// Most buckets of one list.
const BUCKETS_MAX: u64 = 1024;

/// What `instar map --output=json` prints.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MapDocument {
    /// The image, as it was named.
    filename: String,
    /// What the check comes to.
    verdict: &'static str,
    /// The file; a use is one of "header", "l1-table", "l2-table", "refcount-table", "refcount-block",
    /// "snapshot-table", "bitmap", "encryption-header", "data", "snapshot-data", "compressed-data", "leaked". What
    /// two claim counts for both.
    file: StretchDocument,
    /// The active disk; a use is one of "data", "compressed", "zero", "encrypted", "damaged". What is none of them is
    /// not allocated.
    disk: StretchDocument,
}

/// A stretch of bytes.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct StretchDocument {
    /// Bytes in all.
    length: u64,
    /// Bytes of each bucket but the last; a power of two.
    bucket_bytes: u64,
    /// Bytes of each use in all.
    uses: BTreeMap<&'static str, u64>,
    /// The buckets that are used or damaged, in order.
    buckets: Vec<BucketDocument>,
}

/// One bucket.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct BucketDocument {
    /// Byte offset of its first byte.
    offset: u64,
    /// Bytes.
    length: u64,
    /// Bytes of each use.
    uses: BTreeMap<&'static str, u64>,
    /// Findings of corruption that lie in it.
    #[serde(skip_serializing_if = "is_zero")]
    damage: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
const fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// The document of a checked image and its picture.
#[must_use]
pub fn map_json(report: &CheckReport, picture: &Picture) -> MapDocument {
    let unit_bytes = report.cluster_bytes().unwrap_or(1);
    MapDocument {
        filename: escape_path(&report.image),
        verdict: verdict_name(report.verdict()),
        file: stretch(&picture.file.coarse(BUCKETS_MAX, unit_bytes), &FileUse::ALL.map(FileUse::id)),
        disk: stretch(&picture.disk.coarse(BUCKETS_MAX, unit_bytes), &DiskUse::ALL.map(DiskUse::id)),
    }
}

fn stretch<const N: usize>(buckets: &Buckets<N>, names: &[&'static str; N]) -> StretchDocument {
    let bucket = |(position, bucket): (usize, &Bucket<N>)| {
        let range = buckets.range(position);
        BucketDocument {
            offset: range.start,
            length: range.end - range.start,
            uses: uses(bucket, names),
            damage: bucket.damage,
        }
    };
    let all = buckets.buckets().iter().enumerate();
    StretchDocument {
        length: buckets.len(),
        bucket_bytes: buckets.bucket_bytes(),
        uses: uses(&buckets.total(), names),
        buckets: all.filter(|(_, one)| one.used() > 0 || one.damage > 0).map(bucket).collect(),
    }
}

fn uses<const N: usize>(bucket: &Bucket<N>, names: &[&'static str; N]) -> BTreeMap<&'static str, u64> {
    names.iter().copied().zip(bucket.bytes).filter(|(_, bytes)| *bytes > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::super::schema;
    use super::MapDocument;

    #[test]
    fn schema_in_docs_is_the_one_of_the_map() {
        schema::assert_published::<MapDocument>("map");
    }
}
