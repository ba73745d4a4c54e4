//! JSON Schemas of the three files, for editors and for other software.

use schemars::JsonSchema;
use serde_json::Value;

use super::{Catalog, Pipeline, Sites};

/// The schemas by the name of the file that they are kept in, below `schemas/`.
#[must_use]
pub fn schemas() -> [(&'static str, Value); 3] {
    [
        ("catalog.schema.json", schema::<Catalog>("catalog.yaml")),
        ("sites.schema.json", schema::<Sites>("sites.yaml")),
        ("tidegate.schema.json", schema::<Pipeline>("tidegate.yaml")),
    ]
}

/// JSON Schema 2020-12 of one file.
fn schema<T: JsonSchema>(title: &str) -> Value {
    let mut schema = schemars::schema_for!(T);
    schema.insert("title".to_owned(), Value::from(title));
    schema.to_value()
}
