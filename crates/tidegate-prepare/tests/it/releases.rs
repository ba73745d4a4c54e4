//! Disclosure over one release and over many.

use serde_json::json;
use tidegate_prepare::{Part, analyse, home_rows};

use super::fixture::{Hospital, KEYS, block_on, csv, person, table};

const BANDS: &str = "SELECT age_band(age, 10) AS age, diagnosis, died FROM admissions";

fn hospital(rows: u64, disclosure: serde_json::Value) -> Hospital {
    let mut hospital = Hospital::new(rows);
    hospital.sql(BANDS);
    hospital.pipeline["prepare"]["disclosure"] = disclosure;
    hospital
}

fn rule(hospital: &Hospital) -> String {
    match hospital.prepare() {
        Ok(_) => "released".to_owned(),
        Err(error) => error
            .refusal()
            .map_or_else(|| error.to_string(), |refusal| refusal.rule.clone()),
    }
}

/// Smallest group of the released rows by their first column, counted by hand (one row a person).
fn smallest(prepared: &tidegate_prepare::Prepared) -> usize {
    let mut sizes = std::collections::BTreeMap::<String, usize>::new();
    for input in ["train", "validation"] {
        for row in table(prepared, input).1 {
            *sizes.entry(row[0].clone()).or_default() += 1;
        }
    }
    sizes.into_values().min().unwrap()
}

#[test]
fn k_is_reached_refused_or_made_by_suppression() {
    let loose = hospital(400, json!({"to": "internal", "k": 5}));
    let prepared = loose.prepare().unwrap();
    assert_eq!(prepared.risk.k as usize, smallest(&prepared));
    assert_eq!(prepared.risk.rows, prepared.risk.subjects);
    let k = prepared.risk.k + 1;

    let strict = hospital(400, json!({"to": "internal", "k": k}));
    assert_eq!(rule(&strict), "k-not-reached");
    let little = json!({"to": "internal", "k": k, "on_violation": "suppress", "max_suppressed": 0.001});
    assert_eq!(rule(&hospital(400, little)), "k-not-reached");

    let suppress = json!({"to": "internal", "k": k, "on_violation": "suppress", "max_suppressed": 0.5});
    let suppressing = hospital(400, suppress);
    let suppressed = suppressing.prepare().unwrap();
    assert!(suppressed.risk.k >= k && suppressed.risk.k_before == k - 1);
    assert_eq!(suppressed.risk.k as usize, smallest(&suppressed));
    assert!(suppressed.risk.suppressed_rows > 0 && suppressed.risk.suppressed_rows < 200);
    assert_eq!(
        suppressed.risk.subjects,
        suppressed.risk.rows - suppressed.risk.suppressed_rows
    );
}

#[test]
fn k_counts_people_and_not_rows() {
    let hospital = hospital(0, json!({"to": "internal", "k": 5}));
    // Three people with forty stays each, among others.
    let mut text = csv(0..300).replace(",97,", ",50,");
    for number in 0..120_u64 {
        let record = person(1000 + number % 3)
            .split(',')
            .map(str::to_owned)
            .collect::<Vec<_>>();
        text.push_str(&format!(
            "{},N,900-11-1111,10000,95,male,Coma,60.5,x,{}\n",
            record[0],
            number % 2
        ));
    }
    hospital.write(&text);
    assert_eq!(rule(&hospital), "k-not-reached");
}

#[test]
fn distinct_l_counts_sensitive_values_in_each_group() {
    let mut hospital = hospital(400, json!({"to": "internal", "k": 5}));
    hospital.catalog["datasets"]["admissions"]["columns"]["diagnosis"] = json!({"role": "sensitive"});
    hospital.catalog["datasets"]["admissions"]["least_l"] = json!(3);
    let prepared = hospital.prepare().unwrap();
    assert_eq!(
        (prepared.risk.l, prepared.risk.sensitive),
        (Some(3), vec!["diagnosis".to_owned()])
    );
    hospital.catalog["datasets"]["admissions"]["least_l"] = json!(4);
    assert_eq!(rule(&hospital), "l-not-reached");
}

#[test]
fn the_catalogs_least_k_is_kept_whatever_the_pipeline_says() {
    let mut hospital = hospital(400, json!({"to": "internal", "k": 2}));
    hospital.catalog["datasets"]["admissions"]["least_k"] = json!(400);
    assert_eq!(rule(&hospital), "k-not-reached");
}

