//! What the journal holds: one typed entry for each thing that must survive a crash.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tidegate_contracts::journal::{Batch, Journal, JournalError};
use tidegate_types::artifact::{Manifest, SealedObject};
use tidegate_types::digest::Digest;
use tidegate_types::ids::{ArtifactId, PermitId, RunId, SiteName, TaskName};
use tidegate_types::keeper::{ArtifactSummary, AttemptOutcome};
use tidegate_types::label::Label;
use tidegate_types::message::{Attempt, Job, Node};
use tidegate_types::permit::{Envelope, Evidence};
use tidegate_types::to_canonical_json;

use crate::away::ROWS;
use crate::error::{KeeperError, While};

/// An artifact that stands in a folder of this site.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ArtifactRecord {
    pub(crate) manifest: Manifest,
    /// Relative to the site's folder.
    pub(crate) folder: PathBuf,
    pub(crate) evidence: Evidence,
    /// What a person calls it inside a run: `code`, `train`, `validation`, `model`, `bundle`.
    pub(crate) role: String,
}

impl ArtifactRecord {
    pub(crate) fn summary(&self, artifact: ArtifactId) -> ArtifactSummary {
        ArtifactSummary {
            artifact,
            kind: self.manifest.kind,
            name: self.manifest.name.clone(),
            label: self.manifest.label.clone(),
            bytes: self.manifest.total_bytes(),
        }
    }
}

/// What a run prepared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PreparedRecord {
    /// By input name: `code`, `train`, `validation`.
    pub(crate) inputs: BTreeMap<String, ArtifactId>,
    /// Where recipe and home parts are, relative to the site's folder.
    pub(crate) home: PathBuf,
    /// The pipeline that was prepared; requests with another one are refused.
    pub(crate) pipeline: Digest,
    pub(crate) evidence: Evidence,
    /// Whether only a sample of the rows was read; then no model is released.
    pub(crate) sample: bool,
    /// When it was prepared (Unix time).
    pub(crate) at: u64,
}

/// A signed permit and the data key of its crossing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PermitRecord {
    pub(crate) id: PermitId,
    pub(crate) run: RunId,
    pub(crate) task: TaskName,
    pub(crate) artifact: ArtifactId,
    pub(crate) to: SiteName,
    /// The program that may get the data key; `None` for what a site opens itself.
    pub(crate) worker: Option<Digest>,
    /// How many tries may use it.
    pub(crate) attempts: u32,
    pub(crate) expires: u64,
    pub(crate) envelope: Envelope,
    /// The data key, wrapped by custody with the permit's id as context; hexadecimal. Empty once it was
    /// destroyed.
    pub(crate) wrapped_key: String,
    /// The checkpoint with this keeper's signature.
    pub(crate) checkpoint: String,
}

/// What was sent under a permit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct CrossingRecord {
    pub(crate) packing_list: String,
    pub(crate) packing_list_digest: Digest,
    /// Shards in order, index, packing list.
    pub(crate) objects: Vec<SealedObject>,
    /// What of them this site has put.
    pub(crate) bytes: u64,
    /// The site where its shards stood already, from where workers copy them.
    #[serde(default)]
    pub(crate) copied_from: Option<SiteName>,
    /// When (Unix time); nothing for what was sent before this was written down.
    #[serde(default)]
    pub(crate) at: u64,
}

/// What was received of an attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct OutputRecord {
    pub(crate) packing_list: String,
    /// Shards and index.
    pub(crate) objects: Vec<SealedObject>,
}

/// Unfinished work of an attempt, in the store of its site.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct CheckpointRecord {
    pub(crate) packing_list: String,
    pub(crate) packing_list_digest: Digest,
    /// Shards and index.
    pub(crate) objects: Vec<SealedObject>,
    pub(crate) bytes: u64,
    /// The permit in whose standing slot it stands.
    pub(crate) permit: PermitId,
    /// The key of the worker that signed its packing list, standard base64.
    pub(crate) signing_key: String,
    /// Its data key, sealed to this site as its worker sent it; base64 of an age file. Empty where it is derived.
    pub(crate) sealed_key: String,
}

/// What a setup left, in the store of its site.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SetupRecord {
    pub(crate) site: SiteName,
    /// The attempt that sent it.
    pub(crate) attempt: Attempt,
    /// The machine that it ran on, as its worker told it.
    pub(crate) machine: Digest,
    /// Of its permit's payload.
    pub(crate) permit_digest: Digest,
    /// Its key is derived from that of the code under its permit, and goes with that.
    pub(crate) sealed: CheckpointRecord,
    /// With this, 32 bytes in hexadecimal.
    pub(crate) salt: String,
    /// When it was sent (Unix time).
    pub(crate) sent: u64,
}

/// A place in one direction of a mailbox.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Position {
    pub(crate) number: u64,
    pub(crate) previous: Option<Digest>,
}

