//! Which part each record of the source belongs to.

use std::borrow::Cow;

use tidegate_types::files::catalog::Dataset;
use tidegate_types::files::pipeline::Split;
use tidegate_types::ids::DatasetName;

use crate::error::PrepareError;
use crate::ingest::Records;
use crate::split::{Keys, Part, Splitter};

/// Gives records to parts by their subject. Of a sample, each part takes its share and no more, so
/// that a record of one part never pushes out one of another.
#[derive(Debug, Clone)]
pub(crate) struct Assigner {
    splitter: Splitter,
    subject: Option<usize>,
    width: usize,
    left: Option<[u64; 4]>,
}

/// A record's subject, and its part unless the part is full.
pub(crate) struct Assigned<'a> {
    pub(crate) subject: Cow<'a, str>,
    pub(crate) part: Option<Part>,
}

impl Assigner {
    /// # Errors
    /// When the dataset has people in it and does not say which column names them, or the column is
    /// not there.
    pub(crate) fn new(
        name: &DatasetName,
        dataset: &Dataset,
        header: &[String],
        keys: &Keys,
        split: &Split,
        sample: Option<u64>,
    ) -> Result<Self, PrepareError> {
        let failed = |why: String, fix: &str| PrepareError::input(format!("dividing dataset `{name}`"), why, fix);
        let subject = match &dataset.subject {
            Some(column) => Some(header.iter().position(|found| found == column).ok_or_else(|| {
                failed(
                    format!("the source has no column `{column}`, which is its subject"),
                    "Correct `subject` in the catalog",
                )
            })?),
            None if dataset.public => None,
            None => {
                return Err(failed(
                    "it is not public and the catalog does not say which column names the person".to_owned(),
                    "Write `subject: COLUMN` into the catalog",
                ));
            }
        };
        Ok(Self {
            splitter: Splitter::new(keys, split)?,
            subject,
            width: header.len(),
            left: sample.map(|sample| quotas(sample, split)),
        })
    }

    /// The part of a record. A record without a subject is an error: it could be anybody's.
    pub(crate) fn assign<'a>(&mut self, records: &'a Records, record: usize) -> Result<Assigned<'a>, PrepareError> {
        let subject: Cow<'a, str> = match self.subject {
            Some(column) => records
                .get(record, column)
                .ok_or_else(|| PrepareError::Data {
                    file: records.file.clone(),
                    line: records.line(record),
                    why: "the record has no subject".to_owned(),
                    fix: "Give every record a value in the column that the catalog calls `subject`".to_owned(),
                })?
                .into(),
            // Nobody's data: the record itself decides, so that other records do not move it.
            None => {
                let mut whole = String::new();
                for column in 0..self.width {
                    whole.push_str(records.get(record, column).unwrap_or("\u{0}"));
                    whole.push('\u{1f}');
                }
                whole.into()
            }
        };
        let mut part = Some(self.splitter.part(&subject));
        if let (Some(left), Some(found)) = (&mut self.left, part)
            && let Some(left) = left.get_mut(found.index())
        {
            if *left == 0 {
                part = None;
            } else {
                *left -= 1;
            }
        }
        Ok(Assigned { subject, part })
    }

    /// Whether no part takes a record any more.
    pub(crate) fn is_full(&self) -> bool {
        self.left.is_some_and(|left| left.iter().all(|left| *left == 0))
    }
}

/// How many records of `sample` each part takes.
fn quotas(sample: u64, split: &Split) -> [u64; 4] {
    let share = |share: f64| (sample as f64 * share) as u64;
    let (validation, refine, test) = (share(split.validation), share(split.refine), share(split.test));
    let train = sample.saturating_sub(validation + refine + test);
    [train, validation, refine, test]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_divided_like_the_whole() {
        assert_eq!(quotas(1000, &Split::default()), [600, 100, 100, 200]);
        assert_eq!(quotas(3, &Split::default()), [3, 0, 0, 0]);
        assert_eq!(quotas(0, &Split::default()), [0; 4]);
    }
}
