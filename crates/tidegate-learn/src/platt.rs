//! Calibration on the refine part: two numbers and a threshold.
//!
//! The model's log odds are put through a logistic curve (Platt, 1999), fitted by Newton's method
//! with the targets smoothed as Platt proposes, in the form of Lin, Lin and Weng, "A note on Platt's
//! probabilistic outputs for support vector machines" (2007). Rows of the refine part never leave;
//! what leaves is bounded: at least 20 subjects and both outcomes stand behind each step, and the
//! numbers are rounded.

use std::collections::BTreeSet;

use tidegate_bundle::Calibration;
use tidegate_bundle::calibration::logit;

/// The fewest subjects behind the curve, and on either side of the threshold.
pub const MIN_SUBJECTS: usize = 20;
/// Decimals of the coefficients.
const DECIMALS: f64 = 1_000.0;
/// Thresholds are hundredths.
const THRESHOLDS: u32 = 100;
const MAX_ITERATIONS: usize = 100;
/// Added to the diagonal of the second derivative, so that it can always be inverted.
const RIDGE: f64 = 1e-12;

/// Rows on which nothing can be calibrated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlattError {
    /// Slices of different lengths.
    #[error("calibrating a model: probabilities, outcomes and subjects differ in number")]
    Lengths,
    /// No probability.
    #[error("calibrating a model: the probability of row {0} is not a number from 0 to 1")]
    NotProbability(usize),
    /// Too few people behind the numbers.
    #[error(
        "calibrating a model: the refine part has {0} subjects; at least {MIN_SUBJECTS} are needed, so give `split.refine` a larger share"
    )]
    TooFew(usize),
    /// Nothing to tell apart.
    #[error(
        "calibrating a model: the refine part has only one outcome; both are needed, so give `split.refine` a larger share"
    )]
    OneOutcome,
    /// The curve does not rise.
    #[error(
        "calibrating a model: on the refine part a higher probability does not go with the outcome; the model is no better than chance there"
    )]
    NotRising,
}

/// Fits the curve and chooses the threshold with the best F1 on the same rows, among hundredths with
/// at least 20 subjects and both outcomes on either side; one half where there is no such.
///
/// # Errors
/// When there are fewer than 20 subjects or one outcome, a probability is none, or the curve would
/// turn the order of rows around.
pub fn fit_platt(probabilities: &[f64], outcomes: &[bool], subjects: &[u64]) -> Result<Calibration, PlattError> {
    if probabilities.len() != outcomes.len() || probabilities.len() != subjects.len() {
        return Err(PlattError::Lengths);
    }
    if let Some(row) = probabilities.iter().position(|value| !(0.0..=1.0).contains(value)) {
        return Err(PlattError::NotProbability(row));
    }
    let distinct = subjects.iter().collect::<BTreeSet<_>>().len();
    if distinct < MIN_SUBJECTS {
        return Err(PlattError::TooFew(distinct));
    }
    if !(outcomes.contains(&true) && outcomes.contains(&false)) {
        return Err(PlattError::OneOutcome);
    }
    let scores: Vec<f64> = probabilities.iter().map(|&probability| logit(probability)).collect();
    let (a, b) = fit_curve(&scores, outcomes);
    let round = |value: f64| (value * DECIMALS).round() / DECIMALS;
    let rounded = Calibration {
        a: round(a),
        b: round(b),
        threshold: 0.5,
    };
    if !(rounded.a.is_finite() && rounded.a > 0.0 && rounded.b.is_finite()) {
        return Err(PlattError::NotRising);
    }
    let calibrated: Vec<f64> = probabilities
        .iter()
        .map(|&probability| rounded.apply(probability))
        .collect();
    Ok(Calibration {
        threshold: best_threshold(&calibrated, outcomes, subjects),
        ..rounded
    })
}

/// Slope and intercept of the highest likelihood.
fn fit_curve(scores: &[f64], outcomes: &[bool]) -> (f64, f64) {
    let positives = outcomes.iter().filter(|&&outcome| outcome).count() as f64;
    let negatives = outcomes.len() as f64 - positives;
    let targets = [1.0 / (negatives + 2.0), (positives + 1.0) / (positives + 2.0)];
    let rows = || {
        scores
            .iter()
            .zip(outcomes)
            .map(|(&score, &outcome)| (score, targets[usize::from(outcome)]))
    };
    let loss = |a: f64, b: f64| -> f64 {
        rows()
            .map(|(score, target)| (a * score + b, target))
            .map(|(z, target)| z.max(0.0) - z * target + (-z.abs()).exp().ln_1p())
            .sum()
    };

    let (mut a, mut b) = (0.0, ((positives + 1.0) / (negatives + 1.0)).ln());
    let mut current = loss(a, b);
    for _ in 0..MAX_ITERATIONS {
        let [mut slope_a, mut slope_b] = [0.0; 2];
        let [mut curve_aa, mut curve_ab, mut curve_bb] = [RIDGE, 0.0, RIDGE];
        for (score, target) in rows() {
            let p = 1.0 / (1.0 + (-(a * score + b)).exp());
            let (error, weight) = (p - target, p * (1.0 - p));
            slope_a += error * score;
            slope_b += error;
            curve_aa += weight * score * score;
            curve_ab += weight * score;
            curve_bb += weight;
        }
        if slope_a.abs() < 1e-7 && slope_b.abs() < 1e-7 {
            break;
        }
        let determinant = curve_aa * curve_bb - curve_ab * curve_ab;
        let step_a = (curve_ab * slope_b - curve_bb * slope_a) / determinant;
        let step_b = (curve_ab * slope_a - curve_aa * slope_b) / determinant;
        let descent = slope_a * step_a + slope_b * step_b;
        // Shorter and shorter until the loss falls by enough (Armijo's rule).
        let lengths = std::iter::successors(Some(1.0), |length| Some(length / 2.0)).take(40);
        let mut tried = lengths.map(|length| (length, loss(a + length * step_a, b + length * step_b)));
        let Some((length, next)) = tried.find(|(length, next)| *next < current + 1e-4 * length * descent) else {
            break;
        };
        a += length * step_a;
        b += length * step_b;
        current = next;
    }
    (a, b)
}

