//! The same pipeline where training runs on machines that a cloud starts for it and that are ended after it: EC2 (moto with
//! what it leaves out), OpenStack (its own control plane) and vSphere (the simulator of govmomi with what it leaves out), or in
//! containers of Vertex AI and Azure Machine Learning (servers made from what the vendors publish). Machines and containers are
//! processes here. SeaweedFS is the store of machines; containers have the store of their own cloud: fake-gcs-server and
//! Azurite, with what they leave out.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tidegate_cloud::Ec2Settings;

use crate::clouds::{ADMIN, hospital_at, hospital_in};
use crate::fixture::{Hospital, files};
use crate::peers::platform::{Platform, azureml_with, vertex_with};
use crate::peers::stores::{WORKER_ACCOUNT, azure_storage, google_storage_for};
use crate::peers::vcenter::{Vsphere, vsphere};
use crate::peers::{Machines, OpenStack, Peer, ec2, entra, make_open_bucket, open_seaweed, openstack};

const PROCESS: &str = "compute: {driver: process, cpus: 2, memory: 2 GiB, price: 0.10 USD/h, spot_price: 0.04 USD/h}";

/// The address of a site's store.
fn store_of(store: &Peer, site: &str) -> String {
    let port = store.port();
    format!("s3://tidegate/st-mary/{site}?endpoint=http://127.0.0.1:{port}&region=us-east-1")
}

/// A hospital whose cloud starts machines.
pub(crate) fn hospital_with(store: &Peer, machines: &Machines) -> Hospital {
    make_open_bucket(store, "tidegate");
    let hospital = hospital_at(&store_of(store, "cloud"), &store_of(store, "ward"));
    hospital.edit("sites.yaml", PROCESS, &compute(machines, &machines.image));
    hospital
}

fn compute(machines: &Machines, image: &str) -> String {
    format!(
        "compute:\n      driver: ec2\n      cpus: 2\n      memory: 2 GiB\n      price: 0.10 USD/h\n      \
         spot_price: 0.04 USD/h\n      machine: {{region: eu-central-1, image: {image}, type: m7i.large, \
         networks: [{}], endpoint: \"{}\"}}",
        machines.networks.join(", "),
        machines.endpoint()
    )
}

/// What the training's machines became, in the order of their start.
pub(crate) fn trained(machines: &Machines) -> Vec<Value> {
    let all = machines.tell("machines");
    all.as_array().unwrap().clone()
}

#[test]
fn a_pipeline_trains_on_a_machine_that_is_started_for_it() {
    let (Some(store), Some(machines)) = (open_seaweed(), ec2(Ec2Settings::needed_grant())) else {
        return;
    };
    let hospital = hospital_with(&store, &machines);
    let log = std::cell::RefCell::new(String::new());
    let tidegate = |arguments: &[&str], secret: &str| {
        let mut command = hospital.command(arguments);
        command
            .envs(ADMIN)
            .env("AWS_SECRET_ACCESS_KEY", secret)
            .env("TIDEGATE_LOG", "trace");
        let output = command.output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!told.contains("SKADMIN"), "{told}");
        log.borrow_mut().push_str(&told);
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), told)
    };
    let (code, checked, told) = tidegate(&["check"], "SKADMIN");
    assert_eq!(code, Some(0), "{checked}{told}");
    assert!(
        checked.contains("Site cloud: its machines can be started."),
        "{checked}"
    );
    assert!(trained(&machines).is_empty(), "a check starts nothing");
    let run = || {
        let (code, summary, told) = tidegate(&["run", "--yes", "--format", "json"], "SKADMIN");
        assert_eq!(code, Some(0), "{told}");
        serde_json::from_str::<Value>(&summary).unwrap()
    };
    let summary = run();
    assert_eq!(summary["status"], "done");
    assert!(summary["metrics"]["home"]["roc_auc"].as_f64().unwrap() > 0.55);
    // One machine, ended. What it was told is nowhere else: not in a log, not on its console, not in the store.
    let there = trained(&machines);
    let states: Vec<_> = there.iter().map(|one| one["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["terminated"]);
    let own = machines.peer.folder().join(there[0]["id"].as_str().unwrap());
    let console = std::fs::read_to_string(own.join("console")).unwrap();
    assert!(console.contains("tidegate: the program is here after"), "{console}");
    let script = std::fs::read_to_string(own.join("user-data")).unwrap();
    let between = |from: &str, to: &str| {
        let rest = &script[script.find(from).unwrap() + from.len()..];
        rest[..rest.find(to).unwrap()].to_owned()
    };
    let ticket = STANDARD.decode(between("printf %s '", "'")).unwrap();
    let ticket: Value = serde_json::from_slice(&ticket).unwrap();
    let secrets = [
        between("X-Amz-Signature=", "\""),
        ticket["secret"].as_str().unwrap().to_owned(),
        ticket["credentials"]["AWS_SECRET_ACCESS_KEY"]
            .as_str()
            .unwrap()
            .to_owned(),
        ticket["credentials"]["AWS_SESSION_TOKEN"].as_str().unwrap().to_owned(),
    ];
    let data = files(&store.folder().join("data")).into_iter();
    for (number, secret) in secrets.iter().enumerate() {
        assert!(secret.len() > 20);
        assert!(!log.borrow().contains(secret), "secret {number} is in a log");
        assert!(!console.contains(secret), "secret {number} is on the console");
        for file in data.clone() {
            let bytes = std::fs::read(&file).unwrap();
            let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "secret {number} is in {}", file.display());
        }
    }
    for file in files(&hospital.state()) {
        let bytes = std::fs::read(&file).unwrap();
        let holds = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(
            !holds("SKADMIN") && !holds(&secrets[0]),
            "{} holds a key of the store",
            file.display()
        );
    }
    assert_eq!(run()["reused"].as_array().unwrap().len(), 7);
    assert_eq!(trained(&machines).len(), 1, "what is done needs no machine");

    // Where machines cannot be started, it is told before anything runs, with what would help.
    hospital.edit("sites.yaml", &machines.image, "ami-00000000");
    let (code, checked, _) = tidegate(&["check"], "SKADMIN");
    assert_eq!(code, Some(1), "{checked}");
    assert!(
        checked.contains("Site cloud: its machines cannot be started:"),
        "{checked}"
    );
    assert!(checked.contains("\"ec2:RunInstances\""), "{checked}");
}

