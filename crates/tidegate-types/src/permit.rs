//! Permits: an owner site's signed permission for one crossing.
//!
//! A permit is an in-toto Statement v1 inside a DSSE envelope ([`Envelope`]), so that anybody's
//! verifier can open it. The subject is the manifest's digest; [`Permit`] is the predicate.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::ids::{AttemptNumber, PermitId, Purpose, RunId, SiteName, TaskName};
use crate::label::Label;

/// A DSSE envelope (Dead Simple Signing Envelope v1): a payload, its type, and signatures over both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Envelope {
    /// Standard base64 of the payload.
    pub payload: String,
    /// The payload's media type.
    pub payload_type: String,
    /// One signature for each signer.
    pub signatures: Vec<EnvelopeSignature>,
}

/// One signature of an [`Envelope`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EnvelopeSignature {
    /// Which key signed: a hint, never trusted by itself.
    pub keyid: String,
    /// Standard base64 of an Ed25519 signature over the DSSE pre-authentication encoding.
    pub sig: String,
}

/// DSSE payload type of an in-toto statement.
pub const IN_TOTO_PAYLOAD: &str = "application/vnd.in-toto+json";
/// `_type` of an in-toto Statement v1.
pub const IN_TOTO_STATEMENT: &str = "https://in-toto.io/Statement/v1";
/// `predicateType` of a permit.
pub const PERMIT_PREDICATE: &str = "https://tidegate.dev/permit/v1";

/// An in-toto Statement v1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Statement<P> {
    /// Always [`IN_TOTO_STATEMENT`].
    #[serde(rename = "_type")]
    pub statement_type: String,
    /// What the statement is about.
    pub subject: Vec<Subject>,
    /// What kind of predicate follows.
    #[serde(rename = "predicateType")]
    pub predicate_type: String,
    /// What is stated.
    pub predicate: P,
}

/// A subject of an in-toto statement: a name and digests by algorithm, `sha256` in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Subject {
    /// A name for people.
    pub name: String,
    /// Digest values by algorithm name.
    pub digest: BTreeMap<String, String>,
}

/// A site as a permit names it: a renamed or rerouted site is another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SiteReference {
    /// The site's name.
    pub site: SiteName,
    /// SHA-256 over the canonical JSON of the site's definition (store, account, jurisdiction,
    /// clearance, compute), without how fast and when bytes are sent to it.
    pub definition: Digest,
}

/// What the owner measured before allowing a crossing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    /// SHA-256 of the SQL that was run; absent where no SQL made the artifact.
    pub sql: Option<Digest>,
    /// SHA-256 of the label report's canonical JSON.
    pub label_report: Option<Digest>,
    /// The smallest group of subjects that share all quasi-identifiers; absent when nothing was lowered.
    pub k: Option<u64>,
    /// The smallest number of distinct sensitive values in such a group.
    pub l: Option<u64>,
    /// Rows removed to reach k.
    pub suppressed_rows: Option<u64>,
}

/// What may cross besides the subject, under the same permit: a job's messages, logs, metrics,
/// checkpoints and outputs, none of which can be named beforehand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StandingSlot {
    /// `hello`, `log`, `metric`, `checkpoint` or `output`.
    pub slot: String,
    /// Where it comes from.
    pub from: SiteName,
    /// Where it goes.
    pub to: SiteName,
    /// The highest label it may carry.
    pub label: Label,
    /// The most bytes that may cross in it, over all attempts.
    pub byte_limit: u64,
}

/// The owner's permission for one crossing: the predicate of its statement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Permit {
    /// Names the permit.
    pub id: PermitId,
    /// The organisation.
    pub organisation: String,
    /// Where the artifact comes from; its keeper signs.
    pub from: SiteReference,
    /// Where it may go, and nowhere else.
    pub to: SiteReference,
    /// Another site, where it stands sealed already, from whose store its shards may go there as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copied_from: Option<SiteReference>,
    /// SHA-256 of the pipeline file's canonical form.
    pub pipeline: Digest,
    /// SHA-256 of the policy set that was asked.
    pub policies: Digest,
    /// The code artifact that may read the subject there; absent when the subject is only served or is
    /// itself the code.
    pub code: Option<Digest>,
    /// SHA-256 of the worker program that may receive the key; absent when no worker does.
    pub worker: Option<Digest>,
    /// The artifact's label.
    pub label: Label,
    /// What it may be used for.
    pub purpose: Purpose,
    /// The run it is for.
    pub run: RunId,
    /// The task it is for.
    pub task: TaskName,
    /// The highest attempt that may use it.
    pub attempts: AttemptNumber,
    /// What was measured.
    pub evidence: Evidence,
    /// Named exceptions with their reasons.
    pub waivers: Vec<String>,
    /// Keys that approved, beyond the signer.
    pub approvals: Vec<String>,
    /// Not valid before this second (Unix time).
    pub not_before: u64,
    /// Not valid from this second on (Unix time).
    pub expires: u64,
    /// The most bytes that may be sent, retries included.
    pub byte_limit: u64,
    /// Raised by the owner to revoke every permit with a smaller one.
    pub revocation_epoch: u64,
    /// The signed ledger checkpoint (C2SP tlog-checkpoint) that covers the intent.
    pub checkpoint: String,
    /// What else may cross for the same job.
    pub standing: Vec<StandingSlot>,
}
