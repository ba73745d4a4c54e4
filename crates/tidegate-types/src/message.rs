//! What travels between keeper and worker through a mailbox.
//!
//! A mailbox is a prefix of a site's store: `in/` is written by the keeper, `out/` by the worker.
//! Every message is an object named by its number (`000001.json`), created only once, and is an
//! [`crate::permit::Envelope`] signed by its sender over the canonical JSON of [`Numbered`].
//!
//! ```text
//! worker                          keeper
//!   │ out/000001 Hello ──────────▶ │ checks secret, self test, worker digest; compare-and-set
//!   │ ◀────────── in/000001 CodeGrant │ key of the code, and nothing else
//!   │ out/000002 Setup, Log… ─────▶ │ what setup left, where it is kept for later
//!   │ out/000003 SetupDone ───────▶ │ network is closed; policy is asked again
//!   │ ◀────────── in/000002 DataGrant │ keys of the inputs, recipient of outputs, lease
//!   │ out/000004… Log, Metric, Checkpoint ▶ │ ◀ in/000003… Lease, Access, Cancel
//!   │ out/00000n Output ──────────▶ │ one output for a task is accepted
//!   │ out/00000n+1 Finished ──────▶ │
//! ```

use std::collections::BTreeMap;
use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::ids::{ArtifactId, AttemptNumber, PermitId, RunId, SiteName, TaskName};
use crate::permit::Envelope;

/// DSSE payload type of every mailbox message.
pub const MESSAGE_PAYLOAD: &str = "application/vnd.tidegate.message+json";
/// DSSE payload type of a packing list.
pub const PACKING_LIST_PAYLOAD: &str = "application/vnd.tidegate.packing-list+json";

/// One try of one task of one run on one machine.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Attempt {
    /// The run.
    pub run: RunId,
    /// The task.
    pub task: TaskName,
    /// The try, from 1.
    pub attempt: AttemptNumber,
    /// The machine's number within the attempt, from 0.
    pub rank: u32,
}

impl Attempt {
    /// The prefix of the attempt's mailbox in the site's store, ending in `/`.
    #[must_use]
    pub fn mailbox(&self) -> String {
        format!("mailbox/{}/{}/{}-{}/", self.run, self.task, self.attempt, self.rank)
    }
}

/// What a driver hands to the process that it starts. Counts as public once it was used; never put
/// into a store.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ticket {
    /// The attempt it is for.
    pub attempt: Attempt,
    /// The site that the worker runs on.
    pub site: SiteName,
    /// The store's address as this site sees it; for an embedded site, the path of a folder.
    pub store: String,
    /// Variables with which that store is opened: credentials that end by themselves and reach what this
    /// attempt needs and nothing else. None for a folder.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub credentials: BTreeMap<String, String>,
    /// The organisation.
    pub organisation: String,
    /// A secret for one hello, 32 bytes in hexadecimal.
    pub secret: String,
    /// SHA-256 of the worker program, which checks it against itself.
    pub worker: Digest,
    /// The owner site.
    pub owner: SiteName,
    /// The owner keeper's Ed25519 public key, standard base64 of 32 bytes.
    pub owner_key: String,
    /// No hello is accepted from this second on (Unix time).
    pub expires: u64,
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ticket")
            .field("attempt", &self.attempt)
            .field("secret", &"[secret]")
            .finish_non_exhaustive()
    }
}

/// A message with its place in its sender's sequence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Numbered<M> {
    /// The attempt that the message belongs to.
    pub attempt: Attempt,
    /// Counts from 1 without gaps.
    pub number: u64,
    /// SHA-256 of the previous message's payload from the same sender; absent for the first.
    pub previous: Option<Digest>,
    /// The message.
    pub message: M,
}

/// What a sandbox enforces on this machine, found by trying.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SandboxEvidence {
    /// How the network is closed (`network-namespace`, `seccomp`), or empty when it is not.
    pub network: String,
    /// How the file system is closed (`landlock-v5`), or empty when it is not.
    pub files: String,
    /// Limits that are enforced: `memory`, `time`, `processes`, `file-size`.
    pub limits: Vec<String>,
}

