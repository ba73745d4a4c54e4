//! Text records under a header, as they are read from CSV.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use csv::StringRecord;
use ndarray::Array2;
use serde::Deserialize;
use tidegate_bundle::FeatureSchema;
use tidegate_bundle::schema::EncodeError;

use crate::error::LearnError;

/// The most bytes of text that a table holds: 1 GiB.
const MAX_BYTES: u64 = 1 << 30;

/// The metadata of a folder of CSV files, as CSV on the Web (W3C Tabular Metadata) names it.
const METADATA_FILE: &str = "csv-metadata.json";
/// The most bytes of it.
const MAX_METADATA_BYTES: u64 = 4 << 20;

/// What a column is, where its table says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ColumnType {
    /// Amounts; booleans are 0 and 1.
    Number,
    /// Names of things, also where they are written in digits.
    Text,
}

/// The part of the metadata that is read.
#[derive(Deserialize)]
struct Metadata {
    #[serde(rename = "tableSchema")]
    schema: MetadataSchema,
}

#[derive(Deserialize)]
struct MetadataSchema {
    columns: Vec<MetadataColumn>,
}

#[derive(Deserialize)]
struct MetadataColumn {
    name: String,
    #[serde(default)]
    datatype: String,
}

/// Records of text under a header. Every record has one field for each column; an empty field is a
/// missing value. Fields are taken as they are: what is trained on is what is encoded later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    header: Vec<String>,
    /// Of the columns of which something is said.
    types: BTreeMap<String, ColumnType>,
    records: Vec<StringRecord>,
}

impl Table {
    /// A table from a header and records.
    ///
    /// # Errors
    /// When a column stands twice or a record has another width than the header.
    pub fn new<S: AsRef<str>>(
        header: Vec<String>,
        records: impl IntoIterator<Item = Vec<S>>,
    ) -> Result<Self, LearnError> {
        let mut table = Self::empty(header)?;
        for record in records {
            table.push(record.iter().map(AsRef::as_ref).collect())?;
        }
        Ok(table)
    }

    /// Reads one CSV file (RFC 4180, UTF-8, with a header).
    ///
    /// # Errors
    /// When the file cannot be read, is no such CSV, or holds more than 1 GiB of text.
    pub fn read_file(path: &Path) -> Result<Self, LearnError> {
        Self::read_files(&[path.to_owned()])
    }

    /// Reads every `*.csv` of a folder in the order of names, as one table. `csv-metadata.json` beside them,
    /// which is CSV on the Web's, says by the `datatype` of a column whether it is one of numbers.
    ///
    /// # Errors
    /// As [`Table::read_file`], and when there is no such file, one is not a plain file, headers differ, or
    /// the metadata cannot be read.
    pub fn read_folder(folder: &Path) -> Result<Self, LearnError> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(LearnError::io("reading the folder", folder))? {
            let entry = entry.map_err(LearnError::io("reading the folder", folder))?;
            let path = entry.path();
            if path.extension().is_none_or(|extension| extension != "csv") {
                continue;
            }
            if !entry
                .file_type()
                .map_err(LearnError::io("reading the file", &path))?
                .is_file()
            {
                return Err(LearnError::NotPlainFile(path));
            }
            files.push(path);
        }
        if files.is_empty() {
            return Err(LearnError::NoFiles(folder.to_owned()));
        }
        files.sort();
        let mut table = Self::read_files(&files)?;
        table.types = read_types(&folder.join(METADATA_FILE))?;
        Ok(table)
    }

    fn read_files(files: &[PathBuf]) -> Result<Self, LearnError> {
        let mut table: Option<Self> = None;
        let mut bytes = 0;
        for path in files {
            let file = File::open(path).map_err(LearnError::io("opening", path))?;
            // Text can only be shorter than the file, so bounding the file bounds the text.
            let mut reader = csv::Reader::from_reader(file.take(MAX_BYTES + 1));
            let broken = |error: csv::Error| LearnError::Csv {
                path: path.clone(),
                reason: error.to_string(),
            };
            let header: Vec<String> = reader.headers().map_err(broken)?.iter().map(str::to_owned).collect();
            let target = match &mut table {
                None => table.insert(Self::empty(header)?),
                Some(table) if table.header == header => table,
                Some(_) => return Err(LearnError::HeaderDiffers(path.clone())),
            };
            for record in reader.records() {
                let mut record = record.map_err(broken)?;
                record.set_position(None);
                bytes += record.as_slice().len() as u64;
                if bytes > MAX_BYTES {
                    return Err(LearnError::TooLarge { limit: MAX_BYTES });
                }
                target.push(record)?;
            }
            if reader.position().byte() > MAX_BYTES {
                return Err(LearnError::TooLarge { limit: MAX_BYTES });
            }
        }
        Ok(table.unwrap_or(Self {
            header: vec![],
            types: BTreeMap::new(),
            records: vec![],
        }))
    }

    fn empty(header: Vec<String>) -> Result<Self, LearnError> {
        let mut names = BTreeSet::new();
        if let Some(name) = header.iter().find(|name| !names.insert(name.as_str())) {
            return Err(LearnError::ColumnTwice(name.clone()));
        }
        Ok(Self {
            header,
            types: BTreeMap::new(),
            records: vec![],
        })
    }

    fn push(&mut self, record: StringRecord) -> Result<(), LearnError> {
        if record.len() != self.header.len() {
            let (found, expected) = (record.len(), self.header.len());
            return Err(LearnError::Width {
                record: self.records.len() + 1,
                found,
                expected,
            });
        }
        self.records.push(record);
        Ok(())
    }

    /// The columns.
    #[must_use]
    pub fn header(&self) -> &[String] {
        &self.header
    }

    /// What a column is, where something is said of it.
    pub(crate) fn column_type(&self, name: &str) -> Option<ColumnType> {
        self.types.get(name).copied()
    }

    /// The number of records.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.records.len()
    }

    /// The fields of a column from the first record to the last, if there is such a column.
    pub fn column(&self, name: &str) -> Option<impl Iterator<Item = &str>> {
        let position = self.header.iter().position(|column| column == name)?;
        Some(
            self.records
                .iter()
                .map(move |record| record.get(position).unwrap_or_default()),
        )
    }

    /// The input matrix of a model with this schema: `[records, features]`, NaN where missing.
    ///
    /// # Errors
    /// As [`FeatureSchema::encode`].
    pub fn encode(&self, schema: &FeatureSchema) -> Result<Array2<f32>, EncodeError> {
        let header: Vec<&str> = self.header.iter().map(String::as_str).collect();
        schema.encode(
            &header,
            self.records.iter().map(|record| record.iter().collect::<Vec<_>>()),
        )
    }
}

