//! Describing a source, and looking for identifiers in code.

use std::fs;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, BooleanArray, Float64Array, Int32Array, RecordBatch, StringArray};
use datafusion::parquet::arrow::ArrowWriter;
use serde_json::json;
use tidegate_prepare::{Part, first_catalog, home_rows, scan, scan_code};
use tidegate_types::files::catalog::{CsvOptions, ValueType};
use tidegate_types::ids::DatasetName;
use tidegate_types::{IdentifierKind, Role};

use super::fixture::{Hospital, KEYS, block_on, csv, table};

#[test]
fn a_first_catalog_calls_what_it_does_not_understand_an_identifier() {
    let hospital = Hospital::new(300);
    let path = hospital.path().join("admissions.csv");
    let (catalog, _) = block_on(first_catalog(&path, DatasetName::new("admissions").unwrap())).unwrap();
    let dataset = catalog.datasets.values().next().unwrap();
    assert_eq!(dataset.subject.as_deref(), Some("patient_id"));
    for (column, role, kind) in [
        ("patient_id", Role::Identifier, IdentifierKind::RecordNumber),
        ("name", Role::Identifier, IdentifierKind::Name),
        ("ssn", Role::Identifier, IdentifierKind::NationalId),
        ("zip", Role::QuasiIdentifier, IdentifierKind::ZipCode),
        ("age", Role::QuasiIdentifier, IdentifierKind::Age),
        ("sex", Role::QuasiIdentifier, IdentifierKind::Value),
        ("diagnosis", Role::Attribute, IdentifierKind::Value),
        ("pulse", Role::Attribute, IdentifierKind::Value),
        ("note", Role::Text, IdentifierKind::Value),
    ] {
        let found = &dataset.columns[column];
        assert_eq!((found.role, found.kind), (role, kind), "{column}");
    }
    assert!(dataset.purposes.is_empty() && !dataset.public && !dataset.columns.contains_key("*"));
}

#[test]
fn a_scan_tells_types_and_problems_and_no_value() {
    let hospital = Hospital::new(0);
    let mut text = String::from("a,b,c\n");
    for number in 0..100 {
        text.push_str(&format!(
            "{},{}, 2024-01-{:02}\n",
            number % 40,
            if number == 50 { "planted" } else { "1.5" },
            number % 28 + 1
        ));
    }
    hospital.write(&text);
    let report = block_on(scan(&hospital.path().join("admissions.csv"), &CsvOptions::default())).unwrap();
    assert_eq!((report.rows, report.bytes), (100, text.len() as u64));
    let types: Vec<_> = report.columns.iter().map(|column| column.value_type).collect();
    assert_eq!(types, [Some(ValueType::Integer), None, Some(ValueType::Date)]);
    assert!(
        report.columns[1]
            .problem
            .as_ref()
            .unwrap()
            .contains("admissions.csv:52")
    );
    assert!(!serde_json::to_string(&report).unwrap().contains("planted"));
}