/// A letter that is written and may not be delivered yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pending {
    pub(crate) object: String,
    pub(crate) body: String,
    pub(crate) number: u64,
    pub(crate) digest: Digest,
}

/// How far an attempt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// A ticket is out; nobody said hello.
    Waiting,
    /// The worker was admitted and has the key of the code.
    CodeGranted,
    /// Its setup is done, and it waits for the job's other machines.
    SetUp,
    /// The worker has the keys of the inputs.
    DataGranted,
    /// Its output is at home.
    OutputReceived,
}

/// One attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct AttemptRecord {
    pub(crate) attempt: Attempt,
    pub(crate) site: SiteName,
    pub(crate) worker: Digest,
    /// The ticket's secret, wrapped by custody; hexadecimal.
    pub(crate) secret: String,
    /// Until when its ticket is good for a hello.
    pub(crate) expires: u64,
    /// When the first of its permits ends, and the attempt with it.
    pub(crate) ends: u64,
    /// Permits by input name.
    pub(crate) inputs: BTreeMap<String, PermitId>,
    pub(crate) job: Job,
    /// The label of what it makes.
    pub(crate) label: Label,
    pub(crate) phase: Phase,
    pub(crate) hello: Option<Digest>,
    /// On which machine its worker was started, where machines can prove who they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) machine: Option<String>,
    /// Where the job's other machines reach this one.
    #[serde(default)]
    pub(crate) node: Option<Node>,
    pub(crate) read: Position,
    pub(crate) written: Position,
    pub(crate) pending: Option<Pending>,
    /// The received output's folder, relative to the site's folder.
    pub(crate) output: Option<PathBuf>,
    pub(crate) output_bytes: u64,
    /// Its newest unfinished work, and the sealed bytes of all that it sent.
    #[serde(default)]
    pub(crate) checkpoint: Option<CheckpointRecord>,
    #[serde(default)]
    pub(crate) checkpoint_bytes: u64,
    /// How long the log and the metrics file are with what was read so far.
    pub(crate) log_bytes: u64,
    pub(crate) metric_bytes: u64,
    /// When its ticket was made (milliseconds of Unix time), and what was reached how many milliseconds later.
    #[serde(default)]
    pub(crate) ticketed: u64,
    #[serde(default)]
    pub(crate) phases: BTreeMap<String, u64>,
    pub(crate) outcome: Option<AttemptOutcome>,
}

impl AttemptRecord {
    /// The input whose permit has the slots for what comes back.
    pub(crate) fn subject(&self) -> &'static str {
        if self.inputs.contains_key(ROWS) { ROWS } else { "train" }
    }

    /// Notes that something was reached now, for the first time.
    pub(crate) fn reach(&mut self, phase: &str) {
        let since = milliseconds().saturating_sub(self.ticketed);
        self.phases.entry(phase.to_owned()).or_insert(since);
    }
}

/// Now, in milliseconds of Unix time.
pub(crate) fn milliseconds() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// The keys of an artifact are destroyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tombstone {
    /// Since when no key of it is given to anybody (Unix time).
    pub(crate) at: u64,
    /// Whether what wrapped them is destroyed too.
    pub(crate) done: bool,
}

/// The journal with types.
#[derive(Debug, Clone)]
pub(crate) struct Records {
    pub(crate) journal: Arc<dyn Journal>,
}

const READING: &str = "reading the keeper's journal";
const WRITING: &str = "writing the keeper's journal";

/// A value as the journal keeps it.
pub(crate) fn value<T: Serialize>(value: &T) -> Result<Vec<u8>, KeeperError> {
    to_canonical_json(value).while_(WRITING)
}

/// The key of a task's attempts.
pub(crate) fn attempt_key(attempt: &Attempt) -> String {
    format!("{}.{}.{}-{}", attempt.run, attempt.task, attempt.attempt, attempt.rank)
}

impl Records {
    pub(crate) fn get<T: DeserializeOwned>(&self, table: &str, key: &str) -> Result<Option<T>, KeeperError> {
        self.journal
            .get(table, key)
            .while_(READING)?
            .map(|bytes| serde_json::from_slice(&bytes).while_(READING))
            .transpose()
    }

    pub(crate) fn commit(&self, batch: &Batch) -> Result<(), KeeperError> {
        self.journal.commit(batch).while_(WRITING)
    }

    /// Commits, and says whether the expectations held.
    pub(crate) fn commit_if(&self, batch: &Batch) -> Result<bool, KeeperError> {
        match self.journal.commit(batch) {
            Ok(()) => Ok(true),
            Err(JournalError::Conflict { .. }) => Ok(false),
            Err(error) => Err(KeeperError::failed(WRITING, error)),
        }
    }

