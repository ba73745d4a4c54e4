//! What a rule forbids ends with exit code 3, names the rule, and nothing has moved.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::Value;
use tidegate_contracts::journal::{Batch, Journal};
use tidegate_keeper::keys::SiteKeys;
use tidegate_local::{FileCustody, SqliteJournal};
use tidegate_seal::permit::{open_permit, sign_permit};
use tidegate_types::ids::{RunId, SiteName};
use tidegate_types::label::Level;
use tidegate_types::permit::{Envelope, Permit};
use tidegate_types::to_canonical_json;

use crate::fixture::{Hospital, files, nobody_works};

fn nothing_crossed(hospital: &Hospital) {
    for site in ["cloud", "ward"] {
        let store = hospital.state().join("sites").join(site).join("store");
        assert!(files(&store.join("sealed")).is_empty());
        assert!(files(&store.join("packing")).is_empty());
    }
}

/// Runs a query that a rule must refuse; the paragraph names `column`.
fn refuses_query(sql: &str, expected: &str, column: &str) {
    let hospital = Hospital::new();
    hospital.edit("tidegate.yaml", "  drop: [zip, sex]\n", "  sql_file: features.sql\n");
    hospital.write("features.sql", sql);
    let (rule, message) = hospital.refused();
    assert_eq!(rule, expected, "{sql}: {message}");
    assert!(message.contains(&format!("`admissions.{column}`")), "{sql}: {message}");
    nothing_crossed(&hospital);
}

#[test]
fn a_column_above_the_clearance_reaches_nothing_by_any_way() {
    let above = "label-above-clearance";
    for (sql, rule, column) in [
        // Directly, and through an expression.
        ("select zip, lactate, readmitted from admissions", above, "zip"),
        (
            "select upper(name) as n, lactate, readmitted from admissions",
            above,
            "name",
        ),
        // A filter, a CASE, a group key, a join key.
        (
            "select lactate, readmitted from admissions where name like 'A%'",
            above,
            "name",
        ),
        (
            "select case when name < 'M' then 1 else 0 end as half, readmitted from admissions",
            above,
            "name",
        ),
        (
            "select count(*) as n, max(readmitted) as readmitted from admissions group by zip",
            above,
            "zip",
        ),
        (
            "select a.lactate, a.readmitted from admissions a join admissions b on a.name = b.name",
            above,
            "name",
        ),
    ] {
        refuses_query(sql, rule, column);
    }
}

#[test]
fn a_label_is_not_laundered_through_a_function_that_lowers_others() {
    for (sql, rule, column) in [
        (
            "select age_band(cast(substr(patient_id, 4) as bigint), 10) as a, readmitted from admissions",
            "direct-reference",
            "patient_id",
        ),
        (
            "select zip3(name) as z, readmitted from admissions",
            "function-kind",
            "name",
        ),
        (
            "select age_band(age, 1) as a, readmitted from admissions",
            "parameter-bounds",
            "age",
        ),
        // Two functions over one column say together what neither says alone.
        (
            "select age_band(age, 10) as a, age_band(age, 7) as b, readmitted from admissions",
            "one-function-per-column",
            "age",
        ),
        // A literal, or rows that the query brings along, in the place of what they were chosen by.
        (
            "select case when notes like '%seen%' then 'x' else 'y' end as t, readmitted from admissions",
            "text-selected",
            "notes",
        ),
        (
            "select v.column1 as z, a.readmitted from admissions a join (values ('10001'), ('10102')) as v on a.zip = \
             v.column1",
            "label-above-clearance",
            "zip",
        ),
    ] {
        refuses_query(sql, rule, column);
    }
}

#[test]
fn free_text_does_not_leave() {
    refuses_query("select notes, readmitted from admissions", "text-selected", "notes");
}

#[test]
fn a_purpose_that_the_owner_did_not_write_is_refused() {
    let hospital = Hospital::new();
    hospital.edit("tidegate.yaml", "purpose: quality-of-care", "purpose: marketing");
    let (rule, message) = hospital.refused();
    assert_eq!(rule, "purpose-not-in-catalog", "{message}");
    assert!(
        message.contains("marketing") && message.contains("quality-of-care"),
        "{message}"
    );
    nothing_crossed(&hospital);
}

