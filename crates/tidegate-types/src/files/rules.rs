//! Small languages inside the pipeline file: processors, gates, names of environment variables.

use std::fmt;
use std::str::FromStr;

use super::pipeline::{Trainer, TrainerModel};
use crate::quantity::InvalidQuantity;

/// The most passes over the training rows.
pub const MAX_EPOCHS: u32 = 10_000;
/// The most rows in one step of the training.
pub const MAX_BATCH_SIZE: u32 = 65_536;
/// The largest step size.
pub const MAX_LEARNING_RATE: f64 = 10.0;
/// The largest weight of the squared weights.
pub const MAX_L2: f64 = 1e6;
/// The most hidden layers.
pub const MAX_HIDDEN_LAYERS: usize = 8;
/// The most machines that train together.
pub const MAX_NODES: u32 = 64;
/// The widest hidden layer.
pub const MAX_HIDDEN_WIDTH: u32 = 4_096;

/// The settings of the built-in trainer that are out of bounds, each with what it must be. The files are
/// checked by it and the trainer itself, so that what was checked can be trained.
#[must_use]
pub fn trainer_faults(trainer: &Trainer) -> Vec<(&'static str, &'static str)> {
    let layers = &trainer.hidden;
    // A logistic regression has no hidden layer, whatever is written.
    let hidden = trainer.model != TrainerModel::Mlp
        || ((1..=MAX_HIDDEN_LAYERS).contains(&layers.len())
            && layers.iter().all(|width| (1..=MAX_HIDDEN_WIDTH).contains(width)));
    let rate = trainer.learning_rate;
    let rules = [
        (
            "hidden",
            hidden,
            "the widths of 1 to 8 layers, each from 1 to 4,096; `model: logistic` has none",
        ),
        ("epochs", (1..=MAX_EPOCHS).contains(&trainer.epochs), "from 1 to 10,000"),
        (
            "batch_size",
            (1..=MAX_BATCH_SIZE).contains(&trainer.batch_size),
            "from 1 to 65,536",
        ),
        (
            "learning_rate",
            rate > 0.0 && rate <= MAX_LEARNING_RATE,
            "above 0 and at most 10",
        ),
        ("l2", (0.0..=MAX_L2).contains(&trainer.l2), "from 0 to 1,000,000"),
        (
            "early_stopping",
            trainer.early_stopping != Some(0),
            "at least 1, or absent for never",
        ),
    ];
    let broken = rules.into_iter().filter(|(_, holds, _)| !holds);
    broken.map(|(setting, _, must)| (setting, must)).collect()
}

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

/// The kind, in small letters, and the number of accelerators: `T4` is one, `T4:2` two. What they are called is for people
/// to agree on.
///
/// # Errors
/// When the text says neither.
pub fn read_accelerators(text: &str) -> Result<(String, u32), InvalidQuantity> {
    let (kind, digits) = text.split_once(':').unwrap_or((text, "1"));
    let named =
        (1..=40).contains(&kind.len()) && kind.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    let count = digits.parse().ok().filter(|count| (1..=64).contains(count));
    let count = count.filter(|_| named && digits.bytes().all(|b| b.is_ascii_digit()));
    count
        .map(|count| (kind.to_ascii_lowercase(), count))
        .ok_or_else(|| InvalidQuantity {
            text: text.chars().take(80).collect(),
            expected: "accelerators such as `T4` or `T4:2`",
        })
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

/// The functions that may stand around a column in `evaluate: by:`.
pub const SUBGROUP_FUNCTIONS: [&str; 4] = ["age_band", "top_code", "year", "zip3"];

/// The column that a subgroup expression reads: a bare column, or one of [`SUBGROUP_FUNCTIONS`] over a
/// column and plain numbers. `None` for everything else that SQL could say.
#[must_use]
pub fn subgroup_column(expression: &str) -> Option<String> {
    let text = expression.trim();
    let Some((function, rest)) = text.split_once('(').filter(|_| !text.starts_with('"')) else {
        return column_name(text);
    };
    let inner = rest.strip_suffix(')')?;
    // A quoted name may hold a comma, so numbers are taken from the end.
    let mut column = inner;
    while let Some((before, _)) = column.rsplit_once(',').filter(|(_, number)| is_number(number)) {
        column = before;
    }
    let known = SUBGROUP_FUNCTIONS.contains(&function.trim());
    column_name(column.trim()).filter(|_| known)
}

fn is_number(text: &str) -> bool {
    let text = text.trim();
    !text.is_empty() && text.len() <= 18 && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// A name as SQL reads it: quoted as it stands, else in lower case.
fn column_name(text: &str) -> Option<String> {
    if let Some(quoted) = text.strip_prefix('"') {
        let name = quoted.strip_suffix('"')?;
        return (!name.is_empty() && !name.contains('"')).then(|| name.to_owned());
    }
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    plain.then(|| text.to_ascii_lowercase())
}

/// Why a text may not name an environment variable of a job; `None` when it may.
#[must_use]
pub fn environment_name_fault(name: &str) -> Option<&'static str> {
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
