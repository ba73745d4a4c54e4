//! The leak test: can somebody tell from the model's loss who was in the training rows?
//!
//! A model that learned rows by heart has a lower loss on them. The attack calls a row a training row
//! when its loss is low (Yeom et al., 2018); its ROC-AUC says how often it is right about a pair, and
//! its true-positive rate at 1 % false positives how well it picks out single people (Carlini et al.,
//! 2022). One half and 1 % are what guessing gives. Both kinds of rows must have passed through the
//! same recipe, or the test measures the recipe.

use std::collections::BTreeMap;

use tidegate_bundle::Interval;

use crate::metrics::{Clusters, Curve, Resampling, interval};

/// Name of the ROC-AUC among figures and gates.
pub const MEMBERSHIP_AUC: &str = "membership_auc";
/// Name of the true-positive rate among figures and gates.
pub const MEMBERSHIP_TPR: &str = "membership_tpr_at_1_percent_fpr";
const FALSE_POSITIVE_RATE: f64 = 0.01;

/// How well training rows can be told from others. Lower is better.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Membership {
    /// ROC-AUC of the attack, with its 95 % interval over subjects.
    pub auc: Interval,
    /// Share of training rows found while at most 1 % of the others are taken for one.
    pub tpr_at_1_percent_fpr: Interval,
}

impl Membership {
    /// Both figures by name, as gates refer to them.
    #[must_use]
    pub fn figures(&self) -> BTreeMap<String, Interval> {
        BTreeMap::from([
            (MEMBERSHIP_AUC.to_owned(), self.auc),
            (MEMBERSHIP_TPR.to_owned(), self.tpr_at_1_percent_fpr),
        ])
    }
}

/// Losses that cannot be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LeakError {
    /// Slices of different lengths.
    #[error("testing for a leak: losses and subjects differ in number")]
    Lengths,
    /// A loss that is not a number.
    #[error("testing for a leak: a loss is not a finite number")]
    NotFinite,
    /// Nothing to tell apart.
    #[error("testing for a leak: at least 2 subjects with training rows and 2 with test rows are needed")]
    TooFew,
}

/// Measures membership inference by loss; see [`crate::metrics::losses`] for the loss of a row.
///
/// # Errors
/// When slices differ in length, a loss is not finite, or there are not two subjects of each kind.
pub fn membership(
    train_losses: &[f64],
    train_subjects: &[u64],
    test_losses: &[f64],
    test_subjects: &[u64],
) -> Result<Membership, LeakError> {
    if train_losses.len() != train_subjects.len() || test_losses.len() != test_subjects.len() {
        return Err(LeakError::Lengths);
    }
    if !train_losses.iter().chain(test_losses).all(|loss| loss.is_finite()) {
        return Err(LeakError::NotFinite);
    }
    if [train_subjects, test_subjects]
        .iter()
        .any(|subjects| Clusters::of(subjects).count() < 2)
    {
        return Err(LeakError::TooFew);
    }
    let clusters = Clusters::of(&[train_subjects, test_subjects].concat());
    let kinds = std::iter::repeat_n(true, train_losses.len()).chain(std::iter::repeat_n(false, test_losses.len()));
    let losses = train_losses.iter().chain(test_losses);
    let mut rows: Vec<Row> = losses
        .zip(kinds)
        .zip(clusters.of_rows())
        .map(|((&loss, in_training), &cluster)| Row {
            loss,
            in_training,
            cluster,
        })
        .collect();
    rows.sort_by(|a, b| a.loss.total_cmp(&b.loss));

    let value = attack(&rows, &vec![1; clusters.count()]).ok_or(LeakError::TooFew)?;
    let mut samples = [vec![], vec![]];
    let mut resampling = Resampling::new(clusters.count());
    while let Some(weights) = resampling.draw() {
        if let Some([auc, rate]) = attack(&rows, weights) {
            samples[0].push(auc);
            samples[1].push(rate);
        }
    }
    let [auc, rate] = samples;
    let auc = interval(value[0], auc).ok_or(LeakError::TooFew)?;
    let tpr_at_1_percent_fpr = interval(value[1], rate).ok_or(LeakError::TooFew)?;
    Ok(Membership {
        auc,
        tpr_at_1_percent_fpr,
    })
}

