//! What stays home: where the rows of a preparation are, and how evaluation and refinement read them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tidegate_types::files::catalog::{Dataset, ValueType};
use tidegate_types::files::pipeline::Split;
use tidegate_types::ids::DatasetName;
use tidegate_types::{Digest, IdentifierKind, Role};

use crate::error::PrepareError;
use crate::execute::{Chosen, OutputBatch, Planned, RowSource, SourceColumn};
use crate::ingest::Snapshot;
use crate::recipe::{Recipe, outcome, read_recipe, token_keys};
use crate::scan::assign::Assigner;
use crate::sealed;
use crate::session;
use crate::split::{Keys, Part, Prf};

const FORMAT: &str = "tidegate.home.v2";
/// The file beside `home.json` with the numbers of the records that were suppressed, in order, each as
/// eight bytes, the highest first.
pub(crate) const SUPPRESSED: &str = "suppressed.bin";
/// Bytes of rows that are given at the most.
const MOST_BYTES: u64 = 2 << 30;
/// Different texts of a raw column at the most: a category with more teaches nothing.
const MOST_LEVELS: usize = 256;

/// Rows at home.
#[derive(Clone, PartialEq, Eq)]
pub struct Rows {
    /// The features in order, without the target.
    pub header: Vec<String>,
    /// Values exactly as the training's CSV writes them; the empty text is a missing one.
    pub records: Vec<Vec<String>>,
    /// Whether each target is 1; empty for new records without the target.
    pub outcomes: Vec<bool>,
    /// A keyed number for each row's person.
    pub subjects: Vec<u64>,
    /// For each subgroup expression its value in each row; `None` where it is missing.
    pub subgroups: Vec<(String, Vec<Option<String>>)>,
    /// For each row the number of the source record that it comes from, from 0.
    pub positions: Vec<u64>,
}

impl std::fmt::Debug for Rows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rows")
            .field("header", &self.header)
            .field("rows", &self.records.len())
            .finish_non_exhaustive()
    }
}

/// `home.json`: what is needed to find and divide the rows again.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Home {
    format: String,
    snapshot: Digest,
    name: DatasetName,
    pub(crate) dataset: Dataset,
    pub(crate) columns: Vec<HomeColumn>,
    split: Split,
    sample: Option<u64>,
    drop: Vec<String>,
    /// How many records were suppressed: they did not leave. Which is in [`SUPPRESSED`].
    suppressed: u64,
}

/// A column of the source.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HomeColumn {
    pub(crate) name: String,
    #[serde(rename = "type")]
    pub(crate) value_type: ValueType,
    /// Different values in train and validation, where the column is text; more than 256 count as 257.
    pub(crate) levels: Option<u64>,
}

/// What [`Home`] is made from.
pub(crate) struct HomeParts<'a> {
    pub(crate) snapshot: Digest,
    pub(crate) name: &'a DatasetName,
    pub(crate) dataset: &'a Dataset,
    pub(crate) columns: Vec<HomeColumn>,
    pub(crate) split: Split,
    pub(crate) sample: Option<u64>,
    pub(crate) drop: Vec<String>,
    pub(crate) suppressed: u64,
}

impl Home {
    pub(crate) fn new(parts: HomeParts<'_>) -> Self {
        Self {
            format: FORMAT.to_owned(),
            snapshot: parts.snapshot,
            name: parts.name.clone(),
            dataset: parts.dataset.clone(),
            columns: parts.columns,
            split: parts.split,
            sample: parts.sample,
            drop: parts.drop,
            suppressed: parts.suppressed,
        }
    }

    fn path(home: &Path) -> PathBuf {
        home.join("home.json")
    }

    pub(crate) fn is_at(home: &Path) -> bool {
        Self::path(home).is_file()
    }

