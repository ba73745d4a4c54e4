//! A small dataset of invented people, for the tests of the label analysis.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, Date32Array, Float64Array, Int64Array, RecordBatch, StringArray};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::datasource::MemTable;
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::SessionContext;
use tidegate_prepare::labels::{Facts, analyse};
use tidegate_prepare::session::{self, FunctionKeys};
use tidegate_types::files::catalog::{Column, Dataset};
use tidegate_types::files::pipeline::Profile;
use tidegate_types::ids::{DatasetName, Purpose, SiteName};
use tidegate_types::label::{Level, Residency};
use tidegate_types::report::LabelReport;
use tidegate_types::{IdentifierKind, Role};

pub(crate) const COLUMNS: [&str; 13] = [
    "patient_id",
    "name",
    "notes",
    "born",
    "admitted",
    "zip",
    "age",
    "sex",
    "income",
    "hrt",
    "days",
    "died",
    "mystery",
];

/// One person. `None` is a missing value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Person {
    pub(crate) patient_id: i64,
    pub(crate) name: Option<String>,
    pub(crate) notes: Option<String>,
    /// Days since 1970-01-01.
    pub(crate) born: Option<i32>,
    pub(crate) admitted: Option<i32>,
    pub(crate) zip: Option<String>,
    pub(crate) age: Option<i64>,
    pub(crate) sex: Option<String>,
    pub(crate) income: Option<i64>,
    pub(crate) hrt: Option<f64>,
    pub(crate) days: Option<i64>,
    pub(crate) died: i64,
    /// Not in the catalog.
    pub(crate) mystery: Option<i64>,
}

impl Person {
    pub(crate) fn number(number: i64) -> Self {
        Self {
            patient_id: 1000 + number,
            name: Some(format!("name{number}")),
            notes: Some(format!("note {number}")),
            born: Some(-3000 + 500 * i32::try_from(number).unwrap()),
            admitted: Some(19_000),
            zip: Some("02139".to_owned()),
            age: Some(40 + number),
            sex: Some(if number % 2 == 0 { "f" } else { "m" }.to_owned()),
            income: Some(number % 3),
            hrt: Some(70.5),
            days: Some(number),
            died: number % 2,
            mystery: Some(number),
        }
    }
}

pub(crate) fn batch(people: &[Person]) -> RecordBatch {
    let texts = |get: fn(&Person) -> &Option<String>| {
        Arc::new(people.iter().map(|it| get(it).as_deref()).collect::<StringArray>()) as ArrayRef
    };
    let numbers =
        |get: fn(&Person) -> Option<i64>| Arc::new(people.iter().map(get).collect::<Int64Array>()) as ArrayRef;
    let dates = |get: fn(&Person) -> Option<i32>| Arc::new(people.iter().map(get).collect::<Date32Array>()) as ArrayRef;
    let columns: [ArrayRef; 13] = [
        numbers(|it| Some(it.patient_id)),
        texts(|it| &it.name),
        texts(|it| &it.notes),
        dates(|it| it.born),
        dates(|it| it.admitted),
        texts(|it| &it.zip),
        numbers(|it| it.age),
        texts(|it| &it.sex),
        numbers(|it| it.income),
        Arc::new(people.iter().map(|it| it.hrt).collect::<Float64Array>()),
        numbers(|it| it.days),
        numbers(|it| Some(it.died)),
        numbers(|it| it.mystery),
    ];
    let named = COLUMNS
        .into_iter()
        .zip(columns)
        .map(|(name, column)| (name, column, true));
    RecordBatch::try_from_iter_with_nullable(named).unwrap()
}

pub(crate) fn schema() -> SchemaRef {
    batch(&[]).schema()
}

/// A session over `people`, with keys.
pub(crate) fn context(people: &[Person]) -> SessionContext {
    let context = session::session(Some(&FunctionKeys { token: [3; 32] }));
    let table = MemTable::try_new(schema(), vec![vec![batch(people)]]).unwrap();
    context.register_table("people", Arc::new(table)).unwrap();
    let other = MemTable::try_new(schema(), vec![vec![batch(&[Person::number(1)])]]).unwrap();
    context.register_table("others", Arc::new(other)).unwrap();
    context
}

