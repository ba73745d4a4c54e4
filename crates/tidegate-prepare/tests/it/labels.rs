//! What the label analysis finds: labels, roles, reasons, and the SQL that the profile writes.

use std::collections::BTreeSet;

use tidegate_prepare::labels::analyse;
use tidegate_prepare::profile;
use tidegate_prepare::session;
use tidegate_types::Role;
use tidegate_types::files::pipeline::Profile;
use tidegate_types::label::{Level, Residency};

use crate::world::{COLUMNS, Person, World, context, plan};

#[tokio::test]
async fn clean_queries_are_clean() {
    let world = World::new();
    for sql in [
        "SELECT sex, hrt, days, income, died FROM people",
        "SELECT hrt / 2 AS half, -hrt AS minus, days + 1 AS next, hrt > 70 AS fast, died FROM people",
        "SELECT CASE WHEN hrt > 90 THEN 'fast' WHEN hrt IS NULL THEN NULL ELSE 'slow' END AS pace FROM people",
        "SELECT hrt FROM people WHERE days > 2 AND died = 1 ORDER BY patient_id",
        "SELECT a.hrt, b.days FROM people AS a JOIN people AS b ON a.days = b.days WHERE a.hrt > 1",
        "SELECT sex, avg(hrt) AS mean, count(*) AS n FROM people GROUP BY sex HAVING count(*) > 3",
        "SELECT age_band(age, 10) AS age, count(*) AS n FROM people GROUP BY age_band(age, 10)",
        "SELECT DISTINCT sex, zip3(zip) AS area FROM people",
        "SELECT hrt FROM people WHERE sex = 'f' UNION ALL SELECT hrt + 1 FROM people WHERE sex = 'm'",
        "WITH t AS (SELECT hrt, age_band(age, 10) AS band FROM people) SELECT * FROM t WHERE band < 90",
        "SELECT hrt, v.x FROM people CROSS JOIN (VALUES (1), (2)) AS v(x)",
        "SELECT sex, hrt FROM people ORDER BY sex, hrt LIMIT 3",
        "SELECT CAST(zip3(zip) AS BIGINT) AS area FROM people",
        "SELECT hrt FROM people LEFT JOIN (VALUES (1, 'one')) AS v(number, word) ON days = v.number",
        "SELECT \"hrt\" AS \"Heart rate, 1/min\" FROM people",
    ] {
        let report = world.report_of(sql).await;
        assert!(report.is_clean(), "{sql}\n{:#?}", report.refusals);
        for column in &report.columns {
            assert!(column.label.flows_to(&report.release), "{sql}: {column:?}");
        }
    }
}

#[tokio::test]
async fn roles_for_the_measurement_follow_what_is_read() {
    let world = World::new();
    let sql = "SELECT sex, age_band(age, 10) AS age, year(admitted) AS admitted, year(born) AS born, zip3(zip) AS zip, \
               income, hrt, mask(name) AS name, CASE WHEN sex = 'f' THEN hrt END AS both, died FROM people \
               WHERE sex = 'm'";
    let report = world.report_of(sql).await;
    assert!(report.is_clean(), "{:#?}", report.refusals);
    let roles: Vec<(&str, Role)> = report.columns.iter().map(|it| (it.name.as_str(), it.role)).collect();
    use Role::{Attribute, QuasiIdentifier, Sensitive};
    assert_eq!(
        roles,
        [
            ("sex", QuasiIdentifier),
            ("age", QuasiIdentifier),
            ("admitted", QuasiIdentifier),
            ("born", QuasiIdentifier),
            ("zip", QuasiIdentifier),
            ("income", Sensitive),
            ("hrt", Attribute),
            ("name", Attribute),
            ("both", QuasiIdentifier),
            ("died", Attribute),
        ]
    );
}

