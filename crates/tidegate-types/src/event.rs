//! What the ledger records: CloudEvents 1.0 in canonical JSON, with ids, digests and fixed words
//! only. No value of a person, no free text of a user, no message of an error ever gets in.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// One leaf of the ledger (CloudEvents 1.0, JSON format).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// Always `1.0`.
    pub specversion: String,
    /// Deterministic: the same fact has the same id, so that recording it twice is seen.
    pub id: String,
    /// `/SITE` or `/control`.
    pub source: String,
    /// `dev.tidegate.` and an [`EventType`]'s name.
    #[serde(rename = "type")]
    pub event_type: String,
    /// What it is about, such as a run's id.
    pub subject: String,
    /// RFC 3339, UTC.
    pub time: String,
    /// Always `application/json`.
    pub datacontenttype: String,
    /// Names and digests.
    pub data: EventData,
}

impl Event {
    /// An event about `subject` at `seconds` (Unix time). `id` must be the same whenever the same
    /// fact is recorded.
    #[must_use]
    pub fn new(
        event_type: EventType,
        id: String,
        source: String,
        subject: &str,
        seconds: u64,
        data: EventData,
    ) -> Self {
        let time = i64::try_from(seconds)
            .ok()
            .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
            .unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        Self {
            specversion: "1.0".to_owned(),
            id,
            source,
            event_type: event_type.cloud_event_type(),
            subject: subject.to_owned(),
            time: time.to_string(),
            datacontenttype: "application/json".to_owned(),
            data,
        }
    }
}

/// What an event may hold: digests, names, numbers and fixed words, each under a fixed key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EventData {
    /// Digests by what they are of.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub digests: BTreeMap<String, Digest>,
    /// Names of sites, tasks, rules and permits by what they name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub names: BTreeMap<String, String>,
    /// Counts and sizes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub numbers: BTreeMap<String, u64>,
}

/// The facts that are recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventType {
    /// A run was planned and accepted.
    RunStarted,
    /// A run ended, well or not.
    RunEnded,
    /// A dataset was prepared and its risk measured.
    Prepared,
    /// A permit is about to be asked for: the intent that a checkpoint must cover.
    PermitRequested,
    /// A keeper signed a permit.
    PermitSigned,
    /// A rule said no.
    Refused,
    /// Sealed bytes of an artifact stand in the destination's store.
    Crossed,
    /// An attempt was given a ticket.
    AttemptStarted,
    /// A keeper granted keys to a worker.
    Granted,
    /// The unfinished work of an attempt stands sealed in its site's store.
    Checkpointed,
    /// An attempt may not count any more.
    Fenced,
    /// An attempt ended.
    AttemptEnded,
    /// A split was used to judge a model.
    Evaluated,
    /// A bundle was signed.
    Released,
    /// A bundle was put where a site serves it.
    Deployed,
    /// A new key wraps the keys of a site, and those before it are destroyed.
    KeysRotated,
    /// The keys of an artifact are destroyed.
    Shredded,
}

impl EventType {
    /// The value of an event's `type`.
    #[must_use]
    pub fn cloud_event_type(self) -> String {
        format!("dev.tidegate.{}", self.name())
    }

    /// The name in `type`, after `dev.tidegate.`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RunStarted => "run-started",
            Self::RunEnded => "run-ended",
            Self::Prepared => "prepared",
            Self::PermitRequested => "permit-requested",
            Self::PermitSigned => "permit-signed",
            Self::Refused => "refused",
            Self::Crossed => "crossed",
            Self::AttemptStarted => "attempt-started",
            Self::Granted => "granted",
            Self::Checkpointed => "checkpointed",
            Self::Fenced => "fenced",
            Self::AttemptEnded => "attempt-ended",
            Self::Evaluated => "evaluated",
            Self::Released => "released",
            Self::Deployed => "deployed",
            Self::KeysRotated => "keys-rotated",
            Self::Shredded => "shredded",
        }
    }
}