    pub(crate) fn write(&self, home: &Path) -> Result<(), PrepareError> {
        let path = Self::path(home);
        let bytes = serde_json::to_vec_pretty(self)
            .map_err(|error| PrepareError::failed("describing the home rows", error.to_string(), "Report this"))?;
        std::fs::write(&path, bytes).map_err(|source| PrepareError::file("writing", &path, source))
    }

    pub(crate) fn read(home: &Path) -> Result<Self, PrepareError> {
        let path = Self::path(home);
        let bytes = std::fs::read(&path).map_err(|source| PrepareError::file("reading", &path, source))?;
        serde_json::from_slice(&bytes)
            .ok()
            .filter(|found: &Self| found.format == FORMAT)
            .ok_or_else(|| {
                PrepareError::failed(
                    format!("reading `{}`", path.display()),
                    "it is not what preparation wrote",
                    "Remove the folder of the preparation and prepare again",
                )
            })
    }

    /// The snapshot lies beside the preparations: `snapshots/` and `prepared/KEY/home`.
    pub(crate) fn snapshot(&self, home: &Path) -> Result<Snapshot, PrepareError> {
        Snapshot::open(&self.snapshot_folder(home))
    }

    pub(crate) fn snapshot_folder(&self, home: &Path) -> PathBuf {
        let folder = home.ancestors().nth(3).unwrap_or(home).join("snapshots");
        Snapshot::path(&folder, &self.snapshot)
    }

    fn rows(
        &self,
        home: &Path,
        keys: &Keys,
        part: Part,
        without_suppressed: bool,
    ) -> Result<Arc<RowSource>, PrepareError> {
        let header: Vec<String> = self.columns.iter().map(|column| column.name.clone()).collect();
        let assigner = Assigner::new(&self.name, &self.dataset, &header, keys, &self.split, self.sample)?;
        Ok(Arc::new(RowSource {
            files: self.snapshot(home)?.files,
            csv: self.dataset.csv.clone(),
            columns: self
                .columns
                .iter()
                .enumerate()
                .map(|(index, column)| SourceColumn {
                    name: column.name.clone(),
                    value_type: column.value_type,
                    at: Some(index),
                })
                .collect(),
            chosen: Chosen::Part(part, Box::new(assigner)),
            subjects: Prf::derive(&keys.values, "subjects", b""),
            digests: None,
            without: (without_suppressed && self.suppressed > 0).then(|| home.join(SUPPRESSED)),
        }))
    }
}

/// The rows of one part as the frozen recipe makes them, with the subgroup expressions `by` over raw
/// columns beside them. Rows of `train` and `validation` that were suppressed are not among them.
///
/// # Errors
/// When the home folder is damaged, a value does not fit its column's type, a target is neither 0
/// nor 1, or the rows need more than 2 GiB.
pub async fn home_rows(home: &Path, keys: &Keys, part: Part, by: &[String]) -> Result<Rows, PrepareError> {
    sealed::check_home(home, keys)?;
    let recipe = read_recipe(home)?;
    let facts = Home::read(home)?;
    let source = facts.rows(home, keys, part, part.crosses())?;
    let context = session::session(Some(&token_keys(keys, &recipe.release)));
    let planned = Planned::new(context, &recipe.dataset, &source, &recipe.sql).await?;
    let mut gathered = Gathered::new(&planned.columns(), &recipe.target, by);
    planned.execute(&source, by, |batch| gathered.add(batch)).await?;
    check_header(&recipe, &gathered.header)?;
    gathered.finish()
}

