//! The same pipeline where the public site's store is S3: SeaweedFS over TLS, with a session policy for the
//! worker.

use serde_json::Value;

use crate::fixture::{Hospital, PEOPLE, PLANTED_NAME, files};
use crate::peers::{
    Peer, bao, entra, google_kms, key_vault, make_bucket, make_open_bucket, moto, open_seaweed, python, seaweed,
};
use crate::proxy::Proxy;

pub(crate) const ADMIN: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "AKADMIN"), ("AWS_SECRET_ACCESS_KEY", "SKADMIN")];

/// A hospital whose public and edge sites have their stores in S3.
pub(crate) fn hospital_over(peer: &Peer) -> Hospital {
    make_bucket(peer, "tidegate");
    hospital_at(
        &peer.s3("tidegate", "st-mary/cloud"),
        &peer.s3("tidegate", "st-mary/ward"),
    )
}

pub(crate) fn hospital_at(cloud: &str, ward: &str) -> Hospital {
    hospital_in(&format!("{cloud}&role={}", Peer::ROLE), ward)
}

/// A hospital whose public and edge sites have their stores at these addresses.
pub(crate) fn hospital_in(cloud: &str, ward: &str) -> Hospital {
    let hospital = Hospital::new();
    let sites = std::fs::read_to_string(hospital.path("sites.yaml")).unwrap();
    let parts: Vec<&str> = sites.split("store: \"folder:\"").collect();
    let [home, before_cloud, before_ward, rest] = parts.as_slice() else {
        panic!("{sites}")
    };
    hospital.write(
        "sites.yaml",
        &format!("{home}store: \"folder:\"{before_cloud}store: \"{cloud}\"{before_ward}store: \"{ward}\"{rest}"),
    );
    hospital
}

#[test]
fn a_check_tries_the_stores_and_says_what_to_grant() {
    let Some(peer) = seaweed() else { return };
    let hospital = hospital_over(&peer);
    let check = |id: &str, secret: &str| {
        let mut command = hospital.command(&["check"]);
        command
            .env("AWS_ACCESS_KEY_ID", id)
            .env("AWS_SECRET_ACCESS_KEY", secret);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, told) = check("AKADMIN", "SKADMIN");
    assert_eq!(code, Some(0), "{told}");
    assert!(
        told.contains("Site cloud: the store s3://tidegate/st-mary/cloud does what a run needs."),
        "{told}"
    );
    assert!(
        told.contains("Site ward: the store s3://tidegate/st-mary/ward does what a run needs."),
        "{told}"
    );
    // Somebody who may only read.
    let (code, told) = check("AKREADER", "SKREADER");
    assert_eq!(code, Some(1), "{told}");
    assert!(
        told.contains("creating an object: the store refused putting object"),
        "{told}"
    );
    assert!(told.contains("\"arn:aws:s3:::tidegate/st-mary/cloud/*\""), "{told}");
    assert!(told.contains("\"sts:AssumeRole\""), "{told}");
}

#[test]
fn a_pipeline_runs_over_s3() {
    let Some(peer) = seaweed() else { return };
    let hospital = hospital_over(&peer);
    let output = hospital
        .command(&["run", "--yes", "--format", "json"])
        .envs(ADMIN)
        .env("TIDEGATE_LOG", "trace")
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}");
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["status"], "done");
    // Code, train, validation, the model, and the bundle to two sites.
    assert!(summary["crossings"].as_array().unwrap().len() >= 5, "{summary}");
    // Nothing of it stands in a folder, and no key of the store is told or kept anywhere.
    for site in ["cloud", "ward"] {
        assert!(files(&hospital.state().join("sites").join(site).join("store")).is_empty());
    }
    let secret = "SKADMIN";
    assert!(!told.contains(secret));
    for file in files(&hospital.state()) {
        let bytes = std::fs::read(&file).unwrap();
        let holds = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(!holds(secret), "{} holds the key of the store", file.display());
        assert!(
            file.starts_with(hospital.state().join("sites/hospital")) || !holds(PLANTED_NAME),
            "{}",
            file.display()
        );
    }
    // Whatever stands in the bucket is sealed or signed; no name of a patient is in any file of the server.
    for file in files(&peer.folder().join("data")) {
        let bytes = std::fs::read(&file).unwrap();
        let found = bytes
            .windows(PLANTED_NAME.len())
            .any(|window| window == PLANTED_NAME.as_bytes());
        assert!(!found, "{}", file.display());
    }
}