#[test]
fn code_that_holds_an_identifier_does_not_cross() {
    let hospital = Hospital::new(300);
    let home = hospital.prepare().unwrap().home;
    let look = |text: &str| block_on(scan_code(&home, &KEYS, "train.py", text.as_bytes()));
    look("import numpy\nseed = 100000\nrows = 'admissions'\n").unwrap();
    for (text, column) in [
        ("skip = ['P000017']", "`patient_id`"),
        ("# ask Person Number17 about this", "`name`"),
        ("x = '917 27 1017'", "`ssn`"),
    ] {
        let error = look(text).unwrap_err();
        let refusal = error.refusal().unwrap();
        assert_eq!(refusal.rule, "identifier-in-code");
        assert!(
            refusal.why.contains(column) && refusal.what.contains("train.py"),
            "{refusal}"
        );
        assert!(!refusal.to_string().contains("17"), "{refusal}");
    }
    // A bare snapshot says nothing of roles, so everything counts.
    let snapshot = fs::read_dir(hospital.stage().join("snapshots"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    assert!(block_on(scan_code(&snapshot, &KEYS, "train.py", b"if d == 'Cirrhosis'")).is_err());
}

/// The rows of a CSV as a Parquet file with plain types.
fn write_parquet(path: &std::path::Path, text: &str) {
    let rows: Vec<Vec<&str>> = text
        .lines()
        .skip(1)
        .map(|line| line.split(',').map(str::trim).collect())
        .collect();
    let texts = |column: usize| Arc::new(rows.iter().map(|row| Some(row[column])).collect::<StringArray>()) as ArrayRef;
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("patient_id", texts(0)),
        ("name", texts(1)),
        ("ssn", texts(2)),
        ("zip", texts(3)),
        (
            "age",
            Arc::new(
                rows.iter()
                    .map(|row| row[4].parse::<i32>().ok())
                    .collect::<Int32Array>(),
            ),
        ),
        ("sex", texts(5)),
        ("diagnosis", texts(6)),
        (
            "pulse",
            Arc::new(
                rows.iter()
                    .map(|row| row[7].parse::<f64>().ok())
                    .collect::<Float64Array>(),
            ),
        ),
        ("note", texts(8)),
        (
            "died",
            Arc::new(rows.iter().map(|row| Some(row[9] == "1")).collect::<BooleanArray>()),
        ),
    ];
    let batch =
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true)))
            .unwrap();
    let file = fs::File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

#[test]
fn csv_and_parquet_and_folders_and_globs_give_the_same_rows() {
    let whole_hospital = Hospital::new(600);
    let whole = whole_hospital.prepare().unwrap();
    let many = Hospital::new(0);
    fs::create_dir(many.path().join("data")).unwrap();
    for (name, range) in [("a.csv", 0..200), ("b.csv", 200..600)] {
        fs::write(many.path().join("data").join(name), csv(range)).unwrap();
    }
    for source in ["data", "data/*.csv", "data/?.csv"] {
        let mut hospital = Hospital::new(0);
        fs::rename(many.path().join("data"), hospital.path().join("data")).unwrap();
        hospital.catalog["datasets"]["admissions"]["source"] = json!(source);
        let prepared = hospital.prepare().unwrap();
        assert_eq!(table(&prepared, "train"), table(&whole, "train"), "{source}");
        fs::rename(hospital.path().join("data"), many.path().join("data")).unwrap();
    }
    let mut parquet = Hospital::new(0);
    write_parquet(&parquet.path().join("rows.parquet"), &csv(0..600));
    parquet.catalog["datasets"]["admissions"]["source"] = json!("rows.parquet");
    let prepared = parquet.prepare().unwrap();
    assert_eq!(table(&prepared, "train"), table(&whole, "train"));
    let home = |prepared: &tidegate_prepare::Prepared| {
        block_on(home_rows(&prepared.home, &KEYS, Part::Test, &["sex".to_owned()])).unwrap()
    };
    assert_eq!(home(&prepared), home(&whole));
}

#[test]
fn files_with_other_columns_and_damaged_parquet_are_errors() {
    let mut hospital = Hospital::new(300);
    fs::create_dir(hospital.path().join("data")).unwrap();
    fs::write(hospital.path().join("data/a.csv"), csv(0..300)).unwrap();
    fs::write(hospital.path().join("data/b.csv"), "x\n1\n").unwrap();
    hospital.catalog["datasets"]["admissions"]["source"] = json!("data");
    assert!(
        hospital
            .prepare()
            .unwrap_err()
            .to_string()
            .contains("its columns are not those of the first file")
    );
    fs::write(hospital.path().join("bad.parquet"), "PAR1 nonsense").unwrap();
    hospital.catalog["datasets"]["admissions"]["source"] = json!("bad.parquet");
    assert!(
        hospital
            .prepare()
            .unwrap_err()
            .to_string()
            .contains("not a Parquet file")
    );
}
