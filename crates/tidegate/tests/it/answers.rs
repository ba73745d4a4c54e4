//! What commands answer, to people and to machines.

use serde_json::Value;

use crate::fixture::{Hospital, told};

/// A command that must succeed and answer with one JSON value.
fn json(hospital: &Hospital, arguments: &[&str]) -> Value {
    let mut words = arguments.to_vec();
    words.extend(["--format", "json"]);
    let answer = hospital.succeed(&words);
    serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{}: {error}: {answer}", arguments.join(" ")))
}

/// A command that must end with exit code 2; gives what it says.
fn mistaken(hospital: &Hospital, arguments: &[&str]) -> String {
    let output = hospital.tidegate(arguments);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{}: {message}", arguments.join(" "));
    message
}

#[test]
fn machines_get_json_from_every_command() {
    let hospital = Hospital::new();
    assert_eq!(json(&hospital, &["status"]), serde_json::json!([]));
    assert_eq!(json(&hospital, &["cost"]), serde_json::json!([]));
    assert_eq!(json(&hospital, &["check"])["rows"], 700);
    let first = json(&hospital, &["init", "--from", "admissions.csv", "--out", "first.yaml"]);
    assert_eq!(first["subject"], "patient_id");
    let sql = json(&hospital, &["plan", "--sql"]);
    assert!(sql["sql"].as_str().unwrap().contains("age_band(age, 10)"));

    let summary = hospital.run();
    let run = summary["run"].as_str().unwrap();
    let digest = summary["model"]["digest"].as_str().unwrap();
    let bundle = std::fs::read(
        hospital
            .state()
            .join("sites/hospital/serve/models/readmission/1/bundle.json"),
    )
    .unwrap();
    assert_eq!(digest, tidegate_seal::digest::sha256(&bundle).to_string());
    assert_eq!(json(&hospital, &["models"])[0]["digest"], digest);
    let logs = json(&hospital, &["logs", run]);
    assert_eq!(logs[0]["attempt"], "train-1");
    assert!(logs[0]["log"].as_str().unwrap().contains("epoch"));
    assert_eq!(
        json(&hospital, &["data", "pull", "train", "--to", "pulled"])["name"],
        "train"
    );
    let predictions = json(&hospital, &["predict", "--site", "hospital", "admissions.csv"]);
    assert_eq!(predictions.as_array().unwrap().len(), 700);
    assert_eq!(predictions[6]["row"], 7);
    assert!(predictions[6]["probability"].as_f64().unwrap() < 1.0);
    let written = json(
        &hospital,
        &["predict", "--site", "hospital", "admissions.csv", "--out", "out.csv"],
    );
    assert_eq!(written["rows"], 700);

    let shown = hospital.succeed(&["audit", "show", "--format", "json"]);
    let entries: Vec<Value> = shown.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(entries.iter().enumerate().all(|(index, entry)| entry["entry"] == index));
    let released = entries
        .iter()
        .find(|entry| entry["event"]["type"] == "dev.tidegate.released")
        .unwrap();
    assert_eq!(released["event"]["data"]["digests"]["manifest"], digest);
    let proof = json(&hospital, &["audit", "proof", "--entry", "1"]);
    assert!(proof["proof"].as_str().unwrap().contains("tlog-proof"));
    assert_eq!(json(&hospital, &["audit", "checkpoint"])["size"], entries.len());
}

