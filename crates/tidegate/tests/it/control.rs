//! Runs that are steered: cancelled, limited by time, money and bytes, stopped early, tried on a sample,
//! kept at home, repeated in part.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use serde_json::{Value, json};
use tidegate_contracts::journal::{Batch, Journal};
use tidegate_local::SqliteJournal;

use crate::fixture::{Hospital, files, nobody_works, processes, told};

const TRAINER: &str = "  trainer: {model: logistic, epochs: 12, batch_size: 32, seed: 1}\n";
/// Minutes of training.
const LONG: &str = "  trainer: {model: mlp, hidden: [1024, 1024], epochs: 400, batch_size: 16, seed: 1}\n";

/// Starts a run and reads its progress up to an event; gives the process and the run's name.
fn start_until(hospital: &Hospital, event: &str) -> (Child, String) {
    let mut child = hospital
        .command(&["run", "--yes", "--format", "json"])
        .env("TIDEGATE_LOG", "off")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap())
        .lines()
        .map_while(Result::ok);
    let mut run = String::new();
    let reached = lines.by_ref().any(|line| {
        let progress: Value = serde_json::from_str(&line).unwrap();
        if progress["event"] == "started" {
            run = progress["run"].as_str().unwrap().to_owned();
        }
        progress["event"] == event
    });
    assert!(reached, "the run never told `{event}`");
    // What it tells later must not fill the pipe.
    std::thread::spawn(move || lines.for_each(drop));
    (child, run)
}

/// Changes an entry of the control plane's journal, as if time had passed.
fn change(hospital: &Hospital, table: &str, key: &str, change: impl FnOnce(&mut Value)) {
    let journal = SqliteJournal::open(hospital.state().join("control/journal.sqlite")).unwrap();
    let mut value: Value = serde_json::from_slice(&journal.get(table, key).unwrap().unwrap()).unwrap();
    change(&mut value);
    let batch = Batch::default().set(table, key, serde_json::to_vec(&value).unwrap());
    journal.commit(&batch).unwrap();
}

/// The runs as `tidegate status` tells them.
fn status(hospital: &Hospital) -> Vec<Value> {
    serde_json::from_str(&hospital.succeed(&["status", "--format", "json"])).unwrap()
}

/// One of the runs.
fn record(hospital: &Hospital, run: &str) -> Value {
    let runs = status(hospital);
    runs.iter().find(|it| it["id"] == run).cloned().unwrap()
}

