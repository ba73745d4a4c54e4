//! Containers of Azure Machine Learning, by Microsoft's own description of the service, whose jobs are processes here
//! (`tests/peers/azureml.py`).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tidegate_cloud::{AzureMlDriver, AzureMlSettings, Environment};
use tidegate_contracts::conformance::{self, ComputeSubject};
use tidegate_contracts::{Compute, ComputeError, JobState};
use tidegate_types::files::sites::Machine;

use crate::jobs::{Part, ends, request, runs, until};
use crate::peers::platform::{Platform, azureml};
use crate::peers::{entra, python};

fn driver_as(platform: &Platform, secret: &str, change: impl Fn(&mut Machine)) -> AzureMlDriver {
    let mut machine = Machine {
        project: Some(Platform::WORKSPACE.to_owned()),
        image: "stmary.azurecr.io/trainer:1".to_owned(),
        kind: Some("Standard_DS3_v2".to_owned()),
        endpoint: Some(platform.endpoint()),
        ..Machine::default()
    };
    change(&mut machine);
    let settings = AzureMlSettings::new(&machine, Path::new("/")).unwrap();
    let login = entra(&platform.peer, secret).map(|(name, value)| (name.to_owned(), value));
    AzureMlDriver::open(settings, "/no/program".into(), &Environment::from(login)).unwrap()
}

fn driver(platform: &Platform, change: impl Fn(&mut Machine)) -> AzureMlDriver {
    driver_as(platform, "SKEEPER", change)
}

