//! Identifiers as sequences of words, so that `900-12-3456` is found in `ssn="900 12 3456"`.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};

use tidegate_types::Role;
use tidegate_types::files::catalog::Dataset;

use crate::error::PrepareError;
use crate::execute::RowSource;

/// Letters and digits that a value must have to be looked for: shorter ones are found everywhere.
const LEAST_CHARACTERS: usize = 6;
/// Words of an identifier that are compared.
const MOST_WORDS: usize = 8;
/// Identifier values that are held at a time, below what makes a table of 35 MB grow; more are looked for
/// in further passes.
const CHUNK: usize = 1_700_000;

/// Hashes of identifier values, each with the column it is from.
#[derive(Debug, Default)]
pub(crate) struct Identifiers {
    hasher: RandomState,
    values: HashMap<u64, u16>,
}

impl Identifiers {
    fn insert(&mut self, value: &str, column: u16) {
        let words: Vec<&str> = words(value).take(MOST_WORDS).collect();
        if words.iter().map(|word| word.chars().count()).sum::<usize>() >= LEAST_CHARACTERS {
            self.values.insert(self.hash(&words), column);
        }
    }

    fn hash(&self, words: &[&str]) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        for word in words {
            for character in word.chars().flat_map(char::to_lowercase) {
                character.hash(&mut hasher);
            }
            0_u8.hash(&mut hasher);
        }
        hasher.finish()
    }

    /// The column whose identifier stands in `text` as whole words.
    pub(crate) fn find(&self, text: &str) -> Option<u16> {
        let words: Vec<&str> = words(text).collect();
        (0..words.len()).find_map(|start| {
            (1..=MOST_WORDS).find_map(|length| {
                let run = words.get(start..start + length)?;
                self.values.get(&self.hash(run)).copied()
            })
        })
    }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|character: char| !character.is_alphanumeric())
        .filter(|word| !word.is_empty())
}

/// The columns of a dataset that name people by themselves: those the catalog calls so, and those it
/// does not mention.
pub(crate) fn identifier_columns<'a>(dataset: &Dataset, columns: impl Iterator<Item = &'a str>) -> Vec<usize> {
    columns
        .enumerate()
        .filter(|(_, column)| {
            !dataset.public
                && dataset
                    .column(column)
                    .is_none_or(|facts| facts.role == Role::Identifier)
        })
        .map(|(index, _)| index)
        .collect()
}

/// Hands the identifier values of `columns` in the records of `sources` to `each`, some at a time.
pub(crate) fn each_chunk<'a>(
    sources: impl IntoIterator<Item = &'a RowSource>,
    columns: &[usize],
    mut each: impl FnMut(&Identifiers) -> Result<(), PrepareError>,
) -> Result<(), PrepareError> {
    let mut identifiers = Identifiers::default();
    for source in sources {
        source.read(|records, rows, _| {
            for &row in rows {
                for &column in columns {
                    if let (Some(value), Ok(name)) = (records.get(row, column), u16::try_from(column)) {
                        identifiers.insert(value, name);
                    }
                }
            }
            if identifiers.values.len() >= CHUNK {
                each(&identifiers)?;
                identifiers.values.clear();
            }
            Ok(true)
        })?;
    }
    each(&identifiers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_words_are_found_whatever_stands_between() {
        let mut identifiers = Identifiers::default();
        for (column, value) in ["900-12-3456", "Mary Ann Smith", "a.b@example.org", "12345"]
            .iter()
            .enumerate()
        {
            identifiers.insert(value, column as u16);
        }
        for (text, found) in [
            ("ssn = \"900 12 3456\"", Some(0)),
            ("the patient MARY ANN SMITH was", Some(1)),
            ("mary smith ann", None),
            ("to <a.b@example.org>", Some(2)),
            ("12345", None),
            ("1900-12-3456", None),
            ("900-12-34567", None),
        ] {
            assert_eq!(identifiers.find(text), found, "{text}");
        }
    }
}
