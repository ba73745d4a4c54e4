//! Real patients, where the file is given: `TIDEGATE_SUPPORT2=/path/to/support2.csv`.

use std::time::Instant;

use serde_json::json;
use tidegate_prepare::{Part, PrepareInput, home_rows, prepare};
use tidegate_types::files::{read_catalog, read_pipeline};

use super::fixture::{Hospital, KEYS, block_on, table};

const LEAKS: [&str; 20] = [
    "death", "d.time", "slos", "sfdm2", "charges", "totcst", "totmcst", "avtisst", "surv2m", "surv6m", "prg2m",
    "prg6m", "dnr", "dnrday", "aps", "sps", "adlp", "adls", "adlsc", "sex",
];

#[test]
fn nine_thousand_patients_are_prepared_within_seconds() {
    let Some(source) = std::env::var_os("TIDEGATE_SUPPORT2") else {
        println!("skipped: TIDEGATE_SUPPORT2 does not name a file");
        return;
    };
    let mut hospital = Hospital::new(0);
    std::fs::copy(source, hospital.path().join("admissions.csv")).unwrap();
    hospital.catalog["datasets"]["admissions"]["subject"] = json!("sno");
    hospital.catalog["datasets"]["admissions"]["columns"] = json!({
        "sno": {"role": "identifier", "kind": "record_number"},
        "age": {"role": "quasi_identifier", "kind": "age"},
        "sex": {"role": "quasi_identifier"}, "race": {"role": "quasi_identifier"},
        "income": {"role": "quasi_identifier"}, "edu": {"role": "quasi_identifier"},
        "*": {"role": "attribute"}
    });
    let mut drop = LEAKS.to_vec();
    drop.extend(["race", "income", "edu"]);
    hospital.pipeline["prepare"]["drop"] = json!(drop);
    hospital.pipeline["prepare"]["target"] = json!("hospdead");
    let started = Instant::now();
    let prepared = hospital.prepare().unwrap();
    let seconds = started.elapsed().as_secs_f64();
    println!("prepared in {seconds:.2} s: {:?}", prepared.risk);
    assert!(seconds < 5.0, "{seconds} s");
    assert!(prepared.risk.k >= 5 && prepared.risk.rows > 6000);
    assert!(!prepared.columns.iter().any(|column| LEAKS.contains(&column.as_str())));
    let by = ["sex", "race", "age_band(age, 10)"].map(str::to_owned);
    let test = block_on(home_rows(&prepared.home, &KEYS, Part::Test, &by)).unwrap();
    assert!(test.records.len() > 1600 && test.outcomes.iter().filter(|died| **died).count() > 350);
    assert!(table(&prepared, "train").1.len() > 5000);
}

#[test]
fn the_example_is_prepared() {
    let example = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/hospital");
    let read = |name: &str| std::fs::read_to_string(example.join(name)).unwrap();
    let catalog = read_catalog("catalog.yaml", &read("catalog.yaml")).unwrap();
    let pipeline = read_pipeline("tidegate.yaml", &read("tidegate.yaml")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let prepared = block_on(prepare(&PrepareInput {
        catalog: &catalog,
        catalog_folder: &example,
        pipeline: &pipeline,
        sql: None,
        sample: None,
        folder: folder.path(),
        keys: &KEYS,
    }))
    .unwrap();
    assert!(prepared.risk.k >= 5 && prepared.risk.rows > 1000, "{:?}", prepared.risk);
    assert!(prepared.columns.iter().any(|column| column == "meanbp"));
}