/// The types that the metadata at `path` tells; none where there is no such file.
fn read_types(path: &Path) -> Result<BTreeMap<String, ColumnType>, LearnError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(LearnError::io("opening", path)(error)),
    };
    let mut text = Vec::new();
    let mut bounded = file.take(MAX_METADATA_BYTES + 1);
    bounded
        .read_to_end(&mut text)
        .map_err(LearnError::io("reading", path))?;
    let metadata = match serde_json::from_slice::<Metadata>(&text) {
        Ok(metadata) if text.len() as u64 <= MAX_METADATA_BYTES => metadata,
        _ => return Err(LearnError::Metadata(path.to_owned())),
    };
    let columns = metadata.schema.columns.into_iter();
    Ok(columns
        .filter_map(|column| {
            let column_type = match column.datatype.as_str() {
                "integer" | "long" | "int" | "number" | "decimal" | "double" | "float" | "boolean" => {
                    ColumnType::Number
                }
                "string" | "date" | "dateTime" | "datetime" | "time" => ColumnType::Text,
                _ => return None,
            };
            Some((column.name, column_type))
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_those_of_the_metadata() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("1.csv"), "a,b,c\n1,2,3\n").unwrap();
        assert_eq!(Table::read_folder(folder.path()).unwrap().column_type("a"), None);
        let write = |text: &str| std::fs::write(folder.path().join(METADATA_FILE), text).unwrap();
        write(
            r#"{"@context": "http://www.w3.org/ns/csvw", "url": "1.csv", "tableSchema": {"columns": [
                {"name": "a", "datatype": "string"}, {"name": "b", "datatype": "double"},
                {"name": "c", "datatype": "gYear"}]}}"#,
        );
        let table = Table::read_folder(folder.path()).unwrap();
        let found = ["a", "b", "c", "d"].map(|name| table.column_type(name));
        assert_eq!(found, [Some(ColumnType::Text), Some(ColumnType::Number), None, None]);
        for broken in ["", "[]", r#"{"tableSchema": {}}"#] {
            write(broken);
            assert!(matches!(
                Table::read_folder(folder.path()),
                Err(LearnError::Metadata(_))
            ));
        }
    }

    #[test]
    fn a_folder_is_read_in_the_order_of_names_and_other_files_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("part-2.csv"), "a,b\n3,\"x, y\"\n").unwrap();
        std::fs::write(folder.path().join("part-1.csv"), "a,b\r\n1,\r\n2,z\r\n").unwrap();
        std::fs::write(folder.path().join("README.md"), "not data").unwrap();
        let table = Table::read_folder(folder.path()).unwrap();
        assert_eq!(table.rows(), 3);
        assert_eq!(table.column("a").unwrap().collect::<Vec<_>>(), ["1", "2", "3"]);
        assert_eq!(table.column("b").unwrap().collect::<Vec<_>>(), ["", "z", "x, y"]);
        assert!(table.column("c").is_none());
    }

    #[test]
    fn what_does_not_fit_is_an_error_that_names_the_place_and_no_value() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &[u8]| std::fs::write(folder.path().join(name), text).unwrap();
        assert!(matches!(Table::read_folder(folder.path()), Err(LearnError::NoFiles(_))));
        write("1.csv", b"a,b\n1,2\n");
        write("2.csv", b"b,a\n1,2\n");
        assert!(
            matches!(Table::read_folder(folder.path()), Err(LearnError::HeaderDiffers(path)) if path.ends_with("2.csv"))
        );
        write("2.csv", b"a,b\nsecret-value\n");
        let text = Table::read_folder(folder.path()).unwrap_err().to_string();
        assert!(
            text.contains("2.csv") && text.contains("line: 2") && !text.contains("secret"),
            "{text}"
        );
        write("2.csv", b"a,b\n1,\xff\xfe\n");
        assert!(matches!(Table::read_folder(folder.path()), Err(LearnError::Csv { .. })));
        write("2.csv", b"a,a\n1,2\n");
        assert!(
            matches!(Table::read_file(&folder.path().join("2.csv")), Err(LearnError::ColumnTwice(name)) if name == "a")
        );
        std::fs::remove_file(folder.path().join("2.csv")).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", folder.path().join("2.csv")).unwrap();
        assert!(matches!(
            Table::read_folder(folder.path()),
            Err(LearnError::NotPlainFile(_))
        ));
    }
}
