//! Machines that prove who they are before their worker is given anything: those of EC2 (moto with what it leaves out) that
//! have an instance profile.

use serde_json::{Value, json};
use tidegate_cloud::Ec2Settings;
use tidegate_contracts::journal::Journal;
use tidegate_local::SqliteJournal;

use crate::clouds::ADMIN;
use crate::fixture::Hospital;
use crate::machines::{hospital_with, trained};
use crate::peers::{Machines, Peer, ec2, open_seaweed};

/// What the control plane may do where machines have a profile.
pub(crate) fn rights() -> String {
    let statements = [Ec2Settings::needed_grant(), Ec2Settings::profile_grant()].map(|text| {
        let policy: Value = serde_json::from_str(text).unwrap();
        policy["Statement"].as_array().unwrap().clone()
    });
    json!({"Version": "2012-10-17", "Statement": statements.concat()}).to_string()
}

/// A hospital whose cloud starts machines with a profile.
pub(crate) fn hospital(store: &Peer, machines: &Machines) -> Hospital {
    let hospital = hospital_with(store, machines);
    let kind = "type: m7i.large";
    hospital.edit("sites.yaml", kind, &format!("{kind}, profile: machines"));
    hospital
}

/// The exit code, and what was said.
fn tidegate(hospital: &Hospital, arguments: &[&str]) -> (Option<i32>, String) {
    let output = hospital.command(arguments).envs(ADMIN).output().unwrap();
    let told = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&told).into_owned())
}

/// Attempts as the keeper has recorded them.
fn attempts(hospital: &Hospital) -> Vec<Value> {
    let journal = SqliteJournal::open(hospital.state().join("sites/hospital/journal.sqlite")).unwrap();
    let records = journal.scan("attempts", "").unwrap().into_iter();
    records
        .map(|(_, bytes)| serde_json::from_slice(&bytes).unwrap())
        .collect()
}

#[test]
fn a_worker_of_ec2_is_given_something_on_the_machine_that_was_started_for_it_and_nowhere_else() {
    let (Some(store), Some(machines)) = (open_seaweed(), ec2(&rights())) else {
        return;
    };
    let home = hospital(&store, &machines);
    let (code, checked) = tidegate(&home, &["check"]);
    assert_eq!(code, Some(0), "{checked}");
    let (code, told) = tidegate(&home, &["run", "--yes"]);
    assert_eq!(code, Some(0), "{told}");
    let there = trained(&machines);
    let id = there[0]["id"].as_str().unwrap();
    let known = attempts(&home)[0]["machine"].as_str().unwrap().to_owned();
    assert_eq!(known, format!("123456789012/workers/{id}"));
    // Whoever audits it finds the machine beside what it was given.
    let (code, events) = tidegate(&home, &["audit", "show", "--format", "json"]);
    assert_eq!(code, Some(0), "{events}");
    assert!(events.contains(&known), "{events}");

    // A worker that has the ticket, and the credentials of another machine.
    machines.tell("impostor");
    home.edit("tidegate.yaml", "seed: 1", "seed: 2");
    let (code, told) = tidegate(&home, &["run", "--yes"]);
    assert_eq!(code, Some(3), "{told}");
    assert!(told.contains("hello-other-machine"), "{told}");
    assert!(
        told.contains("is on 123456789012/workers/i-0123456789abcdef0"),
        "{told}"
    );
}

#[test]
fn what_keeps_machines_from_being_known_is_told_before_any_is_started() {
    let (Some(store), Some(machines)) = (open_seaweed(), ec2(Ec2Settings::needed_grant())) else {
        return;
    };
    let home = hospital(&store, &machines);
    let (code, told) = tidegate(&home, &["check"]);
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("do not allow `iam:GetInstanceProfile`"), "{told}");
    assert!(told.contains("\"iam:PassRole\""), "the grant that would help: {told}");
    assert!(trained(&machines).is_empty());
}
