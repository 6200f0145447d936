use serde_json::{Value, json};

use super::*;
use crate::report::schema::{assert_published, validator};

fn bound() -> BoundPlan {
    let write = |offset: u64, byte| Write { offset, bytes: vec![byte; 2].into() };
    let steps = vec![
        Step {
            cure: Cure::FixCounts,
            scope: vec![(0x1000, 16)],
            groups: vec![vec![write(0x1000, 1), write(0x1004, 2)], vec![write(0x1008, 3)]],
        },
        Step { cure: Cure::FreeLeaks, scope: vec![(0x2000, 8)], groups: vec![vec![write(0x2000, 0)]] },
    ];
    let guard = Guard::new(72, vec![0, 2], vec![0, 0]).unwrap();
    let decisions = Decisions::default().with(Decision::FreeOrphanData);
    let plan = Plan::from_parts(Tier::All, decisions, Some(&guard), steps).unwrap();
    BoundPlan { plan, binding: Binding { fingerprint: [9; 32], len_before: 0x3000, len_after: 0x4000 } }
}

fn parsed(value: &Value) -> Result<BoundPlan, PlanFileFault> {
    parse(value.to_string().as_bytes())
}

#[test]
fn plan_schema_in_docs_is_that_of_the_type() {
    assert_published::<PlanDocument>("plan");
    let document = serde_json::to_value(document(&bound())).unwrap();
    assert!(validator("plan").is_valid(&document), "{document:#}");
}

#[test]
fn plan_comes_back_as_it_was_written_and_no_file_is_written_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plan.json");
    write(&path, &bound()).unwrap();
    assert_eq!(read(&path).unwrap(), bound());
    let error = write(&path, &bound()).unwrap_err();
    assert!(matches!(error.what, PlanFileFault::Io { .. }), "{error}");
    assert_eq!(read(&path).unwrap(), bound());
}

#[test]
fn changed_files_are_refused_by_name() {
    let whole = serde_json::to_value(document(&bound())).unwrap();
    let changes: &[(&str, Value, &str)] = &[
        ("/format", json!("instar plan 9"), "format 'instar plan 9'"),
        ("/tier", json!("some"), "unknown tier 'some'"),
        ("/decisions/0", json!("orphan-data=\u{1b}[2J"), "unknown decision 'orphan-data=\\u{1b}[2J'"),
        ("/steps/0/cure", json!("make-tea"), "unknown cure 'make-tea'"),
        ("/digest", json!("00"), "digest of 1 bytes, must be 32"),
        ("/image/fingerprint", json!(""), "fingerprint of 0 bytes"),
        ("/steps/0/groups/0/0/bytes", json!("0102"), "the file has been changed"),
        ("/steps/0/groups/0/0/offset", json!(u64::MAX), "breaks a rule"),
        ("/steps/0/scope", json!([]), "breaks a rule"),
        ("/guard/offset", json!(511), "breaks a rule"),
        ("/steps/0/groups/0/0/bytes", json!("0"), "is not a plan file"),
        ("/steps/0/groups/0/0/bytes", json!("\u{fc}"), "is not a plan file"),
        ("/steps/0/groups/0/0/offset", json!(-1), "is not a plan file"),
        ("/steps", json!({}), "is not a plan file"),
    ];
    assert!(parsed(&whole).is_ok());
    for (place, value, words) in changes {
        let mut changed = whole.clone();
        *changed.pointer_mut(place).unwrap() = value.clone();
        let error = parsed(&changed).expect_err(place).to_string();
        assert!(error.contains(words), "{place}: {error}");
    }
}

#[test]
fn files_that_are_cut_deep_or_of_another_kind_are_refused() {
    let text = serde_json::to_string(&document(&bound())).unwrap();
    for len in [0, 1, text.len() / 2, text.len() - 1] {
        assert!(matches!(parse(&text.as_bytes()[..len]), Err(PlanFileFault::Json(_))), "{len}");
    }
    let deep = "[".repeat(1 << 20);
    assert!(matches!(parse(deep.as_bytes()), Err(PlanFileFault::Json(_))));
    let device = read(Path::new("/dev/zero")).unwrap_err();
    assert!(matches!(device.what, PlanFileFault::Kind), "{device}");
    let long = tempfile::NamedTempFile::new().unwrap();
    long.as_file().set_len(PLAN_FILE_BYTES_MAX + 1).unwrap();
    assert!(matches!(read(long.path()).unwrap_err().what, PlanFileFault::TooLong));
}
