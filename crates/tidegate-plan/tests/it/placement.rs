//! Where the training goes, and what leaves no place for it.

use tidegate_plan::{Step, check, plan};
use tidegate_types::quantity::Money;
use tidegate_types::refusal::Refusal;

use crate::world::World;

#[test]
fn the_cheapest_site_that_can_and_may_trains() {
    let table: [(&[(&str, &str)], &str); 20] = [
        // Abroad is cheaper by far, and the data may not be there.
        (&[], "cloud"),
        (&[("use_spot: true", "use_spot: false")], "hospital"),
        (&[("cpus: 2+", "cpus: 2+, infra: abroad")], "refused by residency"),
        (&[("use_spot: true", "use_spot: true, infra: hospital")], "hospital"),
        (
            &[("use_spot: true", "use_spot: true, infra: ward")],
            "refused by no-compute",
        ),
        (&[("cpus: 2+", "cpus: 4+")], "cloud"),
        (&[("cpus: 2+", "cpus: 64")], "refused by capacity"),
        (&[("cpus: 2+", "memory: 8 GiB")], "cloud"),
        (&[("cpus: 2+", "accelerators: T4")], "refused by capacity"),
        (
            &[
                ("cpus: 2+", "accelerators: \"t4:2\""),
                (
                    "memory: 2 GiB, price: 0.08",
                    "memory: 2 GiB, accelerators: \"T4:4\", price: 0.08",
                ),
            ],
            "hospital",
        ),
        (
            &[
                ("cpus: 2+", "accelerators: \"T4:2\""),
                (
                    "memory: 2 GiB, price: 0.08",
                    "memory: 2 GiB, accelerators: T4, price: 0.08",
                ),
            ],
            "refused by capacity",
        ),
        (
            &[("train:\n", "train:\n  num_nodes: 2\n")],
            "refused by nodes-not-allowed",
        ),
        // The cloud's machines reach one another, and home's do not.
        (
            &[
                ("train:\n", "train:\n  num_nodes: 2\n"),
                ("use_spot: true", "use_spot: false"),
                ("network: {setup: allow}", "network: {nodes: allow, setup: allow}"),
            ],
            "cloud",
        ),
        // Without a price it is not free.
        (&[(", price: 0.10 USD/h, spot_price: 0.04 USD/h", "")], "hospital"),
        (&[("    egress: {\"*\": 0.02 USD/GiB}\n", "")], "hospital"),
        // Above the cloud's clearance: confidential rows may only be at home.
        (
            &[
                ("to: internal, k: 5", "to: confidential, k: 5"),
                ("refine: {", "release_model: {to: confidential}\nrefine: {"),
                ("[hospital, ward]", "[hospital]"),
            ],
            "hospital",
        ),
        (&[("cost: 5 USD", "cost: 0.000001 USD")], "refused by budget"),
        (
            &[("egress: 1 GiB", "egress: 1 KiB"), ("[hospital, ward]", "[hospital]")],
            "hospital",
        ),
        (&[("deadline: 2h", "deadline: 1s")], "refused by deadline"),
        (
            &[("purpose: quality-of-care\nprepare", "purpose: marketing\nprepare")],
            "refused by purpose-not-in-catalog",
        ),
    ];
    for (changes, expected) in table {
        assert_eq!(World::with(changes).place(), expected, "{changes:?}");
    }
}

