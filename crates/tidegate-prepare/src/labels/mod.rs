//! Labels that flow through SQL.
//!
//! [`analyse`] reads the analysed plan of a query, before any row is read, and says for each output
//! column what it is computed from, which label follows, and whether it may leave. It never trusts
//! what it does not understand: that joins the labels of all columns. `docs/labels.md` explains the
//! rules with a table of operators.
//!
//! How it works: every column of every relation carries the set of source columns that it depends on
//! (`taint`), each either raw or through a de-identifying function that was applied as it must be.
//! Every relation carries such a set for its rows too, which joins every output. `expression` and
//! `relation` follow the sets through the plan, `failing` knows what cannot fail, `report` turns
//! sets into labels and refusals.

mod analysis;
mod expression;
mod failing;
mod refusal;
mod relation;
mod report;
mod rules;
mod source;
mod structure;
mod taint;

use datafusion::logical_expr::LogicalPlan;
use tidegate_types::files::catalog::Dataset;
use tidegate_types::files::pipeline::Profile;
use tidegate_types::ids::DatasetName;
use tidegate_types::label::Level;
use tidegate_types::report::LabelReport;

pub use rules::Rule;
pub use source::{SourceColumn, source_column};

/// What the analysis must know besides the query.
#[derive(Debug, Clone)]
pub struct Facts<'a> {
    /// The dataset's name: the only table that the query may read.
    pub dataset: &'a DatasetName,
    /// The owner's statement about it.
    pub facts: &'a Dataset,
    /// The source columns in order.
    pub columns: Vec<String>,
    /// Which rule book decides what lowers what.
    pub profile: Profile,
    /// The level that the output gets when all conditions hold.
    pub to: Level,
    /// The column to be learned.
    pub target: &'a str,
    /// The column that names the person behind a row, where there is one.
    pub subject: Option<&'a str>,
}

/// Computes what every output column of `plan` depends on, which label follows, and whether it may
/// leave under `facts`. `plan` must be the very plan that is executed; `sql` is its text for the
/// report.
///
/// The answer is a report and never an error: what must not be run or must not leave is a refusal in
/// it.
#[must_use]
pub fn analyse(plan: &LogicalPlan, facts: &Facts<'_>, sql: &str) -> LabelReport {
    report::report(plan, facts, sql, rules::Rules::default())
}

/// The same with one rule switched off: for the tests that show that each rule is needed.
#[doc(hidden)]
#[must_use]
pub fn analyse_without(rule: Rule, plan: &LogicalPlan, facts: &Facts<'_>, sql: &str) -> LabelReport {
    report::report(plan, facts, sql, rules::Rules::without(rule))
}
