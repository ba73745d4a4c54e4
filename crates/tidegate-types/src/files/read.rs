//! Reads the three files, strictly.
//!
//! A file is read twice: once for its shape, which refuses what could be an attack and finds the place
//! of every key, and once into its type, which refuses every unknown key.

use serde::de::DeserializeOwned;
use serde_saphyr::{DeserializeError, DuplicateKeyPolicy, MergeKeyPolicy, MessageFormatter, UserMessageFormatter};

use super::source::{FileError, Outline, Place, SourceText, suggest};
use super::{Catalog, Pipeline, Sites};

/// Reads `catalog.yaml`. `file` is the name that messages show.
///
/// # Errors
/// The first thing that is wrong, with its place.
pub fn read_catalog(file: &str, text: &str) -> Result<Catalog, FileError> {
    read(&SourceText { file, text })
}

/// Reads `sites.yaml`. `file` is the name that messages show.
///
/// # Errors
/// The first thing that is wrong, with its place.
pub fn read_sites(file: &str, text: &str) -> Result<Sites, FileError> {
    read(&SourceText { file, text })
}

/// Reads `tidegate.yaml`. `file` is the name that messages show.
///
/// # Errors
/// The first thing that is wrong, with its place.
pub fn read_pipeline(file: &str, text: &str) -> Result<Pipeline, FileError> {
    read(&SourceText { file, text })
}

/// Reads another file as strictly.
///
/// # Errors
/// The first thing that is wrong, with its place.
pub fn read<T: DeserializeOwned>(source: &SourceText<'_>) -> Result<T, FileError> {
    let outline = Outline::read(source)?;
    let options = serde_saphyr::options! {
        duplicate_keys: DuplicateKeyPolicy::Error,
        merge_keys: MergeKeyPolicy::Error,
        strict_booleans: true,
        with_snippet: false,
    };
    let text = outline.quote_null_keys(source.text);
    serde_saphyr::from_str_with_options(&text, options).map_err(|error| explain(source, &outline, &error))
}

/// An error of the YAML library in the words of these files.
fn explain(source: &SourceText<'_>, outline: &Outline, error: &DeserializeError) -> FileError {
    let error = error.without_snippet();
    let mut place = error.location().map_or(Place::START, |location| {
        outline.unquoted(Place {
            line: location.line().max(1),
            column: location.column().max(1),
        })
    });
    let (message, help) = match error {
        DeserializeError::SerdeUnknownField { field, expected, .. } => {
            let help = suggest(field, "known here", expected.iter().copied());
            (format!("unknown key `{field}`"), help)
        }
        DeserializeError::SerdeUnknownVariant { variant, expected, .. } => {
            let help = suggest(variant, "possible here", expected.iter().copied());
            (format!("`{variant}` is not possible here"), help)
        }
        DeserializeError::SerdeMissingField { field, .. } => {
            place = outline.around(place);
            let help = "`docs/files.md` describes every key".to_owned();
            (format!("key `{field}` is missing here"), Some(help))
        }
        DeserializeError::SerdeInvalidType {
            unexpected, expected, ..
        }
        | DeserializeError::SerdeInvalidValue {
            unexpected, expected, ..
        } => (format!("expected {}, found {unexpected}", plain(expected)), None),
        DeserializeError::Unexpected { expected, .. } => (format!("expected {} here", plain(expected)), None),
        DeserializeError::InvalidScalar { ty, .. } => (format!("expected {} here", plain(ty)), None),
        DeserializeError::InvalidBooleanStrict { .. } => ("expected `true` or `false` here".to_owned(), None),
        DeserializeError::NullIntoString { .. } => {
            let help = "write one, in quotes when it is empty or the word `null`".to_owned();
            ("a text is missing here".to_owned(), Some(help))
        }
        DeserializeError::Message { msg, .. } => (msg.clone(), None),
        other => (UserMessageFormatter.format_message(other).into_owned(), None),
    };
    source.error(place, message, help)
}

/// Rust's and the library's names for shapes as a writer of YAML calls them.
fn plain(expected: &str) -> &str {
    match expected {
        "mapping start" | "a map" => "a mapping of keys to values",
        "sequence start" | "a sequence" => "a list",
        "u8" | "u16" | "u32" | "u64" => "a whole number that is not negative",
        "f64" | "f32" | "float" => "a number",
        shape if shape.starts_with("struct ") => "a mapping of keys to values",
        other => other,
    }
}
