//! Executes an analysed query on one part of the data, each output row with the subject and the
//! source record that it comes from.

mod lineage;
mod table;
mod text;

use std::sync::Arc;

use datafusion::arrow::array::{Array, StringArray, UInt64Array};
use datafusion::catalog::TableProvider;
use datafusion::common::TableReference;
use datafusion::common::tree_node::TreeNode;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder};
use datafusion::prelude::SessionContext;
use futures::StreamExt;
use tidegate_types::ids::DatasetName;

use crate::error::PrepareError;
use crate::session::{self, QueryError};
pub(crate) use table::{Chosen, RowSource, SourceColumn, Table};

/// A query that was planned over the visible columns of a dataset.
pub(crate) struct Planned {
    context: SessionContext,
    dataset: DatasetName,
    pub(crate) plan: LogicalPlan,
}

impl Planned {
    /// Plans `sql` over a table named `dataset` with the columns of `source`.
    pub(crate) async fn new(
        context: SessionContext,
        dataset: &DatasetName,
        source: &Arc<RowSource>,
        sql: &str,
    ) -> Result<Self, PrepareError> {
        let table: Arc<dyn TableProvider> = Arc::new(Table::visible(Arc::clone(source)));
        context
            .register_table(TableReference::bare(dataset.as_str()), table)
            .map_err(PrepareError::planning)?;
        let plan = session::plan(&context, sql).await.map_err(|error| match error {
            QueryError::Refused(refusal) => refusal.into(),
            QueryError::Invalid(why) => PrepareError::input(
                "planning the query",
                why,
                "Correct the query; `tidegate plan --sql` prints the one that the profile writes",
            ),
        })?;
        Ok(Self {
            context,
            dataset: dataset.clone(),
            plan,
        })
    }

    /// Names of the output columns in order.
    pub(crate) fn columns(&self) -> Vec<String> {
        self.plan
            .schema()
            .fields()
            .iter()
            .map(|field| field.name().clone())
            .collect()
    }

    /// Whether one record may give several rows.
    pub(crate) fn may_repeat_records(&self) -> bool {
        // Of what can be traced, only a union gives a record more than once.
        self.plan
            .exists(|plan| Ok(matches!(plan, LogicalPlan::Union(_))))
            .unwrap_or(true)
    }

    /// The optimised plan of the features without the target: it reads what they need and no more.
    pub(crate) fn features_only(&self, target: &str) -> Result<LogicalPlan, PrepareError> {
        self.only(|name| name != target)
    }

    /// The optimised plan of the output columns that are `wanted`.
    pub(crate) fn only(&self, wanted: impl Fn(&str) -> bool) -> Result<LogicalPlan, PrepareError> {
        let columns = self.plan.schema().columns();
        let columns = columns
            .into_iter()
            .filter(|column| wanted(&column.name))
            .map(Expr::Column);
        let plan = LogicalPlanBuilder::from(self.plan.clone())
            .project(columns)
            .and_then(LogicalPlanBuilder::build)
            .map_err(PrepareError::planning)?;
        self.context.state().optimize(&plan).map_err(PrepareError::planning)
    }

    /// The plan that also carries where each row comes from: the one that is executed. Its visible
    /// columns are those of the analysed plan, which it is made from.
    pub(crate) fn traced(&self, source: &Arc<RowSource>, by: &[String]) -> Result<LogicalPlan, PrepareError> {
        let by = lineage::subgroups(&self.context, &self.dataset, source, by)?;
        lineage::trace(&self.plan, &self.dataset, source, &by)
    }

    /// Executes the query on the rows of `source`, which has the columns it was planned with, and hands
    /// every batch to `each`.
    pub(crate) async fn execute(
        &self,
        source: &Arc<RowSource>,
        by: &[String],
        mut each: impl FnMut(&OutputBatch) -> Result<(), PrepareError>,
    ) -> Result<(), PrepareError> {
        let plan = self.traced(source, by)?;
        let visible = self.plan.schema().fields().len();
        let frame = self
            .context
            .execute_logical_plan(plan)
            .await
            .map_err(PrepareError::planning)?;
        let mut stream = frame.execute_stream().await.map_err(PrepareError::planning)?;
        while let Some(batch) = stream.next().await {
            let batch = batch.map_err(PrepareError::executing)?;
            each(&OutputBatch::new(&batch, visible)?)?;
        }
        Ok(())
    }
}

/// Output rows as text, exactly as the training's CSV holds them; the empty text is a missing value.
pub(crate) struct OutputBatch {
    pub(crate) columns: Vec<StringArray>,
    /// Keyed hashes of the subjects.
    pub(crate) subjects: UInt64Array,
    /// Numbers of the source records, from 0.
    pub(crate) records: UInt64Array,
    /// Keyed digests of the source records, where the source makes them.
    pub(crate) digests: UInt64Array,
    /// The values of the subgroup expressions.
    pub(crate) by: Vec<StringArray>,
}

impl OutputBatch {
    fn new(batch: &datafusion::arrow::array::RecordBatch, visible: usize) -> Result<Self, PrepareError> {
        let schema = batch.schema();
        let mut columns = Vec::with_capacity(batch.num_columns());
        for (column, field) in batch.columns().iter().zip(schema.fields()) {
            columns.push((column, field));
        }
        let numbers = |index: usize| {
            batch
                .columns()
                .get(index)
                .and_then(|column| column.as_any().downcast_ref::<UInt64Array>())
                .filter(|numbers| numbers.null_count() == 0)
                .cloned()
                .ok_or_else(|| {
                    PrepareError::failed(
                        "executing the query",
                        "an output row has lost its subject",
                        "Report this query",
                    )
                })
        };
        let as_text = |(column, field): &(&Arc<dyn Array>, &Arc<datafusion::arrow::datatypes::Field>)| {
            text::of(column.as_ref(), field.name())
        };
        Ok(Self {
            columns: columns.iter().take(visible).map(as_text).collect::<Result<_, _>>()?,
            subjects: numbers(visible)?,
            records: numbers(visible + 1)?,
            digests: numbers(visible + 2)?,
            by: columns
                .iter()
                .skip(visible + lineage::HIDDEN)
                .map(as_text)
                .collect::<Result<_, _>>()?,
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    /// The text of one field.
    pub(crate) fn field(&self, column: usize, row: usize) -> &str {
        self.columns
            .get(column)
            .map_or("", |column| if row < column.len() { column.value(row) } else { "" })
    }
}
