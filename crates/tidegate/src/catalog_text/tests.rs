//! A catalog that is written is the catalog that is read.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use tidegate_types::Level;
use tidegate_types::column::{IdentifierKind, Role};
use tidegate_types::files::catalog::{Column, CsvOptions, Dataset, ValueType};
use tidegate_types::files::{Catalog, read_catalog};
use tidegate_types::label::Residency;

use super::write_catalog;

const CATALOG: &str = r#"datasets:
  admissions:
    site: hospital
    source: admissions.csv
    subject: patient_id
    purposes: [quality-of-care]
    least_k: 5
    least_l: 2
    tags: [phi]
    residency: {only: [US]}
    csv: {null: ["", NA]}
    columns:
      patient_id: {role: identifier, kind: record_number}
      age: {role: quasi_identifier, kind: age}
      readmitted: {role: attribute}
      notes: {role: text}
"#;

#[test]
fn comments_stand_above_what_they_are_about() {
    let catalog = read_catalog("catalog.yaml", CATALOG).unwrap();
    let comments: BTreeMap<String, String> = [
        ("", "From a scan: read it before you rely on it."),
        ("admissions", "9,105 rows\nin one file"),
        ("admissions.notes", "free text"),
    ]
    .map(|(key, text)| (key.to_owned(), text.to_owned()))
    .into();
    let text = write_catalog(&catalog, &comments);
    assert_eq!(read_catalog("catalog.yaml", &text).unwrap(), catalog);
    insta::assert_snapshot!(text);
}

fn words() -> impl Strategy<Value = BTreeSet<String>> {
    proptest::collection::btree_set(any::<String>(), 0..4)
}

fn column() -> impl Strategy<Value = Column> {
    let roles = [
        Role::Identifier,
        Role::QuasiIdentifier,
        Role::Sensitive,
        Role::Attribute,
        Role::Text,
    ];
    let kinds = [
        IdentifierKind::Value,
        IdentifierKind::ZipCode,
        IdentifierKind::OtherNumber,
        IdentifierKind::Date,
    ];
    let types = [
        None,
        Some(ValueType::Text),
        Some(ValueType::Integer),
        Some(ValueType::Boolean),
    ];
    (
        proptest::sample::select(roles.to_vec()),
        proptest::sample::select(kinds.to_vec()),
        proptest::sample::select(types.to_vec()),
    )
        .prop_map(|(role, kind, value_type)| Column { role, kind, value_type })
}

fn catalog() -> impl Strategy<Value = Catalog> {
    let names = prop_oneof!["[a-z][a-z0-9_-]{0,8}", "(true|null|no|1e3|0x1|1_0|nan)"];
    let columns = prop_oneof![any::<String>(), "[a-zA-Z~*&!%@`'\"#:?{}\\[\\],. -]{0,6}"];
    let facts = (
        any::<String>(),
        proptest::option::of(any::<String>()),
        words(),
        proptest::option::of(words()),
        words(),
        any::<(u32, u32, bool, char)>(),
        proptest::collection::btree_map(columns, column(), 0..5),
    );
    let level = proptest::option::of(proptest::sample::select(vec![Level::Public, Level::Restricted]));
    (proptest::collection::btree_map(names, facts, 0..3), level).prop_map(|(datasets, task_files)| Catalog {
        task_files,
        datasets: datasets
            .into_iter()
            .map(
                |(name, (source, subject, tags, places, null, (k, l, public, delimiter), columns))| {
                    let dataset = Dataset {
                        site: "hospital".parse().unwrap(),
                        source,
                        subject,
                        purposes: ["quality-of-care".parse().unwrap(), "no".parse().unwrap()].into(),
                        least_k: k,
                        least_l: l,
                        tags,
                        residency: places.map_or(Residency::Anywhere, Residency::Only),
                        public,
                        csv: CsvOptions { null, delimiter },
                        columns,
                    };
                    (name.parse().unwrap(), dataset)
                },
            )
            .collect(),
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whatever_is_written_is_read_back(catalog in catalog(), comment in any::<String>()) {
        let comments: BTreeMap<String, String> = catalog
            .datasets
            .keys()
            .map(|name| (name.to_string(), comment.clone()))
            .collect();
        let text = write_catalog(&catalog, &comments);
        prop_assert_eq!(read_catalog("catalog.yaml", &text).map_err(|error| error.to_string()), Ok(catalog));
    }
}
