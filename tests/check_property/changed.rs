//! One changed field of metadata is found, or was of no account.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use instar_mount::image::Backend as _;
use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestRunner};

use crate::checked::{Checked, Memory, files};
use crate::harmless::{self, Made};
use crate::native::Files;
use crate::shapes::{Choice, choices, shape};
use crate::support::fields::{self, Field, Patch};
use crate::support::reference::{self, Facts};

/// Longest that one check of an image of a few megabytes may take, whatever its fields say. Tables at the
/// format's limits (a million entries) are read in less, with room for a busy machine.
const CHECK_MAX: Duration = Duration::from_secs(20);

/// What came of all changes: how often, by what was changed.
type Tally = BTreeMap<String, u64>;

struct Subject {
    image: Arc<Memory>,
    files: Files,
    fields: Vec<Field>,
    facts: Facts,
    cluster: u64,
}

impl Subject {
    fn write(&self, patch: &Patch) -> Patch {
        let mut undo = Patch::new();
        for (at, bytes) in patch {
            let mut old = vec![0; bytes.len()];
            self.image.read_at(&mut old, *at).expect("a field of the file");
            self.image.write_at(bytes, *at).expect("memory");
            undo.insert(0, (*at, old));
        }
        undo
    }

    /// Makes one change, judges, and takes it back.
    fn try_one(&self, choice: &Choice, tally: &mut Tally) -> Result<(), TestCaseError> {
        let (field, next) = choice.field(&self.fields);
        let (patch, old) = {
            let bytes = self.image.0.read();
            (field.change(&*bytes, choice.change, next.as_ref(), self.cluster), field.get(&*bytes))
        };
        if patch.is_empty() {
            return Ok(());
        }
        let undo = self.write(&patch);
        let new = field.get(&*self.image.0.read());
        let made = Made { field, change: choice.change, old, new };
        let verdict = self.judge(&made)?;
        *tally.entry(verdict).or_default() += 1;
        self.write(&undo);
        Ok(())
    }

    fn judge(&self, made: &Made) -> Result<String, TestCaseError> {
        let start = Instant::now();
        let checked = Checked::of(&self.files);
        let took = start.elapsed();
        prop_assert!(took < CHECK_MAX, "{:x?}: the check took {:?}", made, took);
        if !checked.findings.is_empty() {
            return Ok("found".to_owned());
        }
        prop_assert!(checked.is_clean(), "{:x?}: no finding, but no verdict: {:?}", made, checked.summary);
        let after = reference::examine(&*self.image.0.read());
        match after {
            Err(complaint) => Err(TestCaseError::fail(format!("{made:x?} was not found: {complaint}"))),
            Ok(after) if after == self.facts => Ok(format!("no byte reads otherwise: {:?}", made.field.kind)),
            Ok(_) if made.is_packing_flag() && !Checked::deep(&self.files).findings.is_empty() => {
                Ok("found by a deep check".to_owned())
            }
            Ok(after) => match harmless::reason(made, &self.facts, &after, self.files[1].is_some()) {
                Some(reason) => Ok(format!("healthy in another way: {reason}")),
                None => Err(TestCaseError::fail(format!(
                    "{made:x?} was not found, and disks read otherwise: {:x?}",
                    difference(&self.facts, &after)
                ))),
            },
        }
    }
}

/// What reads otherwise, a few places of it.
fn difference(before: &Facts, after: &Facts) -> Vec<String> {
    let mut found = Vec::new();
    if before.manner != after.manner {
        found.push(format!("{:?}, now {:?}", before.manner, after.manner));
    }
    for (index, (old, new)) in before.disks.iter().zip(&after.disks).enumerate() {
        found.push(format!("disk {index}: {:#x} bytes, now {:#x}", old.bytes, new.bytes));
        let places = old.content.keys().chain(new.content.keys());
        let differs = places.filter(|place| old.content.get(place) != new.content.get(place));
        found.extend(differs.take(4).map(|place| format!("guest {place:#x}")));
    }
    found
}

#[test]
fn one_changed_field_is_found_or_harmless() {
    let config = ProptestConfig { source_file: Some(file!()), ..crate::config(500) };
    let tally = RefCell::new(Tally::new());
    let strategy = (shape(), choices(1..24));
    let result = TestRunner::new(config).run(&strategy, |(shape, choices)| {
        let built = shape.build();
        let facts = reference::examine(&built.bytes).map_err(TestCaseError::fail)?;
        let fields = fields::all(&built.bytes);
        let image = Memory::new(built.bytes);
        let files = files(&image, built.data_file_bytes);
        let subject = Subject { image, files, fields, facts, cluster: 1 << shape.cluster_bits };
        choices.iter().try_for_each(|choice| subject.try_one(choice, &mut tally.borrow_mut()))
    });
    for (what, times) in &*tally.borrow() {
        println!("{times:8} {what}");
    }
    result.unwrap_or_else(|error| panic!("{error}"));
}
