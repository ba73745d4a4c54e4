//! One streaming reader over CSV and Parquet: batches of trimmed text fields with the place each
//! record came from.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tidegate_types::files::catalog::{CsvOptions, ValueType};

use super::parquet::ParquetFile;
use super::source::{Format, InputFile};
use crate::error::PrepareError;

/// Records in a batch at the most.
const BATCH_RECORDS: usize = 8192;
/// Bytes of text in a batch at the most, the last record aside.
const BATCH_BYTES: usize = 8 << 20;
/// Columns of a source at the most.
const MOST_COLUMNS: usize = 10_000;
/// Bytes of one record at the most, so that a quote that is never closed does not fill the memory.
const RECORD_BYTES: u64 = 16 << 20;

/// A batch of records. Fields are trimmed; a missing one is `None`.
#[derive(Debug, Default)]
pub(crate) struct Records {
    width: usize,
    text: String,
    ends: Vec<usize>,
    missing: Vec<bool>,
    lines: Vec<u64>,
    /// What messages call the file that all records of the batch are from.
    pub(crate) file: String,
    /// The number of the first record, counted from 0 over all files.
    pub(crate) first: u64,
}

impl Records {
    pub(crate) fn len(&self) -> usize {
        self.lines.len()
    }

    /// How many fields a record has.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    pub(crate) fn get(&self, record: usize, column: usize) -> Option<&str> {
        let index = record * self.width + column;
        if *self.missing.get(index)? {
            return None;
        }
        let start = match index.checked_sub(1) {
            Some(before) => *self.ends.get(before)?,
            None => 0,
        };
        self.text.get(start..*self.ends.get(index)?)
    }

    /// The line on which the record begins; for Parquet its number in the file. From 1.
    pub(crate) fn line(&self, record: usize) -> u64 {
        self.lines.get(record).copied().unwrap_or_default()
    }

    fn clear(&mut self, width: usize, file: &str, first: u64) {
        self.width = width;
        self.text.clear();
        self.ends.clear();
        self.missing.clear();
        self.lines.clear();
        file.clone_into(&mut self.file);
        self.first = first;
    }

    pub(super) fn push(&mut self, field: Option<&str>) {
        self.missing.push(field.is_none());
        self.text.push_str(field.unwrap_or_default());
        self.ends.push(self.text.len());
    }

    pub(super) fn end_record(&mut self, line: u64) {
        self.lines.push(line);
    }

    fn is_full(&self) -> bool {
        self.lines.len() >= BATCH_RECORDS || self.text.len() >= BATCH_BYTES
    }
}

/// Reads the records of several files with one header, one after another.
#[derive(Debug)]
pub(crate) struct RecordReader {
    files: Vec<InputFile>,
    csv: CsvOptions,
    /// Trimmed names of the columns.
    pub(crate) header: Vec<String>,
    /// The types that the files declare; `None` where the values decide.
    pub(crate) declared: Vec<Option<ValueType>>,
    next_file: usize,
    current: Option<Current>,
    read: u64,
}

#[derive(Debug)]
enum Current {
    Csv(CsvFile),
    Parquet(ParquetFile),
}

impl RecordReader {
    /// Opens the first file for its header. All files must have the same one.
    pub(crate) fn open(files: Vec<InputFile>, csv: &CsvOptions) -> Result<Self, PrepareError> {
        let Some(first) = files.first() else {
            return Err(PrepareError::input(
                "reading the source",
                "it has no file",
                "Name a file",
            ));
        };
        let mut current = Current::open(first, csv)?;
        let (header, declared) = current.header()?;
        check_header(first, &header)?;
        Ok(Self {
            csv: csv.clone(),
            header,
            declared,
            next_file: 1,
            current: Some(current),
            files,
            read: 0,
        })
    }

    /// Fills `records` with the next batch; `false` when there is none.
    pub(crate) fn next(&mut self, records: &mut Records) -> Result<bool, PrepareError> {
        loop {
            let Some(file) = self.files.get(self.next_file - 1) else {
                return Ok(false);
            };
            if let Some(current) = &mut self.current {
                records.clear(self.header.len(), &file.shown, self.read);
                match current {
                    Current::Csv(csv) => csv.next(records, file, &self.header, &self.csv)?,
                    Current::Parquet(parquet) => parquet.next(records, file, &self.csv)?,
                }
                if records.len() > 0 {
                    self.read += records.len() as u64;
                    return Ok(true);
                }
                self.current = None;
            }
            let Some(file) = self.files.get(self.next_file) else {
                return Ok(false);
            };
            let mut next = Current::open(file, &self.csv)?;
            let (header, declared) = next.header()?;
            if header != self.header || declared != self.declared {
                return Err(PrepareError::input(
                    format!("reading `{}`", file.shown),
                    "its columns are not those of the first file of the source, in the same order",
                    "Write all files of a source with the same columns",
                ));
            }
            self.current = Some(next);
            self.next_file += 1;
        }
    }
}

