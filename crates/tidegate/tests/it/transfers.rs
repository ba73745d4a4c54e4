//! What the private site sends, as a person there sees it and holds it back.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::fixture::Hospital;

#[test]
fn a_paused_run_waits_and_goes_on() {
    let hospital = Hospital::new();
    let list =
        || -> Value { serde_json::from_str(&hospital.succeed(&["transfers", "list", "--format", "json"])).unwrap() };
    assert_eq!(list(), serde_json::json!({"paused": null, "transfers": []}));
    let output = hospital.tidegate(&["transfers", "pause"]);
    assert_eq!(output.status.code(), Some(2), "nothing ran there yet");
    hospital.succeed(&["plan"]);
    hospital.succeed(&["transfers", "pause"]);
    assert!(
        hospital
            .succeed(&["transfers", "list"])
            .starts_with("All transfers are paused since 2")
    );

    let mut run = hospital
        .command(&["run", "--yes", "--format", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut events = BufReader::new(run.stderr.take().unwrap())
        .lines()
        .map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    let waits = events.by_ref().find(|event| event["event"] == "sending").unwrap();
    assert_eq!(waits["held"], serde_json::json!({"held": "paused"}), "{waits}");
    assert_eq!(
        (waits["artifact"].as_str(), waits["stored"].as_u64()),
        (Some("code"), Some(0))
    );
    let states = |list: &Value| -> Vec<String> {
        let all = list["transfers"].as_array().unwrap().iter();
        all.map(|transfer| transfer["state"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(states(&list()), ["held", "held", "held"]);
    let sealed = hospital.state().join("sites/cloud/store/sealed");
    assert!(!sealed.exists() || std::fs::read_dir(&sealed).unwrap().next().is_none());
    let text = hospital.succeed(&["transfers", "list"]);
    assert!(text.contains("admissions/train to cloud\n  held at 0 B of "), "{text}");
    assert!(
        text.contains("it may, as `internal@US` for quality-of-care, k = "),
        "{text}"
    );

    hospital.succeed(&["transfers", "resume"]);
    let crossed = events.filter(|event| event["event"] == "crossed").count();
    let output = run.wait_with_output().unwrap();
    assert!(output.status.success());
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(crossed, summary["crossings"].as_array().unwrap().len());
    let list = list();
    assert!(states(&list).iter().all(|state| state == "sent"), "{list}");
    let sent: u64 = list["transfers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["sealed"].as_u64().unwrap())
        .sum();
    let crossings = summary["crossings"].as_array().unwrap().iter();
    let left = crossings
        .filter(|one| one["from"] == "hospital")
        .map(|one| one["bytes"].as_u64().unwrap());
    assert_eq!(sent, left.sum::<u64>(), "the keeper and the egress account agree");
    let permit = list["transfers"][0]["permit"].as_str().unwrap();
    assert_eq!(
        hospital.refuses(&["transfers", "pause", "--permit", permit]).0,
        "transfer-sent"
    );
}

/// Hours that began an hour ago and end in two.
fn open_now() -> String {
    let minutes = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() / 60;
    let time = |minutes: u64| format!("{:02}:{:02}", minutes / 60 % 24, minutes % 60);
    format!("{}-{}", time(minutes - 60), time(minutes + 120))
}

#[test]
fn a_run_goes_on_when_it_was_changed_how_fast_and_when_it_may_send() {
    let hospital = Hospital::new();
    hospital.succeed(&["plan"]);
    hospital.succeed(&["transfers", "pause"]);
    let mut run = hospital
        .command(&["run", "--yes", "--format", "json"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let waits = BufReader::new(run.stderr.take().unwrap())
        .lines()
        .any(|line| line.unwrap().contains("\"event\":\"sending\""));
    assert!(waits);
    run.kill().unwrap();
    run.wait().unwrap();
    let rule = format!("    transfer: {{window: \"{}\"}}\n  ward:", open_now());
    hospital.edit("sites.yaml", "  ward:", &rule);
    hospital.succeed(&["transfers", "resume"]);
    let output = hospital.tidegate(&["run", "--yes", "--format", "json"]);
    let events = crate::fixture::told(&output.stderr);
    assert!(output.status.success(), "{events:?}");
    assert_eq!(
        (&events[0]["event"], &events[0]["resumed"]),
        (&"started".into(), &true.into()),
        "{events:?}"
    );
}

#[test]
fn what_nobody_needs_is_found_and_removed_only_when_that_is_wanted() {
    let hospital = Hospital::new();
    hospital.run();
    let sweep = |words: &[&str]| -> Value {
        let arguments = [&["transfers", "sweep", "--format", "json"], words].concat();
        serde_json::from_str(&hospital.succeed(&arguments)).unwrap()
    };
    let stored = || {
        let sealed = std::fs::read_dir(hospital.state().join("sites/cloud/store/sealed")).unwrap();
        sealed.count()
    };
    let before = stored();
    let found = sweep(&[]);
    let needless = found["sweep"]["needless"].as_array().unwrap();
    // The model's list, index and shard; what was sent under permits that are still good may be needed.
    assert_eq!(needless.len(), 3, "{found}");
    for object in needless {
        assert_eq!(
            (&object["site"], &object["why"]),
            (&"cloud".into(), &"attempt_ended".into()),
            "{found}"
        );
    }
    assert_eq!((found["removed"].as_bool(), stored()), (Some(false), before));
    let text = hospital.succeed(&["transfers", "sweep"]);
    assert!(
        text.starts_with("cloud: 3 objects, ") && text.ends_with("Nothing was removed; `--yes` does.\n"),
        "{text}"
    );
    assert!(
        hospital
            .succeed(&["transfers", "sweep", "--yes"])
            .ends_with("Removed.\n")
    );
    assert_eq!(stored(), before - 2);
    assert_eq!(sweep(&["--yes"])["sweep"]["needless"], serde_json::json!([]));
    assert_eq!(hospital.run()["status"], "done");
    hospital.succeed(&["audit", "verify"]);
}

#[test]
fn a_transfer_rule_that_cannot_hold_is_told_at_its_place() {
    let hospital = Hospital::new();
    for (rule, message) in [
        (
            "{bandwidth: 20 MiB/s}",
            "sites.yaml:17:16: a folder is no store in a network",
        ),
        ("{window: \"22-6\"}", "`22-6` is not hours of a day (UTC)"),
        ("{windows: \"22:00-06:00\"}", "did you mean `window`?"),
    ] {
        let before = std::fs::read_to_string(hospital.path("sites.yaml")).unwrap();
        let line = format!("    transfer: {rule}\n  ward:");
        hospital.edit("sites.yaml", "  ward:", &line);
        let output = hospital.tidegate(&["check"]);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.contains(message), "{told}");
        hospital.write("sites.yaml", &before);
    }
}
