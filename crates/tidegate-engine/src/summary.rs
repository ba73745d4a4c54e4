//! What a run tells at its end.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tidegate_types::ids::{PermitId, RunId, SiteName};
use tidegate_types::keeper::{GateResult, QualitySummary};

use crate::state::RunStatus;

/// The released model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SummaryModel {
    /// Its name.
    pub name: String,
    /// Counts from 1.
    pub version: u64,
    /// SHA-256 of its `bundle.json`, by which a site that serves it names it.
    pub digest: String,
}

/// The figures before and after refinement, by metric.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SummaryMetrics {
    /// As trained, on the test part at home.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub home: BTreeMap<String, f64>,
    /// After refinement.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub refined: BTreeMap<String, f64>,
    /// The same training on raw columns at home.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub raw: BTreeMap<String, f64>,
}

/// What was measured before anything left.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SummaryRisk {
    /// The smallest group of people.
    pub k: u64,
    /// The least number of distinct sensitive values in a group.
    pub l: Option<u64>,
    /// Rows removed to reach k.
    pub suppressed: u64,
    /// Rows before.
    pub rows: u64,
    /// Rows that are unique on the raw quasi-identifiers.
    pub raw_unique: u64,
}

/// One crossing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SummaryCrossing {
    /// What crossed.
    pub artifact: String,
    /// Where from.
    pub from: SiteName,
    /// Where to.
    pub to: SiteName,
    /// Ciphertext bytes.
    pub bytes: u64,
    /// The permit.
    pub permit: PermitId,
}

/// One part of the attempt that trained the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SummaryPhase {
    /// What was reached: `asked` (the site has taken the job), `running` (its machine was seen to run), `hello` (the worker
    /// was admitted), `data` (its setup was done and it was granted the data), `line` (the first of its log), `output` (the
    /// model is at home), `accepted`. What a site does not tell, or what went too fast to be seen, is left out.
    pub phase: String,
    /// Seconds since the one before.
    pub seconds: f64,
}

/// Parts in the order in which they were reached, from milliseconds since the beginning.
pub(crate) fn phases(reached: &BTreeMap<String, u64>) -> Vec<SummaryPhase> {
    let mut reached: Vec<(u64, &String)> = reached.iter().map(|(phase, at)| (*at, phase)).collect();
    reached.sort_unstable();
    let mut before = 0;
    let part = |(at, phase): (u64, &String)| {
        let seconds = (at - before) as f64 / 1000.0;
        before = at;
        SummaryPhase {
            phase: phase.clone(),
            seconds,
        }
    };
    reached.into_iter().map(part).collect()
}

/// The ledger's head.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SummaryLedger {
    /// Leaves.
    pub size: u64,
    /// Root hash in hexadecimal.
    pub root: String,
}

/// Everything a run tells at its end: the one object that `run --format json` prints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The run.
    pub run: RunId,
    /// How it ended.
    pub status: RunStatus,
    /// The released model.
    pub model: Option<SummaryModel>,
    /// The figures.
    pub metrics: SummaryMetrics,
    /// The figures with their intervals and subgroups, before refinement.
    pub home: Option<QualitySummary>,
    /// The figures with their intervals and subgroups, after refinement.
    pub refined: Option<QualitySummary>,
    /// The gates.
    pub gates: Vec<GateResult>,
    /// The measured risk.
    pub risk: Option<SummaryRisk>,
    /// Every crossing of this run.
    pub crossings: Vec<SummaryCrossing>,
    /// What it cost.
    pub cost: String,
    /// The ledger's head.
    pub ledger: SummaryLedger,
    /// Sites that serve the model now.
    pub deployed: Vec<SiteName>,
    /// Tasks that used an earlier result.
    pub reused: Vec<String>,
    /// What of the training took how long; empty where its result was there already.
    #[serde(default)]
    pub training: Vec<SummaryPhase>,
    /// Wall-clock seconds.
    pub seconds: f64,
}

/// The point estimates of a quality.
pub(crate) fn points(quality: &QualitySummary) -> BTreeMap<String, f64> {
    quality
        .figures
        .iter()
        .map(|(metric, figure)| (metric.clone(), figure.value))
        .collect()
}
