//! The dataset as a table: the records of one part, streamed from the snapshot.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, UInt64Array, new_null_array};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::{Session, TableProvider};
use datafusion::error::DataFusionError;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchReceiverStreamBuilder;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use tidegate_types::files::catalog::{CsvOptions, ValueType};

use crate::error::PrepareError;
use crate::ingest::types::{column, data_type};
use crate::ingest::{InputFile, RecordReader, Records};
use crate::scan::assign::Assigner;
use crate::split::{Part, Prf};

/// Hidden column: the keyed hash of the subject.
pub(super) const SUBJECT: &str = "__tidegate_subject";
/// Hidden column: the number of the source record.
pub(super) const RECORD: &str = "__tidegate_record";
/// Hidden column: the keyed digest of the source record, or 0 where nobody asked for it.
pub(super) const DIGEST: &str = "__tidegate_digest";

/// A column that a query can read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SourceColumn {
    pub(crate) name: String,
    pub(crate) value_type: ValueType,
    /// Where it stands in the files; `None` for one that new records need not have.
    pub(crate) at: Option<usize>,
}

/// Which records are rows of the table.
#[derive(Debug, Clone)]
pub(crate) enum Chosen {
    /// Those of one part.
    Part(Part, Box<Assigner>),
    /// All: new records, each its own subject.
    All,
    /// None: the table is there to plan with.
    Nothing,
}

/// Where the rows of the table come from.
#[derive(Debug)]
pub(crate) struct RowSource {
    pub(crate) files: Vec<InputFile>,
    pub(crate) csv: CsvOptions,
    pub(crate) columns: Vec<SourceColumn>,
    pub(crate) chosen: Chosen,
    /// Hashes subjects.
    pub(crate) subjects: Prf,
    /// Digests records, where that is needed.
    pub(crate) digests: Option<Prf>,
    /// Records that are left out.
    pub(crate) without: Option<PathBuf>,
}

/// The table that queries read.
#[derive(Debug)]
pub(crate) struct Table {
    source: Arc<RowSource>,
    schema: SchemaRef,
}

impl Table {
    /// The table as its owner and the query see it.
    pub(crate) fn visible(source: Arc<RowSource>) -> Self {
        let fields = visible_fields(&source);
        Self {
            source,
            schema: Arc::new(Schema::new(fields)),
        }
    }

    /// The same with the hidden columns at the end.
    pub(super) fn with_hidden(source: Arc<RowSource>) -> Self {
        let mut fields = visible_fields(&source);
        for name in [SUBJECT, RECORD, DIGEST] {
            fields.push(Field::new(name, DataType::UInt64, false));
        }
        Self {
            source,
            schema: Arc::new(Schema::new(fields)),
        }
    }
}

fn visible_fields(source: &RowSource) -> Vec<Field> {
    source
        .columns
        .iter()
        .map(|column| Field::new(&column.name, data_type(column.value_type), true))
        .collect()
}

#[async_trait]
impl TableProvider for Table {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
        let projection: Vec<usize> = match projection {
            Some(projection) => projection.clone(),
            None => (0..self.schema.fields().len()).collect(),
        };
        let schema = Arc::new(self.schema.project(&projection)?);
        let stream = RowStream {
            source: Arc::clone(&self.source),
            schema: Arc::clone(&schema),
            projection,
        };
        let exec = StreamingTableExec::try_new(schema, vec![Arc::new(stream)], None, [], false, limit)?;
        Ok(Arc::new(exec))
    }
}

struct RowStream {
    source: Arc<RowSource>,
    schema: SchemaRef,
    /// Indices into the columns; behind them the subject, the record and its digest.
    projection: Vec<usize>,
}

impl fmt::Debug for RowStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RowStream")
            .field("projection", &self.projection)
            .finish_non_exhaustive()
    }
}

impl PartitionStream for RowStream {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let mut builder = RecordBatchReceiverStreamBuilder::new(Arc::clone(&self.schema), 2);
        let (source, schema, projection) = (
            Arc::clone(&self.source),
            Arc::clone(&self.schema),
            self.projection.clone(),
        );
        let sender = builder.tx();
        builder.spawn_blocking(move || {
            source.read(|records, rows, subjects| {
                let batch = source.batch(&schema, &projection, records, rows, subjects)?;
                // A receiver that is gone has all it wants.
                Ok(sender.blocking_send(Ok(batch)).is_ok())
            })?;
            Ok(())
        });
        builder.build()
    }
}

