//! What a rule forbids ends with exit code 3, names the rule, and nothing has moved.

use crate::fixture::{Hospital, files};

fn nothing_crossed(hospital: &Hospital) {
    for site in ["cloud", "ward"] {
        let store = hospital.state().join("sites").join(site).join("store");
        assert!(files(&store.join("sealed")).is_empty());
        assert!(files(&store.join("packing")).is_empty());
    }
}

fn refuses_query(sql: &str) {
    let hospital = Hospital::new();
    hospital.edit("tidegate.yaml", "  drop: [zip, sex]\n", "  sql_file: features.sql\n");
    hospital.write("features.sql", sql);
    let (rule, message) = hospital.refused();
    assert!(!rule.is_empty(), "{message}");
    assert!(message.contains("To make it pass"), "{message}");
    nothing_crossed(&hospital);
}

#[test]
fn a_column_above_the_clearance_reaches_nothing_by_any_way() {
    for sql in [
        "select zip, lactate, readmitted from admissions",
        "select upper(name) as n, lactate, readmitted from admissions",
        "select lactate, readmitted from admissions where name like 'A%'",
        "select case when name < 'M' then 1 else 0 end as half, readmitted from admissions",
        "select count(*) as n, max(readmitted) as readmitted from admissions group by zip",
        "select a.lactate, a.readmitted from admissions a join admissions b on a.name = b.name",
        "select age_band(cast(substr(patient_id, 4) as bigint), 10) as a, readmitted from admissions",
        "select notes, readmitted from admissions",
    ] {
        refuses_query(sql);
    }
}

#[test]
fn a_purpose_that_the_owner_did_not_write_is_refused() {
    let hospital = Hospital::new();
    hospital.edit("tidegate.yaml", "purpose: quality-of-care", "purpose: marketing");
    hospital.refused();
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
    hospital.refused();
    nothing_crossed(&hospital);
}

#[test]
fn what_is_larger_than_the_egress_budget_stays() {
    let hospital = Hospital::new();
    hospital.edit("tidegate.yaml", "deploy:", "budget: {egress: 1 KiB}\ndeploy:");
    let (rule, message) = hospital.refused();
    assert_eq!(rule, "budget", "{message}");
    assert!(message.contains("1 KiB"), "{message}");
    nothing_crossed(&hospital);
}

#[test]
fn a_pipeline_cannot_loosen_the_catalog() {
    let hospital = Hospital::new();
    hospital.edit("tidegate.yaml", "k: 5", "k: 2");
    hospital.refused();
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
    let (_, message) = hospital.refused();
    assert!(message.contains("200"), "{message}");
    nothing_crossed(&hospital);
}

#[test]
fn a_model_that_fails_a_gate_stays_at_home() {
    let hospital = Hospital::new();
    hospital.edit("tidegate.yaml", "roc_auc: \">= 0.55\"", "roc_auc: \">= 0.999\"");
    let (rule, message) = hospital.refused();
    assert_eq!(rule, "gate-failed", "{message}");
    let ward = hospital.state().join("sites/ward/store");
    assert!(files(&ward.join("sealed")).is_empty());
    assert!(!hospital.state().join("sites/hospital/serve/models").exists());
}

#[test]
fn the_organisations_own_policy_is_asked() {
    let hospital = Hospital::new();
    hospital.write(
        "policy/no-cloud.cedar",
        "@id(\"no-cloud-training\")\n@why(\"the board decided so\")\n@fix(\"train at home\")\nforbid (principal, action, resource) when { principal == Site::\"cloud\" };\n",
    );
    let output = hospital.tidegate(&["run", "--yes", "--format", "json"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(
        output.status.code(),
        Some(3),
        "{text} {}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(text.contains("no-cloud-training"), "{text}");
    nothing_crossed(&hospital);
}
