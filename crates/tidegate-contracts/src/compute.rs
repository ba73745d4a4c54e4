//! Compute: starts one command on a site, watches it and removes it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tidegate_types::message::Attempt;

/// One worker to start. `command` gets the ticket on its standard input or by whatever way the
/// platform keeps secrets; it is never part of the command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRequest {
    /// Names the job: chosen by the caller, the same for the same attempt and rank.
    pub id: String,
    /// The attempt.
    pub attempt: Attempt,
    /// The worker program and its arguments.
    pub command: Vec<String>,
    /// The ticket as JSON.
    pub ticket: String,
    /// Environment of the worker; nothing else is inherited but `PATH`.
    pub environment: BTreeMap<String, String>,
    /// Who owns the job: what [`Compute::sweep`] compares.
    pub owner: String,
    /// Whether its machine may be taken away, for a lower price. Where nothing is cheaper for that, it means nothing.
    #[serde(default)]
    pub spot: bool,
}

impl JobRequest {
    /// The request without the credentials in its ticket: what a driver knows it again by. Those are given anew with
    /// every try, and end by themselves.
    #[must_use]
    pub fn identity(&self) -> Self {
        let mut identity = self.clone();
        if let Ok(Value::Object(mut ticket)) = serde_json::from_str(&self.ticket)
            && ticket.remove("credentials").is_some()
        {
            identity.ticket = Value::Object(ticket).to_string();
        }
        identity
    }
}

/// What a driver needs to find a job again, also after a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handle {
    /// The request's id.
    pub id: String,
    /// What the platform calls it.
    pub platform: String,
}

/// Where a job is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobState {
    /// Asked for, and not running yet.
    Pending,
    /// Running.
    Running,
    /// Ended by itself, with an exit code where the platform knows it.
    Ended(Option<i32>),
    /// Ended by something else before it was done: a signal, a machine that failed or was taken away. Says what, for a
    /// person.
    Lost(String),
    /// The platform does not know it: never started, or removed.
    Gone,
}

/// What can go wrong with compute.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ComputeError {
    /// The platform has no room now; elsewhere or later may work.
    #[error("site has no capacity for job `{id}`: {why}")]
    Capacity {
        /// The job.
        id: String,
        /// What the platform said.
        why: String,
    },
    /// The request is wrong and will be wrong again.
    #[error("job `{id}` cannot run here: {why}")]
    Invalid {
        /// The job.
        id: String,
        /// What is wrong.
        why: String,
    },
    /// Something that may pass.
    #[error("compute failed while {what}: {source}")]
    Transient {
        /// What was being done.
        what: String,
        /// What happened.
        source: std::io::Error,
    },
}

/// One kind of compute.
///
/// # Contract
/// - [`Compute::ensure`] with the same request gives the same running job, also after a crash between
///   request and answer; it never starts a second one that could be granted keys. Requests with the same
///   [`JobRequest::identity`] are the same.
/// - [`Compute::observe`] tells the truth within seconds; a job that it called `Ended`, `Lost` or
///   `Gone` never runs again.
/// - [`Compute::delete`] ends the job and everything that it started; of what is gone it succeeds. A platform may forget
///   what was removed: whoever has removed a job, or has seen that it is gone, does not ask for it again.
/// - [`Compute::sweep`] finds every job with this owner and ends those not in `keep`.
#[async_trait]
pub trait Compute: Send + Sync + fmt::Debug {
    /// Starts the job, or finds that it is already there.
    async fn ensure(&self, request: &JobRequest) -> Result<Handle, ComputeError>;

    /// Where the job is.
    async fn observe(&self, handle: &Handle) -> Result<JobState, ComputeError>;

    /// How often whoever watches a job may look.
    fn observe_every(&self) -> Duration {
        Duration::from_millis(250)
    }

    /// Who the platform will say that the job's machine is, when the worker there proves it
    /// ([`Verifier`](crate::identity::Verifier)). None where machines cannot prove anything.
    async fn machine(&self, _handle: &Handle) -> Result<Option<String>, ComputeError> {
        Ok(None)
    }

    /// Ends and removes the job.
    async fn delete(&self, handle: &Handle) -> Result<(), ComputeError>;

    /// Ends every job of `owner` whose id is not in `keep`; gives the ids that it ended.
    async fn sweep(&self, owner: &str, keep: &[String]) -> Result<Vec<String>, ComputeError>;
}