#[test]
fn a_pipeline_survives_a_network_that_breaks() {
    let Some(peer) = open_seaweed() else { return };
    make_open_bucket(&peer, "tidegate");
    let proxy = Proxy::before(peer.port(), 5);
    let store = |site: &str| {
        format!(
            "s3://tidegate/st-mary/{site}?endpoint=http://127.0.0.1:{}&region=us-east-1",
            proxy.port
        )
    };
    let hospital = hospital_at(&store("cloud"), &store("ward"));
    let output = hospital
        .command(&["run", "--yes", "--format", "json"])
        .envs(ADMIN)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["status"], "done");
    assert!(proxy.harmed() >= 12, "only {} requests were harmed", proxy.harmed());
    // Each crossing stands once in the ledger, whatever was sent twice.
    let crossings = summary["crossings"].as_array().unwrap();
    let mut names: Vec<String> = crossings
        .iter()
        .map(|one| format!("{} {}", one["artifact"], one["to"]))
        .collect();
    let all = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), all, "{names:?}");
    hospital.succeed(&["audit", "verify"]);
}

/// Puts an object as somebody who fills buckets does.
fn put(peer: &Peer, bucket: &str, key: &str, text: &str) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("body");
    std::fs::write(&file, text).unwrap();
    python(&format!(
        "import boto3\nboto3.client('s3', endpoint_url='https://127.0.0.1:{}', verify='{}', region_name='us-east-1', \
         aws_access_key_id='AKADMIN', aws_secret_access_key='SKADMIN').upload_file('{}', '{bucket}', '{key}')",
        peer.port(),
        peer.folder().join("ca.pem").display(),
        file.display(),
    ));
}

#[test]
fn a_dataset_is_read_from_a_bucket_into_the_private_site() {
    let Some(peer) = seaweed() else { return };
    make_bucket(&peer, "raw");
    let hospital = Hospital::new();
    let rows = std::fs::read_to_string(hospital.path("admissions.csv")).unwrap();
    std::fs::remove_file(hospital.path("admissions.csv")).unwrap();
    let (header, records) = rows.split_once('\n').unwrap();
    let middle = records.match_indices('\n').nth(PEOPLE as usize / 2).unwrap().0 + 1;
    put(
        &peer,
        "raw",
        "visits 2026/part-1.csv",
        &format!("{header}\n{}", &records[..middle]),
    );
    put(
        &peer,
        "raw",
        "visits 2026/part-2.csv",
        &format!("{header}\n{}", &records[middle..]),
    );
    put(&peer, "raw", "visits 2026/notes.md", "no records");
    // What tools of stores make of a folder.
    put(&peer, "raw", "visits 2026/part-0.csv/", "");
    put(&peer, "raw", "visits 2026/deep/part-3.csv", "not,meant\n");
    let source = peer.s3("raw", "visits%202026/part-*.csv");
    hospital.edit(
        "catalog.yaml",
        "source: admissions.csv",
        &format!("source: \"{source}\""),
    );
    let tidegate = |arguments: &[&str]| {
        let mut command = hospital.command(arguments);
        command.envs(ADMIN).env("TIDEGATE_LOG", "trace");
        let output = command.output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!told.contains("SKADMIN"), "{told}");
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), told)
    };
    let (code, scanned, told) = tidegate(&["scan"]);
    assert_eq!(code, Some(0), "{told}");
    assert!(scanned.contains(&format!("{PEOPLE} rows")), "{scanned}");
    assert!(
        scanned.contains("visits 2026/part-1.csv, visits 2026/part-2.csv"),
        "{scanned}"
    );
    assert_eq!(tidegate(&["check"]).0, Some(0));
    let run = || {
        let (code, answer, told) = tidegate(&["run", "--yes", "--format", "json"]);
        assert_eq!(code, Some(0), "{told}");
        serde_json::from_str::<Value>(&answer).unwrap()
    };
    let first = run();
    assert_eq!(
        first["risk"]["rows"].as_u64().unwrap(),
        first["risk"]["rows"].as_u64().unwrap().min(PEOPLE)
    );
    for file in files(&hospital.state()) {
        let bytes = std::fs::read(&file).unwrap();
        let holds = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(!holds("SKADMIN"), "{} holds the key of the bucket", file.display());
        let home = hospital.state().join("sites/hospital");
        assert!(file.starts_with(home) || !holds(PLANTED_NAME), "{}", file.display());
    }
    let reused = |summary: &Value| summary["reused"].as_array().unwrap().len();
    assert_eq!(reused(&run()), 7, "nothing changed");

    // What was brought and altered here is brought again.
    let brought = hospital.state().join("sites/hospital/work/sources");
    let copies = || -> Vec<_> {
        let files = files(&brought).into_iter();
        files.filter(|file| !file.ends_with(".lock")).collect()
    };
    assert_eq!(copies().len(), 2);
    let text = std::fs::read_to_string(&copies()[0]).unwrap();
    std::fs::write(&copies()[0], text.replace("MRN", "XRN")).unwrap();
    assert_eq!(reused(&run()), 7, "the source is what it was");

    // Another object under the same name is another source, and what was there before is not kept.
    put(
        &peer,
        "raw",
        "visits 2026/part-2.csv",
        &format!("{header}\n{}", &records[..middle].replace("MRN", "MRM")),
    );
    assert!(reused(&run()) < 7);
    assert_eq!(copies().len(), 2);

    // Nothing there, and nobody who may look. What was brought before goes with the source that named it.
    hospital.edit("catalog.yaml", "part-*.csv", "none-*.csv");
    let (code, _, told) = tidegate(&["run", "--yes"]);
    assert_eq!(code, Some(2), "{told}");
    assert!(
        told.contains("`s3://raw/visits 2026/none-*.csv` names no object"),
        "{told}"
    );
    assert!(copies().is_empty(), "{:?}", copies());
    let output = hospital
        .command(&["run", "--yes"])
        .env("AWS_ACCESS_KEY_ID", "AKSTRANGER")
        .env("AWS_SECRET_ACCESS_KEY", "SKSTRANGER")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        told.contains("the credentials do not allow it") && !told.contains("SKSTRANGER"),
        "{told}"
    );
}

