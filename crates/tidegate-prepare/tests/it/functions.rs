//! The de-identifying functions over columns, through SQL.

use tidegate_prepare::session::{self, FunctionKeys};

use crate::world::{Person, execute};

async fn rows(sql: &str) -> Vec<String> {
    let mut people: Vec<Person> = (0..3).map(Person::number).collect();
    people[1].age = Some(97);
    people[1].zip = Some("83001-1234".to_owned());
    people[1].born = Some(-16_000);
    people[2].age = None;
    people[2].zip = Some("unknown".to_owned());
    people[2].born = None;
    people[2].name = None;
    execute(&people, sql).await.unwrap()
}

#[tokio::test]
async fn ages_dates_and_zip_codes_are_generalised() {
    assert_eq!(
        rows("SELECT age_band(age, 10) AS x FROM people").await,
        ["40", "90", "NULL"]
    );
    assert_eq!(
        rows("SELECT top_code(age, 90) AS x FROM people").await,
        ["40", "90", "NULL"]
    );
    assert_eq!(rows("SELECT zip3(zip) AS x FROM people").await, ["000", "021", "NULL"]);
    assert_eq!(
        rows("SELECT year(born) AS x FROM people").await,
        ["1950", "1961", "NULL"]
    );
}

#[tokio::test]
async fn whole_years_leave_and_no_parts_of_them() {
    assert_eq!(
        rows("SELECT top_code(CAST(age AS DOUBLE) + 0.9, 90) AS x FROM people").await,
        ["40", "90", "NULL"]
    );
    assert_eq!(
        rows("SELECT age_band('62.9', 5) AS x FROM people LIMIT 1").await,
        ["60"]
    );
}

#[tokio::test]
async fn masks_say_nothing_not_even_that_a_value_is_missing() {
    assert_eq!(rows("SELECT mask(name) AS x FROM people").await, ["***", "***", "***"]);
    assert_eq!(
        rows("SELECT redact(born) AS x FROM people").await,
        ["NULL", "NULL", "NULL"]
    );
    assert_eq!(
        rows("SELECT arrow_typeof(redact(born)) AS x FROM people LIMIT 1").await,
        ["Utf8"]
    );
}

#[tokio::test]
async fn tokens_are_equal_for_equal_values_and_keys_only() {
    let people: Vec<Person> = (0..2).map(Person::number).collect();
    let sql =
        "SELECT token(patient_id) AS x FROM people UNION ALL SELECT token(CAST(patient_id AS VARCHAR)) FROM people";
    let tokens = execute(&people, sql).await.unwrap();
    assert_eq!(tokens.len(), 4);
    assert!(tokens[0] == tokens[1] && tokens[2] == tokens[3] && tokens[1] != tokens[2]);
    assert!(tokens.iter().all(|token| !token.contains("100")));
    let other = session::session(Some(&FunctionKeys { token: [4; 32] }));
    let plan = session::plan(&other, "SELECT token(1000) AS x").await.unwrap();
    let batches = other.execute_logical_plan(plan).await.unwrap().collect().await.unwrap();
    let shown = datafusion::arrow::util::pretty::pretty_format_batches(&batches)
        .unwrap()
        .to_string();
    assert!(tokens.iter().all(|token| !shown.contains(token.as_str())));
}

#[tokio::test]
async fn no_input_makes_a_function_fail() {
    for argument in [
        "name",
        "notes",
        "born",
        "zip",
        "age",
        "hrt",
        "died = 1",
        "NULL",
        "make_date(2020, 1, 1)",
    ] {
        for call in [
            "zip3(#)",
            "year(#)",
            "age_band(#, 10)",
            "age_band(#, 0)",
            "top_code(#, 90)",
            "top_code(#, name)",
            "token(#)",
            "mask(#)",
            "redact(#)",
        ] {
            let sql = format!("SELECT {} AS x FROM people", call.replace('#', argument));
            assert_eq!(rows(&sql).await.len(), 3, "{sql}");
        }
    }
}
