//! What the control plane asks a keeper, and what it is told.
//!
//! Requests and replies are objects in a mailbox that the keeper polls, so that a private site
//! accepts no connection. A keeper believes nothing in a request that it can know better: labels,
//! purposes and evidence come from its own catalog and its own records.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::artifact::ArtifactKind;
use crate::digest::Digest;
use crate::ids::{ArtifactId, AttemptNumber, PermitId, RunId, SiteName, TaskName};
use crate::label::Label;
use crate::message::{Attempt, Ticket};
use crate::permit::Envelope;
use crate::refusal::Refusal;
use crate::report::{LabelReport, RiskReport};

/// DSSE payload type of a request to a keeper.
pub const REQUEST_PAYLOAD: &str = "application/vnd.tidegate.request+json";
/// DSSE payload type of a keeper's reply.
pub const REPLY_PAYLOAD: &str = "application/vnd.tidegate.reply+json";

/// A request with the keeper's and the asker's view of the world pinned to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The site that is asked.
    pub site: SiteName,
    /// Where the request belongs: the same id is the same request, and is answered once.
    pub id: String,
    /// The request.
    pub body: RequestBody,
}

/// The pipeline as its engineer wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PipelineText {
    /// The file's name, for messages.
    pub file: String,
    /// The file's text.
    pub text: String,
    /// The text of `sql_file`, where the pipeline names one.
    pub sql: Option<String>,
    /// The code files that it lists: path and standard base64 of the content.
    pub code: BTreeMap<String, String>,
    /// Rows to read at the most, for a trial run; such a run releases no model.
    pub sample: Option<u64>,
}

/// A proof that the ledger holds an intent: what a releasing action needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerProof {
    /// The leaf, as canonical JSON text.
    pub leaf: String,
    /// The leaf's index.
    pub index: u64,
    /// The signed checkpoint that covers it (C2SP tlog-checkpoint).
    pub checkpoint: String,
    /// Inclusion proof, hexadecimal hashes.
    pub inclusion: Vec<String>,
    /// Consistency proof from the checkpoint of `since` to this one, hexadecimal hashes.
    pub consistency: Vec<String>,
    /// Size of the checkpoint that the keeper is expected to have seen last.
    pub since: u64,
}

/// What may be asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum RequestBody {
    /// Who are you? The keeper pins the asker's key when it hears it first.
    Identify {
        /// The asker's Ed25519 public key, standard base64 of 32 bytes: it signs every request and
        /// the ledger's checkpoints.
        control_key: String,
    },
    /// What have you recorded yourself, from this entry of your log on?
    Leaves {
        /// The first entry.
        from: u64,
    },
    /// Sign that the ledger continues what you saw and holds this entry. Lets nothing go.
    Cosign {
        /// The entry and the newest checkpoint.
        proof: LedgerProof,
    },
    /// What would the pipeline's query let out? Reads headers and schemas only.
    Analyse {
        /// The pipeline.
        pipeline: PipelineText,
    },
    /// Make a snapshot, split it, de-identify it, measure the risk.
    Prepare {
        /// The run.
        run: RunId,
        /// The pipeline.
        pipeline: PipelineText,
    },
    /// Sign a permit for one artifact to one site.
    SignPermit {
        /// The run.
        run: RunId,
        /// The task that will use it.
        task: TaskName,
        /// The pipeline.
        pipeline: PipelineText,
        /// What shall cross.
        artifact: ArtifactId,
        /// Where to.
        to: SiteName,
        /// The worker program that may receive keys there, where one does.
        worker: Option<Digest>,
        /// That the intent is in the ledger.
        intent: LedgerProof,
    },
    /// Seal and send what a permit allows. Answered with how far that is, where it takes longer than a moment: it goes
    /// on, as long as somebody asks again.
    Send {
        /// The permit.
        permit: PermitId,
    },
    /// Bring home what the attempts before this one had done, where this one is at another site than they were. Answered
    /// with nothing where there is nothing to go on with, or it stands there already.
    FetchCheckpoint {
        /// The attempt that will go on with it.
        attempt: Attempt,
        /// Where its worker will run.
        site: SiteName,
    },
    /// Make a ticket for an attempt, and admit its worker when it says hello.
    StartAttempt {
        /// The attempt.
        attempt: Attempt,
        /// The pipeline.
        pipeline: PipelineText,
        /// Where the worker will run.
        site: SiteName,
        /// The worker program.
        worker: Digest,
        /// The permits under which inputs crossed, by what the worker calls them; empty at home.
        permits: BTreeMap<String, PermitId>,
    },
    /// Give the attempt's worker these credentials of its store, once it has said hello.
    RenewAccess {
        /// The attempt.
        attempt: Attempt,
        /// base64 of an age file to the keeper's recipient holding a JSON object of variables, as the ticket's.
        sealed: String,
    },
    /// The attempt's worker is on this machine, and proves it: before it has, nothing is given to it.
    Machine {
        /// The attempt.
        attempt: Attempt,
        /// Who the platform will say that it is.
        machine: String,
    },
    /// Tell me when the attempt has ended. Answered only then.
    AwaitAttempt {
        /// The attempt.
        attempt: Attempt,
    },
    /// The attempt must not count any more. Answered with how it ended: an output that was accepted
    /// before stays accepted.
    Fence {
        /// The attempt.
        attempt: Attempt,
        /// Why, in fixed words: `lost`, `cancelled`, `deadline`.
        why: String,
    },
    /// Judge a model on the test part.
    Evaluate {
        /// The run.
        run: RunId,
        /// The pipeline.
        pipeline: PipelineText,
        /// The model.
        model: ArtifactId,
    },
    /// Calibrate a model on the refine part and judge it again.
    Refine {
        /// The run.
        run: RunId,
        /// The pipeline.
        pipeline: PipelineText,
        /// The model.
        model: ArtifactId,
    },
    /// Check the gates, run the leak test, make and sign the bundle.
    Release {
        /// The run.
        run: RunId,
        /// The pipeline.
        pipeline: PipelineText,
        /// The model.
        model: ArtifactId,
        /// That the intent is in the ledger.
        intent: LedgerProof,
    },
    /// Put a bundle where the site serves it: by a permit elsewhere, by a copy at home.
    Deploy {
        /// The run.
        run: RunId,
        /// The pipeline.
        pipeline: PipelineText,
        /// The bundle.
        bundle: ArtifactId,
        /// The site.
        to: SiteName,
        /// The permit under which the bundle crossed; absent at home.
        permit: Option<PermitId>,
    },
}

