//! The golden corpus: healthy images of every flavour, and every problem that can be made with a file.

mod support;

use std::collections::BTreeSet;

use instar_abi::problem::{PROBLEMS, Severity};
use support::damage::{RECIPES, UNREACHABLE};
use support::image::{self, Flavour};
use support::{program, tools};

#[test]
fn flavours_at_every_cluster_size_are_consistent_in_every_cage() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for flavour in Flavour::ALL {
        for cluster_bytes in [512, 4096, 65_536, 2 << 20] {
            // Everything mapped and large clusters make disks of terabytes.
            let all_mapped = matches!(flavour, Flavour::DataFileRaw | Flavour::Preallocated);
            if (all_mapped && cluster_bytes > 65_536) || !flavour.allows(cluster_bytes) {
                continue;
            }
            let name = format!("{flavour:?}-{cluster_bytes}");
            let image = image::make(folder.path(), &name, flavour, cluster_bytes);
            let (code, document) = tools::ensure_untouched(&[&image.path], || {
                program::try_check(&image, &["--deep"]).unwrap_or_else(|error| panic!("{name}: {error}"))
            });
            if code != 0 {
                wrong.push(format!("{name}: exit {code}, {:?}", program::problems(&document)));
            }
            image.assert_guest_intact();
            std::fs::remove_file(&image.path).unwrap();
        }
    }
    assert!(wrong.is_empty(), "false alarms:\n{}", wrong.join("\n"));
}

#[test]
fn recipes_are_found_and_exit_as_they_should_in_every_cage() {
    need!(tools::qemu());
    let folder = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for recipe in RECIPES {
        let image = recipe.make(folder.path());
        let checked = tools::ensure_untouched(&[&image.path], || program::try_check(&image, recipe.options));
        let (code, document) = match checked {
            Ok(checked) => checked,
            Err(error) => {
                wrong.push(format!("{}: {error}", recipe.name));
                continue;
            }
        };
        let found = program::problems(&document);
        let missing: Vec<_> = recipe.problems.iter().filter(|id| !found.iter().any(|f| f == *id)).collect();
        if code != recipe.exit || !missing.is_empty() {
            wrong.push(format!(
                "{}: exit {code} instead of {}, not found: {missing:?}, found: {found:?}",
                recipe.name, recipe.exit
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn recipes_name_problems_of_the_table() {
    let ids: BTreeSet<_> = PROBLEMS.iter().map(|row| row.id).collect();
    for recipe in RECIPES {
        for problem in recipe.problems {
            assert!(ids.contains(problem), "{}: no problem {problem}", recipe.name);
        }
    }
}

#[test]
fn problems_have_a_recipe_or_a_reason_why_none_can_be_made() {
    let made: BTreeSet<_> = RECIPES.iter().flat_map(|recipe| recipe.problems).collect();
    let unreachable: BTreeSet<_> = UNREACHABLE.iter().map(|(id, _)| id).collect();
    for row in PROBLEMS {
        let (is_made, has_reason) = (made.contains(&row.id), unreachable.contains(&row.id));
        assert!(is_made != has_reason, "{}: recipe {is_made}, reason against one {has_reason}", row.id);
    }
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
