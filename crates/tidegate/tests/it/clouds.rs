//! The same pipeline where the public site's store is S3: SeaweedFS over TLS, with a session policy for the
//! worker.

use serde_json::Value;

use crate::fixture::{Hospital, PLANTED_NAME, files};
use crate::peers::{Peer, make_bucket, seaweed};

const ADMIN: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "AKADMIN"), ("AWS_SECRET_ACCESS_KEY", "SKADMIN")];

#[test]
fn a_pipeline_runs_over_s3() {
    let Some(peer) = seaweed() else { return };
    make_bucket(&peer, "tidegate");
    let hospital = Hospital::new();
    let cloud = format!("{}&role={}", peer.s3("tidegate", "st-mary/cloud"), Peer::ROLE);
    let ward = peer.s3("tidegate", "st-mary/ward");
    let sites = std::fs::read_to_string(hospital.path("sites.yaml")).unwrap();
    let mut parts = sites.split("store: \"folder:\"");
    let sites: Vec<&str> = parts.by_ref().collect();
    let [before, cloud_before, ward_before, rest] = sites.as_slice() else {
        panic!("{sites:?}")
    };
    hospital.write(
        "sites.yaml",
        &format!("{before}store: \"folder:\"{cloud_before}store: \"{cloud}\"{ward_before}store: \"{ward}\"{rest}"),
    );
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
fn an_address_that_is_none_is_told_at_its_place() {
    let hospital = Hospital::new();
    hospital.edit("sites.yaml", "kind: edge\n    jurisdiction: US\n    clearance: {level: internal}\n    store: \"folder:\"", "kind: edge\n    jurisdiction: US\n    clearance: {level: internal}\n    store: \"s3://data?endpoint=http://s3.example.org\"");
    let output = hospital.tidegate(&["check"]);
    assert_eq!(output.status.code(), Some(2));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("sites.yaml:21:13: the store of site `ward`"), "{told}");
    assert!(told.contains("must begin with `https:`"), "{told}");
}
