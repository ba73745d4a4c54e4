//! Where output rows come from. A query is executed with hidden columns behind its own: the subject,
//! the number and the digest of the source record, and subgroup expressions over raw columns that never
//! leave.
//!
//! Hidden columns pass only through operators under which every output row comes from exactly one
//! source record. Everything else is refused: a row made from several people could not be measured,
//! nor given to a model as one person's.

use std::sync::Arc;

use datafusion::arrow::datatypes::DataType;
use datafusion::catalog::TableProvider;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, TableReference};
use datafusion::datasource::provider_as_source;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::expr::Cast;
use datafusion::logical_expr::logical_plan::{Filter, Projection, SubqueryAlias, Union};
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder};
use datafusion::prelude::SessionContext;
use tidegate_types::Refusal;
use tidegate_types::ids::DatasetName;

use super::table::{DIGEST, RECORD, RowSource, SUBJECT, Table};
use crate::error::PrepareError;

/// Parses subgroup expressions over the raw columns of `dataset`.
pub(crate) fn subgroups(
    context: &SessionContext,
    dataset: &DatasetName,
    source: &Arc<RowSource>,
    by: &[String],
) -> Result<Vec<Expr>, PrepareError> {
    let table = Table::visible(Arc::clone(source));
    let schema = DFSchema::try_from_qualified_schema(dataset.as_str(), table.schema().as_ref())
        .map_err(PrepareError::planning)?;
    let state = context.state();
    by.iter()
        .enumerate()
        .map(|(number, text)| {
            let failed = |why: String| {
                PrepareError::input(
                    format!("planning the subgroups by `{text}`"),
                    why,
                    "Write an expression over columns of the dataset, such as `age_band(age, 10)`",
                )
            };
            let expression = state
                .create_logical_expr(text, &schema)
                .map_err(|error| failed(error.strip_backtrace()))?;
            if !row_wise(&expression) {
                return Err(failed("it reads more than the record itself".to_owned()));
            }
            Ok(Expr::Cast(Cast::new(Box::new(expression.unalias()), DataType::Utf8))
                .alias(format!("__tidegate_by_{number}")))
        })
        .collect()
}

/// Hidden columns besides the subgroups.
pub(super) const HIDDEN: usize = 3;

/// `plan` with the hidden columns behind its own: subject, record, digest, then `by`.
pub(super) fn trace(
    plan: &LogicalPlan,
    dataset: &DatasetName,
    source: &Arc<RowSource>,
    by: &[Expr],
) -> Result<LogicalPlan, PrepareError> {
    let tracer = Tracer { dataset, source, by };
    let traced = tracer.trace(plan)?;
    let (before, after) = (plan.schema().fields(), traced.schema().fields());
    let same = before.len() + tracer.hidden() == after.len()
        && before
            .iter()
            .zip(after)
            .all(|(before, after)| before.name() == after.name() && before.data_type() == after.data_type());
    if same {
        Ok(traced)
    } else {
        Err(not_understood(
            "the analysed and the executed query have different columns",
        ))
    }
}

struct Tracer<'a> {
    dataset: &'a DatasetName,
    source: &'a Arc<RowSource>,
    by: &'a [Expr],
}

