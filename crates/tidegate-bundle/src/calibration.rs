//! `calibration.json`: from a model's score to a calibrated probability and a decision.

use serde::{Deserialize, Serialize};

/// Probabilities closer to 0 or 1 than this are moved here before taking the logit.
const EDGE: f64 = 1e-7;

/// The log odds of a probability, kept finite.
#[must_use]
pub fn logit(probability: f64) -> f64 {
    let p = probability.clamp(EDGE, 1.0 - EDGE);
    (p / (1.0 - p)).ln()
}

/// Platt's calibration over the model's log odds, and the threshold of the decision.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Slope; above zero, so that calibration never changes the order of rows.
    pub a: f64,
    /// Intercept.
    pub b: f64,
    /// A calibrated probability from here on counts as positive.
    pub threshold: f64,
}

/// A calibration that would turn the order of rows around or is not finite.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the calibration is not valid: {0}")]
pub struct InvalidCalibration(String);

impl Calibration {
    /// Leaves probabilities as they are and decides at one half.
    pub const IDENTITY: Self = Self {
        a: 1.0,
        b: 0.0,
        threshold: 0.5,
    };

    /// Reads and checks `calibration.json`.
    ///
    /// # Errors
    /// When the JSON has other fields, the slope is not above zero, or the threshold is no probability.
    pub fn from_json(bytes: &[u8]) -> Result<Self, InvalidCalibration> {
        let calibration: Self = serde_json::from_slice(bytes).map_err(|error| InvalidCalibration(error.to_string()))?;
        let valid = calibration.a.is_finite()
            && calibration.a > 0.0
            && calibration.b.is_finite()
            && (0.0..=1.0).contains(&calibration.threshold);
        if valid {
            Ok(calibration)
        } else {
            Err(InvalidCalibration(
                "a slope above 0, a finite intercept and a threshold from 0 to 1 are needed".to_owned(),
            ))
        }
    }

    /// The calibrated probability: `1 / (1 + exp(-(a · logit(p) + b)))`.
    #[must_use]
    pub fn apply(&self, probability: f64) -> f64 {
        if *self
            == (Self {
                threshold: self.threshold,
                ..Self::IDENTITY
            })
        {
            return probability;
        }
        1.0 / (1.0 + (-(self.a * logit(probability) + self.b)).exp())
    }
}
