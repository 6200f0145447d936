use super::*;
use alloc::collections::BTreeMap;

const COPIED_DATA: u8 = flags::DATA | flags::ACTIVE_COPIED;

#[test]
fn single_users_stay_narrow() {
    let mut counts = Counts::new(0, CHUNK_CLUSTERS * 4, 1 << 20);
    counts.add_active_copied(1);
    counts.add(2, flags::META, 1);
    counts.add(3, flags::DATA, 1);
    counts.add(4, flags::L2 | flags::ACTIVE_COPIED, 1);
    assert!(counts.used_chunks().all(|(_, chunk)| matches!(chunk, Chunk::Narrow(_))));
    assert_eq!(counts.usage(1), Usage { count: 1, flags: COPIED_DATA });
    assert_eq!(counts.usage(5).count, 0);
}

#[test]
fn run_of_metadata_is_what_its_clusters_are_one_by_one() {
    for (first, clusters, weight) in [(3, 200, 1), (32, 64, 1), (CHUNK_CLUSTERS - 40, 100, 1), (5, 70, 3)] {
        let mut run = Counts::new(0, CHUNK_CLUSTERS * 2, 1 << 20);
        let mut single = Counts::new(0, CHUNK_CLUSTERS * 2, 1 << 20);
        for counts in [&mut run, &mut single] {
            counts.add(first + 50, flags::DATA, 1);
        }
        run.add_metadata(first, clusters, weight);
        (first..first + clusters).for_each(|cluster| single.add(cluster, flags::META, weight));
        for cluster in 0..CHUNK_CLUSTERS * 2 {
            assert_eq!(run.usage(cluster), single.usage(cluster), "cluster {cluster} of {first}+{clusters}");
        }
    }
}

#[test]
fn run_of_metadata_over_the_window_is_left_to_the_next_one() {
    let clusters = CHUNK_CLUSTERS * 64;
    let mut counts = Counts::new(0, clusters, 64 << 10);
    counts.add_metadata(0, clusters, 1);
    assert_eq!(counts.next_window(), Some(counts.end()));
    assert!(counts.end() < clusters);
    assert_eq!(counts.usage(counts.end() - 1).count, 1);
}

#[test]
fn second_users_are_counted_exactly_and_flagged() {
    let mut counts = Counts::new(0, CHUNK_CLUSTERS, 1 << 20);
    counts.add_active_copied(7);
    counts.add_active_copied(7);
    assert_eq!(counts.usage(7).count, 2);
    assert!(counts.usage(7).is_overlap() && counts.usage(7).is_copied_wrong());
    counts.add(8, flags::META, 1);
    counts.add(8, flags::DATA, 1);
    assert!(counts.usage(8).is_overlap());
    counts.add(9, flags::DATA | flags::ACTIVE_CLEAR, 2);
    counts.add(9, flags::DATA, 1_000_000_000_000);
    assert_eq!(counts.usage(9).count, 1_000_000_000_002);
    assert!(!counts.usage(9).is_overlap() && !counts.usage(9).is_copied_wrong());
    assert_eq!(counts.usage(7).count, 2, "widening keeps the neighbours");
}

#[test]
fn small_cap_shrinks_the_window_and_passes_see_every_reference_once() {
    let clusters = CHUNK_CLUSTERS * 64;
    let mut expected = BTreeMap::new();
    let references: Vec<u64> = (0..5000_u64).map(|n| (n * 0x9e37_79b9) % clusters).collect();
    for cluster in &references {
        *expected.entry(*cluster).or_insert(0_u64) += 3;
    }
    let mut seen = BTreeMap::new();
    let (mut first, mut passes) = (0, 0);
    loop {
        let mut counts = Counts::new(first, clusters, 200 << 10);
        for cluster in &references {
            counts.add(*cluster, flags::DATA, 1);
            counts.add(*cluster, flags::DATA, 2);
        }
        for cluster in counts.first()..counts.end() {
            let count = counts.usage(cluster).count;
            if count != 0 {
                assert_eq!(seen.insert(cluster, count), None);
            }
        }
        passes += 1;
        match counts.next_window() {
            Some(next) => {
                assert!(next >= counts.end() && next > first);
                first = next;
            }
            None => break,
        }
    }
    assert!(passes > 3);
    assert_eq!(seen, expected);
}

#[test]
fn far_references_of_a_sparse_file_cost_two_chunks() {
    let mut counts = Counts::new(0, 1 << 30, 8 << 20);
    counts.add_active_copied(0);
    counts.add_active_copied((1 << 30) - 1);
    assert_eq!(counts.used_chunks().count(), 2);
    assert_eq!(counts.next_window(), None);
}
