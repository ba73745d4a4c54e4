//! The committed file is what it says it is.

use std::collections::{BTreeMap, BTreeSet};

use jiff::civil::Date;

use super::*;

fn committed() -> String {
    fs::read_to_string(crate::root().join(TARGET)).unwrap()
}

fn table(text: &str) -> (csv::StringRecord, Vec<csv::StringRecord>) {
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let header = reader.headers().unwrap().clone();
    (header, reader.records().map(Result::unwrap).collect())
}

/// Taking the invented columns away gives back the source, byte for byte.
fn source_of(text: &str) -> String {
    let (header, rows) = table(text);
    let line = |record: &csv::StringRecord| record.iter().skip(ADDED.len()).collect::<Vec<_>>().join(",");
    let lines: Vec<String> = std::iter::once(&header).chain(&rows).map(line).collect();
    lines.join("\n")
}

#[test]
fn the_original_columns_are_untouched() {
    let source = source_of(&committed());
    assert_eq!(sha256(source.as_bytes()).to_hex(), SOURCE_DIGEST);
}

#[test]
fn the_generator_writes_the_committed_file_and_always_the_same() {
    let text = committed();
    let source = source_of(&text);
    let (once, again) = (generate(&source).unwrap(), generate(&source).unwrap());
    assert!(once == again, "two calls gave two files");
    assert!(once == text, "the committed file is not what the generator writes");
}

#[test]
fn the_given_source_makes_the_committed_file() {
    match std::env::var_os("TIDEGATE_SUPPORT2") {
        None => println!("skipped: TIDEGATE_SUPPORT2 does not name the source"),
        Some(source) => run(crate::root(), Path::new(&source), true).unwrap(),
    }
}

#[test]
fn another_source_is_refused() {
    let folder = std::env::temp_dir().join(format!("tidegate-xtask-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let other = folder.join("other.csv");
    fs::write(&other, "sno,age\n1,2\n").unwrap();
    let error = run(crate::root(), &other, true).unwrap_err().to_string();
    fs::remove_dir_all(&folder).unwrap();
    assert!(error.contains(SOURCE_DIGEST), "{error}");
}

#[test]
fn identities_fit_the_patients() {
    let (header, rows) = table(&committed());
    let at = |name: &str| header.iter().position(|column| column == name).unwrap();
    let text = |row: &csv::StringRecord, name: &str| row[at(name)].trim().to_owned();
    let day = |row: &csv::StringRecord, name: &str| text(row, name).parse::<Date>().unwrap();
    let mut people: BTreeMap<String, Vec<&csv::StringRecord>> = BTreeMap::new();
    for row in &rows {
        people.entry(text(row, "patient_id")).or_default().push(row);
        let lived = day(row, "birth_date")
            .until(day(row, "admission_date"))
            .unwrap()
            .get_days();
        let age: f64 = text(row, "age").parse().unwrap();
        assert!(
            (f64::from(lived) / 365.2425 - age).abs() < 0.01,
            "an age does not fit its dates"
        );
    }
    let twice: Vec<_> = people.values().filter(|rows| rows.len() == 2).collect();
    assert_eq!((rows.len(), people.values().map(Vec::len).max()), (9105, Some(2)));
    assert!(
        (twice.len() * 10).abs_diff(people.len()) < people.len() / 100,
        "a tenth comes twice"
    );
    for rows in twice {
        let mut rows = rows.clone();
        rows.sort_by_key(|row| day(row, "admission_date"));
        assert!(day(rows[0], "admission_date") < day(rows[1], "admission_date"));
        assert_eq!(
            (text(rows[0], "hospdead"), text(rows[0], "death")),
            ("0".into(), "0".into())
        );
        for same in [
            "name",
            "birth_date",
            "ssn",
            "phone",
            "email",
            "street",
            "zip",
            "sex",
            "race",
        ] {
            assert_eq!(text(rows[0], same), text(rows[1], same), "{same}");
        }
    }
    for (unique, count) in [
        ("record_number", rows.len()),
        ("ssn", people.len()),
        ("email", people.len()),
    ] {
        let distinct: BTreeSet<_> = rows.iter().map(|row| text(row, unique)).collect();
        assert_eq!(distinct.len(), count, "{unique}");
    }
}

#[test]
fn no_identity_can_be_real() {
    let (header, rows) = table(&committed());
    let at = |name: &str| header.iter().position(|column| column == name).unwrap();
    for row in &rows {
        assert!(row[at("ssn")].starts_with('9') && row[at("ssn")].len() == 11);
        assert!(row[at("phone")].contains(") 555-01"));
        assert!(row[at("email")].ends_with("@example.org"));
        assert!(row[at("zip")].len() == 5 && row[at("zip")].bytes().all(|b| b.is_ascii_digit()));
    }
    let named = rows.iter().filter(|row| {
        ["name", "phone", "record_number", "email", "street"]
            .iter()
            .any(|column| row[at("notes")].contains(&row[at(column)]))
    });
    assert!(named.count() > rows.len() / 3, "notes mention identifiers");
}