    pub(crate) fn put<T: Serialize>(&self, table: &str, key: &str, new: &T) -> Result<(), KeeperError> {
        self.commit(&Batch::default().set(table, key, value(new)?))
    }

    pub(crate) fn checkpoint(&self) -> Result<Option<String>, KeeperError> {
        self.get("witness", "checkpoint")
    }

    pub(crate) fn set_checkpoint(&self, text: &str) -> Result<(), KeeperError> {
        self.put("witness", "checkpoint", &text)
    }

    pub(crate) fn artifact(&self, artifact: &ArtifactId) -> Result<Option<ArtifactRecord>, KeeperError> {
        self.get("artifacts", &artifact.to_hex())
    }

    pub(crate) fn put_artifact(&self, artifact: &ArtifactId, record: &ArtifactRecord) -> Result<(), KeeperError> {
        self.put("artifacts", &artifact.to_hex(), record)
    }

    pub(crate) fn prepared(&self, run: &RunId) -> Result<Option<PreparedRecord>, KeeperError> {
        self.get("prepared", run.as_str())
    }

    pub(crate) fn permit(&self, permit: &PermitId) -> Result<Option<PermitRecord>, KeeperError> {
        self.get("permits", permit.as_str())
    }

    pub(crate) fn crossing(&self, permit: &PermitId) -> Result<Option<CrossingRecord>, KeeperError> {
        self.get("crossings", permit.as_str())
    }

    pub(crate) fn attempt(&self, attempt: &Attempt) -> Result<Option<AttemptRecord>, KeeperError> {
        self.get("attempts", &attempt_key(attempt))
    }

    pub(crate) fn output(&self, attempt: &Attempt) -> Result<Option<OutputRecord>, KeeperError> {
        self.get("outputs", &attempt_key(attempt))
    }

    pub(crate) fn tombstone(&self, artifact: &ArtifactId) -> Result<Option<Tombstone>, KeeperError> {
        self.get("tombstones", &artifact.to_hex())
    }

    /// Everything in a table.
    pub(crate) fn all<T: DeserializeOwned>(&self, table: &str) -> Result<Vec<T>, KeeperError> {
        self.journal
            .scan(table, "")
            .while_(READING)?
            .iter()
            .map(|(_, bytes)| serde_json::from_slice(bytes).while_(READING))
            .collect()
    }

    /// Shows every leaf of the keeper's own log, in order.
    pub(crate) fn each_leaf(&self, mut look: impl FnMut(&[u8]) -> Result<(), KeeperError>) -> Result<(), KeeperError> {
        let size = self.journal.log_size().while_(READING)?;
        let mut from = 0;
        while from < size {
            let to = size.min(from + 1024);
            for leaf in self.journal.log_leaves(from, to).while_(READING)? {
                look(&leaf)?;
            }
            from = to;
        }
        Ok(())
    }

    /// Attempts that have not ended.
    pub(crate) fn open_attempts(&self) -> Result<Vec<AttemptRecord>, KeeperError> {
        let mut attempts = self.all::<AttemptRecord>("attempts")?;
        attempts.retain(|record| record.outcome.is_none());
        Ok(attempts)
    }

    /// All attempts of the same task.
    pub(crate) fn attempts_of(&self, attempt: &Attempt) -> Result<Vec<AttemptRecord>, KeeperError> {
        let prefix = format!("{}.{}.", attempt.run, attempt.task);
        self.journal
            .scan("attempts", &prefix)
            .while_(READING)?
            .iter()
            .map(|(_, bytes)| serde_json::from_slice(bytes).while_(READING))
            .collect()
    }

    /// Replaces an attempt's record if nobody else changed it.
    pub(crate) fn advance(&self, old: &AttemptRecord, new: &AttemptRecord) -> Result<bool, KeeperError> {
        self.commit_if(&Batch::default().replace(
            "attempts",
            &attempt_key(&old.attempt),
            Some(value(old)?),
            value(new)?,
        ))
    }
}

/// The folders of the newest preparation's inputs by name, for a person on the private site itself.
///
/// # Errors
/// When the journal cannot be read.
pub fn newest_inputs(journal: Arc<dyn Journal>, folder: &Path) -> Result<BTreeMap<String, PathBuf>, KeeperError> {
    let records = Records { journal };
    let mut newest: Option<PreparedRecord> = None;
    for (_, bytes) in records.journal.scan("prepared", "").while_(READING)? {
        let record: PreparedRecord = serde_json::from_slice(&bytes).while_(READING)?;
        if newest.as_ref().is_none_or(|newest| newest.at <= record.at) {
            newest = Some(record);
        }
    }
    let mut folders = BTreeMap::new();
    for (name, artifact) in newest.map(|newest| newest.inputs).unwrap_or_default() {
        if let Some(record) = records.artifact(&artifact)? {
            folders.insert(name, folder.join(record.folder));
        }
    }
    Ok(folders)
}
