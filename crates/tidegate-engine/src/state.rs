//! What the engine's journal holds.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tidegate_contracts::Handle;
use tidegate_contracts::journal::{Batch, Journal};
use tidegate_types::digest::Digest;
use tidegate_types::ids::{ArtifactId, PermitId, RunId, SiteName, TaskName};
use tidegate_types::keeper::{ArtifactSummary, AttemptOutcome, GateResult, QualitySummary};
use tidegate_types::message::Attempt;
use tidegate_types::quantity::{HourPrice, Money};
use tidegate_types::report::{LabelReport, RiskReport};
use tidegate_types::to_canonical_json;

use crate::error::{EngineError, While};
use crate::summary::Summary;

/// Where a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    /// It goes on, or was interrupted; the same command continues it.
    Running,
    /// Everything was done.
    Done,
    /// It went wrong; the same command begins another run and uses the results that are there.
    Failed,
    /// A rule said no.
    Refused,
    /// Somebody stopped it.
    Cancelled,
}

impl RunStatus {
    /// The status in one word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What came of one task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskState {
    /// Whether an earlier result was used.
    pub reused: bool,
    /// Wall-clock milliseconds.
    pub milliseconds: u64,
    /// What its machines cost, where they have a price.
    pub cost: Option<Money>,
}

/// One attempt, from before its worker was asked for until it has ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct JobRecord {
    pub(crate) attempt: Attempt,
    pub(crate) site: SiteName,
    /// When it began (Unix time).
    pub(crate) began: u64,
    /// When it ended (Unix time) and how.
    pub(crate) ended: Option<(u64, AttemptOutcome)>,
    /// Whether something of it may still be on its machine, which was out of reach when it ended.
    #[serde(default)]
    pub(crate) left: bool,
    /// Its job, once it was started: after a restart nobody asks for it again.
    #[serde(default)]
    pub(crate) handle: Option<Handle>,
    /// When its machine was `asked` for and first seen `running`, in milliseconds since it was begun here.
    #[serde(default)]
    pub(crate) phases: BTreeMap<String, u64>,
    /// What an hour of its machine costs.
    #[serde(default)]
    pub(crate) price: Option<HourPrice>,
    /// Whether its site had no room for it.
    #[serde(default)]
    pub(crate) crowded: bool,
}

/// One run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Its name.
    pub id: RunId,
    /// A digest over everything that was planned: the same plan continues the same run.
    pub key: Digest,
    /// The pipeline's name.
    pub pipeline: String,
    /// When it started (Unix time).
    pub started: u64,
    /// Where it is.
    pub status: RunStatus,
    /// Why it is there, when it did not end well.
    pub why: String,
    /// Tasks that ended, by name.
    pub tasks: BTreeMap<TaskName, TaskState>,
    /// What it has cost at its end, whichever way it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<String>,
    /// What it told at its end.
    pub summary: Option<Summary>,
}

/// One committed crossing: a line of the egress account.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CrossingEntry {
    /// What a person calls it.
    pub artifact: String,
    /// Where from.
    pub from: SiteName,
    /// Where to.
    pub to: SiteName,
    /// Ciphertext bytes of all committed objects.
    pub bytes: u64,
    /// The permit.
    pub permit: PermitId,
    /// What the bytes cost, where there is a price.
    pub cost: Option<Money>,
    /// Its place among the run's crossings.
    pub place: u64,
}

/// An artifact that workers copy from another site than home.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct CopyEntry {
    /// What a person calls it.
    pub(crate) artifact: String,
    pub(crate) id: ArtifactId,
    pub(crate) from: SiteName,
    pub(crate) to: SiteName,
    pub(crate) permit: PermitId,
    /// What of it is in the egress account.
    pub(crate) bytes: u64,
}

/// What preparation gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PreparedStep {
    pub(crate) inputs: BTreeMap<String, ArtifactSummary>,
    pub(crate) labels: LabelReport,
    pub(crate) risk: RiskReport,
}

/// What training gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TrainedStep {
    pub(crate) model: ArtifactSummary,
    pub(crate) seconds: u64,
}

/// What judging gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct JudgedStep {
    pub(crate) quality: QualitySummary,
    pub(crate) raw: Option<QualitySummary>,
    pub(crate) gates: Vec<GateResult>,
}

/// What releasing gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ReleasedStep {
    pub(crate) bundle: ArtifactSummary,
    pub(crate) version: u64,
    pub(crate) manifest: Digest,
    pub(crate) gates: Vec<GateResult>,
}

const READING: &str = "reading the journal";
const WRITING: &str = "writing the journal";

/// One entry, typed.
pub(crate) fn get<T: DeserializeOwned>(
    journal: &dyn Journal,
    table: &str,
    key: &str,
) -> Result<Option<T>, EngineError> {
    journal
        .get(table, key)
        .while_(READING)?
        .map(|bytes| serde_json::from_slice(&bytes).while_(READING))
        .transpose()
}

/// All entries of a table under a prefix, typed.
pub(crate) fn scan<T: DeserializeOwned>(
    journal: &dyn Journal,
    table: &str,
    prefix: &str,
) -> Result<Vec<T>, EngineError> {
    journal
        .scan(table, prefix)
        .while_(READING)?
        .iter()
        .map(|(_, bytes)| serde_json::from_slice(bytes).while_(READING))
        .collect()
}

/// A value as the journal keeps it.
pub(crate) fn value<T: Serialize>(value: &T) -> Result<Vec<u8>, EngineError> {
    to_canonical_json(value).while_(WRITING)
}

/// Writes one entry.
pub(crate) fn put<T: Serialize>(journal: &dyn Journal, table: &str, key: &str, new: &T) -> Result<(), EngineError> {
    journal
        .commit(&Batch::default().set(table, key, value(new)?))
        .while_(WRITING)
}
