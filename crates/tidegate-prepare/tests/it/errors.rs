//! Errors help, and tell no value.

use std::fs;

use serde_json::json;
use tidegate_prepare::{analyse, rehearse};

use super::fixture::{HEADER, Hospital, block_on, csv, person};

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
    for (sql, place, what) in [
        (
            "SELECT\n  nosuch, died\nFROM admissions",
            "line 2, column 3",
            "no column `nosuch`; there are age, ",
        ),
        ("SELECT age died\nFRM admissions", "line 2, column ", "found: "),
        (
            "SELECT nosuch(age), died FROM admissions",
            "",
            "Invalid function 'nosuch'",
        ),
    ] {
        let text = error(hospital.sql(sql));
        assert!(text.contains(place) && text.contains(what), "{text}");
        for engine in [
            "datafusion",
            "Schema error",
            "Error during planning",
            "sql parser error",
        ] {
            assert!(!text.contains(engine), "{text}");
        }
    }
    hospital.sql("SELECT age, died FROM patients");
    let error_of_table = hospital.prepare().unwrap_err();
    assert_eq!(error_of_table.refusal().unwrap().rule, "unknown-table");

    let hospital = Hospital::new(300);
    hospital.write(&csv(0..300).replace(",note,", ",name,"));
    assert!(error(&hospital).contains("stands twice"));
}

#[test]
fn lines_are_counted_alike_whatever_ends_them() {
    for end in ["\n", "\r\n"] {
        let hospital = Hospital::new(0);
        let mut lines: Vec<String> = csv(0..300).lines().map(str::to_owned).collect();
        lines[41].push_str(",more");
        hospital.write(&lines.join(end));
        let text = error(&hospital);
        assert!(text.starts_with("admissions.csv:42: "), "{text}");
    }
}

#[test]
fn a_rehearsal_looks_at_the_rows_that_stay_home() {
    let hospital = Hospital::new(400);
    let rehearsed = |hospital: &Hospital| hospital.with_input(|input| block_on(rehearse(input)));
    let found = rehearsed(&hospital).unwrap();
    assert_eq!((found.rows, found.labels.is_clean()), (400, true));
    assert!(found.with_outcome > 0 && found.with_outcome < 400);
    assert!(!hospital.stage().exists(), "nothing is kept");

    // A value that preparation does not look at, because its row stays home.
    let lines: Vec<String> = csv(0..400).lines().map(str::to_owned).collect();
    let mut typed = Hospital::new(0);
    typed.catalog["datasets"]["admissions"]["columns"]["pulse"] = json!({"role": "attribute", "type": "number"});
    let home = (1..lines.len()).find_map(|line| {
        let mut changed = lines.clone();
        let mut fields: Vec<&str> = lines[line].split(',').collect();
        fields[7] = PLANTED;
        changed[line] = fields.join(",");
        typed.write(&changed.join("\n"));
        typed.prepare().is_ok().then_some(line + 1)
    });
    let text = rehearsed(&typed).unwrap_err().to_string();
    let place = format!("admissions.csv:{}: ", home.unwrap());
    assert!(text.starts_with(&place) && !text.contains(PLANTED), "{text}");
}

#[test]
fn a_role_that_an_owner_wrote_against_a_columns_name_is_doubted_aloud() {
    let mut hospital = Hospital::new(300);
    let warnings = |hospital: &Hospital| {
        let (labels, _) = hospital.with_input(|input| block_on(analyse(input))).unwrap();
        labels.warnings
    };
    assert_eq!(warnings(&hospital), Vec::<String>::new());
    let columns = &mut hospital.catalog["datasets"]["admissions"]["columns"];
    columns["name"] = json!({"role": "attribute"});
    columns["zip"] = json!({"role": "quasi_identifier"});
    columns["sex"] = json!({"role": "attribute"});
    hospital.pipeline["prepare"]["drop"] = json!([]);
    let told = warnings(&hospital);
    assert_eq!(told.len(), 3, "{told:?}");
    for (text, column, said) in [
        (
            &told[0],
            "`name`",
            "the catalog says attribute, its name says identifier of kind name",
        ),
        (&told[1], "`sex`", "its name says quasi_identifier"),
        (&told[2], "`zip`", "its name says quasi_identifier of kind zip_code"),
    ] {
        assert!(text.contains(column) && text.contains(said), "{text}");
    }
    // What does not leave, or leaves through a function that was made for it, needs no second look.
    hospital.pipeline["prepare"]["drop"] = json!(["name", "sex", "zip"]);
    assert_eq!(warnings(&hospital), Vec::<String>::new());
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