#[tokio::test]
async fn a_union_tells_which_branch_a_row_came_through() {
    let world = World::new();
    let sql = "SELECT 'f40' AS g, hrt, income, died FROM people WHERE sex = 'f' AND age_band(age, 10) = 40 UNION ALL \
               SELECT 'other', -hrt, income, died FROM people WHERE sex = 'm'";
    let report = world.report_of(sql).await;
    assert!(report.is_clean(), "{:#?}", report.refusals);
    let roles: Vec<Role> = report.columns.iter().map(|it| it.role).collect();
    use Role::{Attribute, QuasiIdentifier, Sensitive};
    // What every branch gives unchanged tells nothing of the branch.
    assert_eq!(roles, [QuasiIdentifier, QuasiIdentifier, Sensitive, Attribute]);
    assert_eq!(report.columns[0].reads, ["people.age", "people.sex"]);
    let same = "SELECT age_band(age, 10) AS x FROM (SELECT age, sex FROM people WHERE sex = 'f' UNION ALL SELECT age, \
                sex FROM people WHERE sex = 'm') AS t";
    assert!(world.report_of(same).await.is_clean());
}

#[tokio::test]
async fn a_shortened_name_reads_every_column_that_it_fits() {
    use datafusion::common::{Column, TableReference};
    use datafusion::logical_expr::{Expr, LogicalPlanBuilder};
    use datafusion::prelude::col;
    // `t.x` is the heart rate under its full name and the name under its short one.
    let people = context(&[]).table("people").await.unwrap();
    let half = |column: &str, alias: TableReference| {
        LogicalPlanBuilder::from(people.logical_plan().clone())
            .project([col(column).alias("x")])
            .and_then(|builder| builder.alias(alias))
            .and_then(LogicalPlanBuilder::build)
            .unwrap()
    };
    let plan = LogicalPlanBuilder::from(half("hrt", TableReference::partial("public", "t")))
        .cross_join(half("name", TableReference::bare("t")))
        .and_then(|builder| builder.project([Expr::Column(Column::new(Some("t"), "x"))]))
        .and_then(LogicalPlanBuilder::build)
        .unwrap();
    let report = World::new().report(&plan, "");
    assert_eq!(report.columns[0].reads, ["people.hrt", "people.name"]);
    assert!(!report.is_clean());
}

#[tokio::test]
async fn reports_read_well() {
    let world = World::new();
    let clean = "SELECT age_band(age, 10) AS age, sex, hrt, mask(name) AS name, 1 AS one, died FROM people WHERE \
                 zip3(zip) <> '000'";
    insta::assert_json_snapshot!("clean", world.report_of(clean).await);
    let refused = "SELECT name, age_band(age + 1, 10) AS age, hrt FROM people WHERE admitted > DATE '2020-01-01'";
    insta::assert_json_snapshot!("refused", world.report_of(refused).await);
    let unknown = "SELECT hrt, rank() OVER (ORDER BY days) AS place FROM people";
    insta::assert_json_snapshot!("not_followed", world.report_of(unknown).await);
}

#[tokio::test]
async fn without_a_profile_nothing_is_lowered() {
    let mut world = World::new();
    world.profile = Profile::None;
    let sql = "SELECT hrt, age_band(age, 10) AS age, mask(name) AS name FROM people";
    let report = world.report_of(sql).await;
    let levels: Vec<Level> = report.columns.iter().map(|it| it.label.level).collect();
    assert_eq!(levels, [Level::Confidential, Level::Restricted, Level::Restricted]);
    assert_eq!(report.refusals.len(), 3);
    assert!(
        report
            .refusals
            .iter()
            .all(|refusal| refusal.fix.contains("hipaa-safe-harbor"))
    );
    assert!(report.columns[0].label.tags.contains("phi"));
    world.to = Level::Confidential;
    assert!(world.report_of("SELECT hrt, sex, income FROM people").await.is_clean());
    assert!(!world.report_of("SELECT age FROM people").await.is_clean());
    world.to = Level::Restricted;
    assert!(
        world
            .report_of("SELECT name, age, hrt FROM people WHERE name = 'Ann' LIMIT 3")
            .await
            .is_clean()
    );
}

