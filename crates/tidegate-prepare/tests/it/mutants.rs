//! Every rule of the analysis is needed: with the rule switched off, a query that must be refused
//! passes, and where the rule is about the flow of values, that query really leaks.

use tidegate_prepare::labels::{Rule, analyse_without};
use tidegate_types::files::pipeline::Profile;
use tidegate_types::label::Level;

use crate::noninterference::leaks;
use crate::world::{World, plan, plan_keeping_order};

enum Leak {
    /// Twins give different outputs.
    Shown,
    /// The rule is about something other than one value: the engine's order of rows, combination of
    /// releases, measurement.
    Otherwise,
}
use Leak::{Otherwise, Shown};

fn witness(rule: Rule) -> (&'static str, Leak) {
    match rule {
        Rule::UnnamedIsIdentifier => ("SELECT mystery FROM people", Shown),
        Rule::TemporalIsDate => ("SELECT admitted FROM people", Shown),
        Rule::KindRestricts => ("SELECT age FROM people", Shown),
        Rule::RowsJoinColumns | Rule::FilterDecidesRows => ("SELECT hrt FROM people WHERE name = 'name1'", Shown),
        Rule::JoinKeysDecideRows => ("SELECT a.hrt FROM people AS a JOIN people AS b USING (name)", Shown),
        Rule::JoinFilterDecidesRows => (
            "SELECT a.hrt FROM people AS a JOIN people AS b ON a.name < b.notes",
            Shown,
        ),
        Rule::JoinCarriesRows => (
            "SELECT a.hrt FROM people AS a CROSS JOIN (SELECT hrt FROM people WHERE name = 'name1') AS b",
            Shown,
        ),
        Rule::GroupKeysDecideRows => ("SELECT count(*) AS n FROM people GROUP BY name", Shown),
        Rule::DistinctDecidesRows => ("SELECT sex FROM (SELECT DISTINCT sex, name FROM people) AS t", Shown),
        Rule::LimitJoinsEverything => ("SELECT hrt FROM people ORDER BY name LIMIT 2", Shown),
        Rule::OrderedLimitDecidesRows => (
            "SELECT sex FROM (SELECT name, sex FROM people ORDER BY name, sex LIMIT 2) AS t",
            Shown,
        ),
        Rule::OrderReachesAggregates => (
            "SELECT sum(hrt) AS x FROM (SELECT hrt FROM people ORDER BY name) AS t",
            Otherwise,
        ),
        Rule::FailureDecidesRows => ("SELECT hrt FROM people ORDER BY 1 / age", Shown),
        Rule::CaseConditionsJoin => (
            "SELECT CASE WHEN name = 'name1' THEN 1 ELSE 0 END AS x FROM people",
            Shown,
        ),
        Rule::AggregateFilterJoins => ("SELECT count(*) FILTER (WHERE name = 'name1') AS n FROM people", Shown),
        Rule::OrderedAggregateJoinsEverything => ("SELECT first_value(hrt) AS x FROM people", Otherwise),
        Rule::UnionJoinsBranches => (
            "SELECT hrt FROM people UNION ALL SELECT CAST(patient_id AS DOUBLE) FROM people",
            Shown,
        ),
        Rule::UnionCarriesRows => (
            "SELECT hrt FROM people WHERE name = 'name1' UNION ALL SELECT hrt FROM people WHERE name = 'name2'",
            Shown,
        ),
        Rule::UnionOfOneColumn => (
            "SELECT zip3(x) AS x FROM (SELECT zip AS x FROM people UNION ALL \
             SELECT CASE WHEN name = 'name1' THEN '02139' ELSE '90210' END FROM people) AS t",
            Shown,
        ),
        Rule::SubqueryJoinsEverything => ("SELECT (SELECT max(name) FROM people) AS x FROM people", Shown),
        Rule::WindowJoinsEverything => ("SELECT hrt, rank() OVER (ORDER BY name) AS x FROM people", Shown),
        Rule::GroupingSetJoinsEverything => ("SELECT count(*) AS n FROM people GROUP BY ROLLUP (name)", Shown),
        Rule::UnknownJoinsEverything => ("SELECT DISTINCT ON (name) sex FROM people ORDER BY name", Shown),
        Rule::OnlyTheDataset => ("SELECT hrt FROM others", Otherwise),
        Rule::VolatileRefused => ("SELECT hrt FROM people WHERE random() < 0.5", Otherwise),
        Rule::SuppliedRowsRefused => ("SELECT hrt FROM people UNION ALL VALUES (1.5)", Otherwise),
        Rule::NoneLowersNothing => ("SELECT age_band(age, 10) AS x FROM people", Otherwise),
        Rule::DerivedCodesDoNotLower => ("SELECT token(patient_id) AS x FROM people", Shown),
        Rule::DirectReference => (
            "SELECT zip3(CASE WHEN name = 'name1' THEN '02139' ELSE '90210' END) AS x FROM people",
            Shown,
        ),
        Rule::KindFits => ("SELECT age_band(patient_id, 5) AS x FROM people", Otherwise),
        Rule::ConstantParameters => ("SELECT age_band(age, days + 1) AS x FROM people", Shown),
        Rule::ParametersInBounds => ("SELECT age_band(age, 1) AS x FROM people", Shown),
        Rule::OneFunctionPerColumn => (
            "SELECT age_band(age, 10) AS x, age_band(age, 7) AS y FROM people",
            Otherwise,
        ),
        Rule::SubjectNeeded => ("SELECT hrt FROM people", Otherwise),
        Rule::SensitiveDecidesNoRows => ("SELECT hrt FROM people WHERE income = 1", Otherwise),
        Rule::SensitiveUnchanged => ("SELECT income + hrt * 1e-9 AS x FROM people", Otherwise),
        Rule::TextNeverLeaves => ("SELECT notes FROM people", Otherwise),
        Rule::RolesStayApart => ("SELECT CASE WHEN sex = 'f' THEN income END AS x FROM people", Otherwise),
    }
}

fn world_of(rule: Rule) -> World {
    let mut world = World::new();
    match rule {
        Rule::NoneLowersNothing => world.profile = Profile::None,
        Rule::SubjectNeeded => world.dataset.subject = None,
        Rule::TextNeverLeaves => world.to = Level::Restricted,
        _ => {}
    }
    world
}

#[tokio::test]
async fn every_rule_is_needed() {
    for &rule in Rule::ALL {
        let (sql, leak) = witness(rule);
        let world = world_of(rule);
        let plan = match rule {
            Rule::OrderReachesAggregates => plan_keeping_order(sql).await,
            _ => plan(sql).await,
        };
        let whole = world.report(&plan, sql);
        assert!(!whole.is_clean(), "{rule:?}: not refused: {sql}");
        let without = analyse_without(rule, &plan, &world.facts(), sql);
        assert!(
            without.is_clean(),
            "{rule:?}: refused without it too: {sql}\n{:#?}",
            without.refusals
        );
        if matches!(leak, Shown) {
            assert!(leaks(sql, 200).await, "{rule:?}: does not leak: {sql}");
        }
    }
}