impl Tracer<'_> {
    fn hidden(&self) -> usize {
        HIDDEN + self.by.len()
    }

    /// References to the hidden columns, which are the last of `plan`.
    fn carried(&self, plan: &LogicalPlan) -> Vec<Expr> {
        let columns = plan.schema().columns();
        let from = columns.len().saturating_sub(self.hidden());
        columns.into_iter().skip(from).map(Expr::Column).collect()
    }

    fn trace(&self, plan: &LogicalPlan) -> Result<LogicalPlan, PrepareError> {
        let built = |result: Result<LogicalPlan, DataFusionError>| result.map_err(PrepareError::planning);
        match plan {
            LogicalPlan::TableScan(scan) => {
                if scan.table_name.table() != self.dataset.as_str() {
                    return Err(not_understood("it reads a table that is not the dataset"));
                }
                if !scan.filters.is_empty() || scan.fetch.is_some() || scan.projection.is_some() {
                    return Err(not_understood("its scan of the dataset is restricted"));
                }
                self.scan(&scan.table_name)
            }
            LogicalPlan::SubqueryAlias(alias) => {
                let input = Arc::new(self.trace(&alias.input)?);
                built(SubqueryAlias::try_new(input, alias.alias.clone()).map(LogicalPlan::SubqueryAlias))
            }
            LogicalPlan::Filter(filter) => {
                check_row_wise(&filter.predicate)?;
                let input = Arc::new(self.trace(&filter.input)?);
                built(Filter::try_new(filter.predicate.clone(), input).map(LogicalPlan::Filter))
            }
            LogicalPlan::Projection(projection) => {
                let input = self.trace(&projection.input)?;
                let mut expressions = projection.expr.clone();
                for expression in &expressions {
                    check_row_wise(expression)?;
                }
                expressions.extend(self.carried(&input));
                built(Projection::try_new(expressions, Arc::new(input)).map(LogicalPlan::Projection))
            }
            // The order of rows is a secret of the site, so sorting alone changes nothing.
            LogicalPlan::Sort(sort) if sort.fetch.is_none() => self.trace(&sort.input),
            LogicalPlan::Union(union) => {
                let mut inputs = Vec::with_capacity(union.inputs.len());
                for input in &union.inputs {
                    inputs.push(Arc::new(self.trace(input)?));
                }
                built(Union::try_new(inputs).map(LogicalPlan::Union))
            }
            LogicalPlan::Sort(_) | LogicalPlan::Limit(_) => Err(not_understood(
                "it takes some rows by their number (LIMIT), which other people's rows decide",
            )),
            LogicalPlan::Aggregate(_) | LogicalPlan::Distinct(_) => Err(not_understood(
                "it makes one row from those of several people (GROUP BY, DISTINCT)",
            )),
            LogicalPlan::Join(_) => Err(not_understood("it puts rows of several people side by side (JOIN)")),
            LogicalPlan::Window(_) => Err(not_understood("it computes over rows of several people (a window)")),
            other => Err(not_understood(&format!("it holds `{}`", other.display()))),
        }
    }

    /// The dataset with its hidden columns, under names that every later reference finds.
    fn scan(&self, name: &TableReference) -> Result<LogicalPlan, PrepareError> {
        let table: Arc<dyn TableProvider> = Arc::new(Table::with_hidden(Arc::clone(self.source)));
        let mut expressions: Vec<Expr> = self
            .source
            .columns
            .iter()
            .map(|column| Expr::Column(Column::new(Some(name.clone()), column.name.clone())))
            .collect();
        for hidden in [SUBJECT, RECORD, DIGEST] {
            expressions.push(Expr::Column(Column::new(Some(name.clone()), hidden)).alias(hidden));
        }
        for expression in self.by {
            expressions.push(requalified(expression, name)?);
        }
        LogicalPlanBuilder::scan(name.clone(), provider_as_source(table), None)
            .and_then(|builder| builder.project(expressions))
            .and_then(LogicalPlanBuilder::build)
            .map_err(PrepareError::planning)
    }
}

/// The dataset may be scanned under its bare or its full name; subgroups know the bare one.
fn requalified(expression: &Expr, name: &TableReference) -> Result<Expr, PrepareError> {
    use datafusion::common::tree_node::Transformed;
    expression
        .clone()
        .transform(|node| {
            Ok(match node {
                Expr::Column(column) => Transformed::yes(Expr::Column(Column::new(Some(name.clone()), column.name))),
                other => Transformed::no(other),
            })
        })
        .map(|transformed| transformed.data)
        .map_err(PrepareError::planning)
}

/// Whether an expression reads its own record and nothing else. What is not listed here may read more.
fn row_wise(expression: &Expr) -> bool {
    let mut alone = true;
    let walked = expression.apply(|node| {
        alone &= matches!(
            node,
            Expr::Alias(_)
                | Expr::Column(_)
                | Expr::Literal(..)
                | Expr::BinaryExpr(_)
                | Expr::Like(_)
                | Expr::SimilarTo(_)
                | Expr::Not(_)
                | Expr::IsNotNull(_)
                | Expr::IsNull(_)
                | Expr::IsTrue(_)
                | Expr::IsFalse(_)
                | Expr::IsUnknown(_)
                | Expr::IsNotTrue(_)
                | Expr::IsNotFalse(_)
                | Expr::IsNotUnknown(_)
                | Expr::Negative(_)
                | Expr::Between(_)
                | Expr::Case(_)
                | Expr::Cast(_)
                | Expr::TryCast(_)
                | Expr::ScalarFunction(_)
                | Expr::InList(_)
        );
        Ok(TreeNodeRecursion::Continue)
    });
    alone && walked.is_ok()
}

fn check_row_wise(expression: &Expr) -> Result<(), PrepareError> {
    if row_wise(expression) {
        Ok(())
    } else {
        Err(not_understood(
            "an expression reads more than its own record (a subquery)",
        ))
    }
}

fn not_understood(why: &str) -> PrepareError {
    PrepareError::Refused(Refusal {
        rule: "one-record-one-row".to_owned(),
        what: "measuring the disclosure risk of the query".to_owned(),
        why: format!("{why}, so that it cannot be told whose row it is"),
        fix: "write a query whose every row comes from one record: SELECT with expressions, CASE, WHERE, UNION ALL \
              and WITH"
            .to_owned(),
    })
}
