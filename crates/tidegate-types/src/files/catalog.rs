//! `catalog.yaml`: the data owner's statement about datasets.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::column::{IdentifierKind, Role};
use crate::ids::{DatasetName, Purpose, SiteName};
use crate::label::{Level, Residency};

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Catalog {
    /// Datasets by name.
    pub datasets: BTreeMap<DatasetName, Dataset>,
    /// What files that a task file brings along may be taken for; without it `restricted`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_files: Option<Level>,
}

/// One dataset: where it is, whose rows it holds, and what its columns are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Dataset {
    /// The private site that owns it.
    pub site: SiteName,
    /// A file, folder or glob of CSV or Parquet, relative to this file; or objects in a store of a cloud, such as
    /// `s3://bucket/path/part-*.csv`.
    pub source: String,
    /// The column that names the person behind a row. Absent only for public datasets without people.
    #[serde(default)]
    pub subject: Option<String>,
    /// What the data may be used for.
    pub purposes: BTreeSet<Purpose>,
    /// The smallest group of people that may be released together.
    #[serde(default = "default_least_k")]
    pub least_k: u32,
    /// The least number of distinct values of each sensitive column in such a group.
    #[serde(default = "default_least_l")]
    pub least_l: u32,
    /// Tags of everything in it, such as `phi`.
    #[serde(default)]
    pub tags: BTreeSet<String>,
    /// Where it, and all that is made from it, may be held.
    #[serde(default)]
    pub residency: Residency,
    /// `true` when nobody's data is in it: every column is public.
    #[serde(default)]
    pub public: bool,
    /// How CSV files are read.
    #[serde(default)]
    pub csv: CsvOptions,
    /// What the columns are; `"*"` is the default for all others and must be written to apply.
    pub columns: BTreeMap<String, Column>,
}

fn default_least_k() -> u32 {
    5
}

fn default_least_l() -> u32 {
    1
}

/// How CSV files are read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CsvOptions {
    /// Texts that mean a missing value, compared after trimming spaces.
    #[serde(default = "default_null")]
    pub null: BTreeSet<String>,
    /// The character between fields.
    #[serde(default = "default_delimiter")]
    pub delimiter: char,
}

fn default_null() -> BTreeSet<String> {
    [String::new()].into()
}

fn default_delimiter() -> char {
    ','
}

impl Default for CsvOptions {
    fn default() -> Self {
        Self {
            null: default_null(),
            delimiter: default_delimiter(),
        }
    }
}

/// What a column is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Column {
    /// What its values say about the person.
    pub role: Role,
    /// What kind of value it is; decides which de-identifying functions accept it.
    #[serde(default)]
    pub kind: IdentifierKind,
    /// The type it is read as, where the scan should not decide.
    #[serde(default, rename = "type")]
    pub value_type: Option<ValueType>,
}

/// The types that a column may be read as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ValueType {
    /// UTF-8 text.
    Text,
    /// 64-bit integers.
    Integer,
    /// 64-bit floating point numbers.
    Number,
    /// `true` and `false`, `1` and `0`, `yes` and `no`.
    Boolean,
    /// Calendar dates as `YYYY-MM-DD`.
    Date,
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Text => "text",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
            Self::Date => "date",
        })
    }
}

impl Dataset {
    /// What the catalog says about `column`: its own entry, or the written default; `None` when
    /// neither is there, which means a restricted identifier.
    #[must_use]
    pub fn column(&self, column: &str) -> Option<&Column> {
        self.columns.get(column).or_else(|| self.columns.get("*"))
    }
}