/// A child that is ended with this value.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn training_goes_on_elsewhere_when_the_cloud_takes_its_machine_back() {
    let (Some(store), Some(machines)) = (open_seaweed(), ec2(Ec2Settings::needed_grant())) else {
        return;
    };
    let hospital = hospital_with(&store, &machines);
    hospital.edit("tidegate.yaml", "{infra: cloud}", "{infra: cloud, use_spot: true}");
    let mut command = hospital.command(&["run", "--yes", "--format", "json"]);
    command.envs(ADMIN).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut run = Running(command.spawn().unwrap());
    let first = first_machine(&machines, &mut run);
    assert_eq!(first["spot"], true);
    machines.tell(&format!("interrupt?machine={}", first["id"].as_str().unwrap()));
    let mut told = String::new();
    std::io::Read::read_to_string(run.0.stderr.as_mut().unwrap(), &mut told).unwrap();
    let mut summary = String::new();
    std::io::Read::read_to_string(run.0.stdout.as_mut().unwrap(), &mut summary).unwrap();
    assert!(run.0.wait().unwrap().success(), "{told}");
    let summary: Value = serde_json::from_str(&summary).unwrap();
    assert_eq!(summary["status"], "done");
    assert!(told.contains("the cloud took the spot machine"), "{told}");
    let states: Vec<_> = trained(&machines).iter().map(|one| one["state"].clone()).collect();
    assert_eq!(states, ["terminated", "terminated"]);
}

