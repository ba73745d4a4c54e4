//! What leaves: which columns and rows, in which order, made how often.

use std::collections::BTreeSet;
use std::fs;

use serde_json::json;
use tidegate_prepare::{Part, analyse, apply_recipe, home_rows, read_recipe};

use super::fixture::{Hospital, KEYS, block_on, inputs, table};

#[test]
fn the_profile_lets_out_bands_and_attributes_and_nothing_else() {
    let hospital = Hospital::new(600);
    let prepared = hospital.prepare().unwrap();
    assert_eq!(prepared.columns.last().unwrap(), "died");
    let columns: BTreeSet<&str> = prepared.columns.iter().map(String::as_str).collect();
    for column in ["patient_id", "name", "ssn", "zip", "sex", "note"] {
        assert!(!columns.contains(column), "{column} left");
    }
    assert!(columns.contains("diagnosis") && columns.contains("pulse"));
    assert_eq!(prepared.risk.quasi_identifiers, ["age"]);
    assert!(prepared.risk.k >= 5 && prepared.labels.is_clean());
    let (header, rows) = table(&prepared, "train");
    let age = header.iter().position(|column| column == "age").unwrap();
    let pulse = header.iter().position(|column| column == "pulse").unwrap();
    for row in &rows {
        assert!(
            row[age].parse::<f64>().map_or(true, |age| age % 5.0 == 0.0),
            "{:?}",
            row[age]
        );
        assert_eq!(row[pulse].trim(), row[pulse]);
    }
    assert!(rows.iter().any(|row| row[pulse].is_empty()) && rows.iter().any(|row| row[pulse].ends_with(".5")));
}

#[test]
fn every_subject_is_in_one_part_and_all_rows_are_somewhere() {
    let hospital = Hospital::new(500);
    let twice = (0..500).chain(0..250);
    hospital.write(&super::fixture::csv(twice));
    let prepared = hospital.prepare().unwrap();
    let mut seen: BTreeSet<u64> = BTreeSet::new();
    let mut rows = 0;
    for part in [Part::Train, Part::Validation, Part::Refine, Part::Test] {
        let found = block_on(home_rows(&prepared.home, &KEYS, part, &[])).unwrap();
        let subjects: BTreeSet<u64> = found.subjects.iter().copied().collect();
        assert!(seen.is_disjoint(&subjects), "a person is in two parts");
        rows += found.records.len();
        seen.extend(subjects);
    }
    assert_eq!((seen.len(), rows), (500, 750));
}

#[test]
fn rows_leave_in_an_order_that_is_not_the_sources() {
    let mut hospital = Hospital::new(600);
    hospital.write(&super::fixture::csv(0..600).replace("seen on Monday", "x"));
    let prepared = hospital.prepare().unwrap();
    let home = block_on(home_rows(&prepared.home, &KEYS, Part::Train, &[])).unwrap();
    let csv = String::from_utf8(inputs(&prepared)["train"].clone()).unwrap();
    let left: Vec<String> = csv.lines().skip(1).map(str::to_owned).collect();
    let source: Vec<String> = home
        .records
        .iter()
        .zip(&home.outcomes)
        .map(|(row, died)| format!("{},{}", row.join(","), u8::from(*died)))
        .collect();
    assert_ne!(left, source);
    let (mut left_sorted, mut source_sorted) = (left.clone(), source.clone());
    left_sorted.sort();
    source_sorted.sort();
    assert_eq!(left_sorted, source_sorted, "training and home disagree about a row");
    // Reversing the source changes neither the rows nor their order.
    let mut lines: Vec<String> = fs::read_to_string(hospital.path().join("admissions.csv"))
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect();
    lines[1..].reverse();
    let other = Hospital::new(0);
    other.write(&(lines.join("\n") + "\n"));
    let reversed = other.prepare().unwrap();
    let (a, b) = (table(&prepared, "train"), table(&reversed, "train"));
    assert_eq!(a, b);
    hospital.pipeline["name"] = json!("other");
    assert!(
        hospital.prepare().unwrap().reused,
        "the pipeline's name decides nothing"
    );
}

