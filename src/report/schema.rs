//! The published schemas, held against the types that they are generated from.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;

/// Where the schema called `name` is.
fn path(name: &str) -> String {
    format!("{}/docs/{name}.schema.json", env!("CARGO_MANIFEST_DIR"))
}

/// Fails where the published schema called `name` is not that of `T`. With `UPDATE` in the environment it is written
/// anew.
pub(crate) fn assert_published<T: JsonSchema>(name: &str) {
    let schema = SchemaSettings::draft2020_12().for_serialize().into_generator().into_root_schema_for::<T>();
    let fresh = serde_json::to_string_pretty(&schema).unwrap() + "\n";
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path(name), &fresh).unwrap();
    }
    let stored = std::fs::read_to_string(path(name)).unwrap_or_default();
    assert!(stored == fresh, "docs/{name}.schema.json is stale: run `make docs`");
}

/// Tells whether a document follows the published schema called `name`.
pub(crate) fn validator(name: &str) -> jsonschema::Validator {
    let schema = serde_json::from_str(&std::fs::read_to_string(path(name)).unwrap()).unwrap();
    jsonschema::validator_for(&schema).unwrap()
}
