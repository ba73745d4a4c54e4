//! A run that is cancelled stops, whatever it waits for.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::fixture::Hospital;

/// Stops a process where it stands: it neither goes on nor ends.
fn freeze(child: &Child) {
    let status = Command::new("kill")
        .args(["-STOP", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn a_cancel_is_noticed_while_the_keeper_is_at_work() {
    let hospital = Hospital::new();
    for task in ["prepare", "evaluate"] {
        let mut keeper = hospital
            .command(&["keeper", "--site", "hospital"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut run = hospital
            .command(&["run", "--yes", "--no-keeper", "--format", "json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(run.stderr.take().unwrap()).lines();
        let mut name = String::new();
        for line in &mut lines {
            let event: Value = serde_json::from_str(&line.unwrap()).unwrap();
            if event["event"] == "started" {
                name = event["run"].as_str().unwrap().to_owned();
            }
            if event["event"] == "task_started" && event["task"] == task {
                break;
            }
        }
        // A keeper that takes forever.
        freeze(&keeper);
        hospital.succeed(&["cancel", &name]);
        let began = Instant::now();
        let last = std::thread::spawn(move || lines.last().unwrap().unwrap());
        let output = run.wait_with_output().unwrap();
        let error: Value = serde_json::from_str(&last.join().unwrap()).unwrap();
        assert!(began.elapsed() < Duration::from_secs(30), "{task}");
        assert_eq!(error["status"], "cancelled", "{task}: {error}");
        assert!(output.stdout.is_empty(), "{task}");
        keeper.kill().unwrap();
        keeper.wait().unwrap();
    }
    assert_eq!(hospital.run()["status"], "done");
    hospital.succeed(&["audit", "verify"]);
}