#[test]
fn data_does_not_leave_its_jurisdiction() {
    let hospital = Hospital::new();
    hospital.edit(
        "sites.yaml",
        "  cloud:\n    kind: public\n    jurisdiction: US",
        "  cloud:\n    kind: public\n    jurisdiction: EU",
    );
    let (rule, message) = hospital.refused();
    assert_eq!(rule, "residency", "{message}");
    assert!(message.contains("`EU`") && message.contains("`cloud`"), "{message}");
    nothing_crossed(&hospital);
}

#[test]
fn what_is_larger_than_the_egress_budget_stays() {
    let hospital = Hospital::new();
    hospital.edit("tidegate.yaml", "deploy:", "budget: {egress: 1 KiB}\ndeploy:");
    let (rule, message) = hospital.refused();
    assert_eq!(rule, "egress-budget", "{message}");
    assert!(message.contains("1 KiB"), "{message}");
    nothing_crossed(&hospital);
}

#[test]
fn a_pipeline_cannot_loosen_the_catalog() {
    let hospital = Hospital::new();
    hospital.edit("tidegate.yaml", "k: 5", "k: 2");
    let (rule, message) = hospital.refused();
    assert_eq!(rule, "k-below-catalog", "{message}");
    nothing_crossed(&hospital);
}

#[test]
fn what_cannot_be_hidden_in_a_crowd_stays() {
    let hospital = Hospital::new();
    hospital.edit(
        "tidegate.yaml",
        "k: 5, on_violation: suppress",
        "k: 200, on_violation: refuse",
    );
    let (rule, message) = hospital.refused();
    assert_eq!(rule, "k-not-reached", "{message}");
    assert!(message.contains("k is 200"), "{message}");
    nothing_crossed(&hospital);
}

#[test]
fn a_model_that_fails_a_gate_stays_at_home() {
    let hospital = Hospital::new();
    hospital.edit("tidegate.yaml", "roc_auc: \">= 0.55\"", "roc_auc: \">= 0.999\"");
    let (rule, message) = hospital.refused();
    assert_eq!(rule, "gate-failed", "{message}");
    assert!(
        message.contains("`roc_auc` is 0.") && message.contains("must be >= 0.999"),
        "{message}"
    );
    let ward = hospital.state().join("sites/ward/store");
    assert!(files(&ward.join("sealed")).is_empty());
    assert!(!hospital.state().join("sites/hospital/serve/models").exists());
    // The keeper vouches for how that run ended, too.
    let verified = hospital.succeed(&["audit", "verify"]);
    assert!(
        verified.contains("st-mary and tidegate.dev/st-mary/hospital"),
        "{verified}"
    );
}

#[test]
fn the_organisations_own_policy_is_asked() {
    let hospital = Hospital::new();
    hospital.write(
        "policy/no-cloud.cedar",
        "@id(\"no-cloud-training\")\n@why(\"the board decided so\")\n@fix(\"train at home\")\nforbid (principal, action, resource) when { principal == Site::\"cloud\" };\n",
    );
    let (rule, message) = hospital.refused();
    assert_eq!(rule, "no-cloud-training", "{message}");
    assert!(
        message.contains("the board decided so") && message.contains("train at home"),
        "{message}"
    );
    nothing_crossed(&hospital);
}

#[test]
fn people_read_the_same_paragraph_that_machines_do() {
    let hospital = Hospital::new();
    hospital.edit("tidegate.yaml", "purpose: quality-of-care", "purpose: marketing");
    let (_, message) = hospital.refused();
    let output = hospital.tidegate(&["run", "--yes"]);
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(String::from_utf8_lossy(&output.stderr).trim(), message);
}

#[test]
fn raw_rows_are_predicted_on_their_home_site_alone() {
    let hospital = Hospital::new();
    hospital.run();
    hospital.write("new.csv", &crate::fixture::rows(5));
    let (rule, message) = hospital.refuses(&["predict", "--site", "ward", "new.csv"]);
    assert_eq!(rule, "raw-rows-stay-home", "{message}");
}

#[test]
fn a_control_plane_that_the_site_does_not_know_is_refused() {
    let hospital = Hospital::new();
    hospital.run();
    std::fs::remove_file(hospital.state().join("control/control.key")).unwrap();
    let (rule, message) = hospital.refused();
    assert_eq!(rule, "control-key", "{message}");
    // Neither when it has lost everything that it knew.
    std::fs::remove_dir_all(hospital.state().join("control")).unwrap();
    let (rule, message) = hospital.refused();
    assert_eq!(rule, "control-key", "{message}");
}