#[test]
fn every_machine_is_paid_and_told() {
    let joined = ("network: {setup: allow}", "network: {nodes: allow, setup: allow}");
    let (alone, _) = World::with(&[joined]).plan().unwrap();
    let several = World::with(&[joined, ("train:\n", "train:\n  num_nodes: 3\n")]);
    let (three, report) = several.plan().unwrap();
    let train = |plan: &tidegate_plan::Plan| {
        plan.tasks
            .iter()
            .find(|task| task.kind == Step::Train)
            .cloned()
            .unwrap()
    };
    let (one, all) = (train(&alone), train(&three));
    assert_eq!((one.machines, all.machines), (1, 3));
    let (one, all) = (one.cost.unwrap().micro_usd, all.cost.unwrap().micro_usd);
    assert!(one > 0 && (3 * one - 2..=3 * one).contains(&all), "{one} {all}");
    let text = report.render(&three);
    assert!(text.contains("cloud (3 machines)"), "{text}");
    assert!(
        text.contains("Each of the 3 machines opens what crosses for `train`"),
        "{text}"
    );
}

#[test]
fn an_unpriced_site_is_taken_only_when_it_is_named_and_is_shown() {
    let unpriced = (", price: 0.10 USD/h, spot_price: 0.04 USD/h", "");
    let (plan, report) = World::with(&[unpriced, ("cpus: 2+", "cpus: 2+, infra: cloud")])
        .plan()
        .unwrap();
    assert!(plan.unpriced);
    assert!(report.render(&plan).contains("unpriced"));
    let (plan, report) = World::with(&[unpriced]).plan().unwrap();
    let cloud = report
        .candidates
        .iter()
        .find(|candidate| candidate.site.as_str() == "cloud")
        .unwrap();
    assert!(!plan.unpriced && cloud.reason.contains("not free"), "{}", cloud.reason);
}

#[test]
fn setup_needs_a_network_unless_its_writer_says_otherwise() {
    let own = (
        "  trainer: {model: mlp, epochs: 200}\n",
        "  code: [t.py]\n  setup: pip install x\n  run: python t.py\n",
    );
    let spot = ("use_spot: true", "use_spot: false");
    assert_eq!(
        World::with(&[own, spot]).place(),
        "cloud",
        "home is cheaper and has no network"
    );
    assert_eq!(
        World::with(&[own, ("use_spot: true", "infra: hospital")]).place(),
        "hospital"
    );
}

#[test]
fn training_at_home_lets_nothing_leave() {
    let world = World::with(&[
        ("use_spot: true", "infra: hospital"),
        ("[hospital, ward]", "[hospital]"),
    ]);
    let (plan, report) = world.plan().unwrap();
    assert!(plan.crossings.is_empty());
    assert!(report.render(&plan).contains("Nothing leaves site `hospital`"));
}

#[test]
fn a_plan_ends_where_it_is_told_to() {
    let mut world = World::with(&[]);
    let all = [
        "prepare",
        "train",
        "evaluate",
        "refine",
        "release",
        "deploy-hospital",
        "deploy-ward",
    ];
    for (until, tasks) in [
        (Some(Step::Prepare), 1),
        (Some(Step::Train), 2),
        (Some(Step::Evaluate), 3),
        (Some(Step::Refine), 4),
        (Some(Step::Release), 5),
        (Some(Step::Deploy), 7),
        (None, 7),
    ] {
        world.until = until;
        let (plan, _) = world.plan().unwrap();
        let names: Vec<&str> = plan.tasks.iter().map(|task| task.task.as_str()).collect();
        assert_eq!(names, all[..tasks], "{until:?}");
        let bundles = plan
            .crossings
            .iter()
            .filter(|crossing| crossing.artifact == "bundle")
            .count();
        assert_eq!(
            bundles,
            usize::from(tasks == 7),
            "the hospital is home, the ward is not"
        );
    }
}

