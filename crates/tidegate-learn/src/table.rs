//! Text records under a header, as they are read from CSV.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use csv::StringRecord;
use ndarray::Array2;
use tidegate_bundle::FeatureSchema;
use tidegate_bundle::schema::EncodeError;

use crate::error::LearnError;

/// The most bytes of text that a table holds: 1 GiB.
const MAX_BYTES: u64 = 1 << 30;

/// Records of text under a header. Every record has one field for each column; an empty field is a
/// missing value. Fields are taken as they are: what is trained on is what is encoded later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    header: Vec<String>,
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

    /// Reads every `*.csv` of a folder in the order of names, as one table.
    ///
    /// # Errors
    /// As [`Table::read_file`], and when there is no such file, one is not a plain file, or headers
    /// differ.
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
        Self::read_files(&files)
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

#[cfg(test)]
mod tests {
    use super::*;

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