/// Keeper-bound messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum WorkerMessage {
    /// The first message: who I am and what I can enforce.
    Hello {
        /// Ephemeral age recipient (`age1pq1…`) that grants are sealed to.
        recipient: String,
        /// Ephemeral Ed25519 public key of all further messages, standard base64 of 32 bytes.
        signing_key: String,
        /// SHA-256 of the running worker program.
        worker: Digest,
        /// What the sandbox enforces here.
        sandbox: SandboxEvidence,
        /// What the machine can prove of itself, in its platform's way, about this attempt and these two keys.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        identity: Option<String>,
        /// HMAC-SHA-256, by the ticket's secret, of the canonical JSON of this numbered message with
        /// this field set to the empty text; hexadecimal.
        mac: String,
    },
    /// Setup ran, and the network is closed unless the permit says otherwise.
    SetupDone {
        /// What is enforced from now on.
        sandbox: SandboxEvidence,
        /// Where the job's other machines reach this one; only where there are others.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        node: Option<Node>,
    },
    /// A piece of the command's standard output and error. Carries the label of the inputs, so it is
    /// sealed.
    Log {
        /// base64 of an age file to the keeper's recipient.
        sealed: String,
    },
    /// A measured value of the command, sealed like a log.
    Metric {
        /// base64 of an age file to the keeper's recipient holding a JSON line.
        sealed: String,
    },
    /// The output stands sealed in the store.
    Output {
        /// Object name of the signed packing list.
        packing_list: String,
        /// SHA-256 of that object.
        packing_list_digest: Digest,
        /// base64 of an age file to the output recipient holding the data key.
        grant: String,
    },
    /// The command's unfinished work stands sealed in the store, for the next attempt if this one is lost.
    Checkpoint {
        /// Object name of the signed packing list.
        packing_list: String,
        /// SHA-256 of that object.
        packing_list_digest: Digest,
        /// base64 of an age file to the output recipient holding the data key.
        grant: String,
    },
    /// What `setup` left stands sealed in the store, for later attempts of whatever run.
    Setup {
        /// Digest of what the setup ran on: the same on a machine where it would leave the same.
        machine: Digest,
        /// Object name of the signed packing list.
        packing_list: String,
        /// SHA-256 of that object.
        packing_list_digest: Digest,
        /// 32 bytes in hexadecimal: its data key is derived from that of the code with them.
        salt: String,
    },
    /// The last message of a good attempt; the only one after the command of a machine that is not the first.
    Finished {
        /// Wall-clock seconds of the command.
        seconds: u64,
    },
    /// The last message of a failed attempt.
    Failed {
        /// What failed: `setup`, `command`, `memory`, `time`, `lease`, `grant`, `input`, `output`, `sandbox`, `machine`.
        stage: String,
        /// For a person; never holds output of the command.
        reason: String,
        /// The exit code, where there is one.
        exit_code: Option<i32>,
    },
}

/// How one of the machines that work at a job together is reached by the others: an end of WireGuard tunnels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Its ephemeral Curve25519 public key, standard base64 of 32 bytes.
    pub key: String,
    /// Where it waits for packets (UDP).
    pub endpoint: SocketAddr,
}

/// Worker-bound messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum KeeperMessage {
    /// The key of the code, and nothing else.
    CodeGrant(Grant),
    /// The keys of the inputs.
    DataGrant(Grant),
    /// The worker may go on until then.
    Lease {
        /// Unix time.
        expires: u64,
    },
    /// The credentials of the store end: go on with these.
    Access {
        /// base64 of an age file to the hello's recipient holding a JSON object of variables, as the ticket's.
        sealed: String,
    },
    /// Stop now and wipe the keys.
    Cancel {
        /// For a person.
        reason: String,
    },
    /// The hello, or what followed, was refused; nothing will be granted.
    Refused {
        /// The refusal as text.
        reason: String,
    },
}