/// What the service has of jobs.
fn jobs(platform: &Platform) -> Vec<Value> {
    platform.tell("jobs").as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_of_azure_are_a_compute() {
    let Some(platform) = azureml() else { return };
    let verdict = conformance::compute(&ComputeSubject {
        open: &|name| -> Arc<dyn Compute> { Arc::new(Part(driver(&platform, |_| {}), name.to_owned())) },
        ends: &ends,
        runs: runs(),
        patience: Duration::from_secs(30),
        knows_exit_codes: false,
    })
    .await;
    assert_eq!(verdict, Ok(()));
    // One environment for one image, however many jobs there were.
    assert_eq!(platform.tell("environments").as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_asked_for_as_the_file_says() {
    let Some(platform) = azureml() else { return };
    let machines = driver(&platform, |_| {});
    machines.try_out().await.unwrap();
    let on_cluster = driver(&platform, |one| {
        one.kind = None;
        one.pool = Some("gpu".to_owned());
        one.profile = Some("managed".to_owned());
    });
    on_cluster.try_out().await.unwrap();
    assert!(jobs(&platform).is_empty(), "trying starts nothing");
    let mut spot = request("spot", "echo \"it's\"; sleep 1000");
    spot.spot = true;
    let handle = machines.ensure(&spot).await.unwrap();
    on_cluster.ensure(&request("pooled", "sleep 1000")).await.unwrap();
    let there = jobs(&platform);
    let (first, second) = (&there[0]["properties"], &there[1]["properties"]);
    assert_eq!(first["queueSettings"]["jobTier"], "Spot");
    assert_eq!(first["resources"]["instanceType"], "Standard_DS3_v2");
    assert_eq!(first["identity"]["identityType"], "AMLToken");
    assert_eq!(second["computeId"], format!("{}/computes/gpu", Platform::WORKSPACE));
    assert_eq!(second["identity"]["identityType"], "Managed");

    // Microsoft's own client reads the same.
    let told = python(&format!(
        r#"
import json, pathlib, sys, types, urllib.parse, urllib.request
client = pathlib.Path(sys.prefix) / "azureml"
sys.path.insert(0, str(client))
import azure.ai
package = types.ModuleType("azure.ai.ml")
package.__path__ = [str(client / "azure" / "ai" / "ml")]
sys.modules["azure.ai.ml"] = azure.ai.ml = package
from azure.ai.ml._restclient.arm_ml_service import MachineLearningServicesMgmtClient
from azure.core.credentials import AccessToken
from azure.core.pipeline.policies import SansIOHTTPPolicy
here = "{}"
form = {{"grant_type": "client_credentials", "client_id": "keeper", "client_secret": "SKEEPER",
    "scope": "https://management.azure.com/.default"}}
asking = urllib.request.Request(here + "/st-mary.example/oauth2/v2.0/token", urllib.parse.urlencode(form).encode())
token = json.load(urllib.request.urlopen(asking))["access_token"]
class Bearer(SansIOHTTPPolicy):
    def on_request(self, request):
        request.http_request.headers["authorization"] = "Bearer " + token
class Credential:
    def get_token(self, *scopes, **more):
        return AccessToken(token, 1 << 40)
jobs = MachineLearningServicesMgmtClient(Credential(), "00000000-1111-2222-3333-444444444444", base_url=here,
    authentication_policy=Bearer(), credential_scopes=["none"]).jobs
print(*sorted(job.properties.display_name + " " + job.properties.job_type for job in jobs.list("ml", "st-mary")))
"#,
        platform.endpoint()
    ));
    assert_eq!(told.trim(), "pooled Command spot Command");

    // The service would start it again on another machine, where its ticket is worthless.
    until(&machines, &handle, |state| *state == JobState::Running).await;
    platform.tell(&format!("preempt?job={}", there[0]["name"].as_str().unwrap()));
    let lost = until(&machines, &handle, |state| *state != JobState::Running).await;
    assert!(
        matches!(&lost, JobState::Lost(why) if why.contains("took the machine")),
        "{lost:?}"
    );
    let cancelled = async {
        while jobs(&platform)[0]["properties"]["status"] != "Canceled" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), cancelled).await.unwrap();
    assert_eq!(jobs(&platform)[0]["runs"], 1);
    assert_eq!(machines.observe(&handle).await.unwrap(), lost);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_azure_refuses_is_told_apart_from_what_may_pass() {
    let Some(platform) = azureml() else { return };
    let invalid = |done: Result<(), ComputeError>| match done {
        Err(ComputeError::Invalid { why, .. }) => why,
        other => panic!("{other:?}"),
    };
    let ensure = async |driver: AzureMlDriver| driver.ensure(&request("job", "exit 0")).await.map(|_| ());
    let huge = || driver(&platform, |one| one.kind = Some("Standard_HUGE".to_owned()));
    let told = invalid(huge().try_out().await);
    assert!(
        told.contains("westeurope has no machines of the kind `Standard_HUGE`"),
        "{told}"
    );
    let told = invalid(ensure(huge()).await);
    assert!(
        told.contains("azureml in st-mary refused it: UserError: The requested VM size"),
        "{told}"
    );
    let elsewhere = driver(&platform, |one| one.pool = Some("none".to_owned()));
    assert!(invalid(elsewhere.try_out().await).contains("compute none not found"));
    let stranger = driver_as(&platform, "SKOTHER", |_| {});
    assert!(!format!("{stranger:?}").contains("SKOTHER"));
    let told = invalid(ensure(stranger).await);
    assert!(
        told.contains("logging in failed") && !told.contains("SKOTHER"),
        "{told}"
    );
    let good = driver(&platform, |_| {});
    platform.tell("busy?count=1");
    match good.ensure(&request("job", "exit 0")).await {
        Err(ComputeError::Transient { what, source }) => {
            assert_eq!(what, "starting job `job` by azureml in st-mary");
            assert_eq!(source.to_string(), "TooManyRequests");
        }
        other => panic!("{other:?}"),
    }
    platform.tell("full?is=yes");
    match good.ensure(&request("job", "exit 0")).await {
        Err(ComputeError::Capacity { id, why }) => assert!(id == "job" && why.contains("QuotaExceeded"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert!(jobs(&platform).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_nobody_heard_leaves_one_job() {
    let Some(platform) = azureml() else { return };
    let open = || driver(&platform, |_| {});
    platform.tell("swallow?count=1");
    let job = request("once", "sleep 1000");
    let first = open().ensure(&job).await.unwrap();
    let mut renewed = job.clone();
    renewed.ticket = renewed.ticket.replacen('{', "{\"credentials\":{\"TOKEN\":\"new\"},", 1);
    assert_eq!(open().ensure(&renewed).await.unwrap(), first);
    assert_eq!(jobs(&platform).len(), 1);
    until(&open(), &first, |state| *state == JobState::Running).await;
    // What has its name after it was removed is another one.
    assert_eq!(open().sweep("owner", &[]).await.unwrap(), ["once"]);
    assert!(jobs(&platform).is_empty());
    let second = open().ensure(&job).await.unwrap();
    assert_eq!(open().observe(&first).await.unwrap(), JobState::Gone);
    open().delete(&first).await.unwrap();
    assert_eq!(jobs(&platform).len(), 1);
    open().delete(&second).await.unwrap();
    assert!(jobs(&platform).is_empty());
}