/// Waits for the first machine of a run.
fn first_machine(machines: &Machines, run: &mut Running) -> Value {
    let until = Instant::now() + Duration::from_secs(120);
    loop {
        if let Some(machine) = trained(machines).into_iter().next() {
            return machine;
        }
        assert!(
            run.0.try_wait().unwrap().is_none() && Instant::now() < until,
            "no machine was started"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn what_a_killed_control_plane_left_is_ended_by_down() {
    let (Some(store), Some(machines)) = (open_seaweed(), ec2(Ec2Settings::needed_grant())) else {
        return;
    };
    let hospital = hospital_with(&store, &machines);
    // Something that does not end by itself while nobody looks.
    hospital.edit(
        "tidegate.yaml",
        "  trainer: {model: logistic, epochs: 12, batch_size: 32, seed: 1}\n",
        "  code: [train.sh]\n  run: sh train.sh\n",
    );
    hospital.write("train.sh", "sleep 600\n");
    let mut command = hospital.command(&["run", "--yes", "--format", "json"]);
    command.envs(ADMIN).stdout(Stdio::null()).stderr(Stdio::null());
    let mut run = Running(command.spawn().unwrap());
    first_machine(&machines, &mut run);
    drop(run);
    let down = || {
        let output = hospital
            .command(&["down", "--format", "json"])
            .envs(ADMIN)
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{told}");
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let ended = down();
    assert_eq!(ended["cancelled"].as_array().unwrap().len(), 1, "{ended}");
    assert_eq!(ended["ended"]["cloud"].as_array().unwrap().len(), 1, "{ended}");
    let states: Vec<_> = trained(&machines).iter().map(|one| one["state"].clone()).collect();
    assert_eq!(states, ["terminated"]);
    let again = down();
    assert!(again["cancelled"].as_array().unwrap().is_empty(), "{again}");
    assert!(again["ended"]["cloud"].as_array().unwrap().is_empty(), "{again}");
    let unknown = hospital
        .command(&["down", "--site", "ward"])
        .envs(ADMIN)
        .output()
        .unwrap();
    assert_eq!(unknown.status.code(), Some(2));
}

#[test]
fn the_examples_of_sites_fit_the_example_of_a_pipeline() {
    let examples = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let sites = files(&examples.join("sites")).into_iter();
    let sites: Vec<_> = sites
        .filter(|file| file.extension().is_some_and(|end| end == "yaml"))
        .collect();
    assert!(!sites.is_empty());
    for site in sites {
        let folder = tempfile::tempdir().unwrap();
        for file in files(&examples.join("hospital")) {
            std::fs::copy(&file, folder.path().join(file.file_name().unwrap())).unwrap();
        }
        std::fs::copy(&site, folder.path().join("sites.yaml")).unwrap();
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_tidegate"))
            .args(["plan", "tidegate.yaml", "--format", "json"])
            .current_dir(folder.path())
            .env_remove("TIDEGATE_HOME")
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}: {}",
            site.display(),
            String::from_utf8_lossy(&output.stderr)
        );
        let told = String::from_utf8(output.stdout).unwrap();
        assert!(told.contains("\"cloud\""), "{}: {told}", site.display());
    }
}

#[test]
fn a_pipeline_trains_on_machines_of_openstack_in_a_cloud_and_at_home() {
    let (Some(store), Some(cloud)) = (open_seaweed(), openstack()) else {
        return;
    };
    make_open_bucket(&store, "tidegate");
    let hospital = hospital_at(&store_of(&store, "cloud"), &store_of(&store, "ward"));
    let compute = |cloud: &OpenStack| {
        format!(
            "compute:\n      driver: openstack\n      cpus: 2\n      memory: 2 GiB\n      price: 0.10 USD/h\n      \
             machine: {{region: RegionOne, image: debian-13, networks: [inside], endpoint: \"{}\"}}",
            cloud.keystone
        )
    };
    hospital.edit("sites.yaml", PROCESS, &compute(&cloud));
    let tidegate = |arguments: &[&str]| {
        let mut command = hospital.command(arguments);
        command.envs(ADMIN).envs(cloud.login()).env("TIDEGATE_LOG", "trace");
        let output = command.output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !told.contains("SKADMIN") && !told.contains(&cloud.application[1]),
            "{told}"
        );
        assert!(output.status.success(), "{told}");
        String::from_utf8(output.stdout).unwrap()
    };
    let checked = tidegate(&["check"]);
    assert!(
        checked.contains("Site cloud: its machines can be started."),
        "{checked}"
    );
    let folder = cloud.peer.folder().join("machines");
    let consoles = || -> Vec<String> {
        let all = files(&folder).into_iter().filter(|file| file.ends_with("console"));
        all.map(|file| std::fs::read_to_string(file).unwrap()).collect()
    };
    assert!(consoles().is_empty(), "a check starts nothing");
    let run = || serde_json::from_str::<Value>(&tidegate(&["run", "--yes", "--format", "json"])).unwrap();
    let summary = run();
    assert_eq!(summary["status"], "done");
    assert!(summary["metrics"]["home"]["roc_auc"].as_f64().unwrap() > 0.55);
    assert_eq!(run()["reused"].as_array().unwrap().len(), 7);
    // The private site's own cloud: nothing crosses for it, and the keeper may sit elsewhere.
    let sites = std::fs::read_to_string(hospital.path("sites.yaml")).unwrap();
    let (home, others) = sites.split_once("  cloud:").unwrap();
    let own = format!("store: \"{}&role={}\"", store_of(&store, "home"), Peer::ROLE);
    let home = home.replacen("store: \"folder:\"", &own, 1);
    let begin = home.find("compute:").unwrap();
    let end = begin + home[begin..].find('\n').unwrap();
    let rows = compute(&cloud).replace("      cpus: 2\n", "      cpus: 2\n      rows: true\n");
    let home = format!("{}{rows}{}", &home[..begin], &home[end..]);
    hospital.write("sites.yaml", &format!("{home}  cloud:{others}"));
    hospital.edit("tidegate.yaml", "{infra: cloud}", "{infra: hospital}");
    let summary = run();
    assert_eq!(summary["status"], "done");
    let crossings = summary["crossings"].as_array().unwrap();
    assert!(
        crossings
            .iter()
            .all(|one| one["to"] != "cloud" || one["artifact"] == "bundle"),
        "{crossings:?}"
    );
    let told = consoles();
    assert_eq!(
        told.len(),
        4,
        "one machine for each training, and two at home for what the keeper would do on its own host"
    );
    assert!(
        told.iter()
            .all(|console| console.contains("the job ended with exit code 0")),
        "{told:?}"
    );
}

#[test]
fn a_pipeline_trains_at_home_on_a_machine_of_the_sites_own_vcenter() {
    let (Some(store), Some(cloud)) = (open_seaweed(), vsphere()) else {
        return;
    };
    make_open_bucket(&store, "tidegate");
    let hospital = hospital_at(&store_of(&store, "cloud"), &store_of(&store, "ward"));
    let sites = std::fs::read_to_string(hospital.path("sites.yaml")).unwrap();
    let (home, others) = sites.split_once("  cloud:").unwrap();
    let own = format!("store: \"{}&role={}\"", store_of(&store, "home"), Peer::ROLE);
    let home = home.replacen("store: \"folder:\"", &own, 1);
    let begin = home.find("compute:").unwrap();
    let end = begin + home[begin..].find('\n').unwrap();
    let compute = format!(
        "compute: {{driver: vsphere, machine: {}, cpus: 2, memory: 2 GiB, price: 0.10 USD/h, rows: true}}",
        cloud.machine()
    );
    let home = format!("{}{compute}{}", &home[..begin], &home[end..]);
    hospital.write("sites.yaml", &format!("{home}  cloud:{others}"));
    hospital.edit("tidegate.yaml", "{infra: cloud}", "{infra: hospital}");
    let tidegate = |arguments: &[&str], password: &str| {
        let mut command = hospital.command(arguments);
        command.envs(ADMIN).envs(cloud.login()).env("TIDEGATE_LOG", "trace");
        let output = command.env("VSPHERE_PASSWORD", password).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        for secret in ["SKADMIN", Vsphere::PASSWORD, "another"] {
            assert!(!told.contains(secret), "{told}");
        }
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), told)
    };
    let (_, refused, _) = tidegate(&["check"], "another");
    assert!(
        refused.contains("InvalidLogin") && refused.contains("govc role.create"),
        "{refused}"
    );
    let (code, checked, told) = tidegate(&["check"], Vsphere::PASSWORD);
    assert_eq!(code, Some(0), "{checked}{told}");
    assert!(
        checked.contains("Site hospital: its machines can be started."),
        "{checked}"
    );
    let folder = cloud.peer.folder().join("machines");
    assert!(!folder.exists(), "a check starts nothing");
    let (code, summary, told) = tidegate(&["run", "--yes", "--format", "json"], Vsphere::PASSWORD);
    assert_eq!(code, Some(0), "{told}");
    let summary: Value = serde_json::from_str(&summary).unwrap();
    assert_eq!(summary["status"], "done");
    let crossings = summary["crossings"].as_array().unwrap();
    assert!(
        crossings
            .iter()
            .all(|one| one["to"] != "cloud" || one["artifact"] == "bundle"),
        "{crossings:?}"
    );
    let consoles = files(&folder).into_iter().filter(|file| file.ends_with("console"));
    let told: Vec<_> = consoles.map(|file| std::fs::read_to_string(file).unwrap()).collect();
    assert_eq!(told.len(), 3, "for preparing, training and judging: {told:?}");
    assert!(
        told.iter().all(|one| one.contains("the job ended with exit code 0")),
        "{told:?}"
    );
    let left = cloud.client("print([one.name for one in all(vim.VirtualMachine)])");
    assert_eq!(left.trim(), "['debian-13']", "nothing is left but the template");
}

