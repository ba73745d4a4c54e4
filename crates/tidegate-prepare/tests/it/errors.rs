//! Errors help, and tell no value.

use std::fs;

use serde_json::json;

use super::fixture::{HEADER, Hospital, csv, person};

const PLANTED: &str = "Zanzibar-Planted-Secret";

fn error(hospital: &Hospital) -> String {
    let error = hospital.prepare().expect_err("this must not be prepared");
    let (shown, debugged) = (error.to_string(), format!("{error:?}"));
    for text in [&shown, &debugged] {
        assert!(
            !text.contains("Zanzibar") && !text.contains("Planted"),
            "a value leaked: {text}"
        );
    }
    shown
}

/// A hospital in which one record has `value` in `column` (counted from 0).
fn planted(column: usize, value: &str) -> Hospital {
    let hospital = Hospital::new(0);
    let mut text = format!("{HEADER}\n");
    for number in 0..400 {
        let record = person(number);
        let mut fields: Vec<&str> = record.split(',').collect();
        if number % 100 == 7 {
            fields[column] = value;
        }
        text.push_str(&fields.join(","));
        text.push('\n');
    }
    hospital.write(&text);
    hospital
}

#[test]
fn a_planted_value_is_in_no_error() {
    let mostly_numbers = error(&planted(7, PLANTED));
    assert!(
        mostly_numbers.contains("admissions.csv:") && mostly_numbers.contains("type: text"),
        "{mostly_numbers}"
    );
    assert!(error(&planted(9, PLANTED)).contains("`died`"));
    assert!(error(&planted(0, "")).contains("no subject"));
    assert!(error(&planted(8, &format!("{PLANTED},more"))).contains("11 fields"));

    let mut typed = planted(7, PLANTED);
    typed.catalog["datasets"]["admissions"]["columns"]["pulse"] = json!({"role": "attribute", "type": "number"});
    assert!(error(&typed).contains("is not a number"));

    let mut cast = planted(6, PLANTED);
    cast.sql("SELECT CAST(diagnosis AS INTEGER) AS d, died FROM admissions");
    error(&cast);

    let mut target = planted(9, "2");
    target.sql("SELECT age_band(age, 10) AS age, died FROM admissions");
    assert!(error(&target).contains("rows hold neither 0 nor 1"));
}

#[test]
fn an_expression_that_fails_on_a_value_does_not_show_it() {
    // Everything is public here, so that the label analysis lets a failing cast through.
    let mut hospital = planted(6, PLANTED);
    hospital.catalog["datasets"]["admissions"] = json!({
        "site": "hospital", "source": "admissions.csv", "purposes": ["quality-of-care"], "public": true,
        "columns": {"*": {"role": "attribute"}}
    });
    hospital.pipeline["prepare"]["profile"] = json!("none");
    hospital.sql("SELECT CAST(diagnosis AS INTEGER) AS d, died FROM admissions");
    let text = error(&hospital);
    assert!(text.contains("try_cast"), "{text}");
}

#[test]
fn wrong_files_are_told_with_their_fix() {
    let mut hospital = Hospital::new(300);
    hospital.catalog["datasets"]["admissions"]["source"] = json!("nothing.csv");
    assert!(error(&hospital).contains("no such file"));

    let mut hospital = Hospital::new(300);
    hospital.catalog["datasets"]["admissions"]["columns"]["puls"] = json!({"role": "identifier"});
    assert!(error(&hospital).contains("`puls`"));

    let mut hospital = Hospital::new(300);
    hospital.catalog["datasets"]["admissions"]
        .as_object_mut()
        .unwrap()
        .remove("subject");
    assert!(error(&hospital).contains("subject: COLUMN"));

    let mut hospital = Hospital::new(300);
    hospital.pipeline["purpose"] = json!("marketing");
    assert!(error(&hospital).contains("purpose-not-in-catalog"));

    let mut hospital = Hospital::new(300);
    hospital.pipeline["prepare"]["target"] = json!("outcome");
    assert!(error(&hospital).contains("`outcome`"));

    let mut hospital = Hospital::new(300);
    hospital.sql("SELECT nosuch, died FROM admissions");
    assert!(error(&hospital).contains("nosuch"));

    let hospital = Hospital::new(300);
    hospital.write(&csv(0..300).replace(",note,", ",name,"));
    assert!(error(&hospital).contains("stands twice"));
}