#[test]
fn a_source_that_is_no_address_is_told_at_its_place() {
    let hospital = Hospital::new();
    hospital.edit(
        "catalog.yaml",
        "source: admissions.csv",
        "source: \"s3://id:hushhush@data/a.csv\"",
    );
    let output = hospital.tidegate(&["check"]);
    assert_eq!(output.status.code(), Some(2));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        told.contains("catalog.yaml:4:14: the source of dataset `admissions`"),
        "{told}"
    );
    assert!(told.contains("credentials") && !told.contains("hushhush"), "{told}");
}

#[test]
fn an_address_that_is_none_is_told_at_its_place() {
    let hospital = Hospital::new();
    hospital.edit("sites.yaml", "kind: edge\n    jurisdiction: US\n    clearance: {level: internal}\n    store: \"folder:\"", "kind: edge\n    jurisdiction: US\n    clearance: {level: internal}\n    store: \"s3://data?endpoint=http://s3.example.org\"");
    let output = hospital.tidegate(&["check"]);
    assert_eq!(output.status.code(), Some(2));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("sites.yaml:21:13: the store of site `ward`"), "{told}");
    assert!(told.contains("must begin with `https:`"), "{told}");
    hospital.edit(
        "sites.yaml",
        "s3://data?endpoint=http://s3.example.org",
        "s3://id:hushhush@data",
    );
    let told = String::from_utf8_lossy(&hospital.tidegate(&["check"]).stderr).into_owned();
    assert!(told.contains("credentials") && !told.contains("hushhush"), "{told}");
}

#[test]
fn a_sites_keys_may_be_in_a_key_service_and_nothing_moves_without_it() {
    let Some((mut peer, role, secret)) = bao() else { return };
    let hospital = Hospital::new();
    let certificates = peer.folder().join("ca.pem");
    let address = format!(
        "vault:https://127.0.0.1:{}/transit/site?certificates={}",
        peer.port(),
        certificates.display()
    );
    hospital.edit("sites.yaml", "custody: \"file:\"", &format!("custody: \"{address}\""));
    let run = || {
        hospital
            .command(&["run", "--yes", "--format", "json"])
            .env("VAULT_ROLE_ID", &role)
            .env("VAULT_SECRET_ID", &secret)
            .env("TIDEGATE_LOG", "trace")
            .output()
            .unwrap()
    };
    let output = run();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}");
    assert!(!told.contains(&secret), "the secret of the role is in a log");
    let keys = hospital.state().join("sites/hospital/keys");
    assert!(!keys.join("custody.key").exists());
    for file in files(&hospital.state()) {
        let bytes = std::fs::read(&file).unwrap();
        let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!found, "{} holds the secret of the role", file.display());
    }
    // The service is gone: the site's own keys stay shut.
    peer.stop();
    hospital.edit("tidegate.yaml", "epochs: 12", "epochs: 11");
    let output = run();
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("key custody is out of reach"), "{told}");
}

