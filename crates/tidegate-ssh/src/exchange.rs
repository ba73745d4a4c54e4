//! What the two ends say to each other.

use serde::{Deserialize, Serialize};
use tidegate_contracts::{Compute, ComputeError, Handle, JobRequest, JobState};

/// The first word of a command that stands for the program itself: only the host knows where it is there.
pub(crate) const THIS_PROGRAM: &str = "{program}";

/// One call of a driver, as it travels to a host.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostRequest {
    /// [`Compute::ensure`].
    Ensure(JobRequest),
    /// [`Compute::observe`].
    Observe(Handle),
    /// [`Compute::delete`].
    Delete(Handle),
    /// [`Compute::sweep`].
    Sweep {
        /// Whose jobs.
        owner: String,
        /// Ids of those that stay.
        keep: Vec<String>,
    },
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum HostAnswer {
    Ensured,
    Pending,
    Running,
    Ended(Option<i32>),
    Lost(String),
    Gone,
    Deleted,
    Swept(Vec<String>),
    Capacity(String),
    Invalid(String),
    Failed(String),
}

/// Does what a driver elsewhere asks of this machine, with `compute`, and gives the answer as one line of JSON;
/// `program` is this program's own path.
///
/// # Errors
/// When the request is none.
pub async fn serve(compute: &dyn Compute, request: &[u8], program: &str) -> Result<String, serde_json::Error> {
    let request: HostRequest = serde_json::from_slice(request)?;
    let answer = match request {
        HostRequest::Ensure(mut job) => {
            if let Some(first) = job.command.first_mut().filter(|first| *first == THIS_PROGRAM) {
                program.clone_into(first);
            }
            compute.ensure(&job).await.map(|_| HostAnswer::Ensured)
        }
        HostRequest::Observe(handle) => compute.observe(&handle).await.map(|state| match state {
            JobState::Pending => HostAnswer::Pending,
            JobState::Running => HostAnswer::Running,
            JobState::Ended(code) => HostAnswer::Ended(code),
            JobState::Lost(why) => HostAnswer::Lost(why),
            JobState::Gone => HostAnswer::Gone,
        }),
        HostRequest::Delete(handle) => compute.delete(&handle).await.map(|()| HostAnswer::Deleted),
        HostRequest::Sweep { owner, keep } => compute.sweep(&owner, &keep).await.map(HostAnswer::Swept),
    };
    serde_json::to_string(&answer.unwrap_or_else(|error| match error {
        ComputeError::Capacity { why, .. } => HostAnswer::Capacity(why),
        ComputeError::Invalid { why, .. } => HostAnswer::Invalid(why),
        other => HostAnswer::Failed(other.to_string()),
    }))
}
