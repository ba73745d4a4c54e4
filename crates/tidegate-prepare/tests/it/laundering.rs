//! Attempts to get a value out by a detour. Each keeps the label of what it reads, is refused, and the
//! refusal says what to do instead.

use tidegate_types::label::Level;

use crate::world::World;

/// SQL, the rule that refuses, and words that the way out must hold.
const ATTEMPTS: &[(&str, &str, &str)] = &[
    // Plain.
    ("SELECT name FROM people", "label-above-clearance", "leave `name` out"),
    ("SELECT notes FROM people", "text-selected", "redact(notes)"),
    (
        "SELECT mystery FROM people",
        "label-above-clearance",
        "leave `mystery` out",
    ),
    ("SELECT age FROM people", "label-above-clearance", "age_band(age, 10)"),
    ("SELECT zip FROM people", "label-above-clearance", "zip3(zip)"),
    ("SELECT admitted FROM people", "label-above-clearance", "year(admitted)"),
    ("SELECT * FROM people", "label-above-clearance", "leave"),
    // A function over a computed value.
    (
        "SELECT age_band(age + 1, 10) AS x FROM people",
        "direct-reference",
        "age_band(age, 10)",
    ),
    (
        "SELECT age_band(CAST(age AS DOUBLE), 10) AS x FROM people",
        "direct-reference",
        "age_band(age, 10)",
    ),
    (
        "SELECT zip3(concat(zip, '')) AS x FROM people",
        "direct-reference",
        "zip3(zip)",
    ),
    (
        "SELECT zip3(CASE WHEN name = 'x' THEN '02139' ELSE '90210' END) AS x FROM people",
        "direct-reference",
        "source column",
    ),
    (
        "SELECT age_band(a, 10) AS x FROM (SELECT age + 1 AS a FROM people) AS t",
        "direct-reference",
        "age_band(age, 10)",
    ),
    (
        "SELECT age_band(a, 10) AS x FROM (SELECT max(age) AS a FROM people GROUP BY sex) AS t",
        "direct-reference",
        "age_band(age, 10)",
    ),
    (
        "SELECT age_band(a, 10) AS x FROM (SELECT age AS a FROM people UNION ALL SELECT patient_id FROM people) AS t",
        "direct-reference",
        "source column",
    ),
    // Two functions over one column, also in different places.
    (
        "SELECT age_band(age, 10) AS x, top_code(age, 90) AS y FROM people",
        "one-function-per-column",
        "keep one of",
    ),
    (
        "SELECT age_band(age, 10) AS x, age_band(age, 7) AS y FROM people",
        "one-function-per-column",
        "age_band(age, 7)",
    ),
    (
        "SELECT age_band(age, 10) AS x FROM people WHERE top_code(age, 42) > 41",
        "one-function-per-column",
        "keep one of",
    ),
    (
        "SELECT age_band(age, 10) AS x FROM people UNION ALL SELECT age_band(age, 9) FROM people",
        "one-function-per-column",
        "keep one of",
    ),
    // Parameters.
    (
        "SELECT age_band(age, 1) AS x FROM people",
        "parameter-bounds",
        "5 to 90",
    ),
    (
        "SELECT age_band(age, 4) AS x FROM people",
        "parameter-bounds",
        "5 to 90",
    ),
    (
        "SELECT top_code(age, 91) AS x FROM people",
        "parameter-bounds",
        "at most 90",
    ),
    (
        "SELECT age_band(age, -10) AS x FROM people",
        "parameter-bounds",
        "5 to 90",
    ),
    (
        "SELECT age_band(age, days) AS x FROM people",
        "constant-parameter",
        "age_band(age, 10)",
    ),
    (
        "SELECT age_band(age, 5 + 5) AS x FROM people",
        "constant-parameter",
        "age_band(age, 10)",
    ),
    // The wrong kind, derived codes.
    (
        "SELECT zip3(patient_id) AS x FROM people",
        "function-kind",
        "leave `patient_id` out",
    ),
    (
        "SELECT age_band(patient_id, 10) AS x FROM people",
        "function-kind",
        "patient_id",
    ),
    (
        "SELECT top_code(mystery, 90) AS x FROM people",
        "function-kind",
        "mystery",
    ),
    ("SELECT year(notes) AS x FROM people", "function-kind", "redact(notes)"),
    (
        "SELECT token(patient_id) AS x FROM people",
        "derived-code",
        "leave `patient_id` out",
    ),
    ("SELECT token(age) AS x FROM people", "derived-code", "leave `age` out"),
    // Texts taken to pieces and put together.
    (
        "SELECT substr(name || 'x', 1, 3) AS x FROM people",
        "label-above-clearance",
        "name",
    ),
    ("SELECT length(notes) AS x FROM people", "text-selected", "notes"),
    (
        "SELECT coalesce(name, 'nobody') AS x FROM people",
        "label-above-clearance",
        "name",
    ),
    ("SELECT name IS NULL AS x FROM people", "label-above-clearance", "name"),
    (
        "SELECT CASE WHEN name = 'Ann' THEN 1 ELSE 0 END AS x FROM people",
        "label-above-clearance",
        "name",
    ),
    (
        "SELECT CASE name WHEN 'Ann' THEN 1 ELSE 0 END AS x FROM people",
        "label-above-clearance",
        "name",
    ),
    (
        "SELECT nullif(days, patient_id) AS x FROM people",
        "label-above-clearance",
        "patient_id",
    ),
    (
        "SELECT ascii(name) + 0 * days AS x FROM people",
        "label-above-clearance",
        "name",
    ),
    (
        "SELECT arrow_cast(age, 'Float64') AS x FROM people",
        "label-above-clearance",
        "age",
    ),
    (
        "SELECT hrt, mask(name) || substr(name, 1, 1) AS x FROM people",
        "label-above-clearance",
        "name",
    ),
    // Which rows there are.
    (
        "SELECT hrt FROM people WHERE name LIKE 'A%'",
        "label-above-clearance",
        "also of conditions",
    ),
    (
        "SELECT hrt FROM people WHERE age > 60",
        "label-above-clearance",
        "age_band(age, 10)",
    ),
    (
        "SELECT hrt FROM people WHERE days > 1 AND (sex = 'm' OR zip = '02139')",
        "label-above-clearance",
        "zip3(zip)",
    ),
    (
        "SELECT count(*) AS n FROM people WHERE name = 'Ann'",
        "label-above-clearance",
        "name",
    ),
    (
        "SELECT count(*) FILTER (WHERE name = 'Ann') AS n FROM people",
        "label-above-clearance",
        "name",
    ),
    (
        "SELECT sex, count(*) AS n FROM people GROUP BY sex, patient_id",
        "label-above-clearance",
        "patient_id",
    ),
    (
        "SELECT sex, count(*) AS n FROM people GROUP BY sex HAVING max(age) > 60",
        "label-above-clearance",
        "age",
    ),
    (
        "SELECT a.hrt FROM people AS a JOIN people AS b ON a.patient_id = b.patient_id",
        "label-above-clearance",
        "patient_id",
    ),
    (
        "SELECT a.hrt FROM people AS a LEFT JOIN people AS b ON a.days = b.days AND b.name = 'Ann'",
        "label-above-clearance",
        "name",
    ),
    (
        "SELECT a.hrt FROM people AS a JOIN people AS b ON a.days < b.age",
        "label-above-clearance",
        "age",
    ),
    (
        "SELECT v.x FROM people JOIN (VALUES ('Ann'), ('Bob')) AS v(x) ON name = v.x",
        "label-above-clearance",
        "name",
    ),
    (
        "SELECT sex FROM (SELECT DISTINCT sex, name FROM people) AS t",
        "label-above-clearance",
        "name",
    ),
    (
        "SELECT 1 AS x FROM (SELECT patient_id FROM people INTERSECT SELECT age FROM people) AS t",
        "label-above-clearance",
        "patient_id",
    ),
    (
        "SELECT hrt FROM people ORDER BY name LIMIT 3",
        "label-above-clearance",
        "limit",
    ),
    ("SELECT hrt FROM people LIMIT 3", "label-above-clearance", "limit"),
    ("SELECT hrt FROM people OFFSET 3", "label-above-clearance", "limit"),
    (
        "SELECT first_value(hrt ORDER BY name) AS x FROM people",
        "label-above-clearance",
        "first_value",
    ),
    (
        "SELECT array_agg(hrt) AS x FROM people",
        "label-above-clearance",
        "array_agg",
    ),
    // Failing as a message.
    (
        "SELECT hrt FROM (SELECT hrt, 1 / age AS y FROM people) AS t",
        "label-above-clearance",
        "age",
    ),
    (
        "SELECT hrt FROM (SELECT hrt, CAST(name AS BIGINT) AS y FROM people) AS t",
        "label-above-clearance",
        "name",
    ),
    (
        "SELECT hrt FROM (SELECT hrt, CASE WHEN name = 'Ann' THEN 1 / 0 ELSE 0 END AS y FROM people) AS t",
        "label-above-clearance",
        "name",
    ),
    // What is not followed.
    (
        "SELECT (SELECT max(name) FROM people) AS x FROM people",
        "label-above-clearance",
        "without a subquery",
    ),
    (
        "SELECT hrt FROM people WHERE EXISTS (SELECT 1 FROM people AS p WHERE p.name = 'Ann')",
        "label-above-clearance",
        "without a subquery",
    ),
    (
        "SELECT hrt FROM people WHERE days IN (SELECT age FROM people)",
        "label-above-clearance",
        "without a subquery",
    ),
    (
        "SELECT row_number() OVER (ORDER BY name) AS x FROM people",
        "label-above-clearance",
        "without a window function",
    ),
    (
        "SELECT sum(hrt) OVER (PARTITION BY sex) AS x FROM people",
        "label-above-clearance",
        "without a window function",
    ),
    (
        "SELECT sex, count(*) AS n FROM people GROUP BY GROUPING SETS ((sex), ())",
        "label-above-clearance",
        "without a grouping set",
    ),
    (
        "SELECT sex, count(*) AS n FROM people GROUP BY ROLLUP (sex)",
        "label-above-clearance",
        "without a grouping set",
    ),
    (
        "SELECT DISTINCT ON (sex) sex, hrt FROM people ORDER BY sex, name",
        "label-above-clearance",
        "without DISTINCT ON",
    ),
    (
        "WITH RECURSIVE r AS (SELECT days AS d FROM people UNION ALL SELECT d + 1 FROM r WHERE d < 3) SELECT d FROM r",
        "label-above-clearance",
        "without a recursive query",
    ),
    ("SELECT hrt FROM others", "unknown-table", "select from"),
    (
        "SELECT value AS x FROM generate_series(1, 3)",
        "unknown-table",
        "select from",
    ),
    (
        "SELECT hrt FROM people WHERE days IN (SELECT days FROM others)",
        "unknown-table",
        "select from",
    ),
    // Other tables and rows that nobody has.
    ("VALUES (1), (2)", "supplied-rows", "inner side of a join"),
    ("SELECT 1 AS x", "supplied-rows", "inner side of a join"),
    (
        "SELECT hrt FROM people UNION ALL VALUES (1.5)",
        "supplied-rows",
        "inner side of a join",
    ),
    (
        "SELECT v.x FROM people RIGHT JOIN (VALUES (1), (2)) AS v(x) ON days = v.x",
        "supplied-rows",
        "inner side of a join",
    ),
    // Another result each time.
    ("SELECT random() AS x FROM people", "volatile-function", "random"),
    (
        "SELECT hrt FROM people WHERE random() < 0.5",
        "volatile-function",
        "random",
    ),
    ("SELECT uuid() AS x FROM people", "volatile-function", "uuid"),
    ("SELECT now() AS x FROM people", "volatile-function", "now"),
    (
        "SELECT current_date AS x FROM people",
        "volatile-function",
        "current_date",
    ),
    (
        "SELECT hrt FROM people WHERE days IN (SELECT CAST(random() AS BIGINT))",
        "volatile-function",
        "random",
    ),
    // Sensitive columns: chosen by, and made to look diverse.
    (
        "SELECT hrt FROM people WHERE days > 2 AND income = 1",
        "sensitive-in-rows",
        "leave `income` out of conditions",
    ),
    (
        "SELECT income, count(*) AS n FROM people GROUP BY income",
        "sensitive-in-rows",
        "output it as a column",
    ),
    (
        "SELECT income + hrt * 1e-9 AS x FROM people",
        "sensitive-changed",
        "as it is",
    ),
    ("SELECT income * 2 AS x FROM people", "sensitive-changed", "as it is"),
    (
        "SELECT income AS x FROM people UNION ALL SELECT -income FROM people",
        "sensitive-changed",
        "as it is",
    ),
    (
        "SELECT income AS x FROM people WHERE sex = 'f' UNION ALL SELECT 7 FROM people WHERE sex = 'm'",
        "roles-apart",
        "columns of their own",
    ),
    // Roles.
    (
        "SELECT CASE WHEN sex = 'f' THEN income ELSE 0 END AS x FROM people",
        "roles-apart",
        "columns of their own",
    ),
];

