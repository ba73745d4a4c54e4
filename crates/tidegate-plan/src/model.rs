//! What a plan is made from and what it says.

use serde::{Deserialize, Serialize};
use tidegate_types::artifact::ArtifactKind;
use tidegate_types::files::{Catalog, Pipeline, Sites};
use tidegate_types::ids::{PipelineName, Purpose, SiteName, TaskName};
use tidegate_types::label::Label;
use tidegate_types::quantity::{Money, Seconds};
use tidegate_types::refusal::Refusal;
use tidegate_types::report::{ColumnReport, LabelReport};

/// The only plan format there is.
pub(crate) const PLAN_FORMAT: &str = "tidegate.plan.v1";

/// Everything that a plan depends on.
pub struct PlanInput<'a> {
    /// The data owner's file.
    pub catalog: &'a Catalog,
    /// The platform's file.
    pub sites: &'a Sites,
    /// The engineer's file.
    pub pipeline: &'a Pipeline,
    /// The label flow of the pipeline's query.
    pub labels: &'a LabelReport,
    /// Bytes of the dataset's source.
    pub source_bytes: u64,
    /// Asks policy whether a crossing may be planned. Called for every candidate, so it is pure.
    pub policies: &'a dyn Fn(&PlannedCrossing) -> Result<(), Refusal>,
    /// The last step to plan; all of them without.
    pub until: Option<Step>,
}

impl std::fmt::Debug for PlanInput<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PlanInput")
            .field("pipeline", &self.pipeline.name)
            .field("source_bytes", &self.source_bytes)
            .field("until", &self.until)
            .finish_non_exhaustive()
    }
}

/// The steps of a pipeline in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// Snapshot, split, de-identify and measure, at home.
    Prepare,
    /// Train, on the chosen site.
    Train,
    /// Judge the model on the test part, at home.
    Evaluate,
    /// Calibrate on the refine part, at home.
    Refine,
    /// Check the gates and sign the bundle, at home.
    Release,
    /// Put the bundle where a site serves it.
    Deploy,
}

impl Step {
    /// The step as a word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Train => "train",
            Self::Evaluate => "evaluate",
            Self::Refine => "refine",
            Self::Release => "release",
            Self::Deploy => "deploy",
        }
    }
}

/// What will be done: independent of the run that does it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Always `tidegate.plan.v1`.
    pub format: String,
    /// The pipeline.
    pub pipeline: PipelineName,
    /// The site that owns the data.
    pub home: SiteName,
    /// The tasks, each after all that it needs.
    pub tasks: Vec<PlannedTask>,
    /// What will cross, in the order in which it will.
    pub crossings: Vec<PlannedCrossing>,
    /// The sum of all known costs.
    pub cost_estimate: Money,
    /// When the run must have ended, from its start.
    pub deadline: Option<Seconds>,
    /// Whether some cost is not known: then the sum is too low.
    pub unpriced: bool,
    /// The same with the training at another site: for when it cannot be done at this plan's, in this order. Theirs are
    /// empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub elsewhere: Vec<Plan>,
}

impl Plan {
    /// Where it trains, if it does.
    #[must_use]
    pub fn trains_at(&self) -> Option<&SiteName> {
        let train = self.tasks.iter().find(|task| task.kind == Step::Train);
        train.map(|task| &task.site)
    }
}

/// One node of the graph.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedTask {
    /// Its name: the step's word, and `deploy-SITE` for deployments.
    pub task: TaskName,
    /// What it does.
    pub kind: Step,
    /// Where.
    pub site: SiteName,
    /// On how many machines.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub machines: u32,
    /// What must be done before.
    pub needs: Vec<TaskName>,
    /// How long it takes at the most, roughly.
    pub seconds_estimate: u64,
    /// What it costs; absent when the site has no price.
    pub cost: Option<Money>,
}

const fn one() -> u32 {
    1
}

const fn is_one(number: &u32) -> bool {
    *number == 1
}

/// One artifact moving between two sites.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedCrossing {
    /// The task that needs it.
    pub task: TaskName,
    /// What crosses: `train`, `validation`, `code`, `model` or `bundle`.
    pub artifact: String,
    /// What kind of thing it is.
    pub kind: ArtifactKind,
    /// Where it comes from.
    pub from: SiteName,
    /// Where it goes.
    pub to: SiteName,
    /// Its label when it crosses.
    pub label: Label,
    /// For rows: every column, and why it may cross.
    pub columns: Vec<ColumnReport>,
    /// How many bytes at the most, roughly.
    pub bytes_estimate: u64,
    /// Other sites from which it is copied where it stands there already, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub copied_from: Vec<SiteName>,
    /// What they cost, at the dearest of the sites that they may leave; absent when one has no price for them.
    pub cost: Option<Money>,
}

/// Why the plan is as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// What the data is used for.
    pub purpose: Purpose,
    /// Every site that was looked at for training, the chosen one first; empty when nothing is trained.
    pub candidates: Vec<Candidate>,
    /// What is measured before anything leaves, each as a full clause.
    pub conditions: Vec<String>,
    /// Source columns that decide which rows there are.
    pub row_reads: Vec<String>,
    /// What to look at before saying yes, each as a full sentence.
    pub warnings: Vec<String>,
    /// The most that the run may cost, if limited.
    pub budget: Option<Money>,
}

/// One site that was looked at for training.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    /// The site.
    pub site: SiteName,
    /// Whether it was chosen.
    pub chosen: bool,
    /// Why, or why not.
    pub reason: String,
}
