//! The same pipeline where the public site's store is S3: SeaweedFS over TLS, with a session policy for the
//! worker.

use serde_json::Value;

use crate::fixture::{Hospital, PLANTED_NAME, files};
use crate::peers::{Peer, bao, make_bucket, make_open_bucket, open_seaweed, seaweed};
use crate::proxy::Proxy;

const ADMIN: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "AKADMIN"), ("AWS_SECRET_ACCESS_KEY", "SKADMIN")];

/// A hospital whose public and edge sites have their stores in S3.
fn hospital_over(peer: &Peer) -> Hospital {
    make_bucket(peer, "tidegate");
    hospital_at(
        &peer.s3("tidegate", "st-mary/cloud"),
        &peer.s3("tidegate", "st-mary/ward"),
    )
}

fn hospital_at(cloud: &str, ward: &str) -> Hospital {
    let hospital = Hospital::new();
    let cloud = format!("{cloud}&role={}", Peer::ROLE);
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