/// A reply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reply {
    /// The request's id.
    pub id: String,
    /// SHA-256 of the request's payload.
    pub request: Digest,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was done.
    Done(Box<ReplyBody>),
    /// A rule said no.
    Refused(Refusal),
    /// What the user gave is wrong: the query, the source, a value in it. Asking again does not help, and
    /// the text holds no value from the data.
    Input(String),
    /// It went wrong; the text holds no value from the data.
    Failed(String),
}

/// Something that the keeper has and that may cross.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArtifactSummary {
    /// Its name.
    pub artifact: ArtifactId,
    /// What it is.
    pub kind: ArtifactKind,
    /// A name for people.
    pub name: String,
    /// Its label.
    pub label: Label,
    /// Bytes of all files.
    pub bytes: u64,
}

/// A figure with its interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figure {
    /// The point estimate.
    pub value: f64,
    /// The low end of the 95 % interval.
    pub low: f64,
    /// The high end.
    pub high: f64,
}

/// The figures of one model on one part, rounded, with small cells suppressed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QualitySummary {
    /// Figures by metric: `roc_auc`, `pr_auc`, `accuracy`, `f1`, `log_loss`, `brier`,
    /// `expected_calibration_error`.
    pub figures: BTreeMap<String, Figure>,
    /// Rows judged.
    pub rows: u64,
    /// Subjects judged.
    pub subjects: u64,
    /// Rows by decision and outcome; absent where a cell is too small to tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confusion: Option<ConfusionSummary>,
    /// The same figures for each subgroup `EXPRESSION = VALUE`; a subgroup that is too small has none.
    pub subgroups: BTreeMap<String, BTreeMap<String, Figure>>,
}

/// The confusion matrix at the model's threshold, in rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfusionSummary {
    /// Decided positive, came true.
    pub true_positives: u64,
    /// Decided positive, did not come true.
    pub false_positives: u64,
    /// Decided negative, did not come true.
    pub true_negatives: u64,
    /// Decided negative, came true.
    pub false_negatives: u64,
}

/// One condition on a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GateResult {
    /// The metric.
    pub metric: String,
    /// The condition, such as `>= 0.75`.
    pub condition: String,
    /// The figure itself, rounded; absent where it could not be measured.
    pub value: Option<f64>,
    /// The unfavourable end of the interval, rounded.
    pub judged: f64,
    /// Whether it holds.
    pub passed: bool,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ended", rename_all = "snake_case", deny_unknown_fields)]
pub enum AttemptOutcome {
    /// Its output was accepted.
    Accepted {
        /// The model.
        model: ArtifactSummary,
        /// Seconds of the command.
        seconds: u64,
        /// Bytes that came home.
        bytes: u64,
        /// When `hello`, `data` (granted), `line` (the first of its log), `output` and `accepted` were reached, in
        /// milliseconds since its ticket was made.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        phases: BTreeMap<String, u64>,
    },
    /// Its command ended well on a machine that is not the first of its job: the first one's output is what counts.
    Worked {
        /// Seconds of the command.
        seconds: u64,
    },
    /// It ended without an output.
    Failed {
        /// What failed.
        stage: String,
        /// For a person.
        reason: String,
    },
    /// A rule said no.
    Refused {
        /// Which, and what would make it pass.
        refusal: Refusal,
    },
    /// It was fenced.
    Fenced {
        /// Why.
        why: String,
    },
}

