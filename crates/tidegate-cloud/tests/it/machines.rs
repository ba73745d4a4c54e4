//! Machines of EC2: moto with what it leaves out (`tests/peers/ec2.py`), whose machines are processes here.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tidegate_cloud::{CloudStore, Ec2Driver, Ec2Settings, Environment, ProgramShelf};
use tidegate_contracts::conformance::{self, ComputeSubject};
use tidegate_contracts::{Compute, ComputeError, JobState};
use tidegate_types::files::sites::Machine;

use crate::jobs::{request, until};
use crate::peers::{Machines, ec2, python};

fn environment(secret: &str) -> Environment {
    [("AWS_ACCESS_KEY_ID", "AKADMIN"), ("AWS_SECRET_ACCESS_KEY", secret)]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

fn settings(machines: &Machines, change: impl Fn(&mut Machine)) -> Ec2Settings {
    let mut machine = Machine {
        region: "eu-central-1".to_owned(),
        image: machines.image.clone(),
        kind: Some("m7i.large".to_owned()),
        endpoint: Some(machines.endpoint()),
        ..Machine::default()
    };
    change(&mut machine);
    Ec2Settings::new(&machine, Path::new("/")).unwrap()
}

/// A driver of machines whose jobs need no program: nobody asks its store for anything.
fn driver(machines: &Machines, secret: &str, change: impl Fn(&mut Machine)) -> Ec2Driver {
    let store = CloudStore::open("s3://nowhere/at-all".parse().unwrap(), &environment("none")).unwrap();
    let shelf = ProgramShelf::new(store, "/no/program".into(), Err("nobody needs it".to_owned()).into());
    Ec2Driver::open(settings(machines, change), shelf, &environment(secret)).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_of_ec2_are_a_compute_with_no_more_rights_than_are_asked_for() {
    let Some(machines) = ec2(Ec2Settings::needed_grant()) else {
        return;
    };
    let verdict = conformance::compute(&ComputeSubject {
        // Each part of the suite in a region of its own.
        open: &|name| -> Arc<dyn Compute> {
            let regions = ["eu-central-1", "eu-west-1", "us-east-1", "us-west-2", "ap-south-1"];
            let parts = ["unknown", "exit-codes", "one-job", "deleted", "swept"];
            let at = parts.iter().position(|part| *part == name).unwrap();
            Arc::new(driver(&machines, "SKADMIN", |one| {
                regions[at].clone_into(&mut one.region)
            }))
        },
        ends: &|code, ticket| {
            let script =
                format!("test \"$(cat)\" = '{ticket}' && test \"$SUITE\" = conformance && exit {code}; exit 99");
            ["/bin/sh", "-c", &script].map(str::to_owned).to_vec()
        },
        runs: ["/bin/sh", "-c", "sleep 1000 & wait"].map(str::to_owned).to_vec(),
        patience: Duration::from_secs(30),
        knows_exit_codes: true,
    })
    .await;
    assert_eq!(verdict, Ok(()));
    // Nobody can log in, tokens are needed on the machine, and what it is stored on says whose it is too.
    let requests = machines.tell("requests");
    let started = requests
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["action"] == "RunInstances")
        .unwrap();
    assert_eq!(started["InstanceInitiatedShutdownBehavior"], "terminate");
    assert_eq!(started["MetadataOptions.HttpTokens"], "required");
    assert_eq!(started["TagSpecification.2.ResourceType"], "volume");
    assert!(started.get("KeyName").is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_is_started_where_there_is_room_and_the_cheapest_first() {
    let Some(machines) = ec2(Ec2Settings::needed_grant()) else {
        return;
    };
    let [first, second] = machines.networks.clone();
    let driver = driver(&machines, "SKADMIN", |one| one.networks = machines.networks.to_vec());
    let network_of = |job: &str| {
        let all = machines.tell("machines");
        let of_job = all
            .as_array()
            .unwrap()
            .iter()
            .find(|one| one["tags"]["tidegate:job"] == job);
        let of_job = of_job.unwrap();
        (
            of_job["subnet"].as_str().unwrap().to_owned(),
            of_job["spot"].as_bool().unwrap(),
        )
    };
    driver.ensure(&request("in-order", "sleep 1000")).await.unwrap();
    assert_eq!(network_of("in-order"), (first.clone(), false));
    machines.tell(&format!("price?zone={}&is=0.04", machines.zones[1]));
    let mut spot = request("cheapest", "sleep 1000");
    spot.spot = true;
    driver.ensure(&spot).await.unwrap();
    assert_eq!(network_of("cheapest"), (second.clone(), true));
    machines.tell(&format!("full?subnet={first}"));
    let there = driver.ensure(&request("elsewhere", "sleep 1000")).await.unwrap();
    assert_eq!(network_of("elsewhere"), (second.clone(), false));
    // The same again finds it there, though another network comes first.
    assert_eq!(driver.ensure(&request("elsewhere", "sleep 1000")).await.unwrap(), there);
    machines.tell(&format!("full?subnet={second}"));
    match driver.ensure(&request("nowhere", "sleep 1000")).await {
        Err(ComputeError::Capacity { id, why }) => {
            assert!(id == "nowhere" && why.contains("InsufficientInstanceCapacity"), "{why}");
        }
        other => panic!("{other:?}"),
    }
    assert!(machines.states("nowhere").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_is_taken_back_is_lost_and_the_reason_is_told() {
    let Some(machines) = ec2(Ec2Settings::needed_grant()) else {
        return;
    };
    let driver = driver(&machines, "SKADMIN", |_| {});
    let mut spot = request("spot", "sleep 1000");
    spot.spot = true;
    let handle = driver.ensure(&spot).await.unwrap();
    let machine = handle.platform.strip_prefix("ec2:").unwrap();
    until(&driver, &handle, |state| *state == JobState::Running).await;
    machines.tell(&format!("interrupt?machine={machine}"));
    let lost = until(&driver, &handle, |state| !matches!(state, JobState::Running)).await;
    assert_eq!(
        lost,
        JobState::Lost(format!("the cloud took the spot machine {machine} back"))
    );
    // Asked for again, it does not come back, and no other one comes.
    let again = driver.ensure(&spot).await.unwrap();
    assert_eq!(driver.observe(&again).await.unwrap(), lost);
    assert_eq!(machines.states("spot"), ["terminated"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_cloud_refuses_is_told_apart_from_what_may_pass() {
    let Some(machines) = ec2(Ec2Settings::needed_grant()) else {
        return;
    };
    let why = async |driver: Ec2Driver| match driver.ensure(&request("job", "exit 0")).await {
        Err(ComputeError::Invalid { why, .. }) => why,
        other => panic!("{other:?}"),
    };
    let told = why(driver(&machines, "SKADMIN", |one| {
        one.image = "ami-00000000".to_owned()
    }))
    .await;
    assert!(
        told.contains("ec2 in eu-central-1 refused it: InvalidAMIID.NotFound"),
        "{told}"
    );
    let told = why(driver(&machines, "SKADMIN", |one| {
        one.kind = Some("m7i.huge".to_owned())
    }))
    .await;
    assert!(
        told.contains("InvalidInstanceType") || told.contains("InvalidParameterValue"),
        "{told}"
    );
    let told = why(driver(&machines, "SKOTHER", |_| {})).await;
    assert!(
        told.contains("AuthFailure: its credentials do not allow that"),
        "{told}"
    );
    assert!(!told.contains("SKOTHER") && !told.contains("AKADMIN"), "{told}");
    let good = driver(&machines, "SKADMIN", |_| {});
    machines.tell("busy?count=1");
    match good.ensure(&request("job", "exit 0")).await {
        Err(ComputeError::Transient { what, source }) => {
            assert_eq!(what, "starting job `job` by ec2 in eu-central-1");
            assert_eq!(source.to_string(), "RequestLimitExceeded");
        }
        other => panic!("{other:?}"),
    }
    assert!(machines.states("job").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_was_just_started_is_ended_though_the_cloud_does_not_know_it_yet() {
    let Some(machines) = ec2(Ec2Settings::needed_grant()) else {
        return;
    };
    let driver = driver(&machines, "SKADMIN", |_| {});
    let handle = driver.ensure(&request("short", "sleep 1000")).await.unwrap();
    // Not gone: not known yet.
    assert_eq!(driver.observe(&handle).await.unwrap(), JobState::Pending);
    driver.delete(&handle).await.unwrap();
    assert_eq!(machines.states("short"), ["terminated"]);
    assert_eq!(driver.observe(&handle).await.unwrap(), JobState::Gone);
}

/// Whoever was killed after a request was heard knows nothing of it, and sends another one: with new credentials in the
/// ticket, so that it is not the same byte for byte.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_died_after_asking_finds_the_machine_and_starts_no_second_one() {
    let Some(machines) = ec2(Ec2Settings::needed_grant()) else {
        return;
    };
    let open = || driver(&machines, "SKADMIN", |_| {});
    let job = request("once", "sleep 1000");
    let first = open().ensure(&job).await.unwrap();
    let mut renewed = job.clone();
    renewed.ticket = renewed.ticket.replacen('{', "{\"credentials\":{\"TOKEN\":\"new\"},", 1);
    // At once: the cloud does not list it yet, and refuses the same token for another request.
    assert_eq!(open().ensure(&renewed).await.unwrap(), first);
    assert_eq!(machines.states("once").len(), 1);
    assert_eq!(open().sweep("owner", &[]).await.unwrap(), ["once"]);
    assert_eq!(machines.states("once"), ["terminated"]);
    let after = open().ensure(&renewed).await.unwrap();
    assert_eq!(open().observe(&after).await.unwrap(), JobState::Gone);
    assert_eq!(machines.states("once").len(), 1);
}

/// Starts a machine with the tags of a job, as a request does that was believed lost.
fn start_twin(machines: &Machines, job: &str) {
    let all = machines.tell("machines");
    let of_job = all
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["tags"]["tidegate:job"] == job);
    let tags: Vec<_> = of_job.unwrap()["tags"].as_object().unwrap().iter().collect();
    let tags: Vec<_> = tags
        .iter()
        .map(|(key, value)| format!("{{'Key': '{key}', 'Value': {value}}}"))
        .collect();
    python(&format!(
        "import boto3\nboto3.client('ec2', endpoint_url='{}', region_name='eu-central-1', aws_access_key_id='AKSETUP', \
         aws_secret_access_key='SKSETUP').run_instances(ImageId='{}', InstanceType='m7i.large', MinCount=1, MaxCount=1, \
         ClientToken='twin-{}', UserData='#!/bin/sh\\nsleep 1000\\n', MetadataOptions={{'HttpTokens': 'required'}}, \
         TagSpecifications=[{{'ResourceType': 'instance', 'Tags': [{}]}}])",
        machines.endpoint(),
        machines.image,
        machines.states(job).len(),
        tags.join(", ")
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_twins_the_first_counts_and_the_others_are_ended() {
    let Some(machines) = ec2(Ec2Settings::needed_grant()) else {
        return;
    };
    let driver = driver(&machines, "SKADMIN", |_| {});
    let handle = driver.ensure(&request("twins", "sleep 1000")).await.unwrap();
    until(&driver, &handle, |state| *state == JobState::Running).await;
    // The cloud tells when a machine was started to the second: of two in one, nobody could tell which was the first.
    let second = || {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_secs()
    };
    let begun = second();
    while second() == begun {
        tokio::task::yield_now().await;
    }
    start_twin(&machines, "twins");
    let seen = async {
        // Until the cloud tells of it.
        while machines
            .states("twins")
            .iter()
            .filter(|state| *state == "running")
            .count()
            == 2
        {
            assert_eq!(driver.ensure(&request("twins", "sleep 1000")).await.unwrap(), handle);
            assert!(driver.sweep("owner", &["twins".to_owned()]).await.unwrap().is_empty());
        }
    };
    tokio::time::timeout(Duration::from_secs(30), seen).await.unwrap();
    assert_eq!(driver.observe(&handle).await.unwrap(), JobState::Running);
    // Another one, that nobody has swept when the job is removed.
    start_twin(&machines, "twins");
    let removed = async {
        while machines.states("twins").iter().any(|state| state == "running") {
            driver.delete(&handle).await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(30), removed).await.unwrap();
}