/// A second public site, on Vertex AI and in Google's store, with what comes after it in the sites file.
pub(crate) fn second_site(store: &Peer, platform: &Platform) -> String {
    format!(
        "  second:\n    kind: public\n    jurisdiction: US\n    clearance: {{level: internal}}\n    \
         store: \"{}&role={}\"\n    compute:\n      driver: vertex\n      machine: {{project: st-mary-ml, \
         region: europe-west4, image: trainer:1, type: n1-standard-8, endpoint: \"{}\"}}\n      cpus: 2\n      \
         memory: 2 GiB\n      price: 0.30 USD/h\n    egress: {{\"*\": 0.09 USD/GiB}}\n  ward:\n",
        store.google("st-mary/second"),
        WORKER_ACCOUNT,
        platform.endpoint()
    )
}

/// Where an image has the program.
pub(crate) fn programs() -> &'static std::path::Path {
    std::path::Path::new(env!("CARGO_BIN_EXE_tidegate")).parent().unwrap()
}

/// Trains for so many seconds at least in a container of `platform`, with `login` and the stores of the cloud and the ward;
/// gives what the platform was asked to run.
fn trained_in_a_container(
    platform: &Platform,
    machine: &str,
    login: &[(&str, String)],
    [cloud, ward]: [String; 2],
    seconds: u32,
) -> Value {
    let hospital = hospital_in(&cloud, &ward);
    let compute = format!(
        "compute:\n      {machine}\n      cpus: 2\n      memory: 2 GiB\n      price: 0.10 USD/h\n      \
         spot_price: 0.04 USD/h"
    );
    hospital.edit("sites.yaml", PROCESS, &compute);
    // A command that gives up where it finds what the container was told.
    hospital.edit(
        "tidegate.yaml",
        "  trainer: {model: logistic, epochs: 12, batch_size: 32, seed: 1}\n",
        "  code: [train.sh]\n  run: sh train.sh\n",
    );
    hospital.write(
        "train.sh",
        &format!(
            "if env | grep -q TIDEGATE_TICKET; then exit 9; fi\n\
         if cat /proc/[0-9]*/environ 2>/dev/null | grep -aq TIDEGATE_TICKET; then exit 8; fi\n\
         echo '{{\"model\":\"logistic\",\"epochs\":12,\"batch_size\":32,\"seed\":1}}' >trainer.json\n\
         sleep {seconds}\n\
         exec \"$TIDEGATE_TRAINER\" trainer\n"
        ),
    );
    let log = std::cell::RefCell::new(String::new());
    let tidegate = |arguments: &[&str]| {
        let mut command = hospital.command(arguments);
        command.envs(login.iter().cloned()).env("TIDEGATE_LOG", "trace");
        let output = command.output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        let consoles = || -> String {
            let made = platform.tell("made");
            let logs = made.as_array().unwrap().iter().map(|one| one["log"].as_str().unwrap());
            logs.map(|log| std::fs::read_to_string(log).unwrap_or_default())
                .collect()
        };
        assert!(output.status.success(), "{told}{}", consoles());
        log.borrow_mut().push_str(&told);
        String::from_utf8(output.stdout).unwrap()
    };
    let checked = tidegate(&["check"]);
    assert!(
        checked.contains("Site cloud: its machines can be started."),
        "{checked}"
    );
    let made = || platform.tell("made").as_array().unwrap().clone();
    assert!(made().is_empty(), "a check starts nothing");
    let run = || serde_json::from_str::<Value>(&tidegate(&["run", "--yes", "--format", "json"])).unwrap();
    let summary = run();
    assert_eq!(summary["status"], "done");
    assert!(summary["metrics"]["home"]["roc_auc"].as_f64().unwrap() > 0.55);
    assert_eq!(run()["reused"].as_array().unwrap().len(), 7);
    // One container, removed: its ticket stands nowhere any more.
    let made = made();
    assert_eq!(made.len(), 1);
    assert!(platform.tell("jobs").as_array().unwrap().is_empty());
    let environment = &made[0]["environment"];
    let names: Vec<&String> = environment.as_object().unwrap().keys().collect();
    assert!(
        names
            .iter()
            .all(|name| ["PATH", "TIDEGATE_TICKET"].contains(&name.as_str())),
        "{names:?}"
    );
    let ticket: Value = serde_json::from_str(environment["TIDEGATE_TICKET"].as_str().unwrap()).unwrap();
    let console = std::fs::read_to_string(made[0]["log"].as_str().unwrap()).unwrap();
    let credentials = ticket["credentials"].as_object().unwrap();
    assert!(!credentials.is_empty());
    for secret in credentials.values().chain([&ticket["secret"]]) {
        let secret = secret.as_str().unwrap();
        assert!(secret.len() > 20 && !log.borrow().contains(secret) && !console.contains(secret));
    }
    for (_, secret) in login.iter().filter(|(name, _)| name.contains("SECRET")) {
        assert!(!log.borrow().contains(secret));
    }
    made[0].clone()
}