#[test]
fn the_same_row_has_the_same_features_in_training_at_home_and_in_prediction() {
    let mut hospital = Hospital::new(600);
    hospital.sql(
        "SELECT age_band(age, 10) AS age, CASE WHEN pulse > 100 THEN 'fast' ELSE diagnosis END AS state, pulse / 3 AS \
         third, diagnosis, died FROM admissions WHERE age_band(age, 10) >= 30",
    );
    let prepared = hospital.prepare().unwrap();
    let recipe = read_recipe(&prepared.home).unwrap();
    assert_eq!(recipe.needs, ["age", "diagnosis", "pulse"].map(str::to_owned).into());
    // New records: other order, fewer columns, more columns, no target.
    let source = fs::read_to_string(hospital.path().join("admissions.csv")).unwrap();
    let mut new = String::from("ward,pulse,age,diagnosis\n");
    for line in source.lines().skip(1) {
        let fields: Vec<&str> = line.split(',').collect();
        new.push_str(&format!("W1,{},{},{}\n", fields[7], fields[4], fields[6]));
    }
    let path = hospital.path().join("new.csv");
    fs::write(&path, new).unwrap();
    let predicted = block_on(apply_recipe(&recipe, &KEYS, &path)).unwrap();
    assert!(predicted.outcomes.is_empty());
    let mut all: Vec<(u64, Vec<String>)> = Vec::new();
    for part in [Part::Train, Part::Validation, Part::Refine, Part::Test] {
        let rows = block_on(home_rows(&prepared.home, &KEYS, part, &[])).unwrap();
        assert_eq!(rows.header, predicted.header);
        assert_eq!(rows.outcomes.len(), rows.records.len());
        all.extend(rows.positions.into_iter().zip(rows.records));
    }
    all.sort();
    let predicted: Vec<_> = predicted.positions.into_iter().zip(predicted.records).collect();
    assert!(predicted.len() > 100 && predicted.len() < 600);
    assert_eq!(all, predicted);
    // And what left is among them.
    let (header, rows) = table(&prepared, "train");
    let known: BTreeSet<&Vec<String>> = all.iter().map(|(_, row)| row).collect();
    let died = header.iter().position(|column| column == "died").unwrap();
    for mut row in rows {
        row.remove(died);
        assert!(known.contains(&row));
    }
}

#[test]
fn outcomes_of_new_records_are_given_for_all_or_for_none() {
    let hospital = Hospital::new(400);
    let home = hospital.prepare().unwrap().home;
    let recipe = read_recipe(&home).unwrap();
    let path = hospital.path().join("new.csv");
    for (records, outcomes) in [
        ("80,50,Coma,1\n70,40,Coma,0\n", vec![true, false]),
        ("80,50,Coma,1\n70,40,Coma,\n", vec![]),
    ] {
        fs::write(&path, format!("pulse,age,diagnosis,died\n{records}")).unwrap();
        let rows = block_on(apply_recipe(&recipe, &KEYS, &path)).unwrap();
        assert_eq!((rows.records.len(), rows.outcomes), (2, outcomes));
    }
}

#[test]
fn what_is_missing_in_new_records_is_told() {
    let prepared = Hospital::new(400);
    let home = prepared.prepare().unwrap().home;
    let path = prepared.path().join("new.csv");
    fs::write(&path, "pulse,age\n80,50\n").unwrap();
    let recipe = read_recipe(&home).unwrap();
    let error = block_on(apply_recipe(&recipe, &KEYS, &path)).unwrap_err().to_string();
    assert!(error.contains("`diagnosis`") && !error.contains("`ssn`"), "{error}");
    fs::write(&path, "pulse,age,diagnosis\n80,50,Coma\nplanted-value,50,Coma\n").unwrap();
    let error = block_on(apply_recipe(&recipe, &KEYS, &path)).unwrap_err().to_string();
    assert!(
        error.contains("new.csv:3") && error.contains("`pulse`") && !error.contains("planted"),
        "{error}"
    );
}

