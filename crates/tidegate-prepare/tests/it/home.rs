//! What stays home: it changes nothing that crosses, and is read as training was.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::json;
use tidegate_prepare::{Part, Prepared, home_rows, raw_rows};

use super::fixture::{Hospital, KEYS, block_on, csv, inputs, person, table};

/// The numbers of the people of each part: found once, for the key decides.
fn parts(rows: u64) -> BTreeMap<Part, Vec<u64>> {
    let hospital = Hospital::new(rows);
    let prepared = hospital.prepare().unwrap();
    [Part::Train, Part::Validation, Part::Refine, Part::Test]
        .into_iter()
        .map(|part| {
            (
                part,
                block_on(home_rows(&prepared.home, &KEYS, part, &[])).unwrap().positions,
            )
        })
        .collect()
}

/// Everything that may cross or is told about it.
fn crossing(prepared: &Prepared) -> (BTreeMap<String, Vec<u8>>, String, String, Vec<String>) {
    let mut recipe = std::fs::read_to_string(prepared.home.join("recipe.json")).unwrap();
    for folder in prepared.inputs.values() {
        recipe += &std::fs::read_to_string(folder.join("csv-metadata.json")).unwrap();
    }
    let told = serde_json::to_string(&(&prepared.labels, &prepared.risk, prepared.step_key)).unwrap();
    (inputs(prepared), recipe, told, prepared.columns.clone())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changing_home_rows_changes_no_byte_that_crosses(
        changes in proptest::collection::vec((0..120_usize, 0..6_u8), 1..40),
        suppress in any::<bool>(),
    ) {
        let rows = 500;
        let hospital = || {
            let mut hospital = Hospital::new(rows);
            if suppress {
                hospital.pipeline["prepare"]["disclosure"] =
                    json!({"to": "internal", "k": 12, "on_violation": "suppress", "max_suppressed": 0.9});
            }
            hospital
        };
        let parts = parts(rows);
        let home: Vec<u64> = [&parts[&Part::Refine], &parts[&Part::Test]].into_iter().flatten().copied().collect();
        let changed_hospital = hospital();
        let mut records: Vec<Option<String>> = (0..rows).map(|number| Some(person(number))).collect();
        let mut added = Vec::new();
        for (index, change) in changes {
            let number = home[index % home.len()] as usize;
            let id = format!("P{number:06}");
            records[number] = match change {
                0 => None,
                // A level, an amount and an age that no other row has.
                1 => Some(format!("{id},New Name,900-00-0000,99999,97,male,Unheard Of,1234567.5,another note,1")),
                // Texts where numbers are expected: they change no type outside.
                2 => Some(format!("{id},New Name,900-00-0000,99999,old,male,Coma,fast,another note,1")),
                3 => Some(format!("{id},,,,,,,,,")),
                4 => {
                    added.push(format!("{id},Second Stay,900-00-0001,10001,33,female,Coma,77.5,again,0"));
                    Some(person(number as u64))
                }
                // What looks like an identifier in a harmless column.
                _ => Some(format!("{id},N,900-00-0000,99999,50,male,p{number}@example.org,60.5,x,0")),
            };
        }
        let mut text = format!("{}\n", super::fixture::HEADER);
        for record in records.into_iter().flatten().chain(added) {
            text.push_str(&record);
            text.push('\n');
        }
        changed_hospital.write(&text);
        let unchanged_hospital = hospital();
        let before = unchanged_hospital.prepare().unwrap();
        let after = changed_hospital.prepare().unwrap();
        prop_assert_eq!(crossing(&before), crossing(&after));
    }
}

#[test]
fn the_same_folder_prepares_again_when_home_rows_change_and_counts_one_release() {
    let hospital = Hospital::new(400);
    let first = hospital.prepare().unwrap();
    let test = block_on(home_rows(&first.home, &KEYS, Part::Test, &[])).unwrap();
    let gone = test.positions[0];
    hospital.write(&csv((0..400).filter(|number| *number != gone)));
    let second = hospital.prepare().unwrap();
    assert!(!second.reused, "home rows changed, so home must be made again");
    assert_eq!((first.step_key, &first.risk), (second.step_key, &second.risk));
    assert_eq!(inputs(&first), inputs(&second));
    assert_eq!(second.risk.earlier_releases, 0);
    let again = block_on(home_rows(&second.home, &KEYS, Part::Test, &[])).unwrap();
    assert_eq!(again.records.len() + 1, test.records.len());
    // The first preparation still reads its own snapshot.
    assert_eq!(block_on(home_rows(&first.home, &KEYS, Part::Test, &[])).unwrap(), test);
}