/// What a worker may open and do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// SHA-256 of the hello's payload that this answers.
    pub hello: Digest,
    /// The permit whose standing slots the attempt uses: the code's in a code grant, the training
    /// data's in a data grant.
    pub permit: PermitId,
    /// SHA-256 of the permit's DSSE payload.
    pub permit_digest: Digest,
    /// What may be opened.
    pub artifacts: Vec<GrantedArtifact>,
    /// In a data grant: the unfinished work to go on with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<GrantedCheckpoint>,
    /// In a code grant: what the same setup left before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub setup: Option<GrantedSetup>,
    /// In a data grant of a job of several machines: all of them, this one too, by rank.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<Node>,
    /// Recipient (`age1pq1…`, or `age1…`) that outputs, logs and metrics are sealed to.
    pub output_recipient: String,
    /// What to run.
    pub job: Job,
    /// That permit's statement, so that the worker sees the standing slots and their limits.
    pub permit_envelope: Envelope,
    /// Nothing may be opened from this second on (Unix time).
    pub expires: u64,
    /// The lease that comes with the grant (Unix time).
    pub lease: u64,
}

/// One artifact that a worker may open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantedArtifact {
    /// What the worker calls it: `code`, `train`, `validation`.
    pub input: String,
    /// The manifest's digest.
    pub artifact: ArtifactId,
    /// Object name of the signed packing list in the site's store.
    pub packing_list: String,
    /// SHA-256 of that object.
    pub packing_list_digest: Digest,
    /// Must equal the packing list's.
    pub key_commitment: Digest,
    /// base64 of an age file to the hello's recipient holding the 32-byte data key.
    pub sealed_key: String,
    /// base64 of an age file to the hello's recipient: it reads objects that do not stand in the site's store yet from that
    /// of the site that the permit lets them be copied from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lent: Option<String>,
    /// The permit under which this artifact crossed: each has its own. The worker verifies it with
    /// the owner's key before it opens anything.
    pub permit_envelope: Envelope,
}

/// What the newest lost attempt of the same job had done. It stands in the same store, under the standing slot `checkpoint`
/// of the grant's permit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantedCheckpoint {
    /// The attempt that made it.
    pub attempt: AttemptNumber,
    /// Object name of its packing list.
    pub packing_list: String,
    /// SHA-256 of that object.
    pub packing_list_digest: Digest,
    /// The key that its worker signed with, standard base64 of 32 bytes.
    pub signing_key: String,
    /// base64 of an age file to the hello's recipient holding the 32-byte data key.
    pub sealed_key: String,
}

/// What the same setup left before, on a machine like this one or another. It stands in the same store, under the standing
/// slot `setup` of the permit of that time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantedSetup {
    /// As its worker told it.
    pub machine: Digest,
    /// That permit.
    pub permit: PermitId,
    /// SHA-256 of its DSSE payload.
    pub permit_digest: Digest,
    /// Where it stands, and who made it.
    pub sealed: GrantedCheckpoint,
}

/// What a worker runs: the same contract for the built-in trainer and for anybody's command.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// A shell command that prepares the environment before any data is there; empty for none.
    pub setup: String,
    /// The shell command; run in the folder of the code artifact.
    pub run: String,
    /// Environment variables.
    pub environment: BTreeMap<String, String>,
    /// The column to be learned.
    pub target: String,
    /// Whether setup may use the network.
    pub setup_network: bool,
    /// Whether the command may use the network.
    pub run_network: bool,
    /// The most memory of the command in bytes; 0 for no limit.
    pub memory_bytes: u64,
    /// The longest the command may run in seconds; 0 for no limit.
    pub seconds: u64,
    /// The most bytes of output.
    pub output_bytes: u64,
    /// How many accelerators the command needs.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub accelerators: u32,
    /// How many other machines work at the same job.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub others: u32,
}

const fn is_zero(number: &u32) -> bool {
    *number == 0
}