/// Runs until the first permit is signed, and no further. Nothing was sent then.
fn stopped_at_a_permit() -> Hospital {
    loop {
        let hospital = Hospital::new();
        let mut child = hospital
            .command(&["run", "--yes", "--format", "json"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let signed = lines
            .map_while(Result::ok)
            .any(|line| line.contains("\"event\":\"permitted\""));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(signed && nobody_works(&hospital));
        // Where it was faster than its end, another one is tried.
        if files(&hospital.state().join("sites/cloud/store/sealed")).is_empty() {
            return hospital;
        }
    }
}

/// Signs the permits of a site anew, with the key that everybody believes, after `change`.
fn sign_anew(hospital: &Hospital, change: impl Fn(&mut Permit)) {
    let home = hospital.state().join("sites/hospital");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let custody = FileCustody::open(home.join("keys/custody.key"), None).unwrap();
    let site = SiteName::new("hospital").unwrap();
    let keys = runtime.block_on(SiteKeys::open(&home.join("keys/site-keys.json"), &custody, &site));
    let signing = keys.unwrap().signing;
    let journal = SqliteJournal::open(home.join("journal.sqlite")).unwrap();
    let permits = journal.scan("permits", "").unwrap();
    assert!(!permits.is_empty());
    for (id, record) in permits {
        let mut record: Value = serde_json::from_slice(&record).unwrap();
        let envelope: Envelope = serde_json::from_value(record["envelope"].clone()).unwrap();
        let mut opened = open_permit(&envelope, &signing.public()).unwrap();
        change(&mut opened.permit);
        let envelope = sign_permit(&signing, &opened.permit, &opened.artifact, "for people").unwrap();
        record["envelope"] = serde_json::to_value(envelope).unwrap();
        let batch = Batch::default().set("permits", &id, to_canonical_json(&record).unwrap());
        journal.commit(&batch).unwrap();
    }
}

/// Permits that are well signed, and not for this.
#[test]
fn a_permit_for_something_else_or_for_another_time_sends_nothing() {
    type Change = fn(&mut Permit);
    let changes: [(&str, Change); 6] = [
        ("permit-expired", |permit| (permit.not_before, permit.expires) = (1, 2)),
        ("permit-not-yet-valid", |permit| {
            permit.not_before += 1_000_000;
            permit.expires += 1_000_000;
        }),
        ("permit-other-site", |permit| {
            permit.to.site = SiteName::new("ward").unwrap()
        }),
        ("permit-other-site", |permit| {
            permit.to.definition = permit.from.definition
        }),
        ("permit-other-run", |permit| permit.run = RunId::new("another").unwrap()),
        ("permit-other-label", |permit| permit.label.level = Level::Public),
    ];
    for (expected, change) in changes {
        let hospital = stopped_at_a_permit();
        sign_anew(&hospital, change);
        let (rule, message) = hospital.refused();
        assert_eq!(rule, expected, "{message}");
        nothing_crossed(&hospital);
    }
}

/// The permit of one artifact in the place of another's, and one that nobody signed.
#[test]
fn a_permit_for_another_manifest_or_without_a_signature_sends_nothing() {
    for (expected, with) in [("permit-other-artifact", 0), ("permit-signature", 1)] {
        let hospital = stopped_at_a_permit();
        let journal = SqliteJournal::open(hospital.state().join("sites/hospital/journal.sqlite")).unwrap();
        for (id, record) in journal.scan("permits", "").unwrap() {
            let mut record: Value = serde_json::from_slice(&record).unwrap();
            if with == 0 {
                // What is sent is found by this; what was permitted is another.
                let others = journal.scan("artifacts", "").unwrap();
                let own = record["artifact"]
                    .as_str()
                    .unwrap()
                    .trim_start_matches("sha256:")
                    .to_owned();
                let (other, _) = others.iter().find(|(other, _)| !own.ends_with(other.as_str())).unwrap();
                record["artifact"] = Value::String(record["artifact"].as_str().unwrap().replace(&own, other));
            } else {
                let signature = record["envelope"]["signatures"][0]["sig"].as_str().unwrap().to_owned();
                let other = if signature.starts_with('A') { "B" } else { "A" };
                record["envelope"]["signatures"][0]["sig"] = Value::String(format!("{other}{}", &signature[1..]));
            }
            let batch = Batch::default().set("permits", &id, to_canonical_json(&record).unwrap());
            journal.commit(&batch).unwrap();
        }
        drop(journal);
        let (rule, message) = hospital.refused();
        assert_eq!(rule, expected, "{message}");
        nothing_crossed(&hospital);
    }
}