#[tokio::test]
async fn de_identification_removes_the_health_tag_and_no_other() {
    let mut world = World::new();
    world.dataset.tags.insert("pci".to_owned());
    let report = world.report_of("SELECT hrt FROM people").await;
    assert!(report.is_clean());
    let column = &report.columns[0];
    assert!(column.label_before.tags.contains("phi") && !column.label.tags.contains("phi"));
    assert!(column.label.tags.contains("pci"));
    assert_eq!(column.label.residency, Residency::only(["US"]));
    assert_eq!(report.release.level, Level::Internal);
}

#[tokio::test]
async fn what_is_not_measured_stays_protected_and_text_stays_home() {
    let mut world = World::new();
    world.to = Level::Restricted;
    let report = world
        .report_of("SELECT hrt, age_band(age, 10) AS age, income * 2 AS x FROM people WHERE income = 1")
        .await;
    assert!(report.is_clean(), "{:#?}", report.refusals);
    assert!(report.release.tags.contains("phi"));
    assert!(report.columns.iter().all(|column| column.label.tags.contains("phi")));
    for (profile, to) in [
        (Profile::None, Level::Restricted),
        (Profile::HipaaSafeHarbor, Level::Restricted),
        (Profile::HipaaSafeHarbor, Level::Confidential),
    ] {
        (world.profile, world.to) = (profile, to);
        for sql in [
            "SELECT notes FROM people",
            "SELECT substr(notes, 1, 3) AS x FROM people",
        ] {
            let report = world.report_of(sql).await;
            let refusal = &report.refusals[0];
            assert_eq!(refusal.rule, "text-selected", "{sql}");
            assert!(refusal.fix.contains("redact(notes)"), "{refusal}");
            assert!(report.columns[0].why.starts_with("may not leave"), "{report:#?}");
        }
    }
}

#[tokio::test]
async fn public_data_may_be_queried_at_will() {
    let mut world = World::new();
    world.dataset.public = true;
    world.dataset.subject = None;
    world.to = Level::Public;
    for profile in [Profile::None, Profile::HipaaSafeHarbor] {
        world.profile = profile;
        for sql in [
            "SELECT * FROM people",
            "SELECT name, row_number() OVER (ORDER BY name) AS place FROM people LIMIT 2",
            "SELECT hrt FROM people WHERE days IN (SELECT age FROM people)",
        ] {
            let report = world.report_of(sql).await;
            assert!(report.is_clean(), "{sql}\n{:#?}", report.refusals);
        }
        assert!(!world.report_of("SELECT random() AS x FROM people").await.is_clean());
    }
}

#[tokio::test]
async fn people_who_cannot_be_counted_are_not_released() {
    let mut world = World::new();
    world.dataset.subject = None;
    let report = world.report_of("SELECT hrt FROM people").await;
    assert!(report.refusals.iter().any(|refusal| refusal.rule == "subject-needed"));
    assert_eq!(report.columns[0].label.level, Level::Confidential);
}

#[tokio::test]
async fn columns_that_the_catalog_does_not_name_are_identifiers_until_it_writes_a_default() {
    let mut world = World::new();
    let sql = "SELECT mystery FROM people";
    assert_eq!(world.report_of(sql).await.columns[0].role, Role::Identifier);
    let attribute = world.dataset.columns["hrt"].clone();
    world.dataset.columns.insert("*".to_owned(), attribute);
    assert!(world.report_of(sql).await.is_clean());
}

