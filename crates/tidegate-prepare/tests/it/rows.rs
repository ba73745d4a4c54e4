//! The same for the whole way of a row, from the file through split, execution, measurement and suppression
//! to what leaves: values above the clearance change nothing of it, nor whether there is anything at all.

use proptest::prelude::*;
use serde_json::json;
use tidegate_prepare::{Part, home_rows};
use tidegate_types::report::RiskReport;

use crate::fixture::{Hospital, KEYS, block_on, table};
use crate::noninterference::{Choices, twins};
use crate::queries::row_query;
use crate::world::{COLUMNS, Person};

fn csv(people: &[Person]) -> String {
    let date = |days: i32| {
        use datafusion::arrow::temporal_conversions::date32_to_datetime;
        date32_to_datetime(days).unwrap().date().to_string()
    };
    let mut text = COLUMNS.join(",") + "\n";
    for person in people {
        let fields = [
            Some(person.patient_id.to_string()),
            person.name.clone(),
            person.notes.clone(),
            person.born.map(date),
            person.admitted.map(date),
            person.zip.clone(),
            person.age.map(|it| it.to_string()),
            person.sex.clone(),
            person.income.map(|it| it.to_string()),
            person.hrt.map(|it| it.to_string()),
            person.days.map(|it| it.to_string()),
            Some(person.died.to_string()),
            person.mystery.map(|it| it.to_string()),
        ];
        text += &(fields.map(Option::unwrap_or_default).join(",") + "\n");
    }
    text
}

fn hospital(sql: &str, k: u64) -> Hospital {
    let mut hospital = Hospital::new(0);
    hospital.catalog = json!({"datasets": {"people": {
    "site": "hospital", "source": "admissions.csv", "subject": "patient_id",
    "purposes": ["quality-of-care"], "tags": ["phi"], "least_k": 1, "columns": {
        "patient_id": {"role": "identifier", "kind": "record_number", "type": "integer"},
        "name": {"role": "identifier", "kind": "name"},
        "notes": {"role": "text"},
        "born": {"role": "identifier", "kind": "date", "type": "date"},
        "admitted": {"role": "identifier", "kind": "date", "type": "date"},
        "zip": {"role": "quasi_identifier", "kind": "zip_code", "type": "text"},
        "age": {"role": "quasi_identifier", "kind": "age", "type": "integer"},
        "sex": {"role": "quasi_identifier", "type": "text"},
        "income": {"role": "sensitive", "type": "integer"},
        "hrt": {"role": "attribute", "type": "number"},
        "days": {"role": "attribute", "type": "integer"},
        "died": {"role": "attribute", "type": "integer"},
        "mystery": {"role": "identifier", "kind": "other_number", "type": "integer"}
    }}}});
    hospital.pipeline["prepare"]["from"] = json!("people");
    hospital.pipeline["prepare"]["drop"] = json!([]);
    // Where a person goes is the person's own secret, so nobody goes anywhere else here.
    hospital.pipeline["prepare"]["split"] = json!({"validation": 0.0, "refine": 0.0, "test": 0.0});
    hospital.pipeline["prepare"]["disclosure"] =
        json!({"to": "internal", "k": k, "on_violation": "suppress", "max_suppressed": 0.9});
    hospital.sql(sql);
    hospital
}

type Outside = (Vec<Vec<String>>, RiskReport, usize);

/// What leaves and is told, or why nothing does.
fn outside(people: &[Person], sql: &str, k: u64) -> Result<Outside, String> {
    let hospital = hospital(sql, k);
    hospital.write(&csv(people));
    let prepared = hospital.prepare().map_err(|error| error.to_string())?;
    let home = block_on(home_rows(&prepared.home, &KEYS, Part::Train, &[])).map_err(|error| error.to_string())?;
    let mut risk = prepared.risk.clone();
    // Counted on raw values, and told to the owner alone.
    risk.raw_unique_rows = 0;
    Ok((table(&prepared, "train").1, risk, home.records.len()))
}

/// Twins of which the same records are of the same person.
fn pair(c: &mut Choices, sql: &str) -> (Vec<Person>, Vec<Person>) {
    let (one, mut other) = twins(c, sql);
    let shift = i64::try_from(c.below(1000)).unwrap();
    for (one, other) in one.iter().zip(&mut other) {
        other.patient_id = (one.patient_id + 1) * 1009 + shift;
    }
    (one, other)
}

/// Whether the label analysis lets the query through.
fn clean(sql: &str) -> Option<bool> {
    let error = outside(&[], sql, 1).err()?;
    if error.starts_with("planning the query") {
        return None;
    }
    Some(error.starts_with("preparing the training's input"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_leaves_tells_nothing_above_the_clearance(seed in any::<u64>()) {
        let mut c = Choices(seed);
        let sql = row_query(&mut c);
        if clean(&sql) == Some(true) {
            for k in [1, 2] {
                let (one, other) = pair(&mut c, &sql);
                prop_assert_eq!(outside(&one, &sql, k), outside(&other, &sql, k), "{}\n{:#?}\n{:#?}", sql, one, other);
            }
        }
    }
}

#[test]
fn the_row_queries_are_worth_the_test() {
    let (mut planned, mut passed, mut left, mut suppressed, mut failed) = (0, 0, 0, 0, 0);
    for seed in 0..120 {
        let mut c = Choices(seed);
        let sql = row_query(&mut c);
        let Some(clean) = clean(&sql) else { continue };
        planned += 1;
        if !clean {
            continue;
        }
        passed += 1;
        match outside(&pair(&mut c, &sql).0, &sql, 2) {
            Ok((rows, risk, home)) => {
                left += 1;
                suppressed += usize::from(risk.suppressed_rows > 0);
                assert!(!rows.is_empty() && home <= rows.len());
            }
            Err(_) => failed += 1,
        }
    }
    let counts = (planned, passed, left, suppressed, failed);
    assert!(
        planned >= 80 && passed >= 25 && left >= 8 && suppressed >= 3 && failed >= 3,
        "{counts:?}"
    );
}