#[test]
fn another_query_over_the_same_people_is_a_second_release() {
    let mut hospital = hospital(500, json!({"to": "internal", "k": 5}));
    hospital.prepare().unwrap();
    hospital.sql("SELECT age_band(age, 10) AS age, pulse, died FROM admissions");
    let second = hospital.prepare().unwrap();
    assert_eq!(second.risk.earlier_releases, 1);
    assert!(second.risk.k >= 5);
}

#[test]
fn few_people_more_or_less_than_before_are_refused() {
    // Two people more in the parts that leave: comparing both releases would show them.
    let hospital = hospital(500, json!({"to": "internal", "k": 5}));
    let first = hospital.prepare().unwrap();
    let left = |part| block_on(home_rows(&first.home, &KEYS, part, &[])).unwrap().positions;
    let outside: Vec<u64> = left(Part::Train).into_iter().chain(left(Part::Validation)).collect();
    hospital.write(&csv((0..500).filter(|number| !outside[..2].contains(number))));
    assert_eq!(rule(&hospital), "difference-below-k");
    // Nobody more or less, but a home row gone: nothing to see.
    let home = left(Part::Test)[0];
    hospital.write(&csv((0..500).filter(|number| *number != home)));
    assert_eq!(rule(&hospital), "released");
    // One group of people more: few in each band.
    hospital.write(&csv(0..506));
    assert_eq!(rule(&hospital), "difference-below-k");
    // Enough in each band.
    hospital.write(&csv(0..1200));
    assert_eq!(rule(&hospital), "released");
}

#[test]
fn few_people_with_other_rows_than_before_are_refused() {
    let released = |text: &str, sql: &str| {
        let mut hospital = hospital(500, json!({"to": "internal", "k": 5}));
        let first = hospital.prepare().unwrap();
        let left = |part| block_on(home_rows(&first.home, &KEYS, part, &[])).unwrap().positions;
        let left = [left(Part::Train), left(Part::Validation)].concat();
        let text = text.to_owned();
        let changed = |people: usize, change: &dyn Fn(&str) -> String| {
            let mut text = text.clone();
            for number in left.iter().take(people) {
                let record = person(*number);
                text = text.replace(&format!("{record}\n"), &change(&record));
            }
            text
        };
        hospital.sql(sql);
        let again = |record: &str| format!("{record}\n{record}\n");
        let corrected = |record: &str| {
            let mut fields: Vec<&str> = record.split(',').collect();
            fields[6] = if fields[6] == "Coma" { "Cirrhosis" } else { "Coma" };
            fields.join(",") + "\n"
        };
        let mut rules = Vec::new();
        for (people, change) in [
            (1, &again as &dyn Fn(&str) -> String),
            (1, &corrected),
            (0, &again),
            (left.len(), &again),
        ] {
            // A register of its own for each second release.
            let releases = hospital.stage().join("releases");
            let paths = || std::fs::read_dir(&releases).unwrap().map(|entry| entry.unwrap().path());
            let kept: Vec<_> = paths().map(|path| (std::fs::read(&path).unwrap(), path)).collect();
            hospital.write(&changed(people, change));
            rules.push(rule(&hospital));
            paths().for_each(|path| std::fs::remove_file(path).unwrap());
            for (bytes, path) in kept {
                std::fs::write(path, bytes).unwrap();
            }
        }
        rules
    };
    let expected = ["difference-below-k", "difference-below-k", "released", "released"];
    assert_eq!(released(&csv(0..500), BANDS), expected);
    // In another order nobody has changed.
    assert_eq!(released(&csv((0..500).rev()), BANDS), expected);
    // A renamed column or another amount does not make everybody look changed.
    let other = "SELECT age_band(age, 10) AS age, pulse * 2 AS p, diagnosis AS d, died FROM admissions";
    assert_eq!(released(&csv(0..500), other), expected);
}

