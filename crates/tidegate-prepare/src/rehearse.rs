//! A pipeline's `prepare:` tried on every row, before anything is made of it.

use tidegate_types::Digest;
use tidegate_types::report::LabelReport;

use crate::error::PrepareError;
use crate::execute::Chosen;
use crate::home::{bad_targets, one_outcome};
use crate::prepare::{PrepareInput, row_source};
use crate::recipe::outcome;
use crate::split::Part;

/// What came of a rehearsal.
#[derive(Debug, Clone)]
pub struct Rehearsal {
    /// The label flow.
    pub labels: LabelReport,
    /// Rows that the query gives over all parts.
    pub rows: u64,
    /// Rows of them with the outcome.
    pub with_outcome: u64,
}

/// Executes the query on all parts and keeps nothing. What [`crate::prepare()`] may not look at, because
/// nothing that leaves may depend on it, is looked at here: values of refine and test that do not fit
/// their column's type or are no outcome are found before a training was paid for.
///
/// The keys need not be the site's: they only decide which row is in which part.
///
/// # Errors
/// As [`crate::prepare()`] where the source or the query is wrong, and where the target has one outcome
/// only. What must not leave is no error but a refusal in the report.
pub async fn rehearse(input: &PrepareInput<'_>) -> Result<Rehearsal, PrepareError> {
    let (name, dataset) = input.dataset()?;
    let files = input.sources(dataset)?;
    let (survey, assigner) = input.survey(&files, name, dataset, None)?;
    let planning = row_source(input.keys, &files, name, dataset, &survey, Chosen::Nothing);
    let release = Digest::from_bytes([0; 32]);
    let (planned, labels) = input.query(name, dataset, &survey, &planning, Some(&release)).await?;
    let mut rehearsal = Rehearsal {
        labels,
        rows: 0,
        with_outcome: 0,
    };
    if !rehearsal.labels.is_clean() {
        return Ok(rehearsal);
    }
    let target = &input.pipeline.prepare.target;
    let columns = planned.columns();
    let place = columns.iter().position(|column| column == target).unwrap_or_default();
    let mut bad = 0;
    for part in Part::ALL {
        let chosen = Chosen::Part(part, Box::new(assigner.clone()));
        let source = row_source(input.keys, &files, name, dataset, &survey, chosen);
        planned
            .execute(&source, &input.pipeline.evaluate.by, |batch| {
                for row in 0..batch.len() {
                    let found = outcome(batch.field(place, row));
                    rehearsal.rows += 1;
                    rehearsal.with_outcome += u64::from(found == Some(true));
                    bad += u64::from(found.is_none());
                }
                Ok(())
            })
            .await?;
    }
    if bad > 0 {
        return Err(bad_targets(target, bad, rehearsal.rows));
    }
    if rehearsal.with_outcome == 0 || rehearsal.with_outcome == rehearsal.rows {
        return Err(one_outcome(target, "the dataset"));
    }
    Ok(rehearsal)
}