#[test]
fn a_default_role_is_contradicted_by_what_the_column_holds() {
    let mut hospital = Hospital::new(300);
    hospital.catalog["datasets"]["admissions"]["columns"]
        .as_object_mut()
        .unwrap()
        .remove("name");
    let error = hospital.prepare().unwrap_err();
    let refusal = error.refusal().unwrap();
    assert_eq!(refusal.rule, "scan-contradicts-catalog");
    assert!(refusal.what.contains("`name`"), "{refusal}");

    // What the default covers, and the name says otherwise.
    let mut hospital = Hospital::new(300);
    hospital.catalog["datasets"]["admissions"]["columns"]
        .as_object_mut()
        .unwrap()
        .remove("age");
    let error = hospital.prepare().unwrap_err();
    let refusal = error.refusal().unwrap();
    assert_eq!(refusal.rule, "scan-contradicts-catalog");
    assert!(
        refusal.what.contains("`age`") && refusal.why.contains("name"),
        "{refusal}"
    );

    // Dates that the catalog calls an attribute, in three disguises.
    for form in ["2024-01-31T10:00:00", "03/14/2024", "2024-01-31"] {
        let mut hospital = planted(6, "not known");
        let text = std::fs::read_to_string(hospital.path().join("admissions.csv")).unwrap();
        let text = ["Cirrhosis", "Coma", "Lung Cancer"]
            .iter()
            .fold(text, |text, diagnosis| text.replace(diagnosis, form));
        hospital.write(&text);
        hospital.pipeline["prepare"]["disclosure"] =
            json!({"to": "internal", "k": 5, "on_violation": "suppress", "max_suppressed": 0.05});
        let error = hospital.prepare().unwrap_err();
        let refusal = error.refusal().unwrap();
        assert_eq!(refusal.rule, "scan-contradicts-catalog");
        assert!(refusal.fix.contains("kind: date"), "{refusal}");
        hospital.catalog["datasets"]["admissions"]["columns"]["diagnosis"] =
            json!({"role": "attribute", "kind": "date"});
        hospital.sql("SELECT diagnosis, died FROM admissions");
        assert_eq!(
            hospital.prepare().unwrap_err().refusal().unwrap().rule,
            "label-above-clearance"
        );
        hospital.sql("SELECT year(diagnosis) AS y, pulse, died FROM admissions");
        hospital.prepare().unwrap();
    }

    let mut hospital = Hospital::new(300);
    hospital.catalog["datasets"]["admissions"]["columns"]["ssn"] = json!({"role": "attribute"});
    assert!(
        hospital
            .prepare()
            .unwrap_err()
            .to_string()
            .contains("social security numbers")
    );
}

#[test]
fn a_label_above_the_release_is_refused_before_any_row_leaves() {
    let mut hospital = Hospital::new(300);
    hospital.sql("SELECT name, age, died FROM admissions");
    assert!(hospital.prepare().unwrap_err().refusal().is_some());
    let prepared = hospital.stage().join("prepared");
    assert!(!prepared.exists() || fs::read_dir(prepared).unwrap().next().is_none());
    assert!(!hospital.stage().join("releases").exists());
}

#[test]
fn a_changed_result_or_register_is_not_trusted() {
    let hospital = Hospital::new(300);
    let prepared = hospital.prepare().unwrap();
    fs::write(prepared.home.parent().unwrap().join("report.json"), "{}").unwrap();
    let again = hospital.prepare().unwrap();
    assert!(!again.reused && again.risk == prepared.risk);
    fs::remove_dir_all(prepared.home.parent().unwrap()).unwrap();
    let release = fs::read_dir(hospital.stage().join("releases"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    fs::write(release, "{}").unwrap();
    assert!(error(&hospital).contains("it is not whole: a release is damaged"));
}
