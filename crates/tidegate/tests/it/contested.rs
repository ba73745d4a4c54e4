//! A ticket in two hands.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::Value;

use crate::fixture::{Hospital, processes};

/// The ticket of the worker with this process id: what its driver gave it on standard input. A driver's
/// operator can see it too.
fn ticket(pid: u32) -> Option<Vec<u8>> {
    let ticket = std::fs::read(format!("/proc/{pid}/fd/0")).ok()?;
    (!ticket.is_empty()).then_some(ticket)
}

#[test]
fn a_second_worker_with_the_same_ticket_burns_the_attempt() {
    let hospital = Hospital::new();
    hospital.edit(
        "tidegate.yaml",
        "  trainer: {model: logistic, epochs: 12, batch_size: 32, seed: 1}\n",
        "  code: [train.sh]\n  run: sh train.sh\n",
    );
    hospital.write("train.sh", "sleep 600\n");
    let mut child = hospital
        .command(&["run", "--yes", "--format", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap())
        .lines()
        .map_while(Result::ok);
    let begun = |line: String| {
        let event: Option<Value> = serde_json::from_str(&line).ok();
        event.is_some_and(|event| event["event"] == "attempt_started")
    };
    assert!(lines.any(begun));
    let ticket = loop {
        if let Some(ticket) = processes(&hospital, "worker").into_iter().find_map(ticket) {
            break ticket;
        }
        assert!(child.try_wait().unwrap().is_none(), "the run goes on");
        std::thread::yield_now();
    };
    hospital.write("ticket.json", std::str::from_utf8(&ticket).unwrap());
    // The first has said hello, so that both know which of them is the second.
    let hello = hospital.state().join("sites/cloud/store/mailbox");
    while !crate::fixture::files(&hello)
        .iter()
        .any(|file| file.ends_with("out/000001.json"))
    {
        std::thread::yield_now();
    }
    let second = hospital
        .command_of(&crate::fixture::worker_program(), &["worker", "--work", "second"])
        .stdin(std::fs::File::open(hospital.path("ticket.json")).unwrap())
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1), "{message}");
    assert!(message.contains("already used this ticket"), "{message}");

    let told: Vec<String> = lines.collect();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{told:?}");
    let error: Value = serde_json::from_str(told.last().unwrap()).unwrap();
    assert_eq!(error["rule"], "second-hello", "{error}");
    // The first worker and its command are gone, and the ledger tells why.
    assert_eq!(processes(&hospital, "worker"), Vec::<u32>::new());
    let shown = hospital.succeed(&["audit", "show", "--format", "json"]);
    assert!(shown.contains("second-hello"), "{shown}");
    hospital.succeed(&["audit", "verify"]);
}