#[test]
fn what_policy_forbids_is_not_planned_and_its_rule_is_told() {
    let world = World::with(&[]);
    let no = |rule: &str| Refusal {
        rule: rule.to_owned(),
        what: "planning".to_owned(),
        why: "a test says so".to_owned(),
        fix: "none".to_owned(),
    };
    let no_cloud = |crossing: &tidegate_plan::PlannedCrossing| match crossing.to.as_str() {
        "cloud" => Err(no("no-cloud")),
        _ => Ok(()),
    };
    let (plan_, report) = plan(&world.input(&no_cloud)).unwrap();
    assert_eq!(plan_.tasks[1].site.as_str(), "hospital");
    let cloud = report
        .candidates
        .iter()
        .find(|candidate| candidate.site.as_str() == "cloud")
        .unwrap();
    assert!(cloud.reason.contains("a test says so") && cloud.reason.contains("no-cloud"));
    let no_bundle = |crossing: &tidegate_plan::PlannedCrossing| match crossing.artifact.as_str() {
        "bundle" => Err(no("no-bundle")),
        _ => Ok(()),
    };
    assert_eq!(plan(&world.input(&no_bundle)).unwrap_err().rule, "no-bundle");
    // The checker asks policy too: a plan made under another answer does not pass.
    assert!(check(&world.input(&no_bundle), &plan_).is_err());
}

#[test]
fn a_query_that_the_labels_refuse_is_not_planned() {
    let mut world = World::with(&[]);
    world.labels.refusals.push(Refusal {
        rule: "text-never-leaves".to_owned(),
        what: "releasing column `notes`".to_owned(),
        why: "it is text".to_owned(),
        fix: "leave it out".to_owned(),
    });
    assert_eq!(world.place(), "refused by text-never-leaves");
}

#[test]
fn a_tag_that_was_not_removed_keeps_the_rows_at_home() {
    let mut world = World::with(&[("[hospital, ward]", "[hospital]")]);
    world.labels.release.tags = ["phi".to_owned()].into();
    assert_eq!(world.place(), "hospital");
}

#[test]
fn costs_add_up() {
    let (plan, _) = World::with(&[]).plan().unwrap();
    let tasks = plan.tasks.iter().map(|task| task.cost.unwrap());
    let sum = tasks
        .chain(plan.crossings.iter().map(|crossing| crossing.cost.unwrap()))
        .fold(Money::ZERO, Money::saturating_add);
    assert_eq!(plan.cost_estimate, sum);
    assert!(sum > Money::ZERO);
}

#[test]
fn the_other_sites_come_after_the_first_as_plans_of_their_own() {
    let sites = |world: &World| -> Vec<String> {
        let (plan, _) = world.plan().unwrap();
        let all = std::iter::once(&plan).chain(&plan.elsewhere);
        all.map(|plan| plan.trains_at().unwrap().to_string()).collect()
    };
    let world = World::with(&[]);
    assert_eq!(sites(&world), ["cloud", "hospital"]);
    let (plan, report) = world.plan().unwrap();
    let home = &plan.elsewhere[0];
    assert!(home.crossings.iter().all(|crossing| crossing.task.as_str() != "train"));
    let told = report.render(&plan);
    assert!(
        told.contains("If it cannot be done there\n  train on hospital"),
        "{told}"
    );
    assert!(!told.contains("What will cross then"), "{told}");
    // Where home is the cheaper one, what would cross stands there before it does.
    let (plan, report) = World::with(&[("use_spot: true", "use_spot: false")]).plan().unwrap();
    let told = report.render(&plan);
    let besides = told.split("What will cross then, besides\n").nth(1).unwrap();
    for crossing in ["code  ", "train  ", "validation  ", "model  "] {
        assert!(besides.contains(crossing), "{told}");
    }
    let any_of = |list: &str| World::with(&[("cpus: 2+", &format!("cpus: 2+, any_of: {list}"))]);
    assert_eq!(
        sites(&any_of("[{infra: hospital}, {infra: cloud}]")),
        ["cloud", "hospital"]
    );
    assert_eq!(sites(&any_of("[{infra: hospital}]")), ["hospital"]);
    assert_eq!(any_of("[{infra: abroad}]").place(), "refused by residency");
    assert_eq!(
        sites(&World::with(&[("cpus: 2+", "cpus: 2+, infra: cloud")])),
        ["cloud"]
    );
}
