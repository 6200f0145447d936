//! The golden corpus: healthy images of every flavour, and every problem that can be made with a file.

mod support;

use std::collections::BTreeSet;

use instar_abi::problem::{PROBLEMS, Severity};
use support::damage::{RECIPES, UNREACHABLE};
use support::image::{self, Flavour};
use support::tools;

#[test]
fn flavours_at_every_cluster_size_are_healthy_for_qemu_and_read_back() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    for flavour in Flavour::ALL {
        for cluster_bytes in [512, 4096, 65_536] {
            if !flavour.allows(cluster_bytes) {
                continue;
            }
            let image =
                image::make(folder.path(), &format!("{flavour:?}-{cluster_bytes}"), flavour, cluster_bytes);
            image.assert_guest_intact();
        }
    }
}

#[test]
fn recipes_make_an_image_and_name_problems_of_the_table() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let ids: BTreeSet<_> = PROBLEMS.iter().map(|row| row.id).collect();
    for recipe in RECIPES {
        recipe.make(folder.path());
        for problem in recipe.problems {
            assert!(ids.contains(problem), "{}: no problem {problem}", recipe.name);
        }
    }
}

/// Problems that somebody still has to write a recipe for. This list may only get shorter.
const WITHOUT_RECIPE: &[&str] = &["data-file-missing", "snapshot-table-overlap", "crypto-header-overlap"];

#[test]
fn problems_without_a_recipe_are_only_the_known_ones() {
    let made: BTreeSet<_> = RECIPES.iter().flat_map(|recipe| recipe.problems).collect();
    let without: Vec<_> = PROBLEMS
        .iter()
        .map(|row| row.id)
        .filter(|id| !made.contains(id) && UNREACHABLE.iter().all(|(unreachable, _)| unreachable != id))
        .collect();
    assert_eq!(without, WITHOUT_RECIPE);
}

#[test]
fn recipes_exit_as_bad_as_their_worst_problem() {
    for recipe in RECIPES {
        let worst = recipe
            .problems
            .iter()
            .filter_map(|id| PROBLEMS.iter().find(|row| row.id == *id))
            .map(|row| row.severity)
            .max();
        match recipe.exit {
            63 => assert_eq!(worst, Some(Severity::Fatal), "{}", recipe.name),
            2 => assert!(worst >= Some(Severity::Corruption), "{}", recipe.name),
            3 => assert_eq!(worst, Some(Severity::Leak), "{}", recipe.name),
            other => panic!("{}: exit {other}", recipe.name),
        }
    }
}
