//! From raw records to a served model, and again.

use serde_json::Value;

use crate::fixture::{Hospital, PEOPLE, files, told};

fn keys(object: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = object.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

fn is_digest(text: &Value, prefix: &str) -> bool {
    text.as_str()
        .and_then(|text| text.strip_prefix(prefix))
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

#[test]
fn a_pipeline_ends_with_a_served_model_and_an_account_of_every_byte() {
    let hospital = Hospital::new();
    let output = hospital
        .command(&["run", "--yes", "--format", "json"])
        .env("TIDEGATE_LOG", "info")
        .output()
        .unwrap();
    let told = told(&output.stderr);
    assert!(output.status.success(), "{told:?}");
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    let run = summary["run"].as_str().unwrap();
    assert!(run.starts_with("readmission-"), "{run}");
    assert_eq!(summary["status"], "done");
    assert_eq!(keys(&summary["model"]), ["digest", "name", "version"]);
    assert_eq!(summary["model"]["name"], "readmission");
    assert_eq!(summary["model"]["version"], 1);
    assert!(is_digest(&summary["model"]["digest"], "sha256:"), "{summary}");

    for part in ["home", "refined", "raw"] {
        let figures = &summary["metrics"][part];
        let shares = [
            "roc_auc",
            "pr_auc",
            "accuracy",
            "f1",
            "brier",
            "expected_calibration_error",
        ];
        for metric in shares {
            let figure = figures[metric].as_f64().unwrap_or(-1.0);
            assert!((0.0..=1.0).contains(&figure), "{part} {metric}: {figures}");
        }
        assert!(figures["log_loss"].as_f64().unwrap() > 0.0);
        assert!(figures["roc_auc"].as_f64().unwrap() > 0.6, "{part}: {figures}");
    }
    // Platt scaling keeps the order, and makes better probabilities of it.
    let figure = |part: &str, metric: &str| summary["metrics"][part][metric].as_f64().unwrap();
    assert!((figure("home", "roc_auc") - figure("refined", "roc_auc")).abs() < 0.01);
    assert!(figure("refined", "brier") < figure("home", "brier"));

    // By subgroup, though that column never left; every row is decided in one way.
    for part in ["home", "refined"] {
        let judged = &summary[part];
        // A cell of few people is not shown.
        if let Some(cells) = judged["confusion"].as_object() {
            let cells: Vec<u64> = cells.values().filter_map(Value::as_u64).collect();
            assert_eq!(cells.iter().sum::<u64>(), judged["rows"].as_u64().unwrap());
            assert!(cells.len() == 4 && cells.iter().all(|cell| *cell >= 11), "{judged}");
        }
        for group in ["sex = female", "sex = male"] {
            let figure = &judged["subgroups"][group]["roc_auc"];
            let (low, high) = (figure["low"].as_f64().unwrap(), figure["high"].as_f64().unwrap());
            assert!(
                low < figure["value"].as_f64().unwrap() && high <= 1.0,
                "{part} {group}: {figure}"
            );
        }
    }
    // The bundle says the same to whoever gets it.
    let bundle = hospital.state().join("sites/hospital/serve/models/readmission/1");
    let text = |file: &str| std::fs::read_to_string(bundle.join(file)).unwrap();
    let metrics: Value = serde_json::from_str(&text("metrics.json")).unwrap();
    for part in ["home", "refined"] {
        assert_eq!(
            metrics[part]["figures"]["roc_auc"]["value"],
            summary["metrics"][part]["roc_auc"]
        );
    }
    let card = text("card.md");
    for told in [
        "| sex = female |",
        "| sex = male |",
        "never left the private site",
        "by the model's loss: ROC-AUC 0.",
    ] {
        assert!(card.contains(told), "{told}: {card}");
    }
    assert!(card.contains(&format!("k = {} people", summary["risk"]["k"])), "{card}");
    let schema: Value = serde_json::from_str(&text("schema.json")).unwrap();
    let features: Vec<&Value> = schema["features"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| &it["name"])
        .collect();
    assert_eq!(features, ["age", "lactate", "pressure", "unit"]);

    let risk = &summary["risk"];
    assert_eq!(keys(risk), ["k", "l", "raw_unique", "rows", "suppressed"]);
    assert!(risk["k"].as_u64().unwrap() >= 5);
    assert!(risk["l"].is_null() || risk["l"].as_u64().unwrap() >= 1);
    assert!(risk["suppressed"].as_u64().unwrap() <= risk["rows"].as_u64().unwrap() / 10);
    assert_eq!(summary["reused"], serde_json::json!([]));
    assert_eq!(summary["deployed"], serde_json::json!(["hospital", "ward"]));
    assert!(summary["cost"].as_str().unwrap().contains(" USD"));
    assert!(summary["ledger"]["size"].as_u64().unwrap() > 20);
    assert!(is_digest(&summary["ledger"]["root"], ""));

    // Code and both inputs to the cloud, the model back, the bundle to the ward; nothing else.
    let crossings = summary["crossings"].as_array().unwrap();
    let mut ways: Vec<String> = crossings
        .iter()
        .map(|crossing| {
            assert_eq!(keys(crossing), ["artifact", "bytes", "from", "permit", "to"]);
            assert!(crossing["permit"].as_str().unwrap().starts_with("p-"));
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

    // Progress told the same: every task ended, everything that crossed was permitted before.
    let events = |name: &str| -> Vec<&Value> { told.iter().filter(|line| line["event"] == name).collect() };
    assert_eq!(events("started").len(), 1);
    assert_eq!(events("started")[0]["run"], summary["run"]);
    assert_eq!(events("started")[0]["tasks"], 7);
    assert_eq!(events("task_started").len(), 7);
    assert_eq!(events("task_done").len(), 7);
    assert_eq!(events("prepared")[0]["k"], risk["k"]);
    assert_eq!(events("attempt_started")[0]["site"], "cloud");
    assert_eq!(events("crossed").len(), 5);
    assert_eq!(events("permitted").len(), 4);
    assert_eq!(events("error").len(), 0);

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