#[test]
fn subgroups_are_computed_over_columns_that_never_left() {
    let hospital = Hospital::new(500);
    let prepared = hospital.prepare().unwrap();
    let by = ["sex", "age_band(age, 10)", "pulse > 100"].map(str::to_owned);
    let rows = block_on(home_rows(&prepared.home, &KEYS, Part::Test, &by)).unwrap();
    assert_eq!(
        rows.subgroups.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
        by
    );
    let plain = block_on(home_rows(&prepared.home, &KEYS, Part::Test, &[])).unwrap();
    assert_eq!(rows.records, plain.records);
    for (position, sex) in rows.positions.iter().zip(&rows.subgroups[0].1) {
        let expected = person(*position);
        assert_eq!(sex.as_deref(), expected.split(',').nth(5));
    }
    let fast: BTreeSet<_> = rows.subgroups[2].1.iter().cloned().collect();
    assert!(fast.contains(&None), "a missing pulse belongs to no subgroup");
    for wrong in ["nosuch", "count(*)", "(SELECT max(age) FROM admissions)"] {
        let error = block_on(home_rows(&prepared.home, &KEYS, Part::Test, &[wrong.to_owned()])).unwrap_err();
        assert!(error.to_string().contains(wrong), "{error}");
    }
}

#[test]
fn raw_rows_have_quasi_identifiers_and_neither_identifiers_nor_dropped_attributes() {
    let mut hospital = Hospital::new(500);
    hospital.pipeline["prepare"]["drop"] = json!(["sex", "zip", "pulse"]);
    let prepared = hospital.prepare().unwrap();
    let rows = block_on(raw_rows(&prepared.home, &KEYS, Part::Train)).unwrap();
    // Postal codes differ in too many ways to be a category.
    assert_eq!(rows.header, ["age", "sex", "diagnosis"]);
    assert_eq!(rows.outcomes.len(), rows.records.len());
    let position = rows.positions[0];
    let record = person(position);
    let fields: Vec<&str> = record.split(',').collect();
    assert_eq!(rows.records[0], [fields[4], fields[5], fields[6]]);
}

#[test]
fn suppressed_rows_are_not_among_those_that_were_trained_on() {
    let mut hospital = Hospital::new(500);
    hospital.sql("SELECT age_band(age, 5) AS age, diagnosis, died FROM admissions");
    hospital.pipeline["prepare"]["disclosure"] =
        json!({"to": "internal", "k": 26, "on_violation": "suppress", "max_suppressed": 0.9});
    let prepared = hospital.prepare().unwrap();
    assert!(prepared.risk.suppressed_rows > 0 && prepared.risk.k >= 26);
    for (name, part) in [("train", Part::Train), ("validation", Part::Validation)] {
        let rows = block_on(home_rows(&prepared.home, &KEYS, part, &[])).unwrap();
        assert_eq!(rows.records.len(), table(&prepared, name).1.len());
    }
}

#[test]
fn a_bad_home_row_is_told_when_it_is_needed() {
    let hospital = Hospital::new(400);
    let home = hospital.prepare().unwrap().home;
    let test = block_on(home_rows(&home, &KEYS, Part::Test, &[])).unwrap();
    let number = test.positions[3];
    hospital.write(&csv(0..400).replace(
        &person(number),
        &format!("P{number:06},A,900-00-0000,10000,40,male,Coma,planted,x,1"),
    ));
    let prepared = hospital.prepare().unwrap();
    let error = block_on(home_rows(&prepared.home, &KEYS, Part::Test, &[]))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(&format!("admissions.csv:{}", number + 2)) && error.contains("`pulse`"),
        "{error}"
    );
    assert!(!error.contains("planted"), "{error}");
    assert!(block_on(home_rows(&prepared.home, &KEYS, Part::Refine, &[])).is_ok());
}
