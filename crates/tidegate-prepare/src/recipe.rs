//! The feature recipe: everything that turns a raw record into the features that a model was trained
//! on, frozen when the training's inputs were made. It travels in the bundle.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use datafusion::logical_expr::LogicalPlan;
use serde::{Deserialize, Serialize};
use tidegate_types::Digest;
use tidegate_types::files::catalog::{CsvOptions, ValueType};
use tidegate_types::files::pipeline::Profile;
use tidegate_types::ids::DatasetName;

use crate::error::PrepareError;
use crate::execute::{Chosen, Planned, RowSource, SourceColumn};
use crate::home::{Gathered, Rows};
use crate::ingest::{InputFile, RecordReader, source};
use crate::session::{self, FunctionKeys};
use crate::split::{Keys, Prf};

const FORMAT: &str = "tidegate.recipe.v1";
/// Levels of a category that are kept at the most.
pub(crate) const MOST_LEVELS: usize = 256;

/// How raw records become features (`recipe.json`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Always `tidegate.recipe.v1`.
    pub format: String,
    /// The dataset, which is the table's name in the query.
    pub dataset: DatasetName,
    /// The query.
    pub sql: String,
    /// Which rule book the query was checked by.
    pub profile: Profile,
    /// Source columns in order, with the types they are read as.
    pub source: Vec<RecipeColumn>,
    /// How CSV files are read.
    pub csv: CsvOptions,
    /// Source columns that the features are computed from: new records must have these.
    pub needs: BTreeSet<String>,
    /// Output columns of the query without the target, in order.
    pub features: Vec<Feature>,
    /// The output column that is predicted.
    pub target: String,
    /// The release that tokens belong to: a keyed digest.
    pub release: Digest,
}

/// A source column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecipeColumn {
    /// Its name.
    pub name: String,
    /// The type it is read as.
    #[serde(rename = "type")]
    pub value_type: ValueType,
}

/// A feature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Feature {
    /// The output column.
    pub name: String,
    /// What its values are.
    #[serde(rename = "type")]
    pub feature_type: FeatureType,
}

/// What the values of a feature are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FeatureType {
    /// Numbers; booleans are 1 and 0.
    Number,
    /// Texts, with the levels found in the training rows that left, in order.
    Category {
        /// At most 256.
        levels: Vec<String>,
    },
    /// Texts with more levels than a category may have.
    Text,
}

/// Reads the frozen recipe of a preparation, `recipe.json` in `home` or in a bundle's folder.
///
/// # Errors
/// When the file is missing or is no recipe.
pub fn read_recipe(home: &Path) -> Result<Recipe, PrepareError> {
    let path = home.join("recipe.json");
    let bytes = std::fs::read(&path).map_err(|source| PrepareError::file("reading", &path, source))?;
    serde_json::from_slice(&bytes)
        .ok()
        .filter(|recipe: &Recipe| recipe.format == FORMAT)
        .ok_or_else(|| {
            PrepareError::failed(
                format!("reading the recipe `{}`", path.display()),
                "it is not a recipe of this version",
                "Prepare and release again",
            )
        })
}

impl Recipe {
    pub(crate) fn format() -> String {
        FORMAT.to_owned()
    }

    pub(crate) fn write(&self, home: &Path) -> Result<(), PrepareError> {
        let path = home.join("recipe.json");
        let bytes = serde_json::to_vec_pretty(self)
            .map_err(|error| PrepareError::failed("writing the recipe", error.to_string(), "Report this"))?;
        std::fs::write(&path, bytes).map_err(|source| PrepareError::file("writing", &path, source))
    }
}

/// Tokens are keyed per release, so that two releases cannot be joined by them.
pub(crate) fn token_keys(keys: &Keys, release: &Digest) -> FunctionKeys {
    FunctionKeys {
        token: Prf::derive(&keys.values, "token", release.as_bytes()).digest(b"key"),
    }
}

/// A target's value.
pub(crate) fn outcome(text: &str) -> Option<bool> {
    match text {
        "0" => Some(false),
        "1" => Some(true),
        _ => None,
    }
}

/// The source columns that the features of an analysed plan are computed from.
pub(crate) fn needs(planned: &Planned, target: &str) -> Result<BTreeSet<String>, PrepareError> {
    let mut needs = BTreeSet::new();
    collect_scans(&planned.features_only(target)?, &mut needs);
    Ok(needs)
}

fn collect_scans(plan: &LogicalPlan, needs: &mut BTreeSet<String>) {
    if let LogicalPlan::TableScan(scan) = plan {
        needs.extend(scan.projected_schema.fields().iter().map(|field| field.name().clone()));
        for filter in &scan.filters {
            needs.extend(filter.column_refs().into_iter().map(|column| column.name.clone()));
        }
    }
    for input in plan.inputs() {
        collect_scans(input, needs);
    }
}

/// New raw records through the frozen recipe. Columns that no feature is computed from may be missing,
/// the target among them; more columns, and another order, do not matter. Outcomes are given if
/// every record has one, and else none.
///
/// # Errors
/// When a needed column is missing, a value does not fit its column's type, or the rows need more than
/// 2 GiB.
pub async fn apply_recipe(recipe: &Recipe, keys: &Keys, csv: &Path) -> Result<Rows, PrepareError> {
    let folder = csv.parent().unwrap_or(Path::new("."));
    let name = csv.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let files: Vec<InputFile> = source::exactly(folder, name);
    let header = RecordReader::open(files.clone(), &recipe.csv)?.header;
    let missing: Vec<String> = recipe
        .needs
        .iter()
        .filter(|column| !header.contains(column))
        .map(|column| format!("`{column}`"))
        .collect();
    if !missing.is_empty() {
        return Err(PrepareError::input(
            format!("reading new records from `{name}`"),
            format!("the model needs columns that are not there: {}", missing.join(", ")),
            "Add them; a value that is not known is left empty",
        ));
    }
    let columns: Vec<SourceColumn> = recipe
        .source
        .iter()
        .map(|column| SourceColumn {
            name: column.name.clone(),
            value_type: column.value_type,
            at: header.iter().position(|found| *found == column.name),
        })
        .collect();
    let source = Arc::new(RowSource {
        files,
        csv: recipe.csv.clone(),
        columns,
        chosen: Chosen::All,
        subjects: Prf::derive(&keys.values, "subjects", b"new-records"),
        digests: None,
        without: None,
    });
    let context = session::session(Some(&token_keys(keys, &recipe.release)));
    let planned = Planned::new(context, &recipe.dataset, &source, &recipe.sql).await?;
    let target_there = target_reads(&planned, &recipe.target)?
        .iter()
        .all(|column| header.contains(column));
    let mut gathered = Gathered::new(&planned.columns(), &recipe.target, &[]).with_outcomes_of_all_or_none();
    if !target_there {
        gathered = gathered.without_target();
    }
    planned.execute(&source, &[], |batch| gathered.add(batch)).await?;
    gathered.finish()
}

/// The source columns that the target alone is computed from.
fn target_reads(planned: &Planned, target: &str) -> Result<BTreeSet<String>, PrepareError> {
    let mut reads = BTreeSet::new();
    collect_scans(&planned.only(|name| name == target)?, &mut reads);
    Ok(reads)
}
