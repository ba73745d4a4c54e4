//! What is written about the files is true: documents, schemas and the example.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tidegate_types::files::rules::GATE_METRICS;
use tidegate_types::files::schema::schemas;
use tidegate_types::files::{check_refusals, read_pipeline};

use crate::samples::{read_all, verdict};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The names of all properties, and all words that a property may have as its value.
fn words(schema: &Value, into: &mut BTreeSet<String>) {
    match schema {
        Value::Object(fields) => {
            if let Some(Value::Object(properties)) = fields.get("properties") {
                into.extend(properties.keys().cloned());
            }
            for key in ["const", "enum"] {
                let values = fields.get(key).into_iter().flat_map(|value| match value {
                    Value::Array(values) => values.clone(),
                    one => vec![one.clone()],
                });
                into.extend(values.filter_map(|value| value.as_str().map(str::to_owned)));
            }
            fields.values().for_each(|value| words(value, into));
        }
        Value::Array(values) => values.iter().for_each(|value| words(value, into)),
        _ => {}
    }
}

#[test]
fn every_key_and_every_word_is_documented_in_its_chapter() {
    let document = read("docs/files.md");
    for (name, schema) in schemas() {
        let title = schema["title"].as_str().unwrap();
        let (_, chapter) = document.split_once(&format!("\n## {title}\n")).unwrap();
        let chapter = chapter.split("\n## ").next().unwrap();
        let mut known = BTreeSet::new();
        words(&schema, &mut known);
        assert!(known.len() > 10, "{name} describes nothing");
        for word in known {
            // Levels are common to all files and stand in the introduction.
            let found = [chapter, document.split("\n## ").next().unwrap()]
                .iter()
                .any(|text| text.contains(&format!("`{word}`")) || text.contains(&format!("`{{{word}: ")));
            assert!(found, "docs/files.md does not explain `{word}` of {title}");
        }
    }
    for metric in GATE_METRICS {
        assert!(document.contains(&format!("`{metric}`")), "{metric}");
    }
}

#[test]
fn the_examples_of_the_document_are_accepted() {
    let document = read("docs/files.md");
    let example = |title: &str| {
        let (_, chapter) = document.split_once(&format!("\n## {title}\n")).unwrap();
        let (_, block) = chapter.split_once("```yaml\n").unwrap();
        block.split("```").next().unwrap().to_owned()
    };
    let said = verdict(
        &example("catalog.yaml"),
        &example("sites.yaml"),
        &example("tidegate.yaml"),
    );
    assert_eq!(said, [""; 0]);
}

#[test]
fn the_hospital_example_is_accepted() {
    let files = ["catalog.yaml", "sites.yaml", "tidegate.yaml"].map(|file| read(&format!("examples/hospital/{file}")));
    let [catalog, sites, pipeline] = &files;
    assert_eq!(verdict(catalog, sites, pipeline), [""; 0]);
    let (catalog, sites, pipeline) = read_all(catalog, sites, pipeline).unwrap();
    assert!(check_refusals(&catalog, &sites, &pipeline).is_empty());
    // Every column that the example names is one of its data.
    let header = read("examples/hospital/admissions.csv")
        .lines()
        .next()
        .unwrap()
        .to_owned();
    let columns: BTreeSet<&str> = header.split(',').collect();
    let dataset = &catalog.datasets[&pipeline.prepare.from];
    let named = dataset
        .columns
        .keys()
        .chain(&pipeline.prepare.drop)
        .chain([&pipeline.prepare.target]);
    for column in named.filter(|column| *column != "*") {
        assert!(columns.contains(column.as_str()), "{column} is no column of the data");
    }
}

/// A schema that editors use must not call a good file bad: every key of the example is in it.
#[test]
fn the_schemas_know_the_keys_of_the_example() {
    let text = read("examples/hospital/tidegate.yaml");
    let pipeline = serde_json::to_value(read_pipeline("tidegate.yaml", &text).unwrap()).unwrap();
    let schema = schemas()
        .into_iter()
        .find(|(name, _)| name.starts_with("tidegate"))
        .unwrap()
        .1;
    let known = schema["properties"].as_object().unwrap();
    for key in pipeline.as_object().unwrap().keys() {
        assert!(known.contains_key(key), "{key}");
    }
    assert_eq!(
        schema["additionalProperties"],
        Value::Bool(false),
        "unknown keys are refused"
    );
}
