//! Every lie in a plan is found: one thing is changed in a good plan, and the checker says so.

use tidegate_plan::{Plan, Step, check};
use tidegate_types::artifact::ArtifactKind;
use tidegate_types::label::{Level, Residency};
use tidegate_types::quantity::{Money, Seconds};

use crate::world::World;

type Lie = (&'static str, fn(&mut Plan));

const LIES: [Lie; 34] = [
    ("format", |plan| plan.format.push('0')),
    ("home", |plan| plan.home = "cloud".parse().unwrap()),
    ("pipeline", |plan| plan.pipeline = "other".parse().unwrap()),
    ("deadline", |plan| plan.deadline = Some(Seconds(1_000_000))),
    ("no release", |plan| {
        plan.tasks.retain(|task| task.kind != Step::Release)
    }),
    ("train twice", |plan| plan.tasks.push(plan.tasks[1].clone())),
    ("evaluate in the cloud", |plan| {
        plan.tasks[2].site = "cloud".parse().unwrap()
    }),
    ("prepare in the cloud", |plan| {
        plan.tasks[0].site = "cloud".parse().unwrap()
    }),
    ("order", |plan| plan.tasks.swap(1, 2)),
    ("release waits for nothing", |plan| plan.tasks[4].needs.clear()),
    ("deploy elsewhere", |plan| plan.tasks[6].site = "cloud".parse().unwrap()),
    ("another name", |plan| plan.tasks[3].task = "polish".parse().unwrap()),
    ("train on the ward", |plan| plan.tasks[1].site = "ward".parse().unwrap()),
    ("rows to another site", |plan| {
        plan.crossings[1].to = "ward".parse().unwrap()
    }),
    ("rows to nobody", |plan| {
        plan.crossings[1].to = "nowhere".parse().unwrap()
    }),
    ("one crossing is hidden", |plan| drop(plan.crossings.remove(1))),
    ("one crossing too many", |plan| {
        plan.crossings.push(plan.crossings[1].clone())
    }),
    ("rows called code", |plan| plan.crossings[1].kind = ArtifactKind::Code),
    ("label lowered", |plan| plan.crossings[1].label.level = Level::Public),
    ("label above the clearance", |plan| {
        plan.crossings[1].label.level = Level::Restricted
    }),
    ("a tag too many", |plan| {
        plan.crossings[1].label.tags.insert("phi".to_owned());
    }),
    ("nowhere to be", |plan| {
        plan.crossings[1].label.residency = Residency::only(["DE"])
    }),
    ("a column is hidden", |plan| drop(plan.crossings[1].columns.pop())),
    ("a cheaper sum", |plan| plan.cost_estimate = Money::ZERO),
    ("a price is hidden", |plan| plan.tasks[1].cost = None),
    ("a crossing for nothing", |plan| {
        plan.crossings[1].cost = Some(Money::ZERO)
    }),
    ("unpriced for no reason", |plan| plan.unpriced = true),
    ("training for nothing", |plan| priced(plan, 1, Money::ZERO)),
    ("preparing for nothing", |plan| priced(plan, 0, Money::ZERO)),
    ("another site's crossing is hidden", |plan| {
        drop(plan.elsewhere[0].crossings.pop());
    }),
    ("another site stands there twice", |plan| {
        plan.elsewhere.push(plan.elsewhere[0].clone());
    }),
    ("another site is the first one", |plan| {
        let first = Plan {
            elsewhere: Vec::new(),
            ..plan.clone()
        };
        plan.elsewhere = vec![first];
    }),
    ("another site has others after it", |plan| {
        let last = plan.elsewhere[0].clone();
        plan.elsewhere[0].elsewhere.push(last);
    }),
    ("a deployment for money", |plan| {
        priced(plan, 5, Money { micro_usd: 1 });
    }),
];

/// Another cost of one task, and the sum that it gives.
fn priced(plan: &mut Plan, task: usize, cost: Money) {
    let before = plan.tasks[task].cost.replace(cost).unwrap();
    plan.cost_estimate.micro_usd = plan.cost_estimate.micro_usd + cost.micro_usd - before.micro_usd;
}

#[test]
fn every_lie_is_found() {
    let world = World::with(&[]);
    let (good, _) = world.plan().unwrap();
    assert_eq!(good.crossings[1].artifact, "train");
    for (name, lie) in LIES {
        let mut plan = good.clone();
        lie(&mut plan);
        assert_ne!(plan, good, "{name} changes nothing");
        assert!(check(&world.input(&|_| Ok(())), &plan).is_err(), "{name} was believed");
    }
}

#[test]
fn a_setup_without_a_network_is_found() {
    let own = (
        "trainer: {model: mlp, epochs: 200}",
        "code: [train.py]\n  setup: pip install x\n  run: python train.py",
    );
    let (good, _) = World::with(&[own]).plan().unwrap();
    let denied = World::with(&[own, ("network: {setup: allow}", "network: {setup: deny}")]);
    let faults = check(&denied.input(&|_| Ok(())), &good).unwrap_err();
    assert_eq!(faults, ["`cloud` has no network for the setup"]);
    let named = World::with(&[
        own,
        ("network: {setup: allow}", "network: {setup: deny}"),
        ("cpus: 2+,", "infra: cloud, cpus: 2+,"),
    ]);
    assert_eq!(check(&named.input(&|_| Ok(())), &good), Ok(()));
}

/// A plan that was good for other files is not good for these.
#[test]
fn a_plan_for_another_world_is_not_believed() {
    let (good, _) = World::with(&[]).plan().unwrap();
    for change in [
        ("clearance: {level: internal}", "clearance: {level: public}"),
        ("{only: [US]}", "{only: [DE]}"),
        (
            "jurisdiction: US\n    clearance: {level: internal}",
            "jurisdiction: CA\n    clearance: {level: internal}",
        ),
        ("cpus: 8", "cpus: 1"),
        ("memory: 16 GiB", "memory: 1 GiB"),
        ("cost: 5 USD", "cost: 0.000001 USD"),
        ("egress: 1 GiB", "egress: 1 KiB"),
        ("deadline: 2h", "deadline: 3h"),
        ("purpose: quality-of-care\nprepare", "purpose: marketing\nprepare"),
        ("k: 5", "k: 2"),
        ("refine: {calibrate: platt}\n", ""),
        ("[hospital, ward]", "[hospital]"),
        ("cpus: 2+", "infra: hospital"),
        ("egress: {\"*\": 0.02", "egress: {\"*\": 0.03"),
        ("to: internal, k", "to: confidential, k"),
    ] {
        let mut world = World::with(&[change]);
        if change.0 == "memory: 16 GiB" {
            world.pipeline.train.resources.memory = Some("2 GiB".parse().unwrap());
        }
        assert!(
            check(&world.input(&|_| Ok(())), &good).is_err(),
            "{change:?} was not noticed"
        );
    }
}
