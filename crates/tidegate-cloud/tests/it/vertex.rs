//! Containers of Vertex AI, by Google's own description of the service, whose jobs are processes here
//! (`tests/peers/vertex.py`).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tidegate_cloud::{Environment, VertexDriver, VertexSettings};
use tidegate_contracts::conformance::{self, ComputeSubject};
use tidegate_contracts::{Compute, ComputeError, JobState};
use tidegate_types::files::sites::Machine;

use crate::jobs::{ends, request, runs, until};
use crate::peers::platform::{Platform, vertex};
use crate::peers::python;

/// Who asks: the account that may do everything, or one that may do nothing.
fn environment(platform: &Platform, who: &str) -> Environment {
    let file = platform.peer.folder().join(format!("{who}.json"));
    [("GOOGLE_SERVICE_ACCOUNT".to_owned(), file.display().to_string())].into()
}

fn driver_as(platform: &Platform, who: &str, change: impl Fn(&mut Machine)) -> VertexDriver {
    let mut machine = Machine {
        project: Some("st-mary-ml".to_owned()),
        region: "europe-west4".to_owned(),
        image: "europe-west4-docker.pkg.dev/st-mary-ml/tidegate/trainer:1".to_owned(),
        kind: Some("n1-standard-8".to_owned()),
        endpoint: Some(platform.endpoint()),
        ..Machine::default()
    };
    change(&mut machine);
    let settings = VertexSettings::new(&machine, Path::new("/")).unwrap();
    VertexDriver::open(settings, "/no/program".into(), &environment(platform, who)).unwrap()
}

fn driver(platform: &Platform, change: impl Fn(&mut Machine)) -> VertexDriver {
    driver_as(platform, "known", change)
}

