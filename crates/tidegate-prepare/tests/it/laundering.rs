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
    ("VALUES (1), (2)", "supplied-rows", "from the dataset alone"),
    ("SELECT 1 AS x", "supplied-rows", "from the dataset alone"),
    (
        "SELECT hrt FROM people UNION ALL VALUES (1.5)",
        "supplied-rows",
        "from the dataset alone",
    ),
    (
        "SELECT v.x FROM people RIGHT JOIN (VALUES (1), (2)) AS v(x) ON days = v.x",
        "supplied-rows",
        "from the dataset alone",
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

/// Names that mean something else than they say, and detours through what the language has to offer. None
/// may be planned and called clean.
const EVASIONS: &[&str] = &[
    // Shadowed names.
    "SELECT age AS hrt FROM people",
    "SELECT hrt FROM (SELECT name AS hrt, hrt AS name FROM people) AS t",
    "SELECT p.sex FROM (SELECT name AS sex FROM people) AS p",
    "SELECT people.hrt FROM (SELECT age AS hrt FROM people) AS people",
    "WITH people AS (SELECT name AS hrt FROM people) SELECT hrt FROM people",
    "WITH w AS (SELECT hrt AS x FROM people) SELECT x FROM (WITH w AS (SELECT name AS x FROM people) SELECT x FROM w) AS t",
    "WITH w AS (SELECT name AS x FROM people), v AS (WITH w AS (SELECT age AS x FROM people) SELECT x FROM w) SELECT x FROM v",
    "WITH w(hrt, name) AS (SELECT name, hrt FROM people) SELECT hrt FROM w",
    "SELECT t.hrt FROM people AS t(hrt, name, notes, born, admitted, zip, age, sex, income, patient_id, days, died, mystery)",
    "SELECT days FROM people AS a JOIN (SELECT age AS d, patient_id AS e FROM people) AS b ON a.days = b.d",
    "SELECT \"Age\" FROM (SELECT age AS \"Age\", hrt AS age FROM people) AS t",
    // Letters of either case.
    "SELECT NAME FROM PEOPLE",
    "SELECT \"name\" FROM people",
    "SELECT Age_Band(AGE, 1) AS x FROM People",
    "SELECT AGE_BAND(AGE + 0, 10) AS x FROM people",
    // Columns that change places.
    "SELECT x FROM (SELECT sex AS x, name AS y FROM people UNION ALL SELECT name AS x, sex AS y FROM people) AS t",
    "SELECT x FROM (SELECT sex AS x, name AS y FROM people UNION ALL BY NAME SELECT sex AS y, name AS x FROM people) AS t",
    "SELECT hrt, sex FROM people UNION ALL SELECT hrt, notes FROM people",
    "SELECT * EXCLUDE (hrt) FROM people",
    "SELECT * REPLACE (age_band(age, 10) AS age) FROM people",
    // The same function twice over one column, by detours.
    "SELECT age_band(a.age, 10) AS x, age_band(b.age, 15) AS y FROM people AS a JOIN people AS b ON a.days = b.days",
    "WITH w AS (SELECT age AS a, age AS b FROM people) SELECT age_band(a, 10) AS x, top_code(b, 80) AS y FROM w",
    "SELECT age_band(age, 10) AS x FROM people ORDER BY age_band(age, 6) LIMIT 3",
    "SELECT CASE WHEN age_band(age, 5) = 60 THEN age_band(age, 10) END AS x FROM people",
    "SELECT count(*) AS n FROM people GROUP BY age_band(age, 10), age_band(age, 15)",
    // A predicate finer than the output.
    "SELECT zip3(zip) AS x FROM people WHERE substr(zip, 4, 1) = '3'",
    "SELECT age_band(age, 10) AS x FROM people WHERE age % 10 = 3",
    "SELECT year(born) AS x FROM people WHERE date_part('month', born) = 1",
    "SELECT year(date_trunc('month', born)) AS x FROM people",
    "SELECT extract(day FROM admitted) AS x FROM people",
    // Parts of texts.
    "SELECT regexp_match(name, '^(.)(.*)')[1] AS x FROM people",
    "SELECT regexp_replace(notes, '(.*)', '\\1') AS x FROM people",
    "SELECT hrt FROM people WHERE name ~ '^A'",
    "SELECT hrt FROM people WHERE regexp_like(name, '^A')",
    "SELECT split_part(name, ' ', 2) AS x FROM people",
    "SELECT reverse(name) AS x FROM people",
    "SELECT md5(name) AS x FROM people",
    "SELECT digest(name, 'sha256') AS x FROM people",
    "SELECT encode(name, 'hex') AS x FROM people",
    "SELECT levenshtein(name, 'Ann') AS x FROM people",
    "SELECT position('A' IN name) AS x FROM people",
    "SELECT bit_length(name) AS x FROM people",
    // Missing values.
    "SELECT CASE WHEN nullif(name, 'Ann') IS NULL THEN 1 ELSE 0 END AS x FROM people",
    "SELECT coalesce(CASE WHEN age > 60 THEN NULL ELSE days END, 0) AS x FROM people",
    "SELECT nvl2(name, 1, 0) AS x FROM people",
    "SELECT name IS DISTINCT FROM 'Ann' AS x FROM people",
    "SELECT days FROM people WHERE (name = 'Ann') IS UNKNOWN",
    "SELECT (age > 60) IS NOT TRUE AS x FROM people",
    // Numbers.
    "SELECT greatest(patient_id, 0) AS x FROM people",
    "SELECT patient_id % 10 AS x FROM people",
    "SELECT patient_id # 7 AS x FROM people",
    "SELECT hrt + age * 0.0 AS x FROM people",
    "SELECT power(hrt, age) AS x FROM people",
    "SELECT try_cast(name AS BIGINT) AS x FROM people",
    "SELECT CAST(age AS VARCHAR) AS x FROM people",
    "SELECT to_char(admitted, '%d') AS x FROM people",
    // Nested values.
    "SELECT struct(name, hrt) AS x FROM people",
    "SELECT named_struct('a', name)['a'] AS x FROM people",
    "SELECT make_array(name)[1] AS x FROM people",
    "SELECT array_length(make_array(name, NULL)) + length(name) AS x FROM people",
    "SELECT map(make_array('a'), make_array(age))['a'][1] AS x FROM people",
    "SELECT unnest(make_array(name)) AS x FROM people",
    // Many people at once.
    "SELECT count(DISTINCT name) AS n FROM people",
    "SELECT sex, string_agg(name, ',') AS x FROM people GROUP BY sex",
    "SELECT bit_xor(patient_id) AS x FROM people",
    "SELECT min(name) AS x FROM people",
    "SELECT sum(CASE WHEN name = 'Ann' THEN hrt ELSE 0 END) AS x FROM people",
    "SELECT sex FROM people GROUP BY sex HAVING count(DISTINCT name) > 1",
    "SELECT approx_distinct(name) AS n FROM people",
    "SELECT count(*) AS n FROM people WHERE notes IS NOT NULL",
    "SELECT avg(hrt) AS x FROM people GROUP BY CASE WHEN name = 'Ann' THEN 1 ELSE 0 END",
    "SELECT corr(age, hrt) AS x FROM people",
    // Relations.
    "SELECT hrt FROM people EXCEPT SELECT hrt FROM people WHERE name = 'Ann'",
    "SELECT hrt FROM people EXCEPT ALL SELECT hrt FROM people WHERE age = 60",
    "SELECT hrt FROM people INTERSECT SELECT hrt FROM people WHERE name = 'Ann'",
    "SELECT a.hrt FROM people AS a NATURAL JOIN people AS b",
    "SELECT a.hrt FROM people AS a LEFT SEMI JOIN people AS b ON a.name = b.notes",
    "SELECT a.hrt FROM people AS a LEFT ANTI JOIN people AS b ON a.name = b.notes",
    "SELECT a.hrt FROM people AS a CROSS JOIN LATERAL (SELECT b.days FROM people AS b WHERE b.name = a.name) AS l",
    "SELECT a.days FROM people AS a, people AS b WHERE a.name = b.name",
    "SELECT (SELECT max(b.hrt) FROM people AS b WHERE b.name = a.name) AS x FROM people AS a",
    "SELECT hrt FROM people AS a WHERE days = (SELECT max(b.days) FROM people AS b WHERE b.age > a.age)",
    "SELECT hrt FROM people WHERE age > ALL (SELECT b.days FROM people AS b)",
    "SELECT hrt FROM people WHERE (days, name) IN (SELECT b.days, b.name FROM people AS b)",
    "SELECT hrt FROM people QUALIFY row_number() OVER (ORDER BY name) = 1",
    "SELECT lag(hrt) OVER (ORDER BY age) AS x FROM people",
    "SELECT hrt FROM people ORDER BY days FETCH FIRST 2 ROWS ONLY",
    "SELECT hrt FROM (SELECT hrt, name FROM people ORDER BY name LIMIT 1) AS t",
    // Failing on purpose.
    "SELECT CASE WHEN age = 60 THEN 1 / 0 ELSE days END AS x FROM people",
    "SELECT hrt FROM people WHERE days / (age - 60) > 0 OR hrt > 0",
    "SELECT hrt FROM people ORDER BY CAST(name AS BIGINT)",
    "SELECT hrt FROM (SELECT hrt, make_array(1)[age] AS y FROM people) AS t",
    "SELECT hrt FROM (SELECT hrt, repeat('x', patient_id) AS y FROM people) AS t",
    "SELECT hrt FROM (SELECT hrt, patient_id % days AS y FROM people) AS t",
    "SELECT hrt FROM (SELECT hrt, sum(1 / age) AS y FROM people GROUP BY hrt) AS t",
    "SELECT arrow_cast(patient_id, 'Int8') * 0 AS x FROM people",
    "SELECT chr(patient_id) AS x FROM people",
    "SELECT hrt FROM people WHERE CASE WHEN name = 'Ann' THEN CAST('x' AS BIGINT) ELSE 1 END = 1",
    // Rows of nobody and of everybody.
    "SELECT x.hrt FROM (VALUES (1.5)) AS x(hrt)",
    "SELECT hrt FROM people UNION ALL SELECT 1.5",
    "SELECT hrt FROM people RIGHT JOIN (VALUES (1)) AS v(x) ON FALSE",
    "SELECT coalesce(hrt, 0) AS x FROM people FULL JOIN (SELECT 1 AS one) AS v ON days = one",
    // Sensitive values.
    "SELECT DISTINCT income, hrt FROM people",
    "SELECT hrt FROM people ORDER BY income, hrt LIMIT 1",
    "SELECT max(income) AS x FROM people GROUP BY sex",
    "SELECT CASE WHEN income = 1 THEN hrt END AS x FROM people",
    "SELECT coalesce(income, 0) AS x FROM people",
    "SELECT hrt FROM people WHERE income IS NOT NULL",
    "SELECT income FROM people WHERE sex = 'f' UNION ALL SELECT days FROM people",
];

#[tokio::test]
async fn no_evasion_is_clean() {
    let world = World::new();
    let mut planned = 0;
    let mut clean = Vec::new();
    for sql in EVASIONS {
        let Some(plan) = crate::world::try_plan(sql).await else {
            continue;
        };
        planned += 1;
        if world.report(&plan, sql).is_clean() {
            clean.push(*sql);
        }
    }
    assert!(clean.is_empty(), "{clean:#?}");
    assert!(
        planned * 10 >= EVASIONS.len() * 8,
        "only {planned} of {} are planned",
        EVASIONS.len()
    );
}