/// Numbers of records in a file of big-endian numbers in order, met in that order.
struct LeftOut {
    from: BufReader<File>,
    path: PathBuf,
    next: Option<u64>,
}

impl LeftOut {
    fn open(path: &Path) -> Result<Self, PrepareError> {
        let file = File::open(path).map_err(|source| PrepareError::file("reading", path, source))?;
        let mut left_out = Self {
            from: BufReader::new(file),
            path: path.to_path_buf(),
            next: None,
        };
        left_out.advance()?;
        Ok(left_out)
    }

    fn advance(&mut self) -> Result<(), PrepareError> {
        let failed = |source| PrepareError::file("reading", &self.path, source);
        self.next = None;
        if !self.from.fill_buf().map_err(failed)?.is_empty() {
            let mut number = [0; 8];
            self.from.read_exact(&mut number).map_err(failed)?;
            self.next = Some(u64::from_be_bytes(number));
        }
        Ok(())
    }

    fn holds(&mut self, record: u64) -> Result<bool, PrepareError> {
        while self.next.is_some_and(|next| next < record) {
            self.advance()?;
        }
        Ok(self.next == Some(record))
    }
}

impl RowSource {
    /// Reads the chosen records batch by batch: the batch, the numbers of the chosen records in it and
    /// their subjects. `each` answers whether it wants more.
    pub(crate) fn read(
        &self,
        mut each: impl FnMut(&Records, &[usize], &[u64]) -> Result<bool, PrepareError>,
    ) -> Result<(), PrepareError> {
        let mut chosen = self.chosen.clone();
        if matches!(chosen, Chosen::Nothing) {
            return Ok(());
        }
        let mut without = self.without.as_deref().map(LeftOut::open).transpose()?;
        let mut reader = RecordReader::open(self.files.clone(), &self.csv)?;
        let (mut records, mut rows, mut subjects) = (Records::default(), Vec::new(), Vec::new());
        while reader.next(&mut records)? {
            rows.clear();
            subjects.clear();
            for record in 0..records.len() {
                match &mut chosen {
                    Chosen::Nothing => {}
                    Chosen::All => {
                        rows.push(record);
                        let number = records.first.saturating_add(record as u64);
                        subjects.push(self.subjects.number(&number.to_le_bytes()));
                    }
                    Chosen::Part(part, assigner) => {
                        let assigned = assigner.assign(&records, record)?;
                        let left_out = match &mut without {
                            Some(without) => without.holds(records.first.saturating_add(record as u64))?,
                            None => false,
                        };
                        if assigned.part == Some(*part) && !left_out {
                            rows.push(record);
                            subjects.push(self.subjects.number(assigned.subject.as_bytes()));
                        }
                    }
                }
            }
            if !rows.is_empty() && !each(&records, &rows, &subjects)? {
                return Ok(());
            }
            if let Chosen::Part(_, assigner) = &chosen
                && assigner.is_full()
            {
                return Ok(());
            }
        }
        Ok(())
    }

    /// A digest of a whole record, also of the columns that the query does not read.
    fn digest(&self, records: &Records, row: usize) -> u64 {
        let Some(prf) = &self.digests else { return 0 };
        let mut digest = prf.running();
        for column in 0..records.width() {
            digest.field(records.get(row, column));
        }
        let [a, b, c, d, e, f, g, h, ..] = digest.finish();
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }

    fn batch(
        &self,
        schema: &SchemaRef,
        projection: &[usize],
        records: &Records,
        rows: &[usize],
        subjects: &[u64],
    ) -> Result<RecordBatch, PrepareError> {
        let mut arrays: Vec<ArrayRef> = Vec::with_capacity(projection.len());
        for &index in projection {
            arrays.push(match self.columns.get(index) {
                Some(found) => match found.at {
                    Some(at) => column(records, rows, at, &found.name, found.value_type)?,
                    None => new_null_array(&data_type(found.value_type), rows.len()),
                },
                None if index == self.columns.len() => Arc::new(UInt64Array::from(subjects.to_vec())),
                None if index == self.columns.len() + 1 => Arc::new(UInt64Array::from_iter_values(
                    rows.iter().map(|row| records.first.saturating_add(*row as u64)),
                )),
                None => Arc::new(UInt64Array::from_iter_values(
                    rows.iter().map(|row| self.digest(records, *row)),
                )),
            });
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
        RecordBatch::try_new_with_options(Arc::clone(schema), arrays, &options)
            .map_err(|error| PrepareError::planning(error.into()))
    }
}
