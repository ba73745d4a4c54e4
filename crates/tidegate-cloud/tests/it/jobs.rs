//! What tests of platforms have in common that run containers.

use std::collections::BTreeMap;
use std::time::Duration;

use tidegate_contracts::{Compute, Handle, JobRequest, JobState};
use tidegate_types::message::Attempt;
use tidegate_types::{RunId, TaskName};

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

/// A command that ends with `code` where its environment is what was asked for, and holds the ticket.
pub(crate) fn ends(code: i32, ticket: &str) -> Vec<String> {
    let script =
        format!("test \"$TIDEGATE_TICKET\" = '{ticket}' && test \"$SUITE\" = conformance && exit {code}; exit 99");
    ["/bin/sh", "-c", &script].map(str::to_owned).to_vec()
}

/// A command that runs until it is ended.
pub(crate) fn runs() -> Vec<String> {
    ["/bin/sh", "-c", "sleep 1000 & wait"].map(str::to_owned).to_vec()
}

pub(crate) async fn until(driver: &dyn Compute, handle: &Handle, wanted: impl Fn(&JobState) -> bool) -> JobState {
    let seen = async {
        loop {
            match driver.observe(handle).await.unwrap() {
                state if wanted(&state) => return state,
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let seen = tokio::time::timeout(Duration::from_secs(30), seen).await;
    seen.unwrap_or_else(|_| panic!("job `{}` is not seen in that state", handle.id))
}
