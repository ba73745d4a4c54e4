//! What the label analysis and the risk measurement found, as planner, keeper and user read it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::column::Role;
use crate::label::Label;
use crate::refusal::Refusal;

/// What the analysis of a query found, before any row was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LabelReport {
    /// The SQL that was analysed and will be executed, as text.
    pub sql: String,
    /// The label that the output must not exceed.
    pub release: Label,
    /// The columns in order.
    pub columns: Vec<ColumnReport>,
    /// What decides which rows there are: joins every column.
    pub row_label: Label,
    /// Source columns that the row set depends on through filters, joins, groups or limits.
    pub row_reads: Vec<String>,
    /// What a person should look at before anything leaves, each as a full sentence: columns that leave as
    /// they are, though their names or values look like more than the catalog says.
    pub warnings: Vec<String>,
    /// Empty when the output may leave, given that the measurement succeeds.
    #[schemars(with = "Vec<serde_json::Value>")]
    pub refusals: Vec<Refusal>,
}

impl LabelReport {
    /// Whether every output column and the row set stay within the release label.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.refusals.is_empty()
    }
}

/// One output column of a query.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ColumnReport {
    /// The output column.
    pub name: String,
    /// The source columns it is computed from, sorted, as `dataset.column`.
    pub reads: Vec<String>,
    /// The join of the labels of what it reads, row set included.
    pub label_before: Label,
    /// The label after de-identifying functions and, for quasi-identifiers and attributes, on condition
    /// that the measurement succeeds.
    pub label: Label,
    /// The role it has for the measurement of risk.
    pub role: Role,
    /// The de-identifying function that lowers it, such as `age_band(age, 10)`; absent when none does.
    pub function: Option<String>,
    /// Why it may leave, or why it may not, in one line.
    pub why: String,
}

/// What was measured on the output that is about to leave, together with earlier releases.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RiskReport {
    /// Output columns that count as quasi-identifiers.
    pub quasi_identifiers: Vec<String>,
    /// Output columns whose values must stay diverse in each group.
    pub sensitive: Vec<String>,
    /// The smallest number of subjects that share all quasi-identifiers, after suppression.
    pub k: u64,
    /// The same before suppression.
    pub k_before: u64,
    /// The smallest number of distinct sensitive values in a group; absent without sensitive columns.
    pub l: Option<u64>,
    /// Groups after suppression.
    pub groups: u64,
    /// Rows before suppression.
    pub rows: u64,
    /// Rows removed to reach the required k.
    pub suppressed_rows: u64,
    /// Subjects in what leaves.
    pub subjects: u64,
    /// Earlier releases that were counted together with this one.
    pub earlier_releases: u64,
    /// The share of subjects that are unique on the raw quasi-identifiers, before any generalisation.
    pub raw_unique_rows: u64,
}