/// Why a crossing that may go on does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "held", rename_all = "snake_case", deny_unknown_fields)]
pub enum Held {
    /// A person on the private site paused it.
    Paused,
    /// It is outside the hours in which something is sent to that site.
    Window {
        /// When they begin (Unix time).
        opens: u64,
    },
}

/// Shards of an artifact that workers copy from the store of another site into their own, as they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Copied {
    /// Where they stood.
    pub from: SiteName,
    /// Bytes of those that have arrived by now.
    pub bytes: u64,
}

/// Unfinished work that was brought home.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CarriedCheckpoint {
    /// What it is here.
    pub artifact: ArtifactSummary,
    /// The attempt that made it.
    pub attempt: AttemptNumber,
    /// Where that was.
    pub from: SiteName,
    /// Under whose standing slot it came home.
    pub permit: PermitId,
    /// Sealed bytes that were fetched from there.
    pub bytes: u64,
}

/// What may be told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum ReplyBody {
    /// Who I am.
    Identity {
        /// Ed25519 public key, standard base64 of 32 bytes.
        signing_key: String,
        /// The checkpoint that I saw last; empty before the first.
        checkpoint: String,
    },
    /// Entries of the site's own log, in order; none when there are no more.
    Leaves {
        /// Canonical JSON of one event each.
        leaves: Vec<String>,
    },
    /// The ledger continues what this site saw.
    Cosigned {
        /// The checkpoint with this site's signature.
        checkpoint: String,
    },
    /// What the query would let out.
    Analysis {
        /// The label flow.
        labels: LabelReport,
        /// Bytes of the source.
        source_bytes: u64,
        /// SHA-256 of my catalog.
        catalog: Digest,
        /// SHA-256 of my policies.
        policies: Digest,
    },
    /// A machine of this site has to do that: start attempts of the task until one worked, and ask again.
    OnMachine,
    /// What was prepared.
    Prepared {
        /// What may be asked to cross: inputs of the training by name.
        inputs: BTreeMap<String, ArtifactSummary>,
        /// The label flow.
        labels: LabelReport,
        /// What was measured.
        risk: RiskReport,
        /// Whether all of it was there already.
        reused: bool,
    },
    /// The signed permit.
    Permit {
        /// Its name.
        permit: PermitId,
        /// The signed statement.
        envelope: Envelope,
        /// The checkpoint with my signature added.
        checkpoint: String,
    },
    /// What is being sent.
    Sending {
        /// Bytes of files that stand sealed in the other site's store.
        stored: u64,
        /// Bytes of all files.
        bytes: u64,
        /// Why nothing moves now, where that is so.
        held: Option<Held>,
    },
    /// What was sent.
    Sent {
        /// Bytes of every object that went from here.
        bytes: u64,
        /// What of it comes from another site's store, where that is so.
        copied: Option<Copied>,
    },
    /// What the attempts before had done, at home now.
    Checkpoint {
        /// It, if there is something to go on with elsewhere.
        checkpoint: Option<CarriedCheckpoint>,
    },
    /// The ticket for the driver.
    Ticket {
        /// The ticket.
        ticket: Ticket,
        /// Recipient (`age1pq1…`, or `age1…`) that what the worker is to be given is sealed to on its way to the keeper.
        recipient: String,
    },
    /// What a worker is given, or its machine, is noted.
    Noted,
    /// How the attempt ended.
    AttemptEnded {
        /// How.
        outcome: AttemptOutcome,
    },
    /// How good the model is.
    Evaluated {
        /// The figures.
        quality: QualitySummary,
        /// The same training on raw columns at home, for comparison.
        raw: Option<QualitySummary>,
        /// The gates.
        gates: Vec<GateResult>,
    },
    /// How good the refined model is.
    Refined {
        /// The figures.
        quality: QualitySummary,
        /// The gates.
        gates: Vec<GateResult>,
    },
    /// The signed bundle.
    Released {
        /// The bundle.
        bundle: ArtifactSummary,
        /// The model's version: counts from 1.
        version: u64,
        /// SHA-256 of its `bundle.json`, by which a site that serves it names it.
        manifest: Digest,
        /// The gates, leak test included.
        gates: Vec<GateResult>,
        /// The checkpoint with my signature added.
        checkpoint: String,
    },
    /// The bundle is where the site serves it.
    Deployed {
        /// Where.
        site: SiteName,
    },
}
