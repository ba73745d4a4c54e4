//! How many rows of a table are prepared in a second, beside the query engine alone: the same query with
//! ordinary expressions in place of the de-identifying functions, read from and written to CSV, without
//! snapshot, scan, labels, measurement, search for identifiers, and secret order.

use std::fmt::Write;
use std::path::Path;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use datafusion::dataframe::DataFrameWriteOptions;
use datafusion::prelude::{CsvReadOptions, SessionContext};
use tidegate_prepare::{Keys, PrepareInput, prepare};
use tidegate_types::files::{Catalog, Pipeline};

const ROWS: u64 = 200_000;

const CATALOG: &str = r#"{"datasets": {"people": {"site": "hospital", "source": "people.csv", "subject": "id",
    "purposes": ["research"], "columns": {
        "id": {"role": "identifier", "kind": "record_number"},
        "zip": {"role": "quasi_identifier", "kind": "zip_code"},
        "age": {"role": "quasi_identifier", "kind": "age"},
        "diagnosis": {"role": "sensitive"},
        "*": {"role": "attribute"}}}}}"#;

const PIPELINE: &str = r#"{"name": "bench", "purpose": "research", "prepare": {"from": "people",
    "profile": "hipaa-safe-harbor", "target": "died",
    "sql": "SELECT age_band(age, 10) AS age, zip3(zip) AS zip, diagnosis, pulse, died FROM people WHERE pulse > 51",
    "disclosure": {"to": "internal", "k": 5, "l": 2, "on_violation": "suppress", "max_suppressed": 0.9}},
    "train": {"trainer": {"model": "logistic"}}, "deploy": ["hospital"]}"#;

const PLAIN: &str =
    "SELECT age / 10 * 10 AS age, substr(zip, 1, 3) AS zip, diagnosis, pulse, died FROM people WHERE pulse > 51";

fn table() -> String {
    let mut text = String::from("id,zip,age,diagnosis,pulse,died\n");
    for number in 0..ROWS {
        let mixed = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20;
        let diagnosis = ["Cirrhosis", "Coma", "Lung Cancer", "None"][(mixed >> 12) as usize % 4];
        // Writing into memory cannot fail.
        let _ = writeln!(
            text,
            "P{number:07},Z{},{},{diagnosis},{}.5,{}",
            10_000 + mixed % 89_999,
            20 + mixed % 60,
            50 + (mixed >> 16) % 90,
            mixed >> 24 & 1
        );
    }
    text
}

fn ours(runtime: &tokio::runtime::Runtime, source: &Path, catalog: &Catalog, pipeline: &Pipeline) {
    let folder = tempfile::tempdir().unwrap_or_else(|error| unreachable!("{error}"));
    let input = PrepareInput {
        catalog,
        catalog_folder: source,
        brought: None,
        pipeline,
        sql: None,
        sample: None,
        folder: folder.path(),
        keys: &Keys {
            split: [1; 32],
            values: [2; 32],
        },
    };
    let prepared = runtime.block_on(prepare(&input));
    assert!(prepared.is_ok_and(|it| it.risk.rows > ROWS / 2 && it.risk.suppressed_rows < ROWS / 10));
}

fn engine_alone(runtime: &tokio::runtime::Runtime, source: &Path) {
    let folder = tempfile::tempdir().unwrap_or_else(|error| unreachable!("{error}"));
    let run = async {
        let context = SessionContext::new();
        let path = source.join("people.csv");
        context
            .register_csv("people", path.to_string_lossy(), CsvReadOptions::new())
            .await?;
        let to = folder.path().join("out.csv");
        let frame = context.sql(PLAIN).await?;
        frame
            .write_csv(&to.to_string_lossy(), DataFrameWriteOptions::new(), None)
            .await
    };
    assert!(runtime.block_on(run).is_ok());
}

fn preparation(criterion: &mut Criterion) {
    let (Ok(runtime), Ok(folder)) = (tokio::runtime::Runtime::new(), tempfile::tempdir()) else {
        return;
    };
    let catalog: Catalog = serde_json::from_str(CATALOG).unwrap_or_else(|error| unreachable!("{error}"));
    let pipeline: Pipeline = serde_json::from_str(PIPELINE).unwrap_or_else(|error| unreachable!("{error}"));
    let written = std::fs::write(folder.path().join("people.csv"), table());
    assert!(written.is_ok());
    let mut group = criterion.benchmark_group("200,000 rows");
    group.sample_size(10).throughput(Throughput::Elements(ROWS));
    group.bench_function("query engine alone", |bencher| {
        bencher.iter(|| engine_alone(&runtime, folder.path()));
    });
    group.bench_function("preparation", |bencher| {
        bencher.iter(|| ours(&runtime, folder.path(), &catalog, &pipeline));
    });
    group.finish();
}

criterion_group!(benches, preparation);
criterion_main!(benches);