#[tokio::test]
async fn the_sql_of_the_profile_is_clean_and_runs() {
    let mut world = World::new();
    let drop = BTreeSet::from(["days".to_owned()]);
    let sql = profile::write_sql(&world.facts(), &drop);
    insta::assert_snapshot!("safe_harbor_sql", sql);
    // `admitted` is called an attribute; only its type shows that it is a date, so the query of the
    // profile is refused until the catalog says so.
    let report = world.report_of(&sql).await;
    assert!(
        report
            .refusals
            .iter()
            .all(|refusal| refusal.fix.contains("year(admitted)"))
            && !report.is_clean()
    );
    let date = tidegate_types::IdentifierKind::Date;
    world.dataset.columns.get_mut("admitted").unwrap().kind = date;
    let sql = profile::write_sql(&world.facts(), &drop);
    assert!(world.report_of(&sql).await.is_clean());
    let context = context(&[Person::number(1)]);
    let planned = session::plan(&context, &sql).await.unwrap();
    let rows = context
        .execute_logical_plan(planned)
        .await
        .unwrap()
        .count()
        .await
        .unwrap();
    assert_eq!(rows, 1);
    world.profile = Profile::None;
    world.to = Level::Restricted;
    let sql = profile::write_sql(&world.facts(), &BTreeSet::new());
    insta::assert_snapshot!("none_sql", sql);
    assert!(world.report_of(&sql).await.is_clean());
}

#[test]
fn names_are_quoted_where_sql_needs_it() {
    for (name, written) in [
        ("age", "age"),
        ("d.time", "\"d.time\""),
        ("Age", "\"Age\""),
        ("order", "\"order\""),
        ("2nd", "\"2nd\""),
        ("a\"b", "\"a\"\"b\""),
        ("", "\"\""),
    ] {
        assert_eq!(profile::sql_name(name), written);
    }
}

#[tokio::test]
async fn a_plan_that_was_not_analysed_shows_its_hidden_casts() {
    // Comparing text with a number makes the engine cast the text, which fails for most names.
    let sql = "SELECT hrt FROM (SELECT hrt, name = 5 AS five FROM people) AS t";
    let context = context(&[]);
    let bare = context.state().create_logical_plan(sql).await.unwrap();
    let world = World::new();
    assert_eq!(
        analyse(&bare, &world.facts(), sql),
        analyse(&plan(sql).await, &world.facts(), sql)
    );
}

#[tokio::test]
async fn statements_are_refused_also_as_plans() {
    let world = World::new();
    let context = context(&[]);
    for sql in [
        "EXPLAIN SELECT hrt FROM people",
        "CREATE TABLE x AS SELECT hrt FROM people",
        "COPY (SELECT hrt FROM people) TO 'x.csv' STORED AS CSV",
        "INSERT INTO people SELECT * FROM people",
        "DROP TABLE people",
    ] {
        let plan = context.state().create_logical_plan(sql).await.unwrap();
        let report = analyse(&plan, &world.facts(), sql);
        assert!(
            report.refusals.iter().any(|refusal| refusal.rule == "one-select"),
            "{sql}\n{report:#?}"
        );
    }
}

#[tokio::test]
async fn deep_plans_are_refused_and_end_nothing() {
    use datafusion::prelude::{col, lit};
    let world = World::new();
    let context = context(&[]);
    let people = context.table("people").await.unwrap();
    let deep = (0..900).fold(col("hrt"), |sum, _| sum + lit(1.0));
    let frame = people.select(vec![deep.alias("x")]).unwrap();
    let report = world.report(frame.logical_plan(), "");
    assert!(
        report.refusals.iter().any(|refusal| refusal.rule == "query-too-large"),
        "{report:#?}"
    );
    assert_eq!(report.columns[0].label.level, Level::Restricted);
    let wide = vec!["hrt"; 250].join(" + ");
    assert!(
        world
            .report_of(&format!("SELECT {wide} AS x FROM people"))
            .await
            .is_clean()
    );
}

#[tokio::test]
async fn no_value_is_needed_for_the_analysis() {
    // The plan over a full table gives the same report as over an empty one.
    let people: Vec<Person> = (0..5).map(Person::number).collect();
    let world = World::new();
    let sql = "SELECT age_band(age, 10) AS age, hrt FROM people WHERE sex = 'f'";
    let full = session::plan(&context(&people), sql).await.unwrap();
    assert_eq!(world.report(&full, sql), world.report_of(sql).await);
    assert_eq!(COLUMNS.len(), world.facts().columns.len());
}