#[test]
fn the_second_call_reuses_and_a_killed_one_is_repeated() {
    let hospital = Hospital::new(400);
    let first = hospital.prepare().unwrap();
    assert!(!first.reused);
    let second = hospital.prepare().unwrap();
    assert!(second.reused);
    assert_eq!(inputs(&first), inputs(&second));
    // What a kill leaves: half-written folders and files under temporary names, and the register
    // entry without the result.
    let bytes = inputs(&first);
    let prepared = first.home.parent().unwrap().to_path_buf();
    fs::remove_dir_all(&prepared).unwrap();
    let half = prepared.with_file_name(".partial-half");
    fs::create_dir_all(half.join("inputs/train")).unwrap();
    fs::write(half.join("inputs/train/part-00000.csv"), "half").unwrap();
    fs::write(hospital.stage().join("releases/.partial-x"), "half").unwrap();
    fs::create_dir_all(hospital.stage().join("snapshots/.partial-y")).unwrap();
    let third = hospital.prepare().unwrap();
    assert!(!third.reused && !half.exists());
    assert_eq!(bytes, inputs(&third));
    assert_eq!(third.risk, first.risk);
    assert_eq!(third.risk.earlier_releases, 0, "a release does not count itself");
}

#[test]
fn a_result_without_its_report_is_made_again() {
    let hospital = Hospital::new(400);
    let first = hospital.prepare().unwrap();
    let bytes = inputs(&first);
    let folder = first.home.parent().unwrap();
    fs::remove_file(folder.join("report.json")).unwrap();
    fs::write(folder.join("inputs/train/part-00000.csv"), "half").unwrap();
    let second = hospital.prepare().unwrap();
    assert!(!second.reused);
    assert_eq!(inputs(&second), bytes);
    assert!(hospital.prepare().unwrap().reused);
}

#[test]
fn analysing_writes_nothing_and_agrees_with_preparing() {
    let hospital = Hospital::new(300);
    let (labels, bytes) = hospital.with_input(|input| block_on(analyse(input))).unwrap();
    assert!(!hospital.stage().exists());
    assert_eq!(
        bytes,
        fs::metadata(hospital.path().join("admissions.csv")).unwrap().len()
    );
    assert_eq!(labels, hospital.prepare().unwrap().labels);
}

#[test]
fn a_sample_reads_no_more_than_asked() {
    let mut hospital = Hospital::new(2000);
    hospital.sample = Some(500);
    let prepared = hospital.prepare().unwrap();
    let mut rows = 0;
    for part in [Part::Train, Part::Validation, Part::Refine, Part::Test] {
        rows += block_on(home_rows(&prepared.home, &KEYS, part, &[]))
            .unwrap()
            .records
            .len();
    }
    assert_eq!(rows, 500);
}

#[test]
fn two_calls_at_once_do_it_once() {
    let hospital = Hospital::new(400);
    let results: Vec<bool> = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| hospital.prepare().unwrap().reused))
            .collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    assert_eq!(results.iter().filter(|reused| !**reused).count(), 1);
}

#[test]
fn the_types_of_the_columns_travel_with_the_rows() {
    let mut hospital = Hospital::new(2000);
    hospital.sql(
        "SELECT zip3(zip) AS zip, age_band(age, 30) AS age, diagnosis, pulse, pulse > 90 AS fast, died FROM admissions",
    );
    hospital.pipeline["prepare"]["disclosure"]["on_violation"] = json!("suppress");
    hospital.pipeline["prepare"]["disclosure"]["max_suppressed"] = json!(0.9);
    let prepared = hospital.prepare().unwrap();
    for folder in prepared.inputs.values() {
        let text = fs::read_to_string(folder.join("csv-metadata.json")).unwrap();
        let found: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&found["@context"], &found["url"]),
            (&json!("http://www.w3.org/ns/csvw"), &json!("part-00000.csv"))
        );
        let columns: Vec<(&str, &str)> = found["tableSchema"]["columns"]
            .as_array()
            .unwrap()
            .iter()
            .map(|column| (column["name"].as_str().unwrap(), column["datatype"].as_str().unwrap()))
            .collect();
        let expected = [
            ("zip", "string"),
            ("age", "integer"),
            ("diagnosis", "string"),
            ("pulse", "double"),
            ("fast", "boolean"),
            ("died", "integer"),
        ];
        assert_eq!(columns, expected);
    }
}
