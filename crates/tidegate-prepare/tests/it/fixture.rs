//! A small hospital: its catalog, its pipeline, its rows.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;
use tidegate_prepare::{Keys, PrepareError, PrepareInput, Prepared, prepare};
use tidegate_types::files::{Catalog, Pipeline};

pub(crate) const HEADER: &str = "patient_id,name,ssn,zip,age,sex,diagnosis,pulse,note,died";

pub(crate) const KEYS: Keys = Keys {
    split: [3; 32],
    values: [5; 32],
};

pub(crate) struct Hospital {
    folder: PathBuf,
    _owned: Option<TempDir>,
    pub(crate) catalog: Value,
    pub(crate) pipeline: Value,
    pub(crate) sample: Option<u64>,
}

/// The record of one person; everything about it follows from its number.
pub(crate) fn person(number: u64) -> String {
    let mixed = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20;
    let age = 20 + mixed % 60;
    let sex = ["female", "male"][(mixed >> 8) as usize % 2];
    let diagnosis = ["Cirrhosis", "Coma", "Lung Cancer"][(mixed >> 12) as usize % 3];
    let pulse = if number.is_multiple_of(11) {
        String::new()
    } else {
        format!("  {}.5 ", 50 + (mixed >> 16) % 90)
    };
    format!(
        "P{number:06},Person Number{number},{:03}-{:02}-{:04},{:05},{age},{sex},{diagnosis},{pulse},seen on Monday,{}",
        900 + number % 100,
        10 + number % 90,
        1000 + number % 9000,
        10_000 + mixed % 89_999,
        u64::from((mixed >> 24).is_multiple_of(4)),
    )
}

pub(crate) fn csv(numbers: impl IntoIterator<Item = u64>) -> String {
    let mut text = format!("{HEADER}\n");
    for number in numbers {
        text.push_str(&person(number));
        text.push('\n');
    }
    text
}

impl Hospital {
    pub(crate) fn new(rows: u64) -> Self {
        let owned = tempfile::tempdir().unwrap();
        let mut hospital = Self::at(owned.path());
        hospital._owned = Some(owned);
        hospital.write(&csv(0..rows));
        hospital
    }

    /// The same in a folder that somebody else owns and filled.
    pub(crate) fn at(folder: &Path) -> Self {
        Self {
            folder: folder.to_path_buf(),
            _owned: None,
            catalog: json!({"datasets": {"admissions": {
                "site": "hospital", "source": "admissions.csv", "subject": "patient_id",
                "purposes": ["quality-of-care"], "tags": ["phi"], "residency": {"only": ["US"]},
                "columns": {
                    "patient_id": {"role": "identifier", "kind": "record_number"},
                    "name": {"role": "identifier", "kind": "name"},
                    "ssn": {"role": "identifier", "kind": "national_id"},
                    "zip": {"role": "quasi_identifier", "kind": "zip_code"},
                    "age": {"role": "quasi_identifier", "kind": "age"},
                    "sex": {"role": "quasi_identifier"},
                    "diagnosis": {"role": "attribute"},
                    "note": {"role": "text"},
                    "*": {"role": "attribute"}
                }
            }}}),
            pipeline: json!({
                "name": "mortality", "purpose": "quality-of-care",
                "prepare": {
                    "from": "admissions", "profile": "hipaa-safe-harbor", "target": "died", "drop": ["zip", "sex"],
                    "disclosure": {"to": "internal", "k": 5}
                },
                "train": {"trainer": {"model": "logistic"}},
                "deploy": ["hospital"]
            }),
            sample: None,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn stage(&self) -> PathBuf {
        self.path().join("stage")
    }

    pub(crate) fn write(&self, text: &str) {
        fs::write(self.path().join("admissions.csv"), text).unwrap();
    }

    pub(crate) fn sql(&mut self, sql: &str) -> &mut Self {
        self.pipeline["prepare"]["sql"] = json!(sql);
        self
    }

    pub(crate) fn with_input<R>(&self, run: impl FnOnce(&PrepareInput<'_>) -> R) -> R {
        let catalog: Catalog = serde_json::from_value(self.catalog.clone()).unwrap();
        let pipeline: Pipeline = serde_json::from_value(self.pipeline.clone()).unwrap();
        run(&PrepareInput {
            catalog: &catalog,
            catalog_folder: self.path(),
            brought: None,
            pipeline: &pipeline,
            sql: None,
            sample: self.sample,
            folder: &self.stage(),
            keys: &KEYS,
        })
    }

    pub(crate) fn prepare(&self) -> Result<Prepared, PrepareError> {
        self.with_input(|input| block_on(prepare(input)))
    }
}

pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .unwrap()
        .block_on(future)
}

/// The bytes of the rows of every input.
pub(crate) fn inputs(prepared: &Prepared) -> BTreeMap<String, Vec<u8>> {
    prepared
        .inputs
        .iter()
        .map(|(name, folder)| {
            let mut files: Vec<_> = fs::read_dir(folder)
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            files.sort();
            assert_eq!(files, ["csv-metadata.json", "part-00000.csv"]);
            (name.clone(), fs::read(folder.join("part-00000.csv")).unwrap())
        })
        .collect()
}

/// Header and rows of one input, sorted, for comparison with other orders.
pub(crate) fn table(prepared: &Prepared, input: &str) -> (Vec<String>, Vec<Vec<String>>) {
    let text = String::from_utf8(inputs(prepared)[input].clone()).unwrap();
    let mut lines = text
        .lines()
        .map(|line| line.split(',').map(str::to_owned).collect::<Vec<_>>());
    let header = lines.next().unwrap();
    let mut rows: Vec<_> = lines.collect();
    rows.sort();
    (header, rows)
}