fn check_header(file: &InputFile, header: &[String]) -> Result<(), PrepareError> {
    let failed = |why: String, fix: &str| PrepareError::Data {
        file: file.shown.clone(),
        line: 1,
        why,
        fix: fix.to_owned(),
    };
    if header.len() > MOST_COLUMNS {
        let why = format!("the header has {} columns, more than {MOST_COLUMNS}", header.len());
        return Err(failed(why, "Name a source with fewer columns"));
    }
    let mut seen = std::collections::BTreeSet::new();
    for (number, name) in header.iter().enumerate() {
        if name.is_empty() {
            let why = format!("column {} has no name", number + 1);
            return Err(failed(why, "Give every column of the header a name"));
        }
        if name.to_ascii_lowercase().starts_with("__tidegate") {
            let why = format!("column `{name}` begins with `__tidegate`, which is taken");
            return Err(failed(why, "Rename the column"));
        }
        if !seen.insert(name) {
            let why = format!("column `{name}` stands twice in the header");
            return Err(failed(why, "Give every column a name of its own"));
        }
    }
    Ok(())
}

impl Current {
    fn open(file: &InputFile, csv: &CsvOptions) -> Result<Self, PrepareError> {
        Ok(match file.format {
            Format::Csv => Self::Csv(CsvFile::open(file, csv)?),
            Format::Parquet => Self::Parquet(ParquetFile::open(file)?),
        })
    }

    fn header(&mut self) -> Result<(Vec<String>, Vec<Option<ValueType>>), PrepareError> {
        match self {
            Self::Csv(csv) => {
                let header = std::mem::take(&mut csv.header);
                let declared = vec![None; header.len()];
                Ok((header, declared))
            }
            Self::Parquet(parquet) => Ok((parquet.header.clone(), parquet.declared.clone())),
        }
    }
}

#[derive(Debug)]
struct CsvFile {
    reader: csv::Reader<Bounded<File>>,
    budget: Arc<AtomicU64>,
    record: csv::ByteRecord,
    header: Vec<String>,
    /// Whether lines end with two characters: the reader counts the second one to the next record.
    two_ends: bool,
}

impl CsvFile {
    fn open(file: &InputFile, options: &CsvOptions) -> Result<Self, PrepareError> {
        let Ok(delimiter) = u8::try_from(options.delimiter) else {
            return Err(PrepareError::input(
                format!("reading `{}`", file.shown),
                "`csv.delimiter` is not an ASCII character",
                "Use one such as `,` or `;`",
            ));
        };
        let opened = File::open(&file.path).map_err(|source| PrepareError::file("reading", &file.path, source))?;
        let budget = Arc::new(AtomicU64::new(RECORD_BYTES));
        let mut csv = Self {
            reader: csv::ReaderBuilder::new()
                .has_headers(false)
                .flexible(true)
                .delimiter(delimiter)
                .from_reader(Bounded {
                    inner: opened,
                    budget: Arc::clone(&budget),
                }),
            budget,
            record: csv::ByteRecord::new(),
            header: Vec::new(),
            two_ends: false,
        };
        if !csv.advance(file)? {
            return Err(PrepareError::input(
                format!("reading `{}`", file.shown),
                "the file is empty",
                "Give it a header and records",
            ));
        }
        for (number, field) in csv.record.iter().enumerate() {
            let field = if number == 0 {
                field.strip_prefix("\u{feff}".as_bytes()).unwrap_or(field)
            } else {
                field
            };
            let name = std::str::from_utf8(field).map_err(|_| not_utf8(file, 1, "the header"))?;
            csv.header.push(name.trim().trim_matches('"').to_owned());
        }
        let mut end = [0; 2];
        let last = csv.reader.position().byte().saturating_sub(1);
        let read = csv.reader.get_ref().inner.read_at(&mut end, last);
        read.map_err(|source| PrepareError::file("reading", &file.path, source))?;
        csv.two_ends = end == *b"\r\n";
        Ok(csv)
    }

    /// The line on which the record begins that comes next.
    fn line(&self) -> u64 {
        self.reader.position().line() + u64::from(self.two_ends)
    }

    fn advance(&mut self, file: &InputFile) -> Result<bool, PrepareError> {
        self.budget.store(RECORD_BYTES, Ordering::Relaxed);
        let line = self.line();
        self.reader
            .read_byte_record(&mut self.record)
            .map_err(|error| match error.into_kind() {
                csv::ErrorKind::Io(source) if source.kind() == io::ErrorKind::FileTooLarge => PrepareError::Data {
                    file: file.shown.clone(),
                    line,
                    why: format!("the record that begins here is longer than {} MiB", RECORD_BYTES >> 20),
                    fix: "Close the quote that is left open, or double a quote inside a quoted field".to_owned(),
                },
                csv::ErrorKind::Io(source) => PrepareError::file("reading", &file.path, source),
                _ => PrepareError::Data {
                    file: file.shown.clone(),
                    line,
                    why: "this is not CSV".to_owned(),
                    fix: "Write the file as RFC 4180 says".to_owned(),
                },
            })
    }

