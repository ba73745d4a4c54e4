//! Figures about a model, as they stand in `metrics.json` and on the card.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A figure with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interval {
    /// The figure itself.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// Figures by name, such as `roc_auc`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Quality(pub BTreeMap<String, Interval>);

impl Interval {
    /// The figure rounded to `decimals` and the ends rounded away from it, so that rounding never makes
    /// an interval narrower.
    #[must_use]
    pub fn rounded(&self, decimals: i32) -> Self {
        let factor = 10f64.powi(decimals);
        // A decimal number is seldom exact in binary: what misses a step by less stays on it.
        let slack = 1e-9;
        Self {
            value: (self.value * factor).round() / factor,
            low: (self.low * factor + slack).floor() / factor,
            high: (self.high * factor - slack).ceil() / factor,
        }
    }
}

impl Quality {
    /// The figures rounded to `decimals`, the form that may leave the private site; see
    /// [`Interval::rounded`].
    #[must_use]
    pub fn rounded(&self, decimals: i32) -> Self {
        Self(
            self.0
                .iter()
                .map(|(name, figure)| (name.clone(), figure.rounded(decimals)))
                .collect(),
        )
    }
}

/// Figures about the rows that share a value of one column. Both parts are absent when the group is
/// too small to be shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subgroup {
    /// Column or expression.
    pub variable: String,
    /// Its value.
    pub level: String,
    /// Number of rows.
    pub rows: Option<u64>,
    /// Figures.
    pub quality: Option<Quality>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_never_narrows_an_interval_and_leaves_round_numbers_alone() {
        let rounded = Interval {
            value: 0.812_345,
            low: 0.750_9,
            high: 0.900_1,
        }
        .rounded(3);
        assert_eq!(
            rounded,
            Interval {
                value: 0.812,
                low: 0.75,
                high: 0.901
            }
        );
        for step in 0..=1_000 {
            let value = f64::from(step) / 1_000.0;
            assert_eq!(
                Interval {
                    value,
                    low: value,
                    high: value
                }
                .rounded(3),
                Interval {
                    value,
                    low: value,
                    high: value
                }
            );
        }
    }
}