/// The rows of one part with all raw columns that a model could use: no identifiers, text or dropped
/// attributes, but all quasi-identifiers, also those that the pipeline drops. What a model loses
/// against these rows is the price of de-identification.
///
/// # Errors
/// As [`home_rows`]; and when the target is no column of the source.
pub async fn raw_rows(home: &Path, keys: &Keys, part: Part) -> Result<Rows, PrepareError> {
    sealed::check_home(home, keys)?;
    let recipe = read_recipe(home)?;
    let facts = Home::read(home)?;
    let source = facts.rows(home, keys, part, false)?;
    let mut columns: Vec<&str> = Vec::new();
    for column in &facts.columns {
        if column.name == recipe.target || facts.is_raw_feature(column) {
            columns.push(&column.name);
        }
    }
    if !columns.contains(&recipe.target.as_str()) {
        return Err(PrepareError::input(
            "reading raw rows",
            format!(
                "the target `{}` is no column of the source, the query computes it",
                recipe.target
            ),
            "Compare with raw columns only where the target is one of them",
        ));
    }
    let list: Vec<String> = columns
        .iter()
        .map(|column| format!("\"{}\"", column.replace('"', "\"\"")))
        .collect();
    let sql = format!("SELECT {} FROM \"{}\"", list.join(", "), facts.name);
    let planned = Planned::new(session::session(None), &facts.name, &source, &sql).await?;
    let mut gathered = Gathered::new(&planned.columns(), &recipe.target, &[]);
    planned.execute(&source, &[], |batch| gathered.add(batch)).await?;
    gathered.finish()
}

impl Home {
    fn is_raw_feature(&self, column: &HomeColumn) -> bool {
        if self.dataset.subject.as_deref() == Some(column.name.as_str()) {
            return false;
        }
        let known = if self.dataset.public {
            Some(Role::Attribute)
        } else {
            self.dataset.column(&column.name).map(|facts| facts.role)
        };
        let dropped = self.drop.contains(&column.name);
        let wanted = match known {
            Some(Role::QuasiIdentifier) => self
                .dataset
                .column(&column.name)
                .is_none_or(|facts| facts.kind != IdentifierKind::Date),
            Some(Role::Attribute | Role::Sensitive) => !dropped,
            Some(Role::Identifier | Role::Text) | None => false,
        };
        wanted
            && column.value_type != ValueType::Date
            && column.levels.is_none_or(|levels| levels <= MOST_LEVELS as u64)
    }
}

/// What the query gives now must be what the recipe was frozen with.
fn check_header(recipe: &Recipe, header: &[String]) -> Result<(), PrepareError> {
    if recipe.features.iter().map(|feature| &feature.name).eq(header) {
        Ok(())
    } else {
        Err(PrepareError::failed(
            "applying the frozen recipe",
            "its query gives other columns than when it was frozen",
            "Prepare again with this version",
        ))
    }
}

/// Position, subject, features, outcome where there is one, and subgroup values of one row.
type GatheredRow = (u64, u64, Vec<String>, Option<bool>, Vec<Option<String>>);

/// Collects output rows.
pub(crate) struct Gathered {
    pub(crate) header: Vec<String>,
    target_name: String,
    target: Option<usize>,
    columns: Vec<usize>,
    by: Vec<String>,
    rows: Vec<GatheredRow>,
    bad_targets: u64,
    /// Whether a row without an outcome is an error.
    needs_outcomes: bool,
    /// Bytes of rows that may still come.
    left: u64,
}

impl Gathered {
    pub(crate) fn new(columns: &[String], target: &str, by: &[String]) -> Self {
        let features = || columns.iter().enumerate().filter(|(_, name)| *name != target);
        Self {
            header: features().map(|(_, name)| name.clone()).collect(),
            columns: features().map(|(index, _)| index).collect(),
            target: columns.iter().position(|name| name == target),
            target_name: target.to_owned(),
            by: by.to_vec(),
            rows: Vec::new(),
            bad_targets: 0,
            needs_outcomes: true,
            left: MOST_BYTES,
        }
    }

    /// Gives outcomes only if every row has one: of new records only some may be known.
    pub(crate) fn with_outcomes_of_all_or_none(mut self) -> Self {
        self.needs_outcomes = false;
        self
    }

    /// New records need no target.
    pub(crate) fn without_target(mut self) -> Self {
        self.target = None;
        self
    }

