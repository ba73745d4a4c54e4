//! How good a model is: figures with intervals, for all and by subgroup.

mod bootstrap;
mod difference;
mod figures;
mod subgroup;

use std::collections::BTreeMap;

use tidegate_bundle::{Interval, Quality, Subgroup};
use tidegate_types::keeper::{ConfusionSummary, Figure, QualitySummary};

pub(crate) use bootstrap::{Clusters, Resampling, interval};
pub(crate) use figures::Curve;
pub use figures::{CALIBRATION_BINS, Confusion, LOSS_EDGE, METRICS, losses};
use figures::{Ranked, Scored};

/// Decimals of figures that may leave the private site.
pub const PUBLIC_DECIMALS: i32 = 3;
/// The level under which the groups of a variable stand that are not shown.
pub const NOT_SHOWN: &str = "(not shown)";
/// The level of rows without a value.
pub const MISSING: &str = "(missing)";

/// What is judged; all slices have one entry for each row.
#[derive(Debug, Clone, Copy)]
pub struct JudgeInput<'a> {
    /// The model's probability of the outcome, from 0 to 1.
    pub probabilities: &'a [f64],
    /// Whether it came true.
    pub outcomes: &'a [bool],
    /// Whom the row is about; equal numbers are the same subject.
    pub subjects: &'a [u64],
    /// A probability from here on counts as positive.
    pub threshold: f64,
    /// Expressions with their value in each row, `None` where there is none.
    pub subgroups: &'a [(String, Vec<Option<String>>)],
    /// The fewest subjects of a group, and with either outcome in it, about which figures are given.
    pub min_cell: u32,
}

/// The result. It holds exact figures and counts and stays at home; [`Judgement::summary`] is what may
/// leave.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// Figures by metric, see [`METRICS`]. A metric that is not defined on these rows is absent, so a
    /// gate on it fails.
    pub quality: Quality,
    /// Rows by decision and outcome.
    pub confusion: Confusion,
    /// Rows judged.
    pub rows: u64,
    /// Subjects judged.
    pub subjects: u64,
    /// Groups by variable and level, each large enough to be shown; the others of a variable stand as
    /// one without figures under [`NOT_SHOWN`], because already a rare value tells something.
    pub subgroups: Vec<Subgroup>,
    /// Whether all rows together are too few to be shown outside.
    too_few: bool,
    /// The fewest rows of a cell of the confusion matrix that is shown outside.
    min_cell: u64,
}

/// Rows that cannot be judged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JudgeError {
    /// Slices of different lengths.
    #[error("judging a model: there are {rows} probabilities and {found} {what}")]
    Lengths {
        /// Number of probabilities.
        rows: usize,
        /// What differs.
        what: &'static str,
        /// How many there are of it.
        found: usize,
    },
    /// No probability.
    #[error("judging a model: the probability of row {0} is not a number from 0 to 1")]
    NotProbability(usize),
    /// Nothing to draw an interval from.
    #[error("judging a model: there are {0} subjects; an interval needs at least 2")]
    TooFew(usize),
}

/// Judges a model. Intervals are the 2.5th and 97.5th percentile of 500 bootstrap samples of subjects
/// with a fixed seed, widened where needed to contain the figure, so the same rows give the same
/// numbers.
///
/// # Errors
/// When slices differ in length, a probability is none, or there are fewer than two subjects.
pub fn judge(input: &JudgeInput<'_>) -> Result<Judgement, JudgeError> {
    check(input)?;
    let clusters = Clusters::of(input.subjects);
    if clusters.count() < 2 {
        return Err(JudgeError::TooFew(clusters.count()));
    }
    let scored: Vec<Scored> = input
        .probabilities
        .iter()
        .zip(input.outcomes)
        .zip(clusters.of_rows())
        .map(|((&probability, &outcome), &cluster)| Scored::new(probability, outcome, cluster, input.threshold))
        .collect();
    let min_cell = input.min_cell as usize;
    let all: Vec<usize> = (0..scored.len()).collect();

    let mut subgroups = Vec::new();
    let groups = subgroup::groups(input.subgroups, input.outcomes, clusters.of_rows(), min_cell);
    for (variable, groups) in input.subgroups.iter().map(|(name, _)| name).zip(groups) {
        let mut hidden = false;
        for group in groups {
            let Some(level) = group.shown_as else {
                hidden = true;
                continue;
            };
            let rows: Vec<Scored> = group.rows.iter().filter_map(|&row| scored.get(row).copied()).collect();
            let (rows, quality) = (Some(rows.len() as u64), Some(Quality(with_intervals(rows))));
            subgroups.push(Subgroup {
                variable: variable.clone(),
                level,
                rows,
                quality,
            });
        }
        if hidden {
            subgroups.push(Subgroup {
                variable: variable.clone(),
                level: NOT_SHOWN.to_owned(),
                rows: None,
                quality: None,
            });
        }
    }
    Ok(Judgement {
        confusion: Confusion::of(&scored),
        min_cell: u64::from(input.min_cell),
        rows: scored.len() as u64,
        subjects: clusters.count() as u64,
        subgroups,
        too_few: subgroup::is_small(&all, input.outcomes, clusters.of_rows(), min_cell),
        quality: Quality(with_intervals(scored)),
    })
}