/// Google's store for whoever may do everything on a platform of Google's.
pub(crate) fn google_beside(platform: &Platform, more: &[&str]) -> Option<Peer> {
    google_storage_for(&platform.peer.folder().join("known.json"), more)
}

#[test]
fn a_pipeline_trains_in_a_container_of_vertex() {
    let Some(platform) = vertex_with(programs()) else {
        return;
    };
    // The command takes longer than the first credentials of its worker.
    let store = google_beside(&platform, &["--lives", "9"]).unwrap();
    let machine = format!(
        "driver: vertex\n      machine: {{project: st-mary-ml, region: europe-west4, image: trainer:1, \
         type: n1-standard-8, endpoint: \"{}\"}}",
        platform.endpoint()
    );
    let cloud = format!("{}&role={WORKER_ACCOUNT}", store.google("st-mary/cloud"));
    let stores = [cloud, store.google("st-mary/ward")];
    let made = trained_in_a_container(&platform, &machine, &[platform.service_account()], stores, 11);
    let ticket = made["environment"]["TIDEGATE_TICKET"].as_str().unwrap();
    assert!(ticket.contains("\"GOOGLE_STORAGE_ACCESS_TOKEN\""), "{ticket}");
}

#[test]
fn a_pipeline_trains_in_a_container_of_azure() {
    let Some(platform) = azureml_with(programs()) else {
        return;
    };
    let machine = format!(
        "driver: azureml\n      machine: {{project: \"{}\", image: \"trainer:1\", type: Standard_DS3_v2, \
         endpoint: \"{}\"}}",
        Platform::WORKSPACE,
        platform.endpoint()
    );
    let store = azure_storage(&[]).unwrap();
    let stores = [store.azure("st-mary/cloud"), store.azure("st-mary/ward")];
    let made = trained_in_a_container(&platform, &machine, &entra(&platform.peer, "SKEEPER"), stores, 0);
    let ticket = made["environment"]["TIDEGATE_TICKET"].as_str().unwrap();
    assert!(ticket.contains("\"AZURE_STORAGE_SAS_DIRECTORIES\""), "{ticket}");
}

