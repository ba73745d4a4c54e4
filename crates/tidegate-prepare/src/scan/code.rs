//! Looks for identifiers in files that shall cross as code.

use std::path::Path;

use tidegate_types::Refusal;

use super::words::{each_chunk, identifier_columns};
use crate::error::PrepareError;
use crate::execute::{Chosen, RowSource};
use crate::home::Home;
use crate::ingest::{RecordReader, Snapshot};
use crate::sealed;
use crate::split::{Keys, Prf};

/// Bytes of a code file at the most.
const MOST_BYTES: usize = 16 << 20;

/// Refuses `content` when it holds an identifier of the data: at least six letters and digits that
/// stand in it as whole words. `home_or_snapshot` is [`crate::Prepared::home`], or the folder of a
/// snapshot; of a bare snapshot, which says nothing of roles, every column counts as an identifier.
///
/// # Errors
/// The refusal names the file and the column, never the value.
pub async fn scan_code(home_or_snapshot: &Path, keys: &Keys, file: &str, content: &[u8]) -> Result<(), PrepareError> {
    if content.len() > MOST_BYTES {
        return Err(PrepareError::input(
            format!("looking for identifiers in `{file}`"),
            format!("it is larger than {} MiB", MOST_BYTES >> 20),
            "Ship code, not data",
        ));
    }
    let (files, csv, columns, names) = if Home::is_at(home_or_snapshot) {
        sealed::check_home(home_or_snapshot, keys)?;
        let home = Home::read(home_or_snapshot)?;
        let snapshot = home.snapshot(home_or_snapshot)?;
        let names: Vec<String> = home.columns.iter().map(|column| column.name.clone()).collect();
        let columns = identifier_columns(&home.dataset, names.iter().map(String::as_str));
        (snapshot.files, home.dataset.csv, columns, names)
    } else {
        let snapshot = Snapshot::open(home_or_snapshot)?;
        let csv = tidegate_types::files::catalog::CsvOptions::default();
        let names = RecordReader::open(snapshot.files.clone(), &csv)?.header;
        (snapshot.files, csv, (0..names.len()).collect(), names)
    };
    let source = RowSource {
        files,
        csv,
        columns: Vec::new(),
        chosen: Chosen::All,
        subjects: Prf::derive(&keys.values, "subjects", b""),
        digests: None,
        without: None,
    };
    let text = String::from_utf8_lossy(content);
    let mut found = None;
    each_chunk([&source], &columns, |identifiers| {
        found = found.or_else(|| identifiers.find(&text));
        Ok(())
    })?;
    match found.and_then(|column| names.get(usize::from(column))) {
        None => Ok(()),
        Some(column) => Err(PrepareError::Refused(Refusal {
            rule: "identifier-in-code".to_owned(),
            what: format!("sending file `{file}` as code"),
            why: format!("it holds a value of column `{column}`, which names a person"),
            fix: format!("remove the value from `{file}`; code that needs rows reads them from its inputs"),
        })),
    }
}
