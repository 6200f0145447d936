//! Healthy images are clean.

use proptest::prelude::*;

use crate::checked::{Checked, Memory, files};
use crate::shapes::shape;
use crate::support::reference;

proptest! {
    #![proptest_config(crate::config(600))]

    #[test]
    fn built_image_of_any_shape_is_clean(shape in shape()) {
        let built = shape.build();
        let facts = reference::examine(&built.bytes);
        prop_assert!(facts.is_ok(), "the builder made a damaged image: {:?}", facts);
        let image = Memory::new(built.bytes);
        let checked = Checked::of(&files(&image, built.data_file_bytes));
        prop_assert!(checked.is_clean(), "{:?} {:?}", checked.ids(), checked.findings);
        let summary = checked.summary;
        prop_assert_eq!(summary.virtual_size, built.virtual_bytes);
        prop_assert_eq!(summary.image_end_offset, built.end_bytes);
        prop_assert_eq!(u64::from(summary.snapshots), built.snapshots as u64);
        prop_assert_eq!(facts.expect("looked at above").clusters_used << shape.cluster_bits, built.end_bytes);
        if shape.data_file.is_none() {
            prop_assert_eq!((summary.allocated_clusters, summary.compressed_clusters), built.allocated);
        }
    }
}
