//! From raw records to a served model, and again.

use serde_json::Value;

use crate::fixture::{Hospital, PEOPLE, files};

#[test]
fn a_pipeline_ends_with_a_served_model_and_an_account_of_every_byte() {
    let hospital = Hospital::new();
    let summary = hospital.run();
    assert_eq!(summary["status"], "done");
    assert_eq!(summary["model"]["name"], "readmission");
    assert_eq!(summary["model"]["version"], 1);
    assert!(
        summary["metrics"]["home"]["roc_auc"].as_f64().unwrap() > 0.6,
        "{summary}"
    );
    assert!(summary["metrics"]["refined"]["brier"].as_f64().is_some());
    assert!(summary["metrics"]["raw"]["roc_auc"].as_f64().is_some());
    assert!(summary["risk"]["k"].as_u64().unwrap() >= 5);
    assert_eq!(summary["reused"], serde_json::json!([]));

    // Code and both inputs to the cloud, the model back, the bundle to the ward; nothing else.
    let crossings = summary["crossings"].as_array().unwrap();
    let mut ways: Vec<String> = crossings
        .iter()
        .map(|crossing| {
            let text = |key: &str| crossing[key].as_str().unwrap().to_owned();
            format!("{} {}>{}", text("artifact"), text("from"), text("to"))
        })
        .collect();
    ways.sort();
    assert_eq!(
        ways,
        [
            "bundle hospital>ward",
            "code hospital>cloud",
            "model cloud>hospital",
            "train hospital>cloud",
            "validation hospital>cloud"
        ]
    );
    // The account agrees with what stands in the stores.
    let stored: u64 = ["cloud", "ward"]
        .iter()
        .flat_map(|site| {
            let store = hospital.state().join("sites").join(site).join("store");
            [files(&store.join("sealed")), files(&store.join("packing"))].concat()
        })
        .map(|file| file.metadata().unwrap().len())
        .sum();
    let accounted: u64 = crossings
        .iter()
        .map(|crossing| crossing["bytes"].as_u64().unwrap())
        .sum();
    assert_eq!(stored, accounted);

    let verified: Value = serde_json::from_str(&hospital.succeed(&["audit", "verify", "--format", "json"])).unwrap();
    assert_eq!(verified["size"], summary["ledger"]["size"]);
}

#[test]
fn the_same_pipeline_again_reuses_every_step_and_sends_nothing() {
    let hospital = Hospital::new();
    let first = hospital.run();
    let second = hospital.run();
    assert_eq!(second["status"], "done");
    assert_eq!(second["model"], first["model"]);
    assert_eq!(second["metrics"], first["metrics"]);
    assert_eq!(second["crossings"], serde_json::json!([]));
    let reused: Vec<&str> = second["reused"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    assert_eq!(
        reused,
        [
            "deploy-hospital",
            "deploy-ward",
            "evaluate",
            "prepare",
            "refine",
            "release",
            "train"
        ]
    );
}

#[test]
fn raw_rows_are_predicted_at_home_with_the_frozen_recipe() {
    let hospital = Hospital::new();
    hospital.run();
    let rows = crate::fixture::rows(99);
    let few: Vec<&str> = rows.lines().take(6).collect();
    hospital.write("new.csv", &(few.join("\n") + "\n"));
    let predictions = hospital.succeed(&["predict", "--site", "hospital", "new.csv"]);
    let lines: Vec<&str> = predictions.lines().collect();
    assert_eq!(lines[0], "row,probability,prediction");
    assert_eq!(lines.len(), 6);
    for (row, line) in lines[1..].iter().enumerate() {
        let cells: Vec<&str> = line.split(',').collect();
        assert_eq!(cells[0], (row + 1).to_string());
        assert!((0.0..=1.0).contains(&cells[1].parse::<f64>().unwrap()));
    }
    let elsewhere = hospital.tidegate(&["predict", "--site", "ward", "new.csv"]);
    assert_eq!(elsewhere.status.code(), Some(3));
}

#[test]
fn the_small_commands_say_what_they_should() {
    let hospital = Hospital::new();
    assert!(hospital.succeed(&["check"]).contains("sound"));
    assert!(hospital.succeed(&["scan"]).contains(&format!("{PEOPLE} rows")));
    assert!(hospital.succeed(&["plan", "--sql"]).contains("age_band"));
    let plan = hospital.succeed(&["plan"]);
    assert!(plan.contains("cloud") && plan.contains("age_band"), "{plan}");
    assert!(hospital.succeed(&["status"]).contains("No run yet"));
    let run = hospital.run()["run"].as_str().unwrap().to_owned();
    assert!(hospital.succeed(&["status"]).contains(&run));
    assert!(hospital.succeed(&["models"]).contains("readmission version 1"));
    assert!(hospital.succeed(&["cost"]).contains("5 crossings"));
    assert!(hospital.succeed(&["logs", &run]).contains("epoch"));
    assert!(
        hospital
            .succeed(&["audit", "show", "--run", &run])
            .contains("permit-signed")
    );
    assert!(
        hospital
            .succeed(&["audit", "proof", "--entry", "1"])
            .contains("tlog-proof")
    );
    hospital.succeed(&["data", "pull", "train", "--to", "pulled"]);
    assert!(hospital.path("pulled").join("part-00000.csv").is_file());
    let catalog = hospital.succeed(&["init", "--from", "admissions.csv", "--out", "first.yaml"]);
    assert!(catalog.contains("first.yaml"));
    let again = hospital.tidegate(&["init", "--from", "admissions.csv", "--out", "first.yaml"]);
    assert_eq!(again.status.code(), Some(2));
}

#[test]
fn a_wrong_file_is_shown_at_its_line() {
    let hospital = Hospital::new();
    hospital.edit(
        "tidegate.yaml",
        "refine: {calibrate: platt}",
        "refin: {calibrate: platt}",
    );
    let output = hospital.tidegate(&["check"]);
    assert_eq!(output.status.code(), Some(2));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("tidegate.yaml:16:1"), "{message}");
    assert!(message.contains("`refine`"), "{message}");
}

#[test]
fn a_run_can_stop_early() {
    let hospital = Hospital::new();
    let text = hospital.succeed(&["run", "--yes", "--until", "prepare", "--format", "json"]);
    let summary: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(summary["crossings"], serde_json::json!([]));
    assert!(summary["model"].is_null());
    assert!(summary["risk"]["k"].as_u64().unwrap() >= 5);
}
