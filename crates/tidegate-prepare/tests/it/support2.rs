//! Real patients: the example's 9,105 records of SUPPORT2.

use std::path::{Path, PathBuf};

use tidegate_prepare::{Part, PrepareInput, Prepared, home_rows, prepare};
use tidegate_types::files::{Pipeline, read_catalog, read_pipeline};

use super::fixture::{KEYS, block_on, table};

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/hospital")
}

fn pipeline() -> Pipeline {
    let text = std::fs::read_to_string(example().join("tidegate.yaml")).unwrap();
    read_pipeline("tidegate.yaml", &text).unwrap()
}

fn prepared(folder: &Path) -> Prepared {
    let text = std::fs::read_to_string(example().join("catalog.yaml")).unwrap();
    let catalog = read_catalog("catalog.yaml", &text).unwrap();
    block_on(prepare(&PrepareInput {
        catalog: &catalog,
        catalog_folder: &example(),
        brought: None,
        pipeline: &pipeline(),
        sql: None,
        sample: None,
        folder,
        keys: &KEYS,
    }))
    .unwrap()
}

#[test]
fn nine_thousand_patients_are_prepared_as_the_example_says() {
    let folder = tempfile::tempdir().unwrap();
    let prepared = prepared(folder.path());
    assert!(prepared.risk.k >= 5 && prepared.risk.rows > 5200, "{:?}", prepared.risk);
    assert!(prepared.columns.iter().any(|column| column == "meanbp"));
    let dropped = pipeline().prepare.drop;
    assert!(dropped.len() > 20 && !prepared.columns.iter().any(|column| dropped.contains(column)));
    let by = ["sex", "race", "age_band(age, 10)"].map(str::to_owned);
    let test = block_on(home_rows(&prepared.home, &KEYS, Part::Test, &by)).unwrap();
    assert!(test.records.len() > 2500 && test.outcomes.iter().filter(|died| **died).count() > 550);
    assert_eq!(test.subgroups.len(), 3);
    let (header, rows) = table(&prepared, "train");
    assert_eq!(header, prepared.columns);
    assert!(rows.len() > 4700 && rows.iter().all(|row| row.len() == header.len()));
}