#[test]
fn a_sites_keys_may_be_in_amazons_key_service() {
    let Some((peer, id, secret)) = moto() else { return };
    let address = format!(
        "aws-kms://eu-central-1/st-mary?endpoint=http://127.0.0.1:{}",
        peer.port()
    );
    keys_may_be_in(&address, &|stranger| {
        let secret = if stranger { "somebody elses secret" } else { &secret };
        let variables = [("AWS_ACCESS_KEY_ID", id.as_str()), ("AWS_SECRET_ACCESS_KEY", secret)];
        (
            variables.map(|(name, value)| (name, value.to_owned())).to_vec(),
            secret.to_owned(),
        )
    });
}

#[test]
fn a_sites_keys_may_be_in_googles_key_service() {
    let Some(peer) = google_kms(&["st-mary"]) else { return };
    let address = format!(
        "gcp-kms://st-mary/europe-west3/hospitals/st-mary?endpoint=http://127.0.0.1:{}",
        peer.port()
    );
    keys_may_be_in(&address, &|stranger| {
        let file = peer
            .folder()
            .join(if stranger { "stranger.json" } else { "known.json" });
        let account: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        let secret = account["private_key"].as_str().unwrap().lines().nth(3).unwrap();
        let variables = vec![("GOOGLE_APPLICATION_CREDENTIALS", file.display().to_string())];
        (variables, secret.to_owned())
    });
}

#[test]
fn a_sites_keys_may_be_in_azures_key_vault() {
    let Some(peer) = key_vault() else { return };
    let address = format!("key-vault:http://127.0.0.1:{}/st-mary", peer.port());
    keys_may_be_in(&address, &|stranger| {
        let secret = if stranger { "somebody elses secret" } else { "SKEEPER" };
        (entra(&peer, secret).to_vec(), secret.to_owned())
    });
}

/// What a command finds of credentials, those of a stranger or the site's own, and the secret in them.
type Credentials<'a> = &'a dyn Fn(bool) -> (Vec<(&'static str, String)>, String);

/// A run, a new key and the next run with custody at `address`.
fn keys_may_be_in(address: &str, credentials: Credentials<'_>) {
    let hospital = Hospital::new();
    hospital.edit("sites.yaml", "custody: \"file:\"", &format!("custody: \"{address}\""));
    let tidegate = |arguments: &[&str], stranger: bool| {
        let (variables, secret) = credentials(stranger);
        let mut command = hospital.command(arguments);
        command.envs(variables).env("TIDEGATE_LOG", "trace");
        let output = command.output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!told.contains(&secret), "the secret is in a log");
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), told)
    };
    let (code, _, told) = tidegate(&["run", "--yes"], false);
    assert_eq!(code, Some(0), "{told}");
    assert!(!hospital.state().join("sites/hospital/keys/custody.key").exists());
    let (code, checked, _) = tidegate(&["check"], false);
    assert_eq!(code, Some(0), "{checked}");
    let (code, _, told) = tidegate(&["keys", "rotate"], false);
    assert_eq!(code, Some(0), "{told}");
    // What was wrapped is wrapped again, and the run goes on with it.
    let (code, answer, told) = tidegate(&["run", "--yes", "--format", "json"], false);
    assert_eq!(code, Some(0), "{told}");
    let summary: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(summary["reused"].as_array().unwrap().len(), 7);
    // A stranger opens nothing.
    hospital.edit("tidegate.yaml", "epochs: 12", "epochs: 11");
    let (code, _, told) = tidegate(&["run", "--yes"], true);
    assert_eq!(code, Some(1));
    assert!(told.contains("key custody is out of reach"), "{told}");
}
