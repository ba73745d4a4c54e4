//! What a source holds, found by looking: for people who write a catalog, and against catalogs that
//! are wrong.

pub(crate) mod assign;
pub(crate) mod code;
mod dates;
pub(crate) mod look;
pub(crate) mod survey;
pub(crate) mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;
use tidegate_types::files::Catalog;
use tidegate_types::files::catalog::{Column, CsvOptions, Dataset, ValueType};
use tidegate_types::ids::{DatasetName, SiteName};
use tidegate_types::label::Residency;
use tidegate_types::{IdentifierKind, Role};

use crate::error::PrepareError;
use crate::ingest::{InputFile, RecordReader, Records, SourceFile, source};
use look::Look;

/// What a source holds, without any of its values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ScanReport {
    /// The files, relative to the folder of the first.
    pub files: Vec<String>,
    /// Bytes of all files.
    pub bytes: u64,
    /// Records.
    pub rows: u64,
    /// Columns in order.
    pub columns: Vec<ScanColumn>,
}

/// What one column holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ScanColumn {
    /// Its name.
    pub name: String,
    /// The type its values have; absent when it cannot be told, see `problem`.
    #[serde(rename = "type")]
    pub value_type: Option<ValueType>,
    /// What is wrong with its values, and what to do.
    pub problem: Option<String>,
    /// Records without a value.
    pub missing: u64,
    /// Different values.
    pub distinct: u64,
    /// Whether there may be more different values than were counted.
    pub more_distinct: bool,
    /// What a catalog could say about it.
    pub suggested: Column,
    /// Why.
    pub why: String,
}

/// Reads all records of a file, folder or glob and describes its columns. Nothing of it is a value of
/// the data, but it describes the data, so it stays with the owner.
///
/// # Errors
/// When the source cannot be read.
pub async fn scan(path: &Path, csv: &CsvOptions) -> Result<ScanReport, PrepareError> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    scan_files(source::find(folder, name.as_deref().unwrap_or("."))?, csv)
}

/// As [`scan`], of the files of a source that were brought here.
///
/// # Errors
/// When they cannot be read.
pub async fn scan_brought(source: &str, files: &[SourceFile], csv: &CsvOptions) -> Result<ScanReport, PrepareError> {
    scan_files(source::brought(source, files)?, csv)
}

fn scan_files(files: Vec<InputFile>, csv: &CsvOptions) -> Result<ScanReport, PrepareError> {
    let mut bytes = 0;
    for file in &files {
        let metadata =
            std::fs::metadata(&file.path).map_err(|source| PrepareError::file("reading", &file.path, source))?;
        bytes += metadata.len();
    }
    let shown = files.iter().map(|file| file.shown.clone()).collect();
    let mut reader = RecordReader::open(files, csv)?;
    let mut looks: Vec<Look> = reader.header.iter().map(|_| Look::new()).collect();
    let (mut records, mut rows) = (Records::default(), 0);
    while reader.next(&mut records)? {
        rows += records.len() as u64;
        for record in 0..records.len() {
            for (index, look) in looks.iter_mut().enumerate() {
                look.see(records.get(record, index), &records.file, records.line(record));
            }
        }
    }
    let columns = reader
        .header
        .iter()
        .zip(&looks)
        .zip(&reader.declared)
        .map(|((name, look), declared)| describe(name, look, *declared))
        .collect();
    Ok(ScanReport {
        files: shown,
        bytes,
        rows,
        columns,
    })
}

fn describe(name: &str, look: &Look, declared: Option<ValueType>) -> ScanColumn {
    let (role, kind, why) = suggest(name, look);
    let suggested = Column {
        role,
        kind,
        value_type: None,
    };
    let (value_type, problem) = match declared {
        Some(declared) => (Some(declared), None),
        None => match look.guess.settle(name, Some(&suggested)) {
            Ok(found) => (Some(found), None),
            Err(error) => (None, Some(error.to_string())),
        },
    };
    let (distinct, more_distinct) = look.distinct();
    ScanColumn {
        name: name.to_owned(),
        value_type,
        problem,
        missing: look.missing,
        distinct,
        more_distinct,
        suggested,
        why,
    }
}

/// Words in column names and what they mostly mean, the more telling first.
const NAMES: &[(&[&str], Role, IdentifierKind)] = &[
    (
        &["ssn", "social", "national"],
        Role::Identifier,
        IdentifierKind::NationalId,
    ),
    (&["mail", "email"], Role::Identifier, IdentifierKind::Email),
    (
        &["phone", "telephone", "mobile", "fax"],
        Role::Identifier,
        IdentifierKind::Phone,
    ),
    (&["street", "address"], Role::Identifier, IdentifierKind::Street),
    (
        &[
            "note",
            "notes",
            "comment",
            "comments",
            "remark",
            "remarks",
            "narrative",
            "text",
        ],
        Role::Text,
        IdentifierKind::Value,
    ),
    (
        &["zip", "postal", "postcode"],
        Role::QuasiIdentifier,
        IdentifierKind::ZipCode,
    ),
    (
        &["birth", "dob", "born", "date", "day", "time"],
        Role::Identifier,
        IdentifierKind::Date,
    ),
    (
        &["mrn", "record", "patient", "subject", "customer", "member"],
        Role::Identifier,
        IdentifierKind::RecordNumber,
    ),
    (
        &["name", "surname", "forename", "firstname", "lastname"],
        Role::Identifier,
        IdentifierKind::Name,
    ),
    (
        &[
            "account", "licence", "license", "plate", "device", "serial", "ip", "url",
        ],
        Role::Identifier,
        IdentifierKind::OtherNumber,
    ),
    (&["age"], Role::QuasiIdentifier, IdentifierKind::Age),
    (
        &[
            "sex",
            "gender",
            "race",
            "ethnicity",
            "income",
            "edu",
            "education",
            "marital",
            "occupation",
            "religion",
            "nationality",
            "language",
        ],
        Role::QuasiIdentifier,
        IdentifierKind::Value,
    ),
];

