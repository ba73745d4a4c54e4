//! What the program says, to people and to machines.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::{Value, json};

use crate::fixture::{Hospital, told};

/// The names of the commands that a help text lists.
fn commands(help: &str) -> Vec<String> {
    help.lines()
        .skip_while(|line| !line.starts_with("Commands:"))
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

fn helps(hospital: &Hospital, path: &[String], seen: &mut usize) {
    let mut words: Vec<&str> = path.iter().map(String::as_str).collect();
    words.push("--help");
    let help = hospital.succeed(&words);
    let example = help.split("Example").nth(1);
    let named = format!("tidegate {}", path.join(" "));
    assert!(
        example.is_some_and(|text| text.contains(named.trim())),
        "{}: {help}",
        path.join(" ")
    );
    *seen += 1;
    for name in commands(&help) {
        helps(hospital, &[path, &[name]].concat(), seen);
    }
}

#[test]
fn every_command_has_an_example_in_its_help() {
    let mut seen = 0;
    helps(&Hospital::new(), &[], &mut seen);
    assert!(seen > 18, "only {seen} commands were found");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let hospital = Hospital::new();
    hospital.run();
    for arguments in [
        &["audit", "show"][..],
        &["audit", "show", "--format", "json"],
        &["status", "--format", "json"],
        &["plan"],
        &["plan", "--sql"],
        &["audit", "verify"],
        &["--help"],
    ] {
        let mut child = hospital
            .command(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Nobody reads even the first line.
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {}: {message}", output.status);
        assert_eq!(message, "", "{arguments:?}");
    }
}

#[test]
fn a_run_whose_progress_nobody_reads_ends_all_the_same() {
    let hospital = Hospital::new();
    let mut child = hospital
        .command(&["run", "--yes"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    lines.next().unwrap().unwrap();
    drop(lines);
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
    assert!(hospital.succeed(&["models"]).contains("readmission version 1"));
}

#[test]
fn an_error_is_one_object_for_machines() {
    let hospital = Hospital::new();
    // A wrong command line.
    let output = hospital.tidegate(&["run", "--no-such-flag", "--format", "json"]);
    assert_eq!(output.status.code(), Some(2));
    let error = told(&output.stderr).pop().unwrap();
    assert_eq!((&error["event"], &error["exit_code"]), (&json!("error"), &json!(2)));
    assert!(error["error"].as_str().unwrap().contains("--no-such-flag"), "{error}");
    // A wrong file: every place.
    hospital.edit(
        "tidegate.yaml",
        "refine: {calibrate: platt}",
        "refin: {calibrate: platt}",
    );
    let output = hospital.tidegate(&["check", "--format", "json"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    let error = told(&output.stderr).pop().unwrap();
    assert_eq!(error["places"][0]["file"], "tidegate.yaml", "{error}");
    assert_eq!(error["places"][0]["line"], 16, "{error}");
    assert!(
        error["places"][0]["message"].as_str().unwrap().contains("refin"),
        "{error}"
    );
    // Something that went wrong.
    hospital.edit(
        "tidegate.yaml",
        "refin: {calibrate: platt}",
        "refine: {calibrate: platt}",
    );
    std::fs::remove_file(hospital.path("admissions.csv")).unwrap();
    let output = hospital.tidegate(&["run", "--yes", "--format", "json"]);
    assert!(matches!(output.status.code(), Some(1 | 2)));
    assert!(output.stdout.is_empty());
    let errors = told(&output.stderr);
    let errors: Vec<&Value> = errors.iter().filter(|line| line["event"] == "error").collect();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert_eq!(errors[0]["status"], "failed");
}

#[test]
fn text_for_people_has_no_control_characters_where_nobody_sees_them() {
    let hospital = Hospital::new();
    let output = hospital.tidegate(&["run", "--yes"]);
    assert!(output.status.success());
    for bytes in [&output.stdout, &output.stderr] {
        let text = String::from_utf8_lossy(bytes);
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
    }
    let lines = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        lines.contains("rows prepared") && lines.contains("bytes sealed, hospital to cloud"),
        "{lines}"
    );
}

#[test]
fn the_journals_are_told_to_people_and_to_machines() {
    let hospital = Hospital::new();
    for command in ["status", "models", "cost"] {
        let empty: Value = serde_json::from_str(&hospital.succeed(&[command, "--format", "json"])).unwrap();
        assert_eq!(empty, json!([]), "{command}");
    }
    assert!(hospital.succeed(&["models"]).contains("No model"));
    let summary = hospital.run();
    let run = summary["run"].as_str().unwrap();
    let json = |arguments: &[&str]| -> Value {
        let mut words = arguments.to_vec();
        words.extend(["--format", "json"]);
        serde_json::from_str(&hospital.succeed(&words)).unwrap()
    };

    let status = json(&["status"]);
    assert_eq!(status[0]["id"], run);
    assert_eq!(status[0]["status"], "done");
    assert_eq!(status[0]["tasks"].as_object().unwrap().len(), 7);
    assert_eq!(status[0]["summary"]["model"], summary["model"]);
    let text = hospital.succeed(&["status"]);
    assert!(
        text.contains(run) && text.contains("done") && text.contains("deploy-ward"),
        "{text}"
    );

    let models = json(&["models"]);
    assert_eq!(models[0]["name"], "readmission");
    assert_eq!(models[0]["digest"], summary["model"]["digest"]);
    assert_eq!(models[0]["sites"], json!(["hospital", "ward"]));
    let text = hospital.succeed(&["models"]);
    assert!(
        text.contains("readmission version 1") && text.contains("hospital, ward"),
        "{text}"
    );

    let cost = json(&["cost"]);
    assert_eq!(cost[0]["run"], run);
    assert_eq!(cost[0]["cost"], summary["cost"]);
    assert_eq!(cost[0]["crossings"].as_array().unwrap().len(), 5);
    let crossed: u64 = summary["crossings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["bytes"].as_u64().unwrap())
        .sum();
    assert_eq!(cost[0]["bytes"], crossed);
    assert!(
        hospital
            .succeed(&["cost"])
            .contains(&format!("5 crossings {crossed:>12} bytes"))
    );

    assert!(hospital.succeed(&["logs", run]).contains("epoch"));
    let unknown = hospital.tidegate(&["logs", "readmission-nowhere"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains(run));
}

#[test]
fn auditors_verify_with_public_keys_alone() {
    let hospital = Hospital::new();
    hospital.run();
    let keys = hospital.succeed(&["audit", "keys"]);
    let lines: Vec<&str> = keys.lines().collect();
    assert_eq!(lines.len(), 2, "{keys}");
    assert!(lines[0].starts_with("tidegate.dev/st-mary+"), "{keys}");
    assert!(lines[1].starts_with("tidegate.dev/st-mary/hospital+"), "{keys}");
    let told: Value = serde_json::from_str(&hospital.succeed(&["audit", "keys", "--format", "json"])).unwrap();
    assert_eq!(told, json!({"log": lines[0], "cosigners": [lines[1]]}));

    // Without any secret of the control plane.
    hospital.write("keys.txt", &keys);
    std::fs::remove_file(hospital.state().join("control/control.key")).unwrap();
    hospital.succeed(&["audit", "verify"]);
    std::fs::remove_file(hospital.state().join("control/control.pub")).unwrap();
    let report = hospital.succeed(&["audit", "verify", "--keys", "keys.txt"]);
    assert!(
        report.contains("Signed by tidegate.dev/st-mary and tidegate.dev/st-mary/hospital"),
        "{report}"
    );
    assert!(!hospital.state().join("control/control.key").exists());

    // The folder does not choose whose log it is: under its keeper's name it is not the auditor's log.
    let checkpoint = hospital.state().join("control/ledger/checkpoint");
    let genuine = std::fs::read_to_string(&checkpoint).unwrap();
    let renamed = genuine.replacen("tidegate.dev/st-mary\n", "tidegate.dev/st-mary/hospital\n", 1);
    std::fs::write(&checkpoint, renamed).unwrap();
    hospital.write("keys.txt", &format!("{}\n{}\n", lines[1], lines[0]));
    assert_eq!(
        hospital.refuses(&["audit", "verify", "--keys", "keys.txt"]).0,
        "ledger-tampered"
    );
    std::fs::write(&checkpoint, genuine).unwrap();
    hospital.succeed(&["audit", "verify", "--keys", "keys.txt"]);

    // With the keys of another organisation's log nothing verifies.
    let other = Hospital::new();
    other.run();
    hospital.write("keys.txt", &other.succeed(&["audit", "keys"]));
    assert_eq!(
        hospital.refuses(&["audit", "verify", "--keys", "keys.txt"]).0,
        "ledger-tampered"
    );
    hospital.write("keys.txt", "no key\n");
    assert_eq!(
        hospital
            .tidegate(&["audit", "verify", "--keys", "keys.txt"])
            .status
            .code(),
        Some(2)
    );
}

#[test]
fn a_wrong_environment_is_said() {
    let hospital = Hospital::new();
    let output = hospital
        .command(&["check"])
        .env("TIDEGATE_LOG", "a=b=c")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("TIDEGATE_LOG"));
    // The state goes where it is told to.
    let elsewhere = tempfile::tempdir().unwrap();
    let output = hospital
        .command(&["run", "--yes", "--until", "prepare"])
        .env("TIDEGATE_HOME", elsewhere.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(elsewhere.path().join("control/journal.sqlite").exists());
    assert!(!hospital.state().exists());
}