    fn next(
        &mut self,
        records: &mut Records,
        file: &InputFile,
        header: &[String],
        options: &CsvOptions,
    ) -> Result<(), PrepareError> {
        loop {
            let line = self.line();
            if records.is_full() || !self.advance(file)? {
                return Ok(());
            }
            if self.record.len() != header.len() {
                return Err(PrepareError::Data {
                    file: file.shown.clone(),
                    line,
                    why: format!(
                        "the record has {} fields and the header has {}",
                        self.record.len(),
                        header.len()
                    ),
                    fix: "Give every record one field for each column; quote fields that hold the delimiter".to_owned(),
                });
            }
            for (field, name) in self.record.iter().zip(header) {
                let Ok(field) = std::str::from_utf8(field) else {
                    return Err(not_utf8(file, line, &format!("column `{name}`")));
                };
                let field = field.trim();
                records.push((!is_missing(field, options)).then_some(field));
            }
            records.end_record(line);
        }
    }
}

/// Whether a trimmed field means a missing value. The empty text always does.
pub(super) fn is_missing(field: &str, options: &CsvOptions) -> bool {
    field.is_empty() || options.null.contains(field)
}

fn not_utf8(file: &InputFile, line: u64, place: &str) -> PrepareError {
    PrepareError::Data {
        file: file.shown.clone(),
        line,
        why: format!("{place} is not UTF-8 text"),
        fix: "Convert the file: `iconv -f WINDOWS-1252 -t UTF-8`, with the encoding that it really has".to_owned(),
    }
}

/// A reader that gives up when more than the budget was read since the budget was set last.
#[derive(Debug)]
struct Bounded<R> {
    inner: R,
    budget: Arc<AtomicU64>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.budget.load(Ordering::Relaxed);
        if left == 0 {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let read = self.inner.read(buffer)?;
        self.budget.store(left.saturating_sub(read as u64), Ordering::Relaxed);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::source;

    type Table = (Vec<String>, Vec<Vec<Option<String>>>);

    fn read(content: &[u8], options: &CsvOptions) -> Result<Table, String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.csv"), content).unwrap();
        let files = source::find(folder.path(), "a.csv").unwrap();
        let mut reader = RecordReader::open(files, options).map_err(|error| error.to_string())?;
        let (mut records, mut rows) = (Records::default(), Vec::new());
        while reader.next(&mut records).map_err(|error| error.to_string())? {
            for record in 0..records.len() {
                let row = (0..reader.header.len()).map(|column| records.get(record, column).map(str::to_owned));
                rows.push(row.collect());
            }
        }
        Ok((reader.header, rows))
    }

    #[test]
    fn fields_are_trimmed_and_nulls_are_those_declared() {
        let options = CsvOptions {
            null: ["NA".to_owned()].into(),
            delimiter: ';',
        };
        let (header, rows) = read(b"\xef\xbb\xbf a ; b\r\n  1 ; NA\r\n\"x;\ny\";\r\n", &options).unwrap();
        assert_eq!(header, ["a", "b"]);
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(rows, [vec![text("1"), None], vec![text("x;\ny"), None]]);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place_and_without_the_value() {
        let options = CsvOptions::default();
        for (content, expected) in [
            (
                &b"a,b\n1,2\n1,2,3\n"[..],
                "a.csv:3: the record has 3 fields and the header has 2",
            ),
            (b"a,b\n1,2\n\"x\ny\",2\n1\n", "a.csv:5: the record has 1 fields"),
            (b"a,b\n1,\xff\xfe\n", "a.csv:2: column `b` is not UTF-8 text"),
            (b"a,a\n1,2\n", "a.csv:1: column `a` stands twice"),
            (b"a,\n1,2\n", "a.csv:1: column 2 has no name"),
            (b"", "the file is empty"),
        ] {
            let error = read(content, &options).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_quote_left_open_does_not_fill_the_memory() {
        let mut content = b"a\n1\n\"".to_vec();
        content.resize(40 << 20, b'x');
        let error = read(&content, &CsvOptions::default()).unwrap_err();
        assert!(
            error.contains("a.csv:3: the record that begins here is longer than"),
            "{error}"
        );
    }

    #[test]
    fn batches_are_cut_and_joined_again() {
        let mut content = String::from("n\n");
        for number in 0..20_000 {
            content.push_str(&format!("{number}\n"));
        }
        let (_, rows) = read(content.as_bytes(), &CsvOptions::default()).unwrap();
        assert_eq!(rows.len(), 20_000);
        for (number, row) in rows.iter().enumerate() {
            assert_eq!(row[0].as_deref(), Some(number.to_string().as_str()));
        }
    }
}
