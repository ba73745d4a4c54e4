//! `tidegate.yaml`: the engineer's statement of what to do. It may tighten labels, never loosen them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{DatasetName, PipelineName, Purpose, SiteName};
use crate::label::Level;
use crate::quantity::{ByteSize, Money, Seconds};

/// The whole file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pipeline {
    /// Names the pipeline and the model it makes.
    pub name: PipelineName,
    /// What the data is used for; must be one of the catalog's purposes.
    pub purpose: Purpose,
    /// The data owner's file, relative to this one.
    #[serde(default = "default_catalog")]
    pub catalog: String,
    /// The platform's file, relative to this one.
    #[serde(default = "default_sites")]
    pub sites: String,
    /// Step 1, on the private site.
    pub prepare: Prepare,
    /// Step 2.
    pub train: Train,
    /// Step 3, at home.
    #[serde(default)]
    pub evaluate: Evaluate,
    /// Step 3, at home, on data that never left.
    #[serde(default)]
    pub refine: Option<Refine>,
    /// Under which label the model may be released.
    #[serde(default)]
    pub release_model: ReleaseModel,
    /// Step 4: the sites that get the bundle.
    #[serde(default)]
    pub deploy: BTreeSet<SiteName>,
    /// What the run may cost and send at the most.
    #[serde(default)]
    pub budget: Budget,
    /// When the run must have ended, from its start.
    #[serde(default)]
    pub deadline: Option<Seconds>,
}

fn default_catalog() -> String {
    "catalog.yaml".to_owned()
}

fn default_sites() -> String {
    "sites.yaml".to_owned()
}

/// How what leaves is made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Prepare {
    /// The dataset; in SQL it is a table of this name.
    pub from: DatasetName,
    /// Which rule book decides what lowers what.
    #[serde(default)]
    pub profile: Profile,
    /// The query, in place of `sql_file`.
    #[serde(default)]
    pub sql: Option<String>,
    /// A file with the query, relative to this file. Without either, the profile writes the query.
    #[serde(default)]
    pub sql_file: Option<String>,
    /// The column to be learned; 0 and 1, or a boolean.
    pub target: String,
    /// Source columns that are not used by the query that the profile writes.
    #[serde(default)]
    pub drop: BTreeSet<String>,
    /// How subjects are divided.
    #[serde(default)]
    pub split: Split,
    /// Under which conditions the output may leave.
    pub disclosure: Disclosure,
}

/// Rule books for de-identification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// 45 CFR 164.514(b)(2): the eighteen identifiers are removed or generalised as it says.
    HipaaSafeHarbor,
    /// No rule book: nothing lowers a personal label, so only public data or cleared sites.
    #[default]
    None,
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::HipaaSafeHarbor => "hipaa-safe-harbor",
            Self::None => "none",
        })
    }
}

/// Shares of the subjects; what is left is `train`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Split {
    /// Leaves with `train`; used for early stopping.
    #[serde(default = "tenth")]
    pub validation: f64,
    /// Never leaves; used for calibration only.
    #[serde(default = "tenth")]
    pub refine: f64,
    /// Never leaves; used for figures and gates only.
    #[serde(default = "fifth")]
    pub test: f64,
}

fn tenth() -> f64 {
    0.1
}

fn fifth() -> f64 {
    0.2
}

impl Default for Split {
    fn default() -> Self {
        Self {
            validation: tenth(),
            refine: tenth(),
            test: fifth(),
        }
    }
}

/// Under which conditions the output may leave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Disclosure {
    /// The label level that the output gets when all conditions hold.
    pub to: Level,
    /// The smallest group of people; at least the catalog's `least_k`.
    #[serde(default)]
    pub k: Option<u32>,
    /// The least number of distinct sensitive values in a group; at least the catalog's `least_l`.
    #[serde(default)]
    pub l: Option<u32>,
    /// What to do with groups that are too small.
    #[serde(default)]
    pub on_violation: OnViolation,
    /// The largest share of rows that may be suppressed before the release is refused.
    #[serde(default = "twentieth")]
    pub max_suppressed: f64,
}

fn twentieth() -> f64 {
    0.05
}

/// What to do with groups that are too small.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnViolation {
    /// Nothing leaves.
    #[default]
    Refuse,
    /// Their rows are removed, up to `max_suppressed`.
    Suppress,
}

/// How the model is trained: the built-in trainer, or any command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Train {
    /// Where, and on what.
    #[serde(default)]
    pub resources: Resources,
    /// The built-in trainer.
    #[serde(default)]
    pub trainer: Option<Trainer>,
    /// Files of the command, relative to this file; an explicit list, for code crosses too.
    #[serde(default)]
    pub code: Vec<String>,
    /// What the files are taken for, where that is more than `internal`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code_level: Option<Level>,
    /// A shell command that prepares the environment before any data is there.
    #[serde(default)]
    pub setup: Option<String>,
    /// The shell command that trains.
    #[serde(default)]
    pub run: Option<String>,
    /// Environment variables of both commands.
    #[serde(default)]
    pub envs: BTreeMap<String, String>,
    /// How often a lost attempt is tried again.
    #[serde(default = "two")]
    pub retries: u32,
    /// How many machines of a site train together; each has the inputs, and the first one's output counts.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    #[schemars(range(min = 1, max = 64))]
    pub num_nodes: u32,
}