    /// Takes the rows of a batch.
    ///
    /// # Errors
    /// When all rows together are larger than they may be.
    pub(crate) fn add(&mut self, batch: &OutputBatch) -> Result<(), PrepareError> {
        for row in 0..batch.len() {
            let record = batch.records.value(row);
            let values: Vec<String> = self
                .columns
                .iter()
                .map(|column| batch.field(*column, row).to_owned())
                .collect();
            let target = self.target.and_then(|target| outcome(batch.field(target, row)));
            self.bad_targets += u64::from(self.target.is_some() && target.is_none());
            let by: Vec<Option<String>> = batch
                .by
                .iter()
                .map(|column| Some(column.value(row).to_owned()).filter(|text| !text.is_empty()))
                .collect();
            let texts = values.iter().chain(by.iter().flatten());
            let bytes: usize = texts.map(|text| size_of::<String>() + text.len()).sum();
            let bytes = (bytes + size_of::<GatheredRow>()) as u64;
            self.left = self.left.checked_sub(bytes).ok_or_else(too_many_rows)?;
            self.rows.push((record, batch.subjects.value(row), values, target, by));
        }
        Ok(())
    }

    /// The rows in the order of the source.
    pub(crate) fn finish(mut self) -> Result<Rows, PrepareError> {
        let outcomes = self.bad_targets == 0;
        if !outcomes && self.needs_outcomes {
            return Err(bad_targets(&self.target_name, self.bad_targets, self.rows.len() as u64));
        }
        self.rows.sort_by_key(|(record, ..)| *record);
        let mut rows = Rows {
            header: self.header,
            records: Vec::with_capacity(self.rows.len()),
            outcomes: Vec::new(),
            subjects: Vec::with_capacity(self.rows.len()),
            subgroups: self.by.into_iter().map(|by| (by, Vec::new())).collect(),
            positions: Vec::with_capacity(self.rows.len()),
        };
        for (record, subject, values, target, by) in self.rows {
            rows.records.push(values);
            rows.outcomes.extend(target.filter(|_| outcomes));
            rows.subjects.push(subject);
            rows.positions.push(record);
            for ((_, column), value) in rows.subgroups.iter_mut().zip(by) {
                column.push(value);
            }
        }
        Ok(rows)
    }
}

fn too_many_rows() -> PrepareError {
    PrepareError::input(
        "reading rows at home",
        format!("they need more than {} MiB of memory", MOST_BYTES >> 20),
        "Give this part a smaller share in `prepare.split`, select fewer columns, or give fewer new records at a time",
    )
}

pub(crate) fn bad_targets(target: &str, bad: u64, rows: u64) -> PrepareError {
    PrepareError::input(
        format!("reading the target `{target}`"),
        format!("{bad} of {rows} rows hold neither 0 nor 1 in it"),
        "Give every row an outcome, filter rows without one, or give the column `type: boolean` in the catalog",
    )
}

pub(crate) fn one_outcome(target: &str, of: &str) -> PrepareError {
    PrepareError::input(
        format!("reading the target `{target}`"),
        format!("all rows of {of} have the same outcome, so that there is nothing to learn"),
        "Use a source, a sample or a query with rows of both outcomes",
    )
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::array::{StringArray, UInt64Array};

    use super::*;

    #[test]
    fn more_rows_than_fit_are_an_error_and_no_crash() {
        let numbers = || UInt64Array::from(vec![0, 1]);
        let batch = OutputBatch {
            columns: vec![StringArray::from(vec!["x", "y"]), StringArray::from(vec!["0", "1"])],
            subjects: numbers(),
            records: numbers(),
            digests: numbers(),
            by: Vec::new(),
        };
        let mut gathered = Gathered::new(&["a".to_owned(), "died".to_owned()], "died", &[]);
        gathered.left = 1000;
        let mut batches = 0;
        let error = loop {
            match gathered.add(&batch) {
                Ok(()) => batches += 1,
                Err(error) => break error.to_string(),
            }
        };
        assert!(
            batches > 0 && error.contains("smaller share in `prepare.split`"),
            "{error}"
        );
    }
}
