//! Whoever changes a byte of what was sealed, released or recorded is found out.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use crate::fixture::{Hospital, files};

fn flip(file: &Path) {
    let mut bytes = std::fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let mut permissions = file.metadata().unwrap().permissions();
    #[allow(clippy::permissions_set_readonly_false)]
    permissions.set_readonly(false);
    std::fs::set_permissions(file, permissions).unwrap();
    std::fs::write(file, bytes).unwrap();
}

#[test]
fn a_changed_ledger_does_not_verify() {
    let hospital = Hospital::new();
    let size = hospital.run()["ledger"]["size"].as_u64().unwrap();
    // The tiles of the newest size; smaller ones beside them are read by nobody any more.
    for tile in [format!("tile/entries/000.p/{size}"), format!("tile/0/000.p/{size}")] {
        let file = hospital.state().join("control/ledger").join(&tile);
        let whole = std::fs::read(&file).unwrap();
        hospital.succeed(&["audit", "verify"]);
        flip(&file);
        let (rule, message) = hospital.refuses(&["audit", "verify"]);
        assert_eq!(rule, "ledger-tampered", "{tile}: {message}");
        std::fs::write(&file, whole).unwrap();
    }
    hospital.succeed(&["audit", "verify"]);
}

#[test]
fn a_cut_ledger_does_not_continue_an_older_checkpoint() {
    let hospital = Hospital::new();
    hospital.run();
    let checkpoint = hospital.state().join("control/ledger/checkpoint");
    std::fs::copy(&checkpoint, hospital.path("earlier.txt")).unwrap();
    hospital.succeed(&["audit", "verify", "--since", "earlier.txt"]);
    // Another history: everything but the private site's state is gone, and the pipeline runs again.
    std::fs::remove_dir_all(hospital.state().join("control/ledger")).unwrap();
    std::fs::remove_file(hospital.state().join("control/journal.sqlite")).unwrap();
    for suffix in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(hospital.state().join(format!("control/journal.sqlite{suffix}")));
    }
    hospital.edit("tidegate.yaml", "epochs: 12", "epochs: 13");
    // The keeper remembers the ledger that it cosigned.
    let (rule, message) = hospital.refused();
    assert_eq!(rule, "ledger-tampered", "{message}");
    let (rule, message) = hospital.refuses(&["audit", "verify", "--since", "earlier.txt"]);
    assert_eq!(rule, "ledger-tampered", "{message}");
}

#[test]
fn a_changed_bundle_is_not_used() {
    let hospital = Hospital::new();
    hospital.run();
    flip(
        &hospital
            .state()
            .join("sites/hospital/serve/models/readmission/1/calibration.json"),
    );
    hospital.write("new.csv", &crate::fixture::rows(5));
    let (rule, message) = hospital.refuses(&["predict", "--site", "hospital", "new.csv"]);
    assert_eq!(rule, "bundle-tampered", "{message}");
}

#[test]
fn a_changed_shard_or_packing_list_is_refused_where_it_is_opened() {
    for folder in ["sealed", "packing"] {
        let hospital = Hospital::new();
        let mut child = hospital
            .command(&["run", "--yes", "--format", "json"])
            .env("TIDEGATE_LOG", "off")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Killed when the records stand in the cloud and no worker is there.
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut events = lines
            .map_while(Result::ok)
            .filter_map(|line| serde_json::from_str::<Value>(&line).ok());
        assert!(events.any(|event| event["event"] == "crossed" && event["artifact"] == "train"));
        child.kill().unwrap();
        child.wait().unwrap();
        let stored = files(&hospital.state().join("sites/cloud/store").join(folder));
        assert!(!stored.is_empty());
        stored.iter().for_each(|file| flip(file));
        let (rule, message) = hospital.refused();
        assert_eq!(rule, "input-tampered", "{folder}: {message}");
        assert!(!hospital.state().join("sites/hospital/serve/models").exists());
    }
}
