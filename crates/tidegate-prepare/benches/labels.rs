//! How long planning and label analysis of the query of a wide table take. No row is read.

use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::datasource::MemTable;
use tidegate_prepare::labels::{Facts, analyse};
use tidegate_prepare::{profile, session};
use tidegate_types::files::catalog::{Catalog, Dataset};
use tidegate_types::files::pipeline::Profile;
use tidegate_types::ids::DatasetName;
use tidegate_types::label::Level;

/// As wide as SUPPORT2 with its added identifiers.
const COLUMNS: usize = 60;

fn dataset() -> Dataset {
    let catalog = r#"{"datasets": {"people": {"site": "hospital", "source": "people.csv", "subject": "c0",
        "purposes": ["research"], "columns": {
            "c0": {"role": "identifier", "kind": "record_number"},
            "c1": {"role": "quasi_identifier", "kind": "age"},
            "c2": {"role": "quasi_identifier", "kind": "zip_code"},
            "*": {"role": "attribute"}}}}}"#;
    let catalog: Catalog = serde_json::from_str(catalog).unwrap_or_else(|error| unreachable!("{error}"));
    catalog
        .datasets
        .into_values()
        .next()
        .unwrap_or_else(|| unreachable!("the catalog names one dataset"))
}

fn labels(criterion: &mut Criterion) {
    let (Ok(runtime), Ok(name)) = (
        tokio::runtime::Builder::new_current_thread().build(),
        DatasetName::new("people"),
    ) else {
        return;
    };
    let dataset = dataset();
    let facts = Facts {
        dataset: &name,
        facts: &dataset,
        columns: (0..COLUMNS).map(|number| format!("c{number}")).collect(),
        profile: Profile::HipaaSafeHarbor,
        to: Level::Internal,
        target: "c59",
        subject: Some("c0"),
    };
    let schema = Arc::new(Schema::new(
        facts
            .columns
            .iter()
            .map(|name| {
                Field::new(
                    name,
                    if name == "c2" {
                        DataType::Utf8
                    } else {
                        DataType::Float64
                    },
                    true,
                )
            })
            .collect::<Vec<_>>(),
    ));
    let context = session::session(None);
    let table = MemTable::try_new(Arc::clone(&schema), vec![vec![RecordBatch::new_empty(schema)]]);
    let registered = table.map(|table| context.register_table("people", Arc::new(table)));
    assert!(registered.is_ok_and(|it| it.is_ok()));
    let sql = profile::write_sql(&facts, &Default::default());
    let plan = runtime.block_on(session::plan(&context, &sql));
    let Ok(plan) = plan else { return };
    assert!(analyse(&plan, &facts, &sql).is_clean());
    criterion.bench_function("label analysis of 60 columns", |bencher| {
        bencher.iter(|| analyse(&plan, &facts, &sql));
    });
    criterion.bench_function("planning of 60 columns", |bencher| {
        bencher.iter(|| runtime.block_on(session::plan(&context, &sql)).is_ok());
    });
}

criterion_group!(benches, labels);
criterion_main!(benches);