fn best_threshold(calibrated: &[f64], outcomes: &[bool], subjects: &[u64]) -> f64 {
    let mut best: Option<(f64, f64)> = None;
    for hundredth in 1..THRESHOLDS {
        let threshold = f64::from(hundredth) / f64::from(THRESHOLDS);
        let mut sides = [Side::default(), Side::default()];
        for ((&probability, &outcome), &subject) in calibrated.iter().zip(outcomes).zip(subjects) {
            let side = &mut sides[usize::from(probability >= threshold)];
            side.subjects.insert(subject);
            side.rows[usize::from(outcome)] += 1;
        }
        if !sides.iter().all(Side::is_large) {
            continue;
        }
        let [[_, missed], [wrong, right]] = sides.map(|side| side.rows);
        let f1 = 2.0 * f64::from(right) / f64::from(2 * right + wrong + missed);
        if best.is_none_or(|(highest, _)| f1 > highest) {
            best = Some((f1, threshold));
        }
    }
    best.map_or(0.5, |(_, threshold)| threshold)
}

/// The rows on one side of a threshold.
#[derive(Default)]
struct Side {
    subjects: BTreeSet<u64>,
    /// Rows without and with the outcome.
    rows: [u32; 2],
}

impl Side {
    fn is_large(&self) -> bool {
        self.subjects.len() >= MIN_SUBJECTS && self.rows.iter().all(|&rows| rows > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows whose true log odds are `slope * logit(p) + shift`, with outcomes in exactly that share.
    fn rows(slope: f64, shift: f64) -> (Vec<f64>, Vec<bool>, Vec<u64>) {
        let (mut probabilities, mut outcomes) = (vec![], vec![]);
        for step in 1..40 {
            let p = f64::from(step) / 40.0;
            let truth = 1.0 / (1.0 + (-(slope * logit(p) + shift)).exp());
            for row in 0..200 {
                probabilities.push(p);
                outcomes.push((f64::from(row) + 0.5) / 200.0 < truth);
            }
        }
        let subjects = (0..probabilities.len() as u64).collect();
        (probabilities, outcomes, subjects)
    }

    #[test]
    fn finds_the_curve_behind_the_outcomes() {
        for (slope, shift) in [(1.0, 0.0), (0.5, -1.0), (2.0, 0.75)] {
            let (p, y, s) = rows(slope, shift);
            let fitted = fit_platt(&p, &y, &s).unwrap();
            assert!(
                (fitted.a - slope).abs() < 0.02 && (fitted.b - shift).abs() < 0.02,
                "{fitted:?}"
            );
            for number in [fitted.a * 1_000.0, fitted.b * 1_000.0, fitted.threshold * 100.0] {
                assert!((number - number.round()).abs() < 1e-9, "rounded: {fitted:?}");
            }
        }
    }

    #[test]
    fn perfectly_divided_rows_keep_the_curve_finite() {
        let p: Vec<f64> = (0..60).map(|row| if row < 30 { 0.001 } else { 0.999 }).collect();
        let y: Vec<bool> = (0..60).map(|row| row >= 30).collect();
        let s: Vec<u64> = (0..60).collect();
        let fitted = fit_platt(&p, &y, &s).unwrap();
        // Platt's targets: 31/32 and 1/32.
        assert!((fitted.apply(0.999) - 31.0 / 32.0).abs() < 1e-3);
        assert_eq!(fitted.threshold, 0.5, "no threshold has both outcomes on both sides");
    }

    #[test]
    fn the_threshold_has_the_best_f1_and_people_on_both_sides() {
        let (p, y, s) = rows(1.0, -1.5);
        let fitted = fit_platt(&p, &y, &s).unwrap();
        let f1 = |threshold: f64| {
            let decided = |p: &f64| fitted.apply(*p) >= threshold;
            let right = p.iter().zip(&y).filter(|(p, y)| decided(p) && **y).count() as f64;
            let all = p.iter().filter(|p| decided(p)).count() + y.iter().filter(|y| **y).count();
            2.0 * right / all as f64
        };
        let best = (1..100).map(|step| f1(f64::from(step) / 100.0)).fold(0.0, f64::max);
        assert!((f1(fitted.threshold) - best).abs() < 1e-12);
        assert!(fitted.threshold < 0.5, "the outcome is rare: {fitted:?}");
    }

    #[test]
    fn too_few_people_one_outcome_and_falling_curves_are_refused() {
        let (p, y, s) = rows(1.0, 0.0);
        let few: Vec<u64> = s.iter().map(|subject| subject % 19).collect();
        assert_eq!(fit_platt(&p, &y, &few), Err(PlattError::TooFew(19)));
        assert_eq!(fit_platt(&p, &vec![true; p.len()], &s), Err(PlattError::OneOutcome));
        assert_eq!(fit_platt(&p[1..], &y, &s), Err(PlattError::Lengths));
        let turned: Vec<bool> = y.iter().map(|outcome| !outcome).collect();
        assert_eq!(fit_platt(&p, &turned, &s), Err(PlattError::NotRising));
        let mut broken = p.clone();
        broken[7] = f64::NAN;
        assert_eq!(fit_platt(&broken, &y, &s), Err(PlattError::NotProbability(7)));
    }
}