#[test]
fn suppression_repairs_a_difference() {
    let suppress = json!({"to": "internal", "k": 5, "on_violation": "suppress", "max_suppressed": 0.4});
    let hospital = hospital(500, suppress);
    hospital.prepare().unwrap();
    hospital.write(&csv(0..512));
    let second = hospital.prepare().unwrap();
    assert!(
        second.risk.suppressed_rows > 0 && second.risk.k >= 5,
        "{:?}",
        second.risk
    );
    // The newcomers are those who had to wait.
    let rows = block_on(home_rows(&second.home, &KEYS, Part::Train, &[])).unwrap();
    assert!(rows.positions.iter().all(|position| *position < 500));
}

#[test]
fn finer_bands_beside_coarser_ones_must_keep_k_together() {
    // Bands of 15 cross those of 10, so that both together tell five-year bands.
    const CROSSING: &str = "SELECT age_band(age, 15) AS age, diagnosis, died FROM admissions";
    let after_bands = |k: u64, before: bool| {
        let mut hospital = hospital(260, json!({"to": "internal", "k": 1}));
        if before {
            hospital.prepare().unwrap();
        }
        hospital.sql(CROSSING);
        hospital.pipeline["prepare"]["disclosure"] = json!({"to": "internal", "k": k});
        hospital
    };
    let alone = after_bands(1, false).prepare().unwrap().risk.k;
    let together = after_bands(1, true).prepare().unwrap().risk.k;
    assert!(together < alone, "{together} of {alone}");
    assert_eq!(rule(&after_bands(alone, false)), "released");
    assert_eq!(rule(&after_bands(together, true)), "released");
    assert_eq!(rule(&after_bands(together + 1, true)), "difference-below-k");
}

#[test]
fn an_identifier_in_a_harmless_column_is_found() {
    let mut hospital = hospital(400, json!({"to": "internal", "k": 5}));
    hospital.sql("SELECT age_band(age, 10) AS age, diagnosis, died FROM admissions");
    // The diagnosis of every third person is a person's name: the catalog is wrong about the column.
    let text: Vec<String> = csv(0..400)
        .lines()
        .enumerate()
        .map(|(line, record)| {
            if line % 3 == 1 {
                record.replace(",Coma,", &format!(",person number{},", line % 7))
            } else {
                record.to_owned()
            }
        })
        .collect();
    hospital.write(&(text.join("\n") + "\n"));
    let error = hospital.prepare().unwrap_err();
    let refusal = error.refusal().unwrap();
    assert_eq!(refusal.rule, "identifier-in-output");
    assert!(
        refusal.why.contains("`name`") && refusal.what.contains("`diagnosis`"),
        "{refusal}"
    );
    assert!(!error.to_string().to_lowercase().contains("number3"), "{error}");
}

#[test]
fn rows_of_several_people_are_not_released_and_a_plan_says_so() {
    let mut hospital = hospital(400, json!({"to": "internal", "k": 5}));
    for sql in [
        "SELECT age_band(age, 10) AS age, max(died) AS died FROM admissions GROUP BY 1",
        "SELECT DISTINCT age_band(age, 10) AS age, died FROM admissions",
        "SELECT a.diagnosis, b.died FROM admissions a JOIN admissions b ON a.diagnosis = b.diagnosis",
        "SELECT diagnosis, died FROM admissions WHERE died < (SELECT max(died) FROM admissions)",
        "SELECT diagnosis, died FROM admissions LIMIT 10",
        "SELECT diagnosis, died FROM admissions ORDER BY pulse LIMIT 10",
        "SELECT diagnosis, died FROM admissions ORDER BY died OFFSET 5",
        "SELECT diagnosis, died FROM admissions UNION SELECT diagnosis, died FROM admissions",
        "SELECT diagnosis, died FROM admissions INTERSECT SELECT diagnosis, died FROM admissions",
        "SELECT diagnosis, died FROM admissions EXCEPT SELECT diagnosis, died FROM admissions WHERE pulse > 100",
        "SELECT diagnosis, rank() OVER (ORDER BY pulse) AS r, died FROM admissions",
        "SELECT diagnosis, sum(died) OVER (PARTITION BY diagnosis) AS s, died FROM admissions",
        "SELECT diagnosis, died FROM admissions QUALIFY row_number() OVER (PARTITION BY diagnosis) = 1",
        "SELECT diagnosis, died FROM admissions WHERE EXISTS (SELECT 1 FROM admissions AS b WHERE b.pulse > 100)",
        "SELECT diagnosis, (SELECT max(b.died) FROM admissions AS b) AS m, died FROM admissions",
        "SELECT diagnosis, died FROM admissions WHERE died IN (SELECT b.died FROM admissions AS b)",
        "SELECT diagnosis, died FROM admissions CROSS JOIN (VALUES (1), (2)) AS v(x)",
        "SELECT a.diagnosis, a.died FROM admissions a LEFT JOIN admissions b ON a.patient_id = b.patient_id",
        "SELECT DISTINCT ON (diagnosis) diagnosis, died FROM admissions ORDER BY diagnosis, pulse",
        "WITH RECURSIVE r AS (SELECT diagnosis, died FROM admissions UNION ALL SELECT diagnosis, died FROM r WHERE died > 1) \
         SELECT diagnosis, died FROM r",
        "SELECT diagnosis, avg(died) AS died FROM admissions GROUP BY ROLLUP (diagnosis)",
    ] {
        hospital.sql(sql);
        let (labels, _) = hospital.with_input(|input| block_on(analyse(input))).unwrap();
        assert!(
            labels
                .refusals
                .iter()
                .any(|refusal| refusal.rule == "one-record-one-row"),
            "{sql}\n{:#?}",
            labels.refusals
        );
        assert_eq!(
            hospital.prepare().unwrap_err().refusal(),
            labels.refusals.first(),
            "{sql}"
        );
    }
}

