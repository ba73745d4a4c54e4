//! What is wrong with a query, in the words of whoever wrote it.

use datafusion::common::{Column, SchemaError};
use datafusion::error::DataFusionError;

/// Columns that are named in a message.
const MOST_NAMES: usize = 40;

/// The place in the query, where it is known, and what is wrong there.
pub(crate) fn told(error: &DataFusionError) -> String {
    let (place, what) = match error.find_root() {
        DataFusionError::SQL(error, _) => parsing(&error.to_string()),
        DataFusionError::SchemaError(error, _) => (None, naming(error)),
        other => (None, plain(&other.strip_backtrace())),
    };
    let span = error.diagnostic().and_then(|diagnostic| diagnostic.span);
    let place = place.or_else(|| span.map(|span| (span.start.line, span.start.column)));
    match place {
        Some((line, column)) if line > 0 => format!("line {line}, column {column}: {what}"),
        _ => what,
    }
}

/// What the parser says, without the place at its end.
fn parsing(text: &str) -> (Option<(u64, u64)>, String) {
    let text = plain(text.trim_start_matches("sql parser error: "));
    let cut = text.rsplit_once(" at Line: ").and_then(|(what, place)| {
        let (line, column) = place.split_once(", Column: ")?;
        Some((what.to_owned(), (line.parse().ok()?, column.parse().ok()?)))
    });
    match cut {
        Some((what, place)) => (Some(place), what),
        None => (None, text),
    }
}

fn naming(error: &SchemaError) -> String {
    match error {
        SchemaError::FieldNotFound { field, valid_fields } => {
            let mut known: Vec<&str> = valid_fields.iter().map(Column::name).collect();
            known.sort_unstable();
            known.dedup();
            let more = known.len().saturating_sub(MOST_NAMES);
            known.truncate(MOST_NAMES);
            let more = if more > 0 {
                format!(" and {more} more")
            } else {
                String::new()
            };
            let known = match known.as_slice() {
                [] => "nothing is there to select from".to_owned(),
                known => format!("there are {}{more}", known.join(", ")),
            };
            format!("there is no column `{}`; {known}", field.name())
        }
        SchemaError::AmbiguousReference { field } => {
            format!("several columns are called `{}`: say of which relation", field.name())
        }
        SchemaError::DuplicateQualifiedField { name, .. } | SchemaError::DuplicateUnqualifiedField { name } => {
            format!("two columns are called `{name}`: give one another name with AS")
        }
    }
}

/// The first line of what the engine says, without its own name for the kind of error.
fn plain(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default().trim_end_matches('.');
    [
        "Error during planning: ",
        "SQL error: ",
        "This feature is not implemented: ",
    ]
    .iter()
    .fold(line, |line, kind| line.strip_prefix(kind).unwrap_or(line))
    .to_owned()
}