#[test]
fn training_goes_to_another_cloud_where_the_first_has_no_room() {
    let (Some(store), Some(full), Some(other)) = (
        open_seaweed(),
        ec2(Ec2Settings::needed_grant()),
        vertex_with(programs()),
    ) else {
        return;
    };
    let hospital = hospital_with(&store, &full);
    for network in &full.networks {
        full.tell(&format!("full?subnet={network}"));
    }
    let google = google_beside(&other, &[]).unwrap();
    hospital.edit("sites.yaml", "  ward:\n", &second_site(&google, &other));
    hospital.edit(
        "tidegate.yaml",
        "{infra: cloud}",
        "{any_of: [{infra: cloud}, {infra: second}]}",
    );
    let output = hospital
        .command(&["run", "--yes", "--format", "json"])
        .envs(ADMIN)
        .envs([other.service_account()])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}");
    assert!(told.contains("InsufficientInstanceCapacity"), "{told}");
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["status"], "done");
    let crossings = summary["crossings"].as_array().unwrap();
    for site in ["cloud", "second"] {
        let there = crossings
            .iter()
            .any(|one| one["to"] == site && one["artifact"] == "train");
        assert!(there, "{site}: {crossings:?}");
    }
    let back: Vec<_> = crossings.iter().filter(|one| one["artifact"] == "model").collect();
    assert!(matches!(&back[..], [one] if one["from"] == "second"), "{back:?}");
    assert!(trained(&full).is_empty(), "nothing was started where there was no room");
    assert_eq!(other.tell("made").as_array().unwrap().len(), 1);
}