/// What the service has of jobs, in the order of their start.
fn jobs(platform: &Platform) -> Vec<Value> {
    platform.tell("jobs").as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_of_vertex_are_a_compute() {
    let Some(platform) = vertex() else { return };
    let verdict = conformance::compute(&ComputeSubject {
        // Each part of the suite in a region of its own.
        open: &|name| -> Arc<dyn Compute> { Arc::new(driver(&platform, |one| one.region = format!("europe-{name}"))) },
        ends: &ends,
        runs: runs(),
        patience: Duration::from_secs(30),
        knows_exit_codes: true,
    })
    .await;
    assert_eq!(verdict, Ok(()));
    // No list ever holds a ticket.
    let requests = platform.tell("requests");
    let lists = requests
        .as_array()
        .unwrap()
        .iter()
        .filter(|one| one["action"] == "list");
    assert!(
        lists
            .into_iter()
            .all(|one| !one["query"]["readMask"].as_str().unwrap().contains("jobSpec"))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_asked_for_as_the_file_says() {
    let Some(platform) = vertex() else { return };
    let driver = driver(&platform, |one| {
        one.accelerator = Some("NVIDIA_TESLA_T4:1".to_owned());
        one.profile = Some("worker@st-mary-ml.iam.gserviceaccount.com".to_owned());
        one.networks = vec!["projects/1/global/networks/inside".to_owned()];
    });
    driver.try_out().await.unwrap();
    assert!(jobs(&platform).is_empty(), "trying starts nothing");
    let mut spot = request("spot", "sleep 1000");
    spot.spot = true;
    let handle = driver.ensure(&spot).await.unwrap();
    let job = jobs(&platform).remove(0);
    let spec = &job["jobSpec"];
    let pool = &spec["workerPoolSpecs"][0];
    assert_eq!(pool["machineSpec"]["acceleratorType"], "NVIDIA_TESLA_T4");
    assert_eq!(spec["scheduling"]["strategy"], "SPOT");
    assert_eq!(spec["serviceAccount"], "worker@st-mary-ml.iam.gserviceaccount.com");
    assert_eq!(spec["network"], "projects/1/global/networks/inside");
    // What is started again has no ticket.
    assert_eq!(spec["scheduling"]["restartJobOnWorkerRestart"], false);
    // Google's own client reads the same.
    let told = python(&format!(
        r#"
from google.oauth2 import service_account
from googleapiclient.discovery import build
account = service_account.Credentials.from_service_account_file("{}",
    scopes=["https://www.googleapis.com/auth/cloud-platform"], always_use_jwt_access=True)
jobs = build("aiplatform", "v1", credentials=account, client_options={{"api_endpoint": "{}"}},
    static_discovery=True).projects().locations().customJobs()
[job] = jobs.list(parent="projects/st-mary-ml/locations/europe-west4").execute()["customJobs"]
print(job["displayName"], jobs.get(name=job["name"]).execute()["jobSpec"]["workerPoolSpecs"][0]["containerSpec"]["imageUri"])
"#,
        platform.service_account().1,
        platform.endpoint()
    ));
    assert_eq!(
        told.trim(),
        "spot europe-west4-docker.pkg.dev/st-mary-ml/tidegate/trainer:1"
    );

    until(&driver, &handle, |state| *state == JobState::Running).await;
    platform.tell(&format!("preempt?job={}", job["name"].as_str().unwrap()));
    let lost = until(&driver, &handle, |state| *state != JobState::Running).await;
    assert!(
        matches!(&lost, JobState::Lost(why) if why.contains("took its spot machine back")),
        "{lost:?}"
    );
    // Asked for again, it does not come back, and no other one comes.
    let again = driver.ensure(&spot).await.unwrap();
    assert_eq!(driver.observe(&again).await.unwrap(), lost);
    assert_eq!(jobs(&platform).len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_cloud_refuses_is_told_apart_from_what_may_pass() {
    let Some(platform) = vertex() else { return };
    let why = async |driver: VertexDriver| match driver.ensure(&request("job", "exit 0")).await {
        Err(ComputeError::Invalid { why, .. }) => why,
        other => panic!("{other:?}"),
    };
    let told = why(driver(&platform, |one| one.kind = Some("n1000-huge".to_owned()))).await;
    assert!(
        told.contains("vertex in europe-west4 of st-mary-ml refused it"),
        "{told}"
    );
    assert!(told.contains("Machine type \"n1000-huge\" is not supported"), "{told}");
    let stranger = driver_as(&platform, "stranger", |_| {});
    assert!(stranger.try_out().await.is_err());
    let told = why(stranger).await;
    assert!(
        told.contains("PERMISSION_DENIED: its credentials do not allow that"),
        "{told}"
    );
    let good = driver(&platform, |_| {});
    assert!(!format!("{good:?}").contains("PRIVATE"), "{good:?}");
    platform.tell("busy?count=1");
    match good.ensure(&request("job", "exit 0")).await {
        Err(ComputeError::Transient { what, source }) => {
            assert_eq!(what, "starting job `job` by vertex in europe-west4 of st-mary-ml");
            assert_eq!(source.to_string(), "RESOURCE_EXHAUSTED");
        }
        other => panic!("{other:?}"),
    }
    platform.tell("full?is=yes");
    match good.ensure(&request("job", "exit 0")).await {
        Err(ComputeError::Capacity { id, why }) => {
            assert!(
                id == "job" && why.contains("custom_model_training_nvidia_t4_gpus"),
                "{why}"
            );
        }
        other => panic!("{other:?}"),
    }
    assert!(jobs(&platform).is_empty());
}

/// Whoever was killed after a request was heard, or heard no answer, asks again: with new credentials in the ticket.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_nobody_heard_leaves_no_twin() {
    let Some(platform) = vertex() else { return };
    let open = || driver(&platform, |_| {});
    platform.tell("swallow?count=1");
    platform.tell("late?seconds=2");
    let job = request("once", "sleep 1000");
    let first = open().ensure(&job).await.unwrap();
    let mut renewed = job.clone();
    renewed.ticket = renewed.ticket.replacen('{', "{\"credentials\":{\"TOKEN\":\"new\"},", 1);
    assert_eq!(open().ensure(&renewed).await.unwrap(), first);
    assert_eq!(jobs(&platform).len(), 1);
    until(&open(), &first, |state| *state == JobState::Running).await;
    // One that was made elsewhere at the same time, and is listed late: the first counts, the other is ended.
    platform.tell("late?seconds=0");
    platform.tell("twin");
    assert_eq!(jobs(&platform).len(), 2);
    assert!(open().sweep("owner", &["once".to_owned()]).await.unwrap().is_empty());
    assert_eq!(jobs(&platform).len(), 1);
    assert_eq!(open().observe(&first).await.unwrap(), JobState::Running);
    platform.tell("twin");
    assert_eq!(open().sweep("owner", &[]).await.unwrap(), ["once"]);
    assert_eq!(open().observe(&first).await.unwrap(), JobState::Gone);
    assert!(jobs(&platform).is_empty());
}
