//! The figures themselves, computed for rows that may count several times.

use std::collections::{BTreeMap, BTreeSet};

/// The figures, in the order in which they are computed.
pub const METRICS: [&str; 7] = [
    "roc_auc",
    "pr_auc",
    "accuracy",
    "f1",
    "log_loss",
    "brier",
    "expected_calibration_error",
];

/// Bins of equal width over `[0, 1]` of the expected calibration error; a probability of 1 falls into
/// the last one.
pub const CALIBRATION_BINS: usize = 10;

/// Probabilities are moved this far from 0 and 1 before the logarithm, so that one certain error costs
/// 16.1 and not infinity.
pub const LOSS_EDGE: f64 = 1e-7;

/// The log loss of each row: `-ln` of the probability given to what came true.
#[must_use]
pub fn losses(probabilities: &[f64], outcomes: &[bool]) -> Vec<f64> {
    probabilities
        .iter()
        .zip(outcomes)
        .map(|(&probability, &outcome)| log_loss(probability, outcome))
        .collect()
}

fn log_loss(probability: f64, outcome: bool) -> f64 {
    let given = if outcome { probability } else { 1.0 - probability };
    -given.clamp(LOSS_EDGE, 1.0 - LOSS_EDGE).ln()
}

/// Rows by decision and outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Confusion {
    /// Decided positive, came true.
    pub true_positives: u64,
    /// Decided positive, did not come true.
    pub false_positives: u64,
    /// Decided negative, did not come true.
    pub true_negatives: u64,
    /// Decided negative, came true.
    pub false_negatives: u64,
}

impl Confusion {
    pub(super) fn of(rows: &[Scored]) -> Self {
        let mut counts = Self::default();
        for row in rows {
            *match (row.decided, row.outcome) {
                (true, true) => &mut counts.true_positives,
                (true, false) => &mut counts.false_positives,
                (false, false) => &mut counts.true_negatives,
                (false, true) => &mut counts.false_negatives,
            } += 1;
        }
        counts
    }
}

/// One row with everything that does not depend on how often it counts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scored {
    probability: f64,
    outcome: bool,
    decided: bool,
    log_loss: f64,
    bin: usize,
    cluster: usize,
}

impl Scored {
    pub(super) fn new(probability: f64, outcome: bool, cluster: usize, threshold: f64) -> Self {
        let bin = ((probability * CALIBRATION_BINS as f64) as usize).min(CALIBRATION_BINS - 1);
        let decided = probability >= threshold;
        Self {
            probability,
            outcome,
            decided,
            log_loss: log_loss(probability, outcome),
            bin,
            cluster,
        }
    }
}

/// Numbers the subjects of some rows from 0 without gaps and returns how many there are.
pub(super) fn renumber(mut rows: Vec<Scored>) -> (Vec<Scored>, usize) {
    let distinct: BTreeSet<usize> = rows.iter().map(|row| row.cluster).collect();
    let numbers: BTreeMap<usize, usize> = distinct.into_iter().zip(0..).collect();
    for row in &mut rows {
        row.cluster = numbers.get(&row.cluster).copied().unwrap_or_default();
    }
    (rows, numbers.len())
}

/// Rows from the highest probability to the lowest: sorted once, counted many times.
pub(super) struct Ranked(Vec<Scored>);

impl Ranked {
    pub(super) fn new(mut rows: Vec<Scored>) -> Self {
        rows.sort_by(|a, b| b.probability.total_cmp(&a.probability));
        Self(rows)
    }

    /// Each of [`METRICS`] when the rows of subject `i` count `weights[i]` times; `None` where it is not
    /// defined.
    pub(super) fn figures(&self, weights: &[u32]) -> [Option<f64>; METRICS.len()] {
        let [mut loss, mut squares, mut right] = [0.0; 3];
        // Decided positive and come true, decided positive, and both together.
        let [mut hits, mut decided] = [0.0; 2];
        let mut bins = [[0.0; 2]; CALIBRATION_BINS];
        let mut curve = Curve::default();
        for row in &self.0 {
            let weight = f64::from(weights.get(row.cluster).copied().unwrap_or(0));
            if weight == 0.0 {
                continue;
            }
            let outcome = f64::from(u8::from(row.outcome));
            curve.add(row.probability, weight * outcome, weight * (1.0 - outcome));
            loss += weight * row.log_loss;
            squares += weight * (row.probability - outcome).powi(2);
            right += weight * f64::from(u8::from(row.decided == row.outcome));
            decided += weight * f64::from(u8::from(row.decided));
            hits += weight * f64::from(u8::from(row.decided && row.outcome));
            let [expected, found] = &mut bins[row.bin];
            *expected += weight * row.probability;
            *found += weight * outcome;
        }
        curve.close();
        let total = curve.positives + curve.negatives;
        let mean = |sum: f64| (total > 0.0).then(|| sum / total);
        let f1_parts = decided + curve.positives;
        [
            curve.roc_auc(),
            curve.pr_auc(),
            mean(right),
            (f1_parts > 0.0).then(|| 2.0 * hits / f1_parts),
            mean(loss),
            mean(squares),
            mean(bins.iter().map(|[expected, found]| (expected - found).abs()).sum()),
        ]
    }
}

/// The areas under both curves, gathered from the highest score to the lowest. Rows of equal score are
/// one step: a tie counts half in the ROC curve, and the precision is that after the step (average
/// precision, without interpolation).
#[derive(Debug, Default)]
pub(crate) struct Curve {
    pub(crate) positives: f64,
    pub(crate) negatives: f64,
    roc: f64,
    precision: f64,
    step: [f64; 2],
    score: Option<f64>,
}

impl Curve {
    /// Adds weights of positives and negatives at a score that is not above the one before. Returns
    /// whether a step was closed by it.
    pub(crate) fn add(&mut self, score: f64, positives: f64, negatives: f64) -> bool {
        let closes = self.score.is_some_and(|before| before != score);
        if closes {
            self.close();
        }
        self.score = Some(score);
        self.step[0] += positives;
        self.step[1] += negatives;
        closes
    }

    /// Closes the last step.
    pub(crate) fn close(&mut self) {
        let [positives, negatives] = std::mem::take(&mut self.step);
        self.roc += negatives * (self.positives + positives / 2.0);
        self.positives += positives;
        self.negatives += negatives;
        if positives > 0.0 {
            self.precision += positives * self.positives / (self.positives + self.negatives);
        }
    }

    /// Area under the ROC curve; needs both outcomes.
    pub(crate) fn roc_auc(&self) -> Option<f64> {
        (self.positives > 0.0 && self.negatives > 0.0).then(|| self.roc / self.positives / self.negatives)
    }

    /// Average precision; needs both outcomes, because with positives alone it is 1 whatever the model.
    fn pr_auc(&self) -> Option<f64> {
        (self.positives > 0.0 && self.negatives > 0.0).then(|| self.precision / self.positives)
    }
}