fn reused(summary: &Value) -> Vec<&str> {
    summary["reused"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect()
}

#[test]
fn a_run_that_is_cancelled_while_it_trains_leaves_nothing_behind() {
    let hospital = Hospital::new();
    hospital.edit("tidegate.yaml", TRAINER, LONG);
    let (mut child, run) = start_until(&hospital, "attempt_started");
    let answer = hospital.succeed(&["cancel", &run]);
    assert!(answer.contains(&run), "{answer}");
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(nobody_works(&hospital));

    let runs = status(&hospital);
    assert_eq!(runs.len(), 1);
    assert_eq!(runs[0]["id"], json!(run));
    assert_eq!(runs[0]["status"], "cancelled");
    assert!(hospital.succeed(&["status"]).contains("cancelled"));
    // No model, nothing half-written, and a ledger that says how it ended.
    assert!(!hospital.state().join("sites/hospital/serve/models").exists());
    assert!(files(&hospital.state().join("sites/cloud/work")).is_empty());
    let told = hospital.succeed(&["audit", "show", "--run", &run]);
    assert!(
        told.contains("status=cancelled") && told.contains("outcome=fenced"),
        "{told}"
    );
    hospital.succeed(&["audit", "verify"]);
    let again = hospital.tidegate(&["cancel", &run]);
    assert_eq!(again.status.code(), Some(2));

    // The same command begins another run, which uses what was finished.
    let (mut child, second) = start_until(&hospital, "attempt_started");
    assert_ne!(second, run);
    hospital.succeed(&["cancel", &second]);
    child.wait().unwrap();
    assert_eq!(record(&hospital, &second)["tasks"]["prepare"]["reused"], true);
    hospital.edit("tidegate.yaml", LONG, TRAINER);
    let summary = hospital.run();
    assert_eq!(summary["model"]["version"], 1);
    assert!(reused(&summary).contains(&"prepare"));
}

#[test]
fn an_interrupted_run_is_cancelled_without_the_process_that_ran_it() {
    let hospital = Hospital::new();
    hospital.edit("tidegate.yaml", TRAINER, LONG);
    let (mut child, run) = start_until(&hospital, "attempt_started");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(status(&hospital)[0]["status"], "running");
    let answer = hospital.succeed(&["cancel", &run]);
    assert!(answer.contains("is cancelled"), "{answer}");
    assert!(nobody_works(&hospital));
    assert_eq!(status(&hospital)[0]["status"], "cancelled");
    assert!(hospital.succeed(&["audit", "show"]).contains("outcome=fenced"));
}

#[test]
fn a_deadline_that_has_passed_stops_a_run_that_goes_on() {
    let hospital = Hospital::new();
    hospital.edit("tidegate.yaml", TRAINER, LONG);
    hospital.write(
        "tidegate.yaml",
        &(std::fs::read_to_string(hospital.path("tidegate.yaml")).unwrap() + "deadline: 2h\n"),
    );
    let (mut child, run) = start_until(&hospital, "attempt_started");
    child.kill().unwrap();
    child.wait().unwrap();
    change(&hospital, "runs", &run, |record| {
        record["started"] = json!(record["started"].as_u64().unwrap() - 3 * 3600);
    });
    let (rule, message) = hospital.refused();
    assert_eq!(rule, "deadline", "{message}");
    assert!(message.contains("must have ended after 7200 s"), "{message}");
    assert!(nobody_works(&hospital));
    let runs = status(&hospital);
    assert_eq!((runs.len(), &runs[0]["status"]), (1, &json!("refused")));
    assert!(hospital.succeed(&["status"]).contains("rule `deadline`"));
}

#[test]
fn a_budget_that_is_spent_stops_a_run_that_goes_on() {
    let hospital = Hospital::new();
    hospital.edit("tidegate.yaml", TRAINER, LONG);
    hospital.write(
        "tidegate.yaml",
        &(std::fs::read_to_string(hospital.path("tidegate.yaml")).unwrap() + "budget: {cost: 3 USD}\n"),
    );
    let (mut child, run) = start_until(&hospital, "attempt_started");
    child.kill().unwrap();
    child.wait().unwrap();
    // The machine ran for a hundred hours while nobody looked.
    change(&hospital, "jobs", &format!("{run}-train-1-0"), |job| {
        job["began"] = json!(job["began"].as_u64().unwrap() - 360_000);
    });
    let (rule, message) = hospital.refused();
    assert_eq!(rule, "budget", "{message}");
    assert!(message.contains("the budget is 3.00 USD"), "{message}");
    assert!(nobody_works(&hospital));
    assert!(
        hospital.succeed(&["cost"]).contains("10.0"),
        "{}",
        hospital.succeed(&["cost"])
    );
}

#[test]
fn more_bytes_than_the_egress_budget_do_not_leave() {
    let hospital = Hospital::new();
    hospital.edit("tidegate.yaml", TRAINER, "  code: [train.sh]\n  run: sh train.sh\n");
    // More than the plan counts for a command's files.
    hospital.write("train.sh", &"# nothing to see here\n".repeat(300_000));
    hospital.write(
        "tidegate.yaml",
        &(std::fs::read_to_string(hospital.path("tidegate.yaml")).unwrap() + "budget: {egress: 5 MiB}\n"),
    );
    hospital.succeed(&["plan"]);
    let (rule, message) = hospital.refused();
    assert_eq!(rule, "egress-budget", "{message}");
    assert!(message.contains("budget: egress:"), "{message}");
    assert!(files(&hospital.state().join("sites/cloud/store")).is_empty());
    // And what the plan can see already is refused by the plan.
    hospital.edit("tidegate.yaml", "egress: 5 MiB", "egress: 1 KiB");
    assert_eq!(hospital.refuses(&["plan"]).0, "egress-budget");
}

#[test]
fn a_sample_is_for_trying_out_and_goes_nowhere() {
    let hospital = Hospital::new();
    let text = hospital.succeed(&["run", "--yes", "--sample", "500", "--format", "json"]);
    let summary: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(summary["status"], "done");
    assert!(summary["risk"]["rows"].as_u64().unwrap() <= 500);
    assert!(summary["metrics"]["refined"]["roc_auc"].as_f64().is_some());
    assert!(summary["model"].is_null());
    assert_eq!(summary["deployed"], json!([]));

    for last in ["release", "deploy"] {
        let (rule, message) = hospital.refuses(&["run", "--yes", "--sample", "500", "--until", last]);
        assert_eq!(rule, "sample", "{message}");
        assert!(message.contains("--sample"), "{message}");
    }
    assert!(!hospital.state().join("sites/hospital/serve/models").exists());
    assert!(files(&hospital.state().join("sites/ward/store/sealed")).is_empty());
    assert_eq!(
        hospital.tidegate(&["run", "--yes", "--sample", "0"]).status.code(),
        Some(2)
    );
    // Nothing of the sample is in what is released afterwards.
    let whole = hospital.run();
    assert_eq!(whole["model"]["version"], 1);
    assert_eq!(whole["reused"], json!([]));
}

#[test]
fn a_run_goes_as_far_as_it_is_told() {
    let hospital = Hospital::new();
    let steps = ["prepare", "train", "evaluate", "refine", "release", "deploy"];
    for (number, step) in steps.iter().enumerate() {
        let text = hospital.succeed(&["run", "--yes", "--until", step, "--format", "json"]);
        let summary: Value = serde_json::from_str(&text).unwrap();
        let tasks: Vec<String> = record(&hospital, summary["run"].as_str().unwrap())["tasks"]
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect();
        let mut expected: Vec<String> = steps[..=number.min(4)].iter().map(|step| (*step).to_owned()).collect();
        if *step == "deploy" {
            expected.extend(["deploy-hospital".to_owned(), "deploy-ward".to_owned()]);
        }
        expected.sort();
        assert_eq!(tasks, expected, "{step}");
        // Every step before was done by the runs before.
        assert_eq!(reused(&summary).len(), number, "{step}: {}", summary["reused"]);
        assert_eq!(summary["model"].is_null(), number < 4, "{step}");
        assert!(summary["risk"]["k"].as_u64().is_some(), "{step}");
    }
    assert_eq!(hospital.tidegate(&["run", "--until", "nowhere"]).status.code(), Some(2));
}

#[test]
fn training_at_home_lets_nothing_leave_for_it() {
    let hospital = Hospital::new();
    hospital.edit("tidegate.yaml", "infra: cloud", "infra: hospital");
    hospital.edit("tidegate.yaml", "deploy: [hospital, ward]", "deploy: [hospital]");
    let summary = hospital.run();
    assert_eq!(summary["status"], "done");
    assert_eq!(summary["model"]["version"], 1);
    assert_eq!(summary["crossings"], json!([]));
    for site in ["cloud", "ward"] {
        assert!(
            files(&hospital.state().join("sites").join(site).join("store")).is_empty(),
            "{site}"
        );
    }
    let ledger = hospital.succeed(&["audit", "show", "--format", "json"]);
    let events: Vec<Value> = ledger.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for event in &events {
        assert_ne!(event["type"], "dev.tidegate.crossed", "{event}");
        let to = event["data"]["names"]["to"].as_str();
        assert!(to.is_none_or(|to| to == "hospital"), "{event}");
        // The only thing that is asked for is the release.
        if event["type"] == "dev.tidegate.permit-requested" {
            assert_eq!(event["data"]["names"]["task"], "release", "{event}");
        }
    }
}

#[test]
fn a_change_redoes_what_depends_on_it_and_nothing_else() {
    let hospital = Hospital::new();
    hospital.run();
    hospital.edit("tidegate.yaml", "roc_auc: \">= 0.55\"", "roc_auc: \">= 0.56\"");
    let output = hospital.tidegate(&["run", "--yes", "--format", "json"]);
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(reused(&summary), ["prepare", "train"]);
    assert_eq!(summary["model"]["version"], 2);
    let bundle: Vec<&Value> = summary["crossings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| &it["artifact"])
        .collect();
    assert_eq!(bundle, ["bundle"]);
    let done: Vec<(String, bool)> = told(&output.stderr)
        .iter()
        .filter(|line| line["event"] == "task_done")
        .map(|line| {
            (
                line["task"].as_str().unwrap().to_owned(),
                line["reused"].as_bool().unwrap(),
            )
        })
        .collect();
    assert!(
        done.contains(&("train".to_owned(), true)) && done.contains(&("evaluate".to_owned(), false)),
        "{done:?}"
    );
    // People are told too.
    hospital.edit("tidegate.yaml", "roc_auc: \">= 0.56\"", "roc_auc: \">= 0.57\"");
    let output = hospital.tidegate(&["run", "--yes"]);
    let lines = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(lines.contains("= train: unchanged, reused"), "{lines}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("Unchanged and reused: prepare, train."), "{text}");

    // Another query prepares and trains anew.
    hospital.edit("tidegate.yaml", "  drop: [zip, sex]\n", "  sql_file: features.sql\n");
    hospital.write("features.sql", "select lactate, pressure, readmitted from admissions\n");
    assert_eq!(hospital.run()["reused"], json!([]));
}

#[test]
fn what_was_prepared_is_pulled_as_files_on_the_private_site() {
    let hospital = Hospital::new();
    let early = hospital.tidegate(&["data", "pull", "train", "--to", "pulled"]);
    assert_eq!(early.status.code(), Some(2));
    hospital.succeed(&["run", "--yes", "--until", "prepare"]);
    hospital.succeed(&["data", "pull", "train", "--to", "pulled"]);
    let csv = std::fs::read_to_string(hospital.path("pulled/part-00000.csv")).unwrap();
    let header = csv.lines().next().unwrap();
    assert!(header.contains("readmitted") && !header.contains("name"), "{header}");
    assert!(!csv.contains("MRN") && !csv.contains("Invented"));
    // A folder that is there is not overwritten, and what is not there is named.
    assert_eq!(
        hospital
            .tidegate(&["data", "pull", "train", "--to", "pulled"])
            .status
            .code(),
        Some(2)
    );
    let other = hospital.tidegate(&["data", "pull", "test", "--to", "other"]);
    assert_eq!(other.status.code(), Some(2));
    assert!(
        String::from_utf8_lossy(&other.stderr).contains("train, validation"),
        "{other:?}"
    );
    assert!(!hospital.path("other").exists());
    assert!(processes(&hospital, "keeper").is_empty());
}
