//! Small languages inside the pipeline file: processors, gates, names of environment variables.

use std::fmt;
use std::str::FromStr;

use crate::quantity::InvalidQuantity;

/// A number of processors as written in `resources.cpus`: `2` for exactly, `2+` for at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuRequest {
    /// How many.
    pub count: u32,
    /// Whether more are welcome.
    pub at_least: bool,
}

impl FromStr for CpuRequest {
    type Err = InvalidQuantity;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (digits, at_least) = text.strip_suffix('+').map_or((text, false), |digits| (digits, true));
        digits
            .parse()
            .ok()
            .filter(|count| (1..=4096).contains(count) && digits.bytes().all(|b| b.is_ascii_digit()))
            .map(|count| Self { count, at_least })
            .ok_or_else(|| InvalidQuantity {
                text: text.chars().take(80).collect(),
                expected: "a number of processors such as `2` (exactly) or `2+` (at least)",
            })
    }
}

impl fmt::Display for CpuRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.count, if self.at_least { "+" } else { "" })
    }
}

/// The figures that a gate may be about. All but the last two are measured on the test part; those come
/// from the leak test: how well training rows can be told from test rows.
pub const GATE_METRICS: [&str; 9] = [
    "roc_auc",
    "pr_auc",
    "accuracy",
    "f1",
    "log_loss",
    "brier",
    "expected_calibration_error",
    "membership_auc",
    "membership_tpr_at_1_percent_fpr",
];

/// The condition of a gate: `>= 0.75` or `<= 0.60`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GateCondition {
    /// Whether the figure must be at least the bound; at most otherwise.
    pub at_least: bool,
    /// The bound, finite and not negative.
    pub bound: f64,
}

impl FromStr for GateCondition {
    type Err = InvalidQuantity;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidQuantity {
            text: text.chars().take(80).collect(),
            expected: "a condition such as `>= 0.75` or `<= 0.60`",
        };
        let text = text.trim();
        let (at_least, number) = match (text.strip_prefix(">="), text.strip_prefix("<=")) {
            (Some(number), _) => (true, number),
            (_, Some(number)) => (false, number),
            _ => return Err(invalid()),
        };
        let bound: f64 = number.trim().parse().map_err(|_| invalid())?;
        if bound.is_finite() && bound >= 0.0 {
            Ok(Self { at_least, bound })
        } else {
            Err(invalid())
        }
    }
}

/// Why a text may not name an environment variable of a job; `None` when it may.
pub(super) fn environment_name_fault(name: &str) -> Option<&'static str> {
    let shape = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.len() <= 128
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    // What the worker sets itself, and what decides which programs and libraries are loaded.
    let reserved = ["TIDEGATE_", "SM_", "AIP_", "LD_"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
        || ["PATH", "HOME", "TMPDIR", "LANG"].contains(&name);
    if !shape {
        Some("use letters, digits and `_`, beginning with a letter or `_`")
    } else if reserved {
        Some("the worker sets it; choose another name")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors() {
        let exactly: CpuRequest = "2".parse().unwrap();
        let more: CpuRequest = "16+".parse().unwrap();
        assert_eq!(
            (exactly.count, exactly.at_least, more.count, more.at_least),
            (2, false, 16, true)
        );
        for bad in ["", "+", "0", "-1", "+2", "2++", "1.5", "two", "99999"] {
            assert!(bad.parse::<CpuRequest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn gates() {
        let gate: GateCondition = ">= 0.75".parse().unwrap();
        assert_eq!((gate.at_least, gate.bound), (true, 0.75));
        assert!(!"<=0.6".parse::<GateCondition>().unwrap().at_least);
        for bad in ["0.75", "> 0.75", "= 0.7", ">= x", ">= NaN", "<= inf", ">= -1", ">="] {
            assert!(bad.parse::<GateCondition>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_job_cannot_take_the_names_that_the_worker_sets() {
        assert_eq!(environment_name_fault("OMP_NUM_THREADS"), None);
        for bad in [
            "",
            "1A",
            "A-B",
            "A=B",
            "TIDEGATE_TARGET",
            "LD_PRELOAD",
            "PATH",
            "SM_MODEL_DIR",
        ] {
            assert!(environment_name_fault(bad).is_some(), "{bad}");
        }
    }
}
