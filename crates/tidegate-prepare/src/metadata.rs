//! What the columns of an input are, beside its rows: `csv-metadata.json` as CSV on the Web has it (W3C
//! Tabular Metadata), so that nobody who reads the rows must guess whether `021` is a number.

use std::fs;
use std::path::Path;

use datafusion::arrow::datatypes::{DataType, Fields};
use serde_json::json;

use crate::error::PrepareError;

/// The name that CSV on the Web gives the metadata of a folder.
const NAME: &str = "csv-metadata.json";

/// Describes the columns of `file` in `folder`.
pub(crate) fn write(folder: &Path, file: &str, fields: &Fields) -> Result<(), PrepareError> {
    let columns: Vec<_> = fields
        .iter()
        .map(|field| json!({"name": field.name(), "datatype": datatype(field.data_type())}))
        .collect();
    let metadata = json!({
        "@context": "http://www.w3.org/ns/csvw",
        "url": file,
        "tableSchema": {"columns": columns},
    });
    let path = folder.join(NAME);
    fs::write(&path, metadata.to_string()).map_err(|source| PrepareError::file("writing", &path, source))
}

/// The name of a type in XML Schema, as its values are written.
fn datatype(found: &DataType) -> &'static str {
    match found {
        DataType::Boolean => "boolean",
        DataType::Date32 | DataType::Date64 => "date",
        DataType::Timestamp(..) => "dateTime",
        DataType::Time32(_) | DataType::Time64(_) => "time",
        DataType::Dictionary(_, values) => datatype(values),
        found if found.is_integer() => "integer",
        found if found.is_numeric() => "double",
        _ => "string",
    }
}