pub(crate) fn catalog() -> Dataset {
    let column = |role, kind| Column {
        role,
        kind,
        value_type: None,
    };
    use IdentifierKind as Kind;
    let columns = [
        ("patient_id", column(Role::Identifier, Kind::RecordNumber)),
        ("name", column(Role::Identifier, Kind::Name)),
        ("notes", column(Role::Text, Kind::Value)),
        ("born", column(Role::Identifier, Kind::Date)),
        // Said to be a plain attribute; its type says that it is a date.
        ("admitted", column(Role::Attribute, Kind::Value)),
        ("zip", column(Role::QuasiIdentifier, Kind::ZipCode)),
        ("age", column(Role::QuasiIdentifier, Kind::Age)),
        ("sex", column(Role::QuasiIdentifier, Kind::Value)),
        ("income", column(Role::Sensitive, Kind::Value)),
        ("hrt", column(Role::Attribute, Kind::Value)),
        ("days", column(Role::Attribute, Kind::Value)),
        ("died", column(Role::Attribute, Kind::Value)),
    ];
    Dataset {
        site: SiteName::new("hospital").unwrap(),
        source: "people.csv".to_owned(),
        subject: Some("patient_id".to_owned()),
        purposes: [Purpose::new("quality-of-care").unwrap()].into(),
        least_k: 5,
        least_l: 1,
        tags: ["phi".to_owned()].into(),
        residency: Residency::only(["US"]),
        public: false,
        csv: tidegate_types::files::catalog::CsvOptions::default(),
        columns: columns
            .into_iter()
            .map(|(name, column)| (name.to_owned(), column))
            .collect(),
    }
}

/// What the analysis is told, with everything in its usual place.
pub(crate) struct World {
    pub(crate) name: DatasetName,
    pub(crate) dataset: Dataset,
    pub(crate) profile: Profile,
    pub(crate) to: Level,
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            name: DatasetName::new("people").unwrap(),
            dataset: catalog(),
            profile: Profile::HipaaSafeHarbor,
            to: Level::Internal,
        }
    }

    pub(crate) fn facts(&self) -> Facts<'_> {
        Facts {
            dataset: &self.name,
            facts: &self.dataset,
            columns: COLUMNS.map(str::to_owned).to_vec(),
            profile: self.profile,
            to: self.to,
            target: "died",
            subject: self.dataset.subject.as_deref(),
        }
    }

    pub(crate) fn report(&self, plan: &LogicalPlan, sql: &str) -> LabelReport {
        analyse(plan, &self.facts(), sql)
    }

    pub(crate) async fn report_of(&self, sql: &str) -> LabelReport {
        self.report(&plan(sql).await, sql)
    }
}

/// The analysed plan of `sql` over an empty table.
pub(crate) async fn plan(sql: &str) -> LogicalPlan {
    match session::plan(&context(&[]), sql).await {
        Ok(plan) => plan,
        Err(error) => panic!("{sql}: {error}"),
    }
}

/// The same by a planner that keeps an ORDER BY inside a subquery, which ours drops.
pub(crate) async fn plan_keeping_order(sql: &str) -> LogicalPlan {
    let context = context(&[]);
    let options = |state: &mut datafusion::execution::SessionState| {
        state
            .config_mut()
            .options_mut()
            .sql_parser
            .enable_subquery_sort_elimination = false;
    };
    options(&mut context.state_ref().write());
    session::plan(&context, sql).await.unwrap()
}

/// The output rows of `sql` as sorted texts, or `None` if it fails.
pub(crate) async fn execute(people: &[Person], sql: &str) -> Option<Vec<String>> {
    let context = context(people);
    let plan = session::plan(&context, sql).await.unwrap();
    let batches = context.execute_logical_plan(plan).await.ok()?.collect().await.ok()?;
    let mut rows = Vec::new();
    let options = FormatOptions::default().with_null("NULL");
    for batch in &batches {
        let columns: Vec<_> = batch
            .columns()
            .iter()
            .map(|column| ArrayFormatter::try_new(column.as_ref(), &options).unwrap())
            .collect();
        for row in 0..batch.num_rows() {
            let fields: Vec<String> = columns.iter().map(|column| column.value(row).to_string()).collect();
            rows.push(fields.join("|"));
        }
    }
    rows.sort();
    Some(rows)
}

/// The analysed plan of `sql`, or `None` where it does not fit the table.
pub(crate) async fn try_plan(sql: &str) -> Option<LogicalPlan> {
    session::plan(&context(&[]), sql).await.ok()
}