#[test]
fn a_union_and_a_cte_keep_whose_row_it_is() {
    let mut hospital = hospital(400, json!({"to": "internal", "k": 5}));
    hospital.sql(
        "WITH banded AS (SELECT age_band(age, 10) AS age, diagnosis AS d, died FROM admissions) SELECT x.age, x.d, \
         x.died FROM banded AS x WHERE x.age >= 50 UNION ALL SELECT age, d, died FROM banded WHERE age < 50",
    );
    let prepared = hospital.prepare().unwrap();
    let rows = block_on(home_rows(&prepared.home, &KEYS, Part::Test, &["sex".to_owned()])).unwrap();
    let mut positions = rows.positions.clone();
    positions.dedup();
    assert_eq!(positions, rows.positions);
    for (position, sex) in rows.positions.iter().zip(&rows.subgroups[0].1) {
        assert_eq!(sex.as_deref(), person(*position).split(',').nth(5));
    }
}

#[test]
fn a_public_dataset_needs_no_subject_and_no_k() {
    let mut hospital = Hospital::new(50);
    let dataset = &mut hospital.catalog["datasets"]["admissions"];
    *dataset = json!({
        "site": "hospital", "source": "admissions.csv", "purposes": ["quality-of-care"], "public": true,
        "columns": {"*": {"role": "attribute"}}
    });
    hospital.pipeline["prepare"]["profile"] = json!("none");
    hospital.sql("SELECT age, sex, pulse, died FROM admissions");
    let prepared = hospital.prepare().unwrap();
    assert_eq!(prepared.columns, ["age", "sex", "pulse", "died"]);
    assert!(prepared.risk.quasi_identifiers.is_empty());
}

#[test]
fn rows_that_are_output_twice_tell_what_their_condition_says() {
    const PLAIN: &str = "SELECT pulse, died FROM admissions WHERE sex = 'male'";
    const ALL: &str = "SELECT pulse, died FROM admissions";
    const WOMEN: &str = "SELECT pulse, died FROM admissions WHERE sex = 'female'";
    let released = |women: u64, first: &str| {
        let mut hospital = hospital(0, json!({"to": "internal", "k": 5}));
        hospital.pipeline["prepare"]["split"] = json!({"validation": 0.1, "refine": 0.0, "test": 0.0});
        let men = csv(0..300).replace(",female,", ",male,");
        let people: String = (300..300 + women)
            .map(|number| person(number).replace(",male,", ",female,") + "\n")
            .collect();
        hospital.write(&(men + &people));
        hospital.sql(&format!("{first} UNION ALL {WOMEN}"));
        rule(&hospital)
    };
    // A pulse that is there twice is a woman's, and there are three.
    assert_eq!(released(3, ALL), "k-not-reached");
    assert_eq!(released(20, ALL), "released");
    // Everybody once: nothing tells the branches apart.
    assert_eq!(released(3, PLAIN), "released");
}
