//! Holds the three files against each other, without looking at anything else.

mod catalog;
mod pipeline;
mod refusals;
mod sites;

pub use refusals::{LEAST_CELL, LOOSEST_MEMBERSHIP_AUC, check_refusals};

use super::source::{FileError, Outline, SourceText, Texts};
use super::{Catalog, Pipeline, Sites};

/// Whether the three files fit each other: whatever one names is in the others, every value is inside
/// its bounds. What the data owner forbids is not an error of a file: see [`check_refusals`].
///
/// # Errors
/// Everything that is wrong, in the order catalog, sites, pipeline, each with the place of the key.
pub fn check(catalog: &Catalog, sites: &Sites, pipeline: &Pipeline, texts: &Texts<'_>) -> Result<(), Vec<FileError>> {
    let mut errors = Vec::new();
    catalog::check(catalog, sites, &mut Findings::of(texts.catalog, &mut errors));
    sites::check(sites, &mut Findings::of(texts.sites, &mut errors));
    pipeline::check(catalog, sites, pipeline, &mut Findings::of(texts.pipeline, &mut errors));
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// Collects what is wrong in one file.
struct Findings<'a> {
    source: SourceText<'a>,
    outline: Outline,
    errors: &'a mut Vec<FileError>,
}

impl<'a> Findings<'a> {
    fn of(source: SourceText<'a>, errors: &'a mut Vec<FileError>) -> Self {
        Self {
            source,
            outline: Outline::read(&source).unwrap_or_else(|_| Outline::empty()),
            errors,
        }
    }

    /// Whether the key at `path` is written in the file.
    fn written(&self, path: &[&str]) -> bool {
        self.outline.has(path)
    }

    /// The key at `path` should not be there, or is missing.
    fn key(&mut self, path: &[&str], message: impl Into<String>, help: impl IntoHelp) {
        let place = self.outline.key(path);
        self.errors.push(self.source.error(place, message, help.into_help()));
    }

    /// The value at `path` is wrong.
    fn value(&mut self, path: &[&str], message: impl Into<String>, help: impl IntoHelp) {
        let place = self.outline.value(path);
        self.errors.push(self.source.error(place, message, help.into_help()));
    }
}

/// What may stand as the help of an error.
trait IntoHelp {
    fn into_help(self) -> Option<String>;
}

impl IntoHelp for &str {
    fn into_help(self) -> Option<String> {
        (!self.is_empty()).then(|| self.to_owned())
    }
}

impl IntoHelp for String {
    fn into_help(self) -> Option<String> {
        Some(self)
    }
}

impl IntoHelp for Option<String> {
    fn into_help(self) -> Option<String> {
        self
    }
}
