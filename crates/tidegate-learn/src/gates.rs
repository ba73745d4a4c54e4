//! Gates: conditions on a model, judged on the unfavourable end of the interval.
//!
//! A gate `roc_auc: ">= 0.75"` asks whether the low end reaches 0.75, a gate `membership_auc:
//! "<= 0.60"` whether the high end stays at or below 0.60: what is not certain does not pass. The end
//! is rounded away from the figure before it is judged, so what is shown is what was judged.

use std::collections::BTreeMap;

use tidegate_bundle::Interval;
use tidegate_types::keeper::GateResult;

use crate::leak::{MEMBERSHIP_AUC, MEMBERSHIP_TPR};
use crate::metrics::{METRICS, public_figure};

/// Which way a condition points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// `>=`: judged on the low end.
    AtLeast,
    /// `<=`: judged on the high end.
    AtMost,
}

/// One condition on one metric.
#[derive(Debug, Clone, PartialEq)]
pub struct Gate {
    metric: String,
    condition: String,
    bound: Bound,
    limit: f64,
}

/// A gate that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GateError {
    /// The condition has another form.
    #[error("gate `{metric}`: `{condition}` is no condition; write `>= NUMBER` or `<= NUMBER`, such as `>= 0.75`")]
    Condition {
        /// The metric.
        metric: String,
        /// What was written.
        condition: String,
    },
    /// No such metric.
    #[error("gate `{metric}` is on no metric there is; the metrics are {}", known().join(", "))]
    Metric {
        /// What was written.
        metric: String,
    },
}

/// The metrics that a gate may be on.
fn known() -> Vec<&'static str> {
    METRICS.into_iter().chain([MEMBERSHIP_AUC, MEMBERSHIP_TPR]).collect()
}

impl Gate {
    /// Reads a condition such as `>= 0.75` or `<= 0.60`.
    ///
    /// # Errors
    /// When the metric is not known, or the condition is not one of these two with a finite number.
    pub fn parse(metric: &str, condition: &str) -> Result<Self, GateError> {
        if !known().contains(&metric) {
            return Err(GateError::Metric {
                metric: metric.to_owned(),
            });
        }
        let text = condition.trim();
        let at_least = text.strip_prefix(">=").map(|limit| (Bound::AtLeast, limit));
        let parsed = at_least.or_else(|| text.strip_prefix("<=").map(|limit| (Bound::AtMost, limit)));
        let parsed = parsed.and_then(|(bound, limit)| Some((bound, limit.trim().parse::<f64>().ok()?)));
        match parsed {
            Some((bound, limit)) if limit.is_finite() => Ok(Self {
                metric: metric.to_owned(),
                condition: text.to_owned(),
                bound,
                limit,
            }),
            _ => Err(GateError::Condition {
                metric: metric.to_owned(),
                condition: condition.to_owned(),
            }),
        }
    }

    /// Judges a figure. One that could not be measured does not pass, whatever the limit; `judged` is
    /// then the worst that most metrics can be.
    #[must_use]
    pub fn judge(&self, figure: Option<&Interval>) -> GateResult {
        let figure = figure.map(public_figure);
        let (judged, passed) = match (self.bound, figure) {
            (Bound::AtLeast, Some(figure)) => (figure.low, figure.low >= self.limit),
            (Bound::AtMost, Some(figure)) => (figure.high, figure.high <= self.limit),
            (Bound::AtLeast, None) => (0.0, false),
            (Bound::AtMost, None) => (1.0, false),
        };
        GateResult {
            metric: self.metric.clone(),
            condition: self.condition.clone(),
            value: figure.map(|figure| figure.value),
            judged,
            passed,
        }
    }
}

/// Judges every gate of a pipeline (`evaluate.gates`), in the order of metrics.
///
/// # Errors
/// When one of them cannot be understood.
pub fn judge(
    gates: &BTreeMap<String, String>,
    figures: &BTreeMap<String, Interval>,
) -> Result<Vec<GateResult>, GateError> {
    let one = |(metric, condition): (&String, &String)| Ok(Gate::parse(metric, condition)?.judge(figures.get(metric)));
    gates.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(metric: &str, condition: &str, low: f64, high: f64) -> (f64, bool) {
        let result = Gate::parse(metric, condition).unwrap().judge(Some(&Interval {
            value: (low + high) / 2.0,
            low,
            high,
        }));
        (result.judged, result.passed)
    }

    #[test]
    fn the_unfavourable_end_decides_and_is_what_is_shown() {
        assert_eq!(result("roc_auc", ">= 0.75", 0.7512, 0.9), (0.751, true));
        assert_eq!(result("roc_auc", ">=0.75", 0.75, 0.9), (0.75, true));
        assert_eq!(
            result("roc_auc", ">= 0.75", 0.749_99, 0.9),
            (0.749, false),
            "not rounded into passing"
        );
        assert_eq!(result("membership_auc", "<= 0.60", 0.4, 0.6), (0.6, true));
        assert_eq!(result("membership_auc", " <= 0.60 ", 0.4, 0.600_01), (0.601, false));
    }

    #[test]
    fn a_figure_that_was_not_measured_does_not_pass() {
        let gates = BTreeMap::from([
            ("roc_auc".to_owned(), ">= 0".to_owned()),
            ("log_loss".to_owned(), "<= 99".to_owned()),
        ]);
        let results = judge(&gates, &BTreeMap::new()).unwrap();
        assert_eq!(
            results.iter().map(|result| result.metric.as_str()).collect::<Vec<_>>(),
            ["log_loss", "roc_auc"]
        );
        assert!(results.iter().all(|result| !result.passed));
    }

    #[test]
    fn what_is_no_gate_is_said() {
        for condition in ["0.75", "> 0.75", "== 1", ">= high", ">= NaN", "<= inf", ">=", ""] {
            assert!(
                matches!(Gate::parse("roc_auc", condition), Err(GateError::Condition { .. })),
                "{condition}"
            );
        }
        let text = Gate::parse("auc", ">= 0.5").unwrap_err().to_string();
        assert!(
            text.contains("`auc`") && text.contains("roc_auc, pr_auc") && text.contains("membership_auc"),
            "{text}"
        );
    }
}