#[test]
fn what_happened_is_told_while_the_files_are_wrong() {
    let hospital = Hospital::new();
    let run = hospital.run()["run"].as_str().unwrap().to_owned();
    let checkpoint = hospital.succeed(&["audit", "checkpoint"]);
    hospital.write("checkpoint.txt", &checkpoint);
    hospital.edit("tidegate.yaml", "purpose:", "porpoise:");
    hospital.write("policy/own.cedar", "forbid (");
    mistaken(&hospital, &["plan"]);
    assert!(hospital.succeed(&["status"]).contains("done"));
    assert!(hospital.succeed(&["logs", &run]).contains("epoch"));
    // Nobody's log but that of the site that keeps it.
    hospital.write(
        &format!(".tidegate/sites/cloud/logs/{run}/train-1.log"),
        "a stranger's words",
    );
    assert!(!hospital.succeed(&["logs", &run]).contains("stranger"));
    assert!(hospital.succeed(&["models"]).contains("version 1"));
    assert!(hospital.succeed(&["cost"]).contains("crossings"));
    assert!(hospital.succeed(&["audit", "show"]).contains("run-ended"));
    assert!(hospital.succeed(&["audit", "keys"]).contains("tidegate.dev/st-mary"));
    let verified = hospital.succeed(&["audit", "verify", "--since", "checkpoint.txt"]);
    assert!(
        verified.contains("tidegate.dev/st-mary/hospital") && verified.contains("continues"),
        "{verified}"
    );

    assert!(mistaken(&hospital, &["audit", "verify", "--since", "admissions.csv"]).contains("audit checkpoint"));
    assert!(mistaken(&hospital, &["audit", "show", "--run", "nobody"]).contains("there is no run `nobody`"));
    assert!(mistaken(&hospital, &["status", "nowhere.yaml"]).contains("nowhere.yaml"));
}

#[test]
fn a_model_that_fails_a_gate_is_told_with_its_figures() {
    let hospital = Hospital::new();
    hospital.edit("tidegate.yaml", "roc_auc: \">= 0.55\"", "roc_auc: \">= 0.99\"");
    let output = hospital.tidegate(&["run", "--yes"]);
    assert_eq!(output.status.code(), Some(3));
    let told_people = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told_people.contains("ROC-AUC at home 0."), "{told_people}");
    assert!(told_people.contains("gate roc_auc >= 0.99 FAILED: 0."), "{told_people}");

    // The leak test is a gate like any other, wherever a run ends.
    let summary = hospital.succeed(&["run", "--yes", "--until", "evaluate", "--format", "json"]);
    let summary: Value = serde_json::from_str(&summary).unwrap();
    let gates = summary["gates"].as_array().unwrap();
    let gate = |metric: &str| gates.iter().find(|gate| gate["metric"] == metric).unwrap();
    assert_eq!(gate("roc_auc")["passed"], false);
    assert_eq!(gate("membership_auc")["condition"], "<= 0.70");
    let output = hospital.tidegate(&["run", "--yes", "--format", "json"]);
    let events = told(&output.stderr);
    assert!(
        events
            .iter()
            .any(|event| event["event"] == "judged" && event["gates"][0]["value"].is_f64())
    );
}

#[test]
fn a_gate_that_nobody_wrote_says_where_it_comes_from() {
    let hospital = Hospital::new();
    // Outcomes that nothing foretells, and a model that learned them by heart.
    let rows = crate::fixture::rows(0);
    let (header, people) = rows.split_once('\n').unwrap();
    let people = people.lines().zip(1_u64..).map(|(line, person)| {
        let (line, _) = line.rsplit_once(',').unwrap();
        format!("{line},{}\n", ((person * 2_654_435_761) >> 13) & 1)
    });
    hospital.write("admissions.csv", &format!("{header}\n{}", people.collect::<String>()));
    hospital.edit(
        "tidegate.yaml",
        "  trainer: {model: logistic, epochs: 12, batch_size: 32, seed: 1}",
        "  trainer: {model: mlp, hidden: [128], epochs: 600, batch_size: 16, learning_rate: 0.005, seed: 1}",
    );
    hospital.edit(
        "tidegate.yaml",
        "roc_auc: \">= 0.55\", membership_auc: \"<= 0.70\"",
        "roc_auc: \">= 0.01\"",
    );
    hospital.edit("tidegate.yaml", "refine: {calibrate: platt}\n", "");
    let (rule, message) = hospital.refused();
    assert_eq!(rule, "gate-failed");
    assert!(
        message.contains("`membership_auc` is 0.") && message.contains("wherever a pipeline does not write its own"),
        "{message}"
    );
}

