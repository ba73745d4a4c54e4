//! Parquet files as records of text, so that everything after reading is the same for both formats.

use std::fmt;
use std::fs::File;

use datafusion::arrow::datatypes::DataType;
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use tidegate_types::files::catalog::{CsvOptions, ValueType};

use super::reader::{Records, is_missing};
use super::source::InputFile;
use crate::error::PrepareError;

/// Rows that are decoded at a time.
const BATCH_ROWS: usize = 4096;

pub(super) struct ParquetFile {
    pub(super) header: Vec<String>,
    pub(super) declared: Vec<Option<ValueType>>,
    reader: ParquetRecordBatchReader,
    read: u64,
}

impl fmt::Debug for ParquetFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ParquetFile")
            .field("header", &self.header)
            .finish_non_exhaustive()
    }
}

impl ParquetFile {
    pub(super) fn open(file: &InputFile) -> Result<Self, PrepareError> {
        let opened = File::open(&file.path).map_err(|source| PrepareError::file("reading", &file.path, source))?;
        let builder = ParquetRecordBatchReaderBuilder::try_new(opened).map_err(|_| damaged(file))?;
        let (mut header, mut declared) = (Vec::new(), Vec::new());
        for field in builder.schema().fields() {
            let Some(value_type) = value_type(field.data_type()) else {
                return Err(PrepareError::input(
                    format!("reading `{}`", file.shown),
                    format!("column `{}` holds nested or binary values", field.name()),
                    "Write the file with one plain column for each value",
                ));
            };
            header.push(field.name().trim().to_owned());
            declared.push(Some(value_type));
        }
        let reader = builder.with_batch_size(BATCH_ROWS).build().map_err(|_| damaged(file))?;
        Ok(Self {
            header,
            declared,
            reader,
            read: 0,
        })
    }

    /// Appends one decoded batch to `records`; nothing at the end of the file.
    pub(super) fn next(
        &mut self,
        records: &mut Records,
        file: &InputFile,
        options: &CsvOptions,
    ) -> Result<(), PrepareError> {
        let batch = match self.reader.next() {
            None => return Ok(()),
            Some(batch) => batch.map_err(|_| damaged(file))?,
        };
        let format = FormatOptions::default();
        let mut columns = Vec::with_capacity(batch.num_columns());
        for column in batch.columns() {
            let formatter = ArrayFormatter::try_new(column.as_ref(), &format).map_err(|_| damaged(file))?;
            columns.push((column, formatter));
        }
        let mut text = String::new();
        for row in 0..batch.num_rows() {
            for (column, formatter) in &columns {
                if column.is_null(row) {
                    records.push(None);
                    continue;
                }
                text.clear();
                formatter.value(row).write(&mut text).map_err(|_| damaged(file))?;
                let field = text.trim();
                // Not-a-number is how many programs write a missing float.
                let missing = is_missing(field, options) || (column.data_type().is_floating() && field == "NaN");
                records.push((!missing).then_some(field));
            }
            self.read += 1;
            records.end_record(self.read);
        }
        Ok(())
    }
}

/// The type of a column; `None` for what a record of plain values cannot hold.
fn value_type(found: &DataType) -> Option<ValueType> {
    Some(match found {
        DataType::Dictionary(_, values) => return value_type(values),
        DataType::Boolean => ValueType::Boolean,
        DataType::Date32 | DataType::Date64 => ValueType::Date,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Timestamp(..) | DataType::Time32(_) => {
            ValueType::Text
        }
        DataType::Time64(_) | DataType::Null => ValueType::Text,
        found if found.is_integer() => ValueType::Integer,
        found if found.is_numeric() => ValueType::Number,
        _ => return None,
    })
}

fn damaged(file: &InputFile) -> PrepareError {
    PrepareError::input(
        format!("reading `{}`", file.shown),
        "it is not a Parquet file that can be read, or it is damaged",
        "Write it again; compression must be none, snappy, zstd or another that is built in",
    )
}
