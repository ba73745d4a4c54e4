//! From a source of the catalog to records: which files it names, an immutable copy of them, and one
//! streaming reader over CSV and Parquet that the rest of the crate shares.

pub(crate) mod durable;
mod parquet;
pub(crate) mod reader;
pub(crate) mod snapshot;
pub(crate) mod source;
pub(crate) mod types;

pub(crate) use reader::{RecordReader, Records};
pub(crate) use snapshot::Snapshot;
pub(crate) use source::InputFile;
pub use source::SourceFile;