#[tokio::test]
async fn every_attempt_is_refused_and_told_what_to_do_instead() {
    let world = World::new();
    for (sql, rule, fix) in ATTEMPTS {
        let report = world.report_of(sql).await;
        let refusal = report.refusals.iter().find(|refusal| refusal.rule == *rule);
        let Some(refusal) = refusal else {
            panic!("{sql}\nis not refused by `{rule}` but by {:#?}", report.refusals);
        };
        assert!(refusal.fix.contains(fix), "{sql}\n{refusal}");
    }
}

#[tokio::test]
async fn what_is_refused_keeps_the_joined_label() {
    let world = World::new();
    for (sql, rule, _) in ATTEMPTS {
        if matches!(
            *rule,
            "supplied-rows" | "volatile-function" | "roles-apart" | "sensitive-in-rows" | "sensitive-changed"
        ) {
            continue;
        }
        let report = world.report_of(sql).await;
        let highest = report.columns.iter().map(|column| column.label.level).max();
        assert_eq!(highest, Some(Level::Restricted), "{sql}\n{report:#?}");
    }
}

#[tokio::test]
async fn a_second_look_at_the_rewritten_query_finds_nothing() {
    // What refusals propose, carried out.
    let world = World::new();
    for sql in [
        "SELECT hrt FROM people WHERE age_band(age, 10) >= 60",
        "SELECT CASE WHEN age_band(age, 10) >= 60 THEN 1 ELSE 0 END AS x FROM people",
        "SELECT year(admitted) AS x, zip3(zip) AS y FROM people WHERE zip3(zip) <> '000'",
        "SELECT mask(name) AS x, redact(notes) AS y, mask(patient_id) AS z FROM people",
        "SELECT age_band(age, 10) + 5 AS middle, age_band(age, 10) AS x FROM people",
        "SELECT top_code(age, 90) AS x FROM people",
        "WITH a AS (SELECT age AS years, hrt FROM people) SELECT age_band(years, 5) AS x, hrt FROM a WHERE hrt > 50",
    ] {
        let report = world.report_of(sql).await;
        assert!(report.is_clean(), "{sql}\n{:#?}", report.refusals);
    }
}