fn check(input: &JudgeInput<'_>) -> Result<(), JudgeError> {
    let rows = input.probabilities.len();
    let same = |what, found| {
        if found == rows {
            Ok(())
        } else {
            Err(JudgeError::Lengths { rows, what, found })
        }
    };
    same("outcomes", input.outcomes.len())?;
    same("subjects", input.subjects.len())?;
    for (_, values) in input.subgroups {
        same("subgroup values", values.len())?;
    }
    match input
        .probabilities
        .iter()
        .position(|value| !(0.0..=1.0).contains(value))
    {
        Some(row) => Err(JudgeError::NotProbability(row)),
        None => Ok(()),
    }
}

/// The figures of some rows, each with its interval over the subjects of these rows.
fn with_intervals(rows: Vec<Scored>) -> BTreeMap<String, Interval> {
    let (rows, count) = figures::renumber(rows);
    let ranked = Ranked::new(rows);
    let point = ranked.figures(&vec![1; count]);
    let mut samples: [Vec<f64>; METRICS.len()] = Default::default();
    let mut resampling = Resampling::new(count);
    while let Some(weights) = resampling.draw() {
        for (samples, figure) in samples.iter_mut().zip(ranked.figures(weights)) {
            samples.extend(figure);
        }
    }
    let figures = METRICS.iter().zip(point).zip(samples);
    figures
        .filter_map(|((name, value), samples)| Some(((*name).to_owned(), interval(value?, samples)?)))
        .collect()
}

/// A figure as it may leave: three decimals, the ends of its interval rounded away from it.
#[must_use]
pub fn public_figure(interval: &Interval) -> Figure {
    let Interval { value, low, high } = interval.rounded(PUBLIC_DECIMALS);
    Figure { value, low, high }
}

impl Judgement {
    /// The confusion matrix, unless one of its cells is so small that it speaks of single people.
    fn public_confusion(&self) -> Option<ConfusionSummary> {
        let cells = ConfusionSummary {
            true_positives: self.confusion.true_positives,
            false_positives: self.confusion.false_positives,
            true_negatives: self.confusion.true_negatives,
            false_negatives: self.confusion.false_negatives,
        };
        let least = [
            cells.true_positives,
            cells.false_positives,
            cells.true_negatives,
            cells.false_negatives,
        ];
        least.iter().all(|cell| *cell >= self.min_cell).then_some(cells)
    }

    /// What may leave the private site: rounded figures of groups that are large enough. Where all
    /// rows together are too few, it says nothing and counts nothing.
    #[must_use]
    pub fn summary(&self) -> QualitySummary {
        if self.too_few {
            return QualitySummary::default();
        }
        let figures = |quality: &Quality| -> BTreeMap<String, Figure> {
            quality
                .0
                .iter()
                .map(|(name, interval)| (name.clone(), public_figure(interval)))
                .collect()
        };
        let group = |group: &Subgroup| {
            let name = format!("{} = {}", group.variable, group.level);
            (name, group.quality.as_ref().map(figures).unwrap_or_default())
        };
        QualitySummary {
            confusion: self.public_confusion(),
            figures: figures(&self.quality),
            rows: self.rows,
            subjects: self.subjects,
            subgroups: self.subgroups.iter().map(group).collect(),
        }
    }
}
