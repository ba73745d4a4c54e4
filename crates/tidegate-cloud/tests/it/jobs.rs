//! What tests of drivers have in common: jobs, waiting for them, and the suite beside others.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use tidegate_contracts::{Compute, ComputeError, Handle, JobRequest, JobState};
use tidegate_types::message::Attempt;
use tidegate_types::{RunId, TaskName};

/// A control plane on this machine takes seconds for what others do at once.
const PATIENCE: Duration = Duration::from_secs(60);

/// A compute whose jobs are those of its own name alone: the place is one for all parts of the suite.
#[derive(Debug)]
pub(crate) struct Part<D>(pub(crate) D, pub(crate) String);

impl<D> Part<D> {
    fn owner(&self, owner: &str) -> String {
        format!("{owner} of {}", self.1)
    }
}

#[async_trait]
impl<D: Compute> Compute for Part<D> {
    async fn ensure(&self, request: &JobRequest) -> Result<Handle, ComputeError> {
        let mut request = request.clone();
        request.owner = self.owner(&request.owner);
        self.0.ensure(&request).await
    }

    async fn observe(&self, handle: &Handle) -> Result<JobState, ComputeError> {
        self.0.observe(handle).await
    }

    async fn delete(&self, handle: &Handle) -> Result<(), ComputeError> {
        self.0.delete(handle).await
    }

    async fn sweep(&self, owner: &str, keep: &[String]) -> Result<Vec<String>, ComputeError> {
        self.0.sweep(&self.owner(owner), keep).await
    }
}

/// A job that runs a shell script.
pub(crate) fn request(id: &str, script: &str) -> JobRequest {
    JobRequest {
        id: id.to_owned(),
        attempt: Attempt {
            run: RunId::new("run").unwrap(),
            task: TaskName::new("train").unwrap(),
            attempt: 1,
            rank: 0,
        },
        command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        ticket: "{\"secret\":\"c0ffee\"}".to_owned(),
        environment: BTreeMap::new(),
        owner: "owner".to_owned(),
        spot: false,
    }
}

/// Of a container: a command that ends with `code` where its environment is what was asked for, and holds the ticket.
pub(crate) fn ends(code: i32, ticket: &str) -> Vec<String> {
    let script =
        format!("test \"$TIDEGATE_TICKET\" = '{ticket}' && test \"$SUITE\" = conformance && exit {code}; exit 99");
    ["/bin/sh", "-c", &script].map(str::to_owned).to_vec()
}

/// Of a container: a command that runs until it is ended.
pub(crate) fn runs() -> Vec<String> {
    ["/bin/sh", "-c", "sleep 1000 & wait"].map(str::to_owned).to_vec()
}

/// Waits until a job is in a wanted state.
pub(crate) async fn until(driver: &dyn Compute, handle: &Handle, wanted: impl Fn(&JobState) -> bool) -> JobState {
    let seen = async {
        loop {
            match driver.observe(handle).await.unwrap() {
                state if wanted(&state) => return state,
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let seen = tokio::time::timeout(PATIENCE, seen).await;
    seen.unwrap_or_else(|_| panic!("job `{}` is not seen in that state", handle.id))
}