#[test]
fn mistakes_in_a_query_or_a_source_are_the_users_and_have_a_place() {
    let hospital = Hospital::new();
    let query = |sql: &str| {
        hospital.write("train.sql", sql);
        mistaken(&hospital, &["plan"])
    };
    hospital.edit("tidegate.yaml", "  drop: [zip, sex]\n", "  sql_file: train.sql\n");
    let message = query("SELECT age_band(age, 10) AS age,\n  lactat, readmitted\nFROM admissions");
    assert!(
        message.contains("`train.sql`: line 2, column 3: there is no column `lactat`; there are "),
        "{message}"
    );
    assert!(!message.contains("keeper"), "{message}");
    assert!(query("SELECT readmitted,, FROM admissions").contains("line 1, column 19"));
    assert!(query("SELECT lactate FROM admissions").contains("`readmitted`"));
    hospital.write("train.sql", "SELECT lactate, readmitted FROM patients");
    assert_eq!(hospital.refuses(&["plan"]).0, "unknown-table");
    assert_eq!(hospital.refuses(&["check"]).0, "unknown-table");
}

#[test]
fn check_finds_what_a_run_would_find_after_it_was_paid_for() {
    let hospital = Hospital::new();
    let text = std::fs::read_to_string(hospital.path("admissions.csv")).unwrap();
    assert!(hospital.succeed(&["check"]).contains("the query gives 700 rows"));

    hospital.edit(
        "catalog.yaml",
        "      notes:",
        "      lactate: {role: attribute, type: number}\n      notes:",
    );
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let fields: Vec<&str> = lines[411].split(',').collect();
    let wrong = lines[411].replace(&format!(",{},", fields[5]), ",high,");
    lines[411] = wrong;
    hospital.write("admissions.csv", &lines.join("\n"));
    let message = mistaken(&hospital, &["check"]);
    assert!(
        message.contains("admissions.csv:412: ") && message.contains("`lactate`"),
        "{message}"
    );
    hospital.succeed(&["check", "--no-keeper"]);

    let one_outcome: Vec<String> = text
        .lines()
        .map(|line| {
            line.strip_suffix(",1")
                .map_or_else(|| line.to_owned(), |line| format!("{line},0"))
        })
        .collect();
    hospital.write("admissions.csv", &one_outcome.join("\n"));
    assert!(mistaken(&hospital, &["check"]).contains("the same outcome"));
    assert!(mistaken(&hospital, &["run", "--yes"]).contains("the same outcome"));

    std::fs::remove_file(hospital.path("admissions.csv")).unwrap();
    assert!(mistaken(&hospital, &["check"]).contains("admissions.csv"));
}

#[test]
fn a_doubtful_role_is_told_before_anything_leaves() {
    let hospital = Hospital::new();
    hospital.edit(
        "catalog.yaml",
        "zip: {role: quasi_identifier, kind: zip_code}",
        "zip: {role: attribute}",
    );
    hospital.edit("tidegate.yaml", "drop: [zip, sex]", "drop: [sex]");
    let plan = hospital.succeed(&["plan"]);
    assert!(
        plan.contains(
            "\nWarnings\n  `zip` leaves as it is: the catalog says attribute, its name says quasi_identifier"
        ),
        "{plan}"
    );
    assert!(hospital.succeed(&["check"]).contains("`zip` leaves as it is"));
    let scanned = hospital.succeed(&["scan"]);
    let line = |column: &str| {
        scanned
            .lines()
            .find(|line| line.trim_start().starts_with(column))
            .unwrap()
    };
    assert!(
        line("zip ").contains("looks like quasi_identifier of kind zip_code"),
        "{scanned}"
    );
    assert!(
        line("lactate ").contains("number") && !line("lactate ").contains("looks like"),
        "{scanned}"
    );
}

#[test]
fn a_first_catalog_says_how_sure_it_is_of_the_person() {
    let hospital = Hospital::new();
    hospital.write(
        "plain.csv",
        "name,colour,score\nAnn,red,1.5\nBea,blue,2.5\nAnn,red,3.5\n",
    );
    let told = hospital.succeed(&["init", "--from", "plain.csv", "--out", "plain.yaml"]);
    assert!(
        told.contains("Rows with the same `name` count as one person: 3 rows, 2 different values"),
        "{told}"
    );
    let catalog = std::fs::read_to_string(hospital.path("plain.yaml")).unwrap();
    assert!(
        catalog.contains("# `tags`") && catalog.contains("# its name says so"),
        "{catalog}"
    );
    assert!(mistaken(&hospital, &["init", "--from", "none.csv", "--out", "none.yaml"]).contains("none.csv"));
}
