//! Which kinds of damage come together.

use std::collections::BTreeMap;

use instar_abi::problem::{PROBLEMS, Severity};

use crate::need;
use crate::subject::Subject;
use crate::support::builder::Dice;
use crate::support::damage::{RECIPES, Recipe, recipe};
use crate::support::image::Flavour;
use crate::support::{soak, tools};

/// Images of a test run, and cases of each.
const IMAGES: u64 = 16;
const CASES_EACH: u64 = 4;
/// What the cases of a test run follow from.
const SEED: u64 = 0x7163_6f77_3200_0002;

/// Cases that were wrong once.
const REGRESSIONS: &[(Flavour, u64, &[&str])] = &[];

fn judge(subject: &Subject, recipes: &[&Recipe], tally: &mut BTreeMap<String, u64>) -> Result<(), String> {
    let verdict = subject.judge(recipes)?;
    *tally.entry(verdict).or_default() += 1;
    Ok(())
}

/// Whether an image is looked at further with this damage, so that there is something to mend.
fn is_walked(recipe: &Recipe) -> bool {
    let is_fatal = |id: &&str| PROBLEMS.iter().any(|row| row.id == *id && row.severity == Severity::Fatal);
    !recipe.problems.iter().any(is_fatal)
}

/// Two or three kinds that fit, in any order.
fn choose(dice: &mut Dice, flavour: Flavour) -> Vec<&'static Recipe> {
    let fitting: Vec<_> = RECIPES.iter().filter(|r| r.fits(flavour) && is_walked(r)).collect();
    let own: Vec<_> = fitting.iter().filter(|r| r.flavour == flavour).copied().collect();
    let one_of = |dice: &mut Dice, list: &[&'static Recipe]| {
        list[usize::try_from(dice.below(list.len() as u64)).unwrap()]
    };
    let mut chosen: Vec<&Recipe> = (0..2 + dice.below(2)).map(|_| one_of(dice, &fitting)).collect();
    if !own.is_empty() {
        chosen[0] = one_of(dice, &own);
    }
    chosen
}

/// Tries so many images; tells how often it came to which end.
fn try_images(images: u64, seed: u64) -> BTreeMap<String, u64> {
    eprintln!("seed {seed:#x}");
    let mut dice = Dice::new(seed);
    let (mut tally, mut wrong) = (BTreeMap::new(), Vec::new());
    for _ in 0..images {
        let flavour = Flavour::ALL[usize::try_from(dice.below(Flavour::ALL.len() as u64)).unwrap()];
        let sizes = [512, 512, 4096, 4096, 65_536, 65_536, 2 << 20];
        let cluster_bytes = sizes[usize::try_from(dice.below(sizes.len() as u64)).unwrap()];
        // Large files where everything is mapped or in a data file, slow ones where everything is encrypted.
        let is_dear = flavour.has_data_file() || matches!(flavour, Flavour::Preallocated | Flavour::Luks);
        if !flavour.allows(cluster_bytes) || (is_dear && cluster_bytes > 4096) {
            continue;
        }
        let began = std::time::Instant::now();
        let subject = Subject::new(flavour, cluster_bytes);
        for _ in 0..CASES_EACH {
            let recipes = choose(&mut dice, flavour);
            if let Err(error) = judge(&subject, &recipes, &mut tally) {
                let names: Vec<_> = recipes.iter().map(|recipe| recipe.name).collect();
                let fault = format!("(Flavour::{flavour:?}, {cluster_bytes}, &{names:?}): {error}");
                eprintln!("{fault}");
                wrong.push(fault);
            }
        }
        eprintln!("{flavour:?}, {cluster_bytes}: {:?}", began.elapsed());
    }
    for (verdict, times) in &tally {
        eprintln!("{times:8} {verdict}");
    }
    assert!(wrong.is_empty(), "seed {seed:#x}:\n{}", wrong.join("\n"));
    tally
}

#[test]
fn pairs_and_triples_of_damage_are_mended_no_worse_than_by_qemu_and_undone() {
    need!(tools::qemu());
    let tally = try_images(IMAGES, SEED);
    assert!(tally.keys().any(|verdict| verdict.starts_with("repaired;")), "nothing was repaired: {tally:?}");
}

/// As many images as a soak run has time for: one for fifty of the cases that cost milliseconds.
#[test]
fn random_pairs_and_triples_of_damage_are_mended_no_worse_than_by_qemu_and_undone() {
    need!(tools::qemu());
    let Some(cases) = soak::asked() else {
        eprintln!("skipped: random pairs are tried where INSTAR_SOAK_CASES says how many");
        return;
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    try_images(u64::from(cases).div_ceil(50), now.as_secs());
}

#[test]
fn pairs_that_were_mended_wrongly_once_are_mended_right() {
    need!(tools::qemu());
    for (flavour, cluster_bytes, names) in REGRESSIONS {
        let subject = Subject::new(*flavour, *cluster_bytes);
        let recipes: Vec<_> = names.iter().map(|name| recipe(name)).collect();
        if let Err(error) = subject.judge(&recipes) {
            panic!("{flavour:?}, {cluster_bytes}, {names:?}: {error}");
        }
    }
}