fn two() -> u32 {
    2
}

const fn one() -> u32 {
    1
}

const fn is_one(number: &u32) -> bool {
    *number == 1
}

/// A site of several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AnyOf {
    /// The site.
    pub infra: SiteName,
}

impl Resources {
    /// Whether the pipeline lets the job run at a site.
    #[must_use]
    pub fn allow(&self, site: &SiteName) -> bool {
        let named = self.infra.iter().chain(self.any_of.iter().map(|one| &one.infra));
        !self.name_sites() || named.into_iter().any(|one| one == site)
    }

    /// Whether the pipeline names the sites that the job may run at.
    #[must_use]
    pub const fn name_sites(&self) -> bool {
        self.infra.is_some() || !self.any_of.is_empty()
    }
}

/// Where a job runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// The site; without it the cheapest that policy allows.
    #[serde(default)]
    pub infra: Option<SiteName>,
    /// One of these sites, the cheapest first; the others where it cannot be done there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub any_of: Vec<AnyOf>,
    /// Processors: `2` for exactly, `2+` for at least.
    #[serde(default)]
    pub cpus: Option<String>,
    /// Memory at least.
    #[serde(default)]
    pub memory: Option<ByteSize>,
    /// What it needs to compute with besides: `T4` for one, `T4:2` for two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerators: Option<String>,
    /// Whether the machine may be taken away for a lower price.
    #[serde(default)]
    pub use_spot: bool,
}

/// Settings of the built-in trainer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Trainer {
    /// What is trained.
    pub model: TrainerModel,
    /// Widths of the hidden layers of `mlp`.
    #[serde(default = "default_hidden")]
    pub hidden: Vec<u32>,
    /// Passes over the training rows at the most.
    #[serde(default = "ten")]
    pub epochs: u32,
    /// Rows in each step.
    #[serde(default = "thirty_two")]
    pub batch_size: u32,
    /// Step size of Adam, of the first step where it changes.
    #[serde(default = "thousandth")]
    pub learning_rate: f64,
    /// How the step size changes from step to step.
    #[serde(default)]
    pub schedule: Schedule,
    /// Stop after so many epochs without a better validation loss; absent for never.
    #[serde(default)]
    pub early_stopping: Option<u32>,
    /// Weigh both outcomes alike.
    #[serde(default)]
    pub balanced: bool,
    /// Weight of the squared weights in the loss.
    #[serde(default)]
    pub l2: f64,
    /// Decides every random choice of the training.
    #[serde(default)]
    pub seed: u64,
}

fn default_hidden() -> Vec<u32> {
    vec![128]
}

fn ten() -> u32 {
    10
}

fn thirty_two() -> u32 {
    32
}

fn thousandth() -> f64 {
    0.001
}

/// How the step size changes during a training.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// It stays as it is.
    #[default]
    Constant,
    /// It falls evenly over the steps of all epochs, to nothing after the last: the noise of single batches fades out.
    Linear,
}

/// Models of the built-in trainer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TrainerModel {
    /// A dense network: hidden layers with relu, one sigmoid.
    Mlp,
    /// Logistic regression.
    Logistic,
}

/// What is measured at home, and what must hold.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Evaluate {
    /// Raw columns that form subgroups, each alone or under a function such as `age_band(age, 10)`; no
    /// identifier and no text.
    #[serde(default)]
    pub by: Vec<String>,
    /// Conditions such as `roc_auc: ">= 0.75"`, judged on the unfavourable end of the interval.
    #[serde(default)]
    pub gates: BTreeMap<String, String>,
}

/// What is fitted at home on data that never left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Refine {
    /// How probabilities are calibrated.
    pub calibrate: Calibration,
}

/// How probabilities are calibrated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Calibration {
    /// A logistic curve over the model's logit: two numbers.
    Platt,
}

/// Under which label the model may be released.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReleaseModel {
    /// The label level of the bundle.
    #[serde(default = "internal")]
    pub to: Level,
    /// Figures about fewer subjects than this are not shown outside; at least 11.
    #[serde(default = "eleven")]
    pub min_cell: u32,
}

fn internal() -> Level {
    Level::Internal
}

fn eleven() -> u32 {
    11
}

impl Default for ReleaseModel {
    fn default() -> Self {
        Self {
            to: internal(),
            min_cell: eleven(),
        }
    }
}

/// What the run may cost and send at the most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// Money.
    #[serde(default)]
    pub cost: Option<Money>,
    /// Bytes that leave the private site.
    #[serde(default)]
    pub egress: Option<ByteSize>,
}