fn words(name: &str) -> BTreeSet<String> {
    name.split(|character: char| !character.is_alphabetic())
        .map(str::to_lowercase)
        .collect()
}

/// What the name of a column says that it is.
fn by_name(name: &str, look: &Look) -> Option<(Role, IdentifierKind)> {
    let words = words(name);
    NAMES
        .iter()
        .find(|(known, _, kind)| {
            // `time` or `day` in the name of numbers is a length, not a date.
            let plausible = *kind != IdentifierKind::Date || look.guess.numbers < look.guess.seen;
            plausible && known.iter().any(|word| words.contains(*word))
        })
        .map(|(_, role, kind)| (*role, *kind))
}

/// A first guess at what a column is. What is not understood is an identifier, so that a catalog that
/// nobody corrected lets nothing out.
fn suggest(name: &str, look: &Look) -> (Role, IdentifierKind, String) {
    if let Some(kind) = look.kind() {
        return (Role::Identifier, kind, "its values have this form".to_owned());
    }
    if let Some((role, kind)) = by_name(name, look) {
        return (role, kind, "its name says so".to_owned());
    }
    let value = IdentifierKind::Value;
    if look.is_prose() {
        return (Role::Text, value, "its values are sentences".to_owned());
    }
    let guess = &look.guess;
    if guess.seen == 0 {
        return (Role::Identifier, value, "it has no value; say what it is".to_owned());
    }
    if guess.numbers == guess.seen && guess.integers < guess.seen {
        return (Role::Attribute, value, "its values are measurements".to_owned());
    }
    if words(name).contains("id") || look.nearly_unique() {
        let why = "it is another one in nearly every record; say what it is";
        return (Role::Identifier, IdentifierKind::OtherNumber, why.to_owned());
    }
    let (distinct, more) = look.distinct();
    if !more && (guess.numbers == guess.seen || distinct <= 64) {
        return (Role::Attribute, value, "it has few different values".to_owned());
    }
    (
        Role::Identifier,
        value,
        "it is not understood; say what it is".to_owned(),
    )
}

impl ScanColumn {
    /// Whether a column looks like more than what the catalog says about it, if it says anything.
    #[must_use]
    pub fn exceeds(&self, facts: Option<&Column>) -> bool {
        facts.is_none_or(|facts| {
            let stricter = self.suggested.role.strictness() > facts.role.strictness();
            let more_telling = self.suggested.kind != IdentifierKind::Value && facts.kind == IdentifierKind::Value;
            stricter || more_telling
        })
    }
}

/// The column that most likely tells people apart: the number of a record, or else an identifier that is
/// another one in every record, or else any identifier.
fn subject(report: &ScanReport) -> Option<String> {
    let identifiers = || {
        let columns = report.columns.iter().filter(|column| column.missing == 0);
        columns.filter(|column| column.suggested.role == Role::Identifier)
    };
    identifiers()
        .find(|column| column.suggested.kind == IdentifierKind::RecordNumber)
        .or_else(|| identifiers().find(|column| column.distinct == report.rows))
        .or_else(|| identifiers().next())
        .map(|column| column.name.clone())
}

/// A first catalog for a source, for its owner to correct, and the scan that it follows. The site is called
/// `home` and no purpose is allowed until the owner writes them.
///
/// # Errors
/// When the source cannot be read.
pub async fn first_catalog(path: &Path, name: DatasetName) -> Result<(Catalog, ScanReport), PrepareError> {
    let csv = CsvOptions {
        null: [String::new(), "NA".to_owned()].into(),
        ..CsvOptions::default()
    };
    let report = scan(path, &csv).await?;
    let columns: BTreeMap<String, Column> = report
        .columns
        .iter()
        .map(|column| (column.name.clone(), column.suggested.clone()))
        .collect();
    let site = SiteName::new("home")
        .map_err(|error| PrepareError::failed("writing a first catalog", error.to_string(), "Report this"))?;
    let dataset = Dataset {
        site,
        source: path
            .file_name()
            .unwrap_or(path.as_os_str())
            .to_string_lossy()
            .into_owned(),
        subject: subject(&report),
        purposes: BTreeSet::new(),
        least_k: 5,
        least_l: 1,
        tags: BTreeSet::new(),
        residency: Residency::Anywhere,
        public: false,
        csv,
        columns,
    };
    let catalog = Catalog {
        task_files: None,
        datasets: [(name, dataset)].into(),
    };
    Ok((catalog, report))
}