struct Row {
    loss: f64,
    in_training: bool,
    cluster: usize,
}

/// ROC-AUC and true-positive rate of the attack over rows in the order of their loss.
fn attack(rows: &[Row], weights: &[u32]) -> Option<[f64; 2]> {
    let weight = |row: &Row| f64::from(weights.get(row.cluster).copied().unwrap_or(0));
    let others: f64 = rows.iter().filter(|row| !row.in_training).map(weight).sum();
    let mut curve = Curve::default();
    let mut found = 0.0;
    let mut keep = |curve: &Curve| {
        if curve.negatives <= FALSE_POSITIVE_RATE * others {
            found = curve.positives;
        }
    };
    for row in rows {
        let weight = weight(row);
        let [member, other] = if row.in_training { [weight, 0.0] } else { [0.0, weight] };
        if weight > 0.0 && curve.add(-row.loss, member, other) {
            // The step before this row is closed: its counts stand in the curve.
            keep(&curve);
        }
    }
    curve.close();
    keep(&curve);
    Some([curve.roc_auc()?, found / curve.positives])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subjects(from: u64, count: usize) -> Vec<u64> {
        (from..).take(count).collect()
    }

    fn spread(count: u32, seed: u32) -> Vec<f64> {
        (0..count)
            .map(|row| f64::from((row.wrapping_mul(2_654_435_761).wrapping_add(seed)) >> 8) / f64::from(1 << 24))
            .collect()
    }

    #[test]
    fn equal_losses_tell_nothing() {
        let (train, test) = (spread(3_000, 1), spread(1_000, 77));
        let result = membership(&train, &subjects(0, 3_000), &test, &subjects(9_000, 1_000)).unwrap();
        assert!(
            (result.auc.value - 0.5).abs() < 0.02 && result.auc.low < 0.5 && result.auc.high > 0.5,
            "{result:?}"
        );
        assert!(result.tpr_at_1_percent_fpr.value < 0.03, "{result:?}");
        assert!(result.auc.high - result.auc.low < 0.1, "{result:?}");
        let constant = membership(&[1.0; 50], &subjects(0, 50), &[1.0; 50], &subjects(50, 50)).unwrap();
        assert_eq!(
            (constant.auc.value, constant.tpr_at_1_percent_fpr.value),
            (0.5, 0.0),
            "ties are no knowledge"
        );
    }

    #[test]
    fn rows_learned_by_heart_are_found() {
        let test = spread(400, 3);
        // A tenth of the training rows has a loss that no other row has.
        let train: Vec<f64> = spread(400, 9)
            .into_iter()
            .enumerate()
            .map(|(row, loss)| if row % 10 == 0 { -1.0 } else { loss })
            .collect();
        let result = membership(&train, &subjects(0, 400), &test, &subjects(400, 400)).unwrap();
        assert!((result.auc.value - 0.55).abs() < 0.02, "{result:?}");
        assert!((0.1..0.13).contains(&result.tpr_at_1_percent_fpr.value), "{result:?}");
        assert!(result.tpr_at_1_percent_fpr.low > 0.05);
        let whole = membership(&[0.0; 40], &subjects(0, 40), &[1.0; 40], &subjects(40, 40)).unwrap();
        assert_eq!(
            (whole.auc.value, whole.auc.low, whole.tpr_at_1_percent_fpr.value),
            (1.0, 1.0, 1.0)
        );
    }

    #[test]
    fn what_cannot_be_compared_is_refused() {
        assert_eq!(membership(&[1.0], &[], &[1.0, 2.0], &[1, 2]), Err(LeakError::Lengths));
        assert_eq!(
            membership(&[f64::NAN, 1.0], &[3, 4], &[1.0, 2.0], &[1, 2]),
            Err(LeakError::NotFinite)
        );
        assert_eq!(
            membership(&[1.0, 1.0], &[3, 3], &[1.0, 2.0], &[1, 2]),
            Err(LeakError::TooFew)
        );
        assert_eq!(membership(&[1.0, 2.0], &[3, 4], &[], &[]), Err(LeakError::TooFew));
    }
}
